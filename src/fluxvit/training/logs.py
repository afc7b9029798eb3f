"""What a run reports: the progress bar, ``log.jsonl`` and TensorBoard."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fluxvit.utils.files import append_json, read_json_lines, write_json_lines

LOG = "log.jsonl"
_PLAIN_LINE_SECONDS = 30.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Meter:
    """Measures how fast steps are, and how long they wait for data.

    Args:
        device: Device whose memory is reported.
        rate: Multiply-accumulates per second of matrix products on this device, for ``gemm_share``.
    """

    def __init__(self, device: torch.device, rate: float = math.nan) -> None:
        self._device, self._rate = device, rate
        self._start = 0.0
        self._held = math.nan
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._reset()

    def _reset(self) -> None:
        self._busy = self._waited = 0.0
        self._clips = self._tokens = self._macs = 0

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches. A step starts when its batch is asked for."""
        batches = iter(batches)
        while True:
            self._start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - self._start
            yield batch

    def finish_step(self, clips: int, tokens: int, macs: int = 0) -> None:
        """Count a step over so many clips and tokens, with so many multiply-accumulates of this process; the
        time until the next step is not counted.
        """
        self._busy += time.perf_counter() - self._start
        self._clips += clips
        self._tokens += tokens
        self._macs += macs
        if self._device.type == "cuda":
            self._held = torch.cuda.memory_allocated(self._device)

    def figures(self) -> dict[str, float]:
        """The figures of the steps since the last call.

        ``clips_per_s``, ``tokens_per_s``; ``gemm_share``, the part of the device's rate of matrix products
        that the multiply-accumulates make up; ``data_wait``, the part of the time that steps waited for their
        batch, 0 to 1; ``memory_gib``, the most memory so far (see :func:`peak_memory`), and
        ``activations_gib``, the part of it that is free between steps. What is unknown is NaN.
        """
        busy, peak = max(self._busy, 1e-9), peak_memory(self._device)
        figures = {
            "clips_per_s": self._clips / busy,
            "tokens_per_s": self._tokens / busy,
            "gemm_share": self._macs / busy / self._rate or math.nan,
            "data_wait": self._waited / busy,
            "memory_gib": peak / 2**30,
            "activations_gib": (peak - self._held) / 2**30,
        }
        self._reset()
        return figures


def peak_memory(device: torch.device) -> float:
    """The most memory that was in use, in bytes: that of tensors on a CUDA device, otherwise the resident
    memory of this process; NaN where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows.
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Lines(Progress):
    """A progress bar with the speed on a second line, because both do not fit the width of a terminal."""

    speed = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.speed:
            yield Text(self.speed, style="dim")


@contextmanager
def progress_line(
    title: str, total: int, done: int, enabled: bool
) -> Iterator[Callable[[dict[str, float], dict[str, float]], None]]:
    """A bar with the metrics, the time left and the speed.

    Yields:
        A function to call after each step with its metrics and the latest figures of a :class:`Meter`. Where
        the output is not a terminal it prints a plain line every half minute.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with _Lines(*columns, disable=not enabled) as progress:
        task = progress.add_task(title, total=total, completed=done, metrics="")
        plain = enabled and not progress.console.is_terminal
        last = time.monotonic()

        def advance(metrics: dict[str, float], figures: dict[str, float]) -> None:
            nonlocal last
            text = " ".join(
                f"{name.removeprefix('accuracy').removeprefix('hit')} {value:.2f}"
                for name, value in metrics.items()
            )
            if figures:
                share = figures["gemm_share"]
                progress.speed = (
                    f"{figures['tokens_per_s']:,.0f} tokens/s, {figures['clips_per_s']:.3g} clips/s, "
                    f"{'' if math.isnan(share) else f'{100 * share:.0f} % of the GEMM rate, '}"
                    f"{100 * figures['data_wait']:.0f} % waiting for data, {figures['memory_gib']:.1f} GiB"
                )
            progress.update(task, advance=1, metrics=text)
            if plain and time.monotonic() - last > _PLAIN_LINE_SECONDS:
                last = time.monotonic()
                now = progress.tasks[0]
                left = "" if now.time_remaining is None else f"  {now.time_remaining / 60:.0f} min left"
                print(f"{title} {now.completed:.0f}/{total}  {text}  {progress.speed}{left}", flush=True)

        yield advance


def require_tensorboard() -> None:
    """Raises:
    ValueError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError("optim.tensorboard needs a package: pip install 'fluxvit[tensorboard]'")


class _Row(msgspec.Struct):
    """The keys that a line of the file must have."""

    step: int


class Logs:
    """``log.jsonl``, and TensorBoard if it is asked for.

    Args:
        folder: Folder of the run.
        tensorboard: Log to its subfolder ``tensorboard``, too.
        first: Step from which the run goes on. Lines of later steps are removed.
    """

    def __init__(self, folder: Path, tensorboard: bool, first: int) -> None:
        self._path = folder / LOG
        if self._path.exists():
            rows = [row for row in read_json_lines(self._path, _Row) if row["step"] < first]
            write_json_lines(self._path, rows)
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=first)

    def write_step(self, step: int, values: dict[str, float]) -> None:
        """Log a training step, everywhere. A full disk does not end the run."""
        # Unknown values, such as the memory on some systems, are left out: JSON has no NaN.
        values = {name: float(f"{value:.7g}") for name, value in values.items() if math.isfinite(value)}
        try:
            append_json(self._path, {"step": step, **values})
        except OSError as error:
            _log.warning("%s: step %d is not logged: %s", self._path, step, error.strerror)
        self.write(step, {f"train/{name}": value for name, value in values.items()})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log to TensorBoard only."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
