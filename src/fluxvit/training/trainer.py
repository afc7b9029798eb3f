"""The training loop: steps, saved states, resuming, stopping; independent of loss and data set."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.utils.deterministic
from torch import Tensor, nn

from fluxvit.data.dataset import Clip
from fluxvit.models.gemm import gemm_rate
from fluxvit.training.config import TrainConfig
from fluxvit.training.ema import Ema
from fluxvit.training.logs import Logs, Meter, progress_line, require_tensorboard
from fluxvit.training.optim import cosine_schedule, make_optimizer
from fluxvit.training.parallel import accumulating, full, parallelize
from fluxvit.training.state import (
    About,
    Saved,
    changed_settings,
    find_state,
    restore_tensors,
    run_tensors,
    save_state,
    tidy,
)
from fluxvit.training.tasks.base import Batch, Task
from fluxvit.utils.distributed import ALONE, World
from fluxvit.utils.system import Stopped, log_device

# The settings that may change when a run goes on: its length, and with it the schedule of the learning rate.
_FREE = frozenset(("epochs", "steps", "warmup"))

MAX_BAD_STEPS = 20
"""Number of consecutive steps with a loss that is not finite that ends a run. Each of them is skipped."""
# A run fails if a larger part of its steps was skipped.
_MOST_SKIPPED = 0.5

_log = logging.getLogger(__name__)


def faster_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """The number format to train in: on a CPU the one that multiplies matrices faster."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"

    types = (torch.bfloat16, torch.float32)
    pairs = [(torch.ones(2048, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)) for dtype in types]
    times: list[list[float]] = [[], []]
    # The types take turns, so that other work on the machine slows both.
    for _ in range(16):
        for (a, b), seconds in zip(pairs, times, strict=True):
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
    bf16, fp32 = map(min, times)
    return "bf16" if bf16 < 0.8 * fp32 else "fp32"


class LateFigures:
    """Figures on a device that are read later; what the device is given meanwhile is not waited for."""

    def __init__(self, figures: Tensor) -> None:
        self._figures, self._copied = figures, None
        if figures.is_cuda:
            self._figures = figures.to("cpu", non_blocking=True)  # Into pinned memory.
            self._copied = torch.cuda.current_stream(figures.device).record_event()

    def read(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._figures.tolist()


class _Taken(NamedTuple):
    """The last step: its number and learning rate; and its figures, which are the means of these names, the
    norm of the gradient, and whether the step was skipped.
    """

    step: int
    rate: float
    names: tuple[str, ...]
    figures: LateFigures


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a device, on CUDA through pinned memory, so that the host does not wait."""
    return {
        name: (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
        for name, value in batch.items()
    }


@dataclass
class Trainer:
    """Trains a task and saves what a later run needs to go on.

    Args:
        task: The task, on ``world.device``.
        config: The settings of the training.
        batches: Gives this process's batches from a step on.
        folder: Folder of the state and the log.
        fingerprint: Identifies the run, in values that JSON knows. The saved state of another run is refused,
            unless it differs in its number of steps only.
        world: The processes of the run.
        after_step: Called with this trainer and the number of steps taken, for evaluation: in every process,
            at the start of the run (with 0, or the steps of former runs) and after each step. It can stop the
            run by :class:`Stopped`, in all processes or in none, if ``stopping`` says so; it is called again
            with the same number when the run goes on.

    Attributes:
        precision: The number format in which :meth:`run` trained.
        ema: The moving average of the task's weights, if the configuration asks for one.
        skipped: Steps that were skipped because the loss or the gradient was not finite.
        replaced: Clips of this process that could not be read and were replaced.
        stopping: Whether this process was asked to stop.
    """

    task: Task
    config: TrainConfig
    batches: Callable[[int], Iterable[Clip]]
    folder: Path
    fingerprint: dict[str, Any]
    world: World = ALONE
    after_step: Callable[[Trainer, int], None] | None = None
    precision: Literal["fp32", "bf16"] = field(default="fp32", init=False)
    ema: Ema | None = field(default=None, init=False)
    skipped: int = field(default=0, init=False)
    replaced: int = field(default=0, init=False)
    stopping: Callable[[], bool] = field(default=lambda: False, init=False)
    _logs: Logs | None = field(default=None, init=False)
    _saved_step: int = field(default=0, init=False)
    _taken: _Taken | None = field(default=None, init=False)
    _bad_in_a_row: int = field(default=0, init=False)
    _report: Callable[[int, dict[str, float], dict[str, float]], None] = field(
        default_factory=lambda: lambda *_: None, init=False
    )

    def gather_state(self) -> dict[str, Tensor]:
        """The weights to evaluate and to keep, named as in the task's state dict; their moving average if
        there is one.

        All processes must call this together, and each gets all weights, even if they are sharded: four bytes
        a parameter. They may share the memory of the task: use them before the next step.
        """
        self._settle()
        weights = self.task.state_dict() if self.ema is None else self.ema.weights
        return {name: full(value) for name, value in weights.items()}

    def check_saved(self) -> None:
        """Check that the folder holds no state, or one that this run can go on from.

        Raises:
            ValueError: The state is of a run with other settings, which are named, or with more steps than
                this run has; or it is damaged; or TensorBoard is not installed.
        """
        if self.config.tensorboard:
            require_tensorboard()
        self._find_saved()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log figures of an evaluation to the run's loggers; in the main process only."""
        if self._logs is not None:
            self._logs.write(step, values)

    def run(self, title: str = "Training", progress: bool = True) -> None:
        """Train to the last step, from where a former run stopped if there was one.

        Raises:
            Stopped: A signal asked to stop; the state is saved.
            ValueError: The folder holds the state of another run (see :meth:`check_saved`), or the loss stays
                not finite.
            OSError: The last state could not be saved. If an earlier one cannot be saved, the run warns, goes
                on and tries again after ``save_seconds``.
        """
        config, world = self.config, self.world
        step_module = parallelize(
            self.task,
            world,
            steps=config.steps,
            checkpoint_blocks=config.checkpoint_blocks,
            compile_blocks=config.compile_blocks,
            shard=config.shard,
        )
        # After sharding, which replaces the parameters.
        optimizer = make_optimizer(self.task, config)
        self.ema = Ema(self.task, config.ema) if config.ema else None
        first = self._restore(optimizer)
        with _stop_on_signals() as self.stopping:
            try:
                self._start_logs(first)
                if self._call_after_step(first):
                    raise Stopped(f"stopped after step {first} of {config.steps}")
                if first < config.steps:
                    if self.world.is_main:
                        log_device(self.world.device)
                    with _repeatable(self.world.device):
                        self._train(step_module, optimizer, first, title, progress)
                if self.skipped > self.config.steps * _MOST_SKIPPED:
                    raise ValueError(
                        f"{self.skipped} of {self.config.steps} steps were skipped, because their loss or "
                        "gradient was not finite: the model has hardly been trained; lower the learning "
                        "rate, set clip_grad or train in fp32, and choose another folder"
                    )
            finally:
                if self._logs is not None:
                    self._logs.close()

    def _start_logs(self, first: int) -> None:
        if self.world.is_main:
            tidy(self.folder)
            # A run that is finished logs nothing more.
            self._logs = Logs(self.folder, self.config.tensorboard and first < self.config.steps, first)

    def _train(
        self, step_module: nn.Module, optimizer: torch.optim.Optimizer, first: int, title: str, progress: bool
    ) -> None:
        config, world = self.config, self.world
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        rate = gemm_rate(world.device, dtype) if self._logs is not None else math.nan
        meter, figures = Meter(world.device, rate), dict[str, float]()
        saved = time.monotonic()
        smooth: dict[str, float] = {}
        with progress_line(title, config.steps, first, progress and world.is_main) as advance:

            def report(step: int, metrics: dict[str, float], rates: dict[str, float]) -> None:
                nonlocal figures
                for name, value in metrics.items():
                    smooth[name] = value + 0.95 * (smooth.get(name, value) - value)
                if step % config.log_every == 0 and metrics and self._logs is not None:
                    figures = meter.figures()
                    self._logs.write_step(step, {**metrics, **rates, **figures})
                advance(smooth, figures)

            self._report = report
            for step, batch in enumerate(meter.watch(self.batches(first)), start=first):
                self._step(step_module, batch, step, optimizer)
                meter.finish_step(
                    len(batch.video) * world.size,
                    self.task.count_tokens(batch.video) * world.size,
                    self.task.count_macs(batch.video),
                )
                stop = self._call_after_step(step + 1) or world.any(self.stopping())
                if stop or world.any(time.monotonic() - saved > config.save_seconds):
                    self._save(optimizer, step + 1, or_warn=not stop)
                    saved = time.monotonic()
                if stop:
                    raise Stopped(f"stopped after step {step + 1} of {config.steps}")
            self._save(optimizer, config.steps)

    def _call_after_step(self, taken: int) -> bool:
        """Call ``after_step``; returns whether it was interrupted, as it then was in all processes."""
        if self.after_step is None:
            return False
        try:
            self.after_step(self, taken)
        except Stopped:
            return True
        return False

    def _step(self, step_module: nn.Module, batch: Clip, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Take a step, whose figures :meth:`_settle` reads when the device has taken it."""
        config, world = self.config, self.world
        self.task.train()
        # Dropout and drop path must not depend on what ran before: a resumed run takes the same steps.
        torch.manual_seed(hash((config.seed, step)) + world.rank)
        rate = config.lr * cosine_schedule(step, config.steps, config.warmup, config.min_lr_ratio)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.replaced += int(batch.replaced.sum())
        totals: dict[str, Tensor] = {}
        named = self.task.collate(batch)
        chunks = zip(*(values.chunk(config.accumulate) for values in named.values()), strict=True)
        parts = [dict(zip(named, chunk, strict=True)) for chunk in chunks]
        for i, part in enumerate(parts):
            share = len(part["video"]) / len(batch.video)
            prepared = self.task.prepare(to_device(part, world.device), (config.seed, step, world.rank, i))
            with accumulating(step_module, last=i == len(parts) - 1):
                with torch.autocast(world.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    result = step_module(prepared)
                (result["loss"] * share).backward()
            for name, value in result.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() * share
        limit = config.clip_grad or math.inf
        norm = full(torch.nn.utils.clip_grad_norm_(step_module.parameters(), limit))
        means = world.mean(torch.stack([value.float() for value in totals.values()]))
        grad_norm = norm.to(means)
        # The processes agree to skip a step: all of them get the same means, and the same norm.
        bad = 1 - (means[list(totals).index("loss")] + grad_norm).isfinite().float()
        # The moving average needs the weights of the former step, which this step changes.
        self._settle()
        # With this attribute the optimiser leaves everything as it is if the value is 1, without the host's
        # help, except on MPS.
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        if world.device.type != "mps" or not bad.item():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        figures = LateFigures(torch.cat([means, torch.stack([grad_norm, bad])]))
        self._taken = _Taken(step, rate, tuple(totals), figures)

    def _settle(self) -> None:
        """Read the figures of the last step, and do what follows from them, once."""
        if self._taken is None:
            return
        taken, self._taken = self._taken, None
        *values, grad_norm, bad = taken.figures.read()
        if not bad:
            self._bad_in_a_row = 0
            if self.ema is not None:
                self.ema.update(self.task, taken.step)
            metrics = dict(zip(taken.names, values, strict=True))
            self._report(taken.step, metrics, {"lr": taken.rate, "grad_norm": grad_norm})
            return
        self.skipped += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row == 1 and self.world.is_main:
            _log.warning("step %d was skipped: its loss or gradient is not finite", taken.step)
        if self._bad_in_a_row == MAX_BAD_STEPS:
            raise ValueError(
                f"the loss or its gradient was not finite {MAX_BAD_STEPS} times in a row, up to step "
                f"{taken.step}; lower the learning rate or train in fp32"
            )
        self._report(taken.step, {}, {})

    def _save(self, optimizer: torch.optim.Optimizer, step: int, *, or_warn: bool = False) -> None:
        """Save the state. If that fails, raise, or warn and go on."""
        self._settle()
        if step == self._saved_step:
            return
        about = About(step, self.fingerprint, self.precision, self.skipped)
        tensors = run_tensors(self.task, self.ema, optimizer)
        try:
            save_state(self.folder, about, tensors, self.world)
        except OSError as error:
            former = (
                f"the last good state is of step {self._saved_step}" if self._saved_step else "there is none"
            )
            text = f"{error.strerror}; {former}"
            if not or_warn:
                cure = "make room, and the same command goes on from there"
                raise OSError(error.errno, f"{text}; {cure}", str(self.folder)) from error
            if self.world.is_main:
                _log.warning("%s: %s; training goes on and tries again", self.folder, text)
        else:
            self._saved_step = step

    def _restore(self, optimizer: torch.optim.Optimizer) -> int:
        """Go back to the newest saved state, if there is one; returns the steps taken."""
        saved = self._find_saved()
        if saved is None:
            precision, device = self.config.precision, self.world.device
            self.precision = (
                self.world.main_value(faster_precision(device)) if precision == "auto" else precision
            )
            return 0
        restore_tensors(saved, self.task, self.ema, optimizer)
        self.precision, self.skipped = saved.about.precision, saved.about.skipped
        self._saved_step = saved.about.step
        return saved.about.step

    def _find_saved(self) -> Saved | None:
        """The newest saved state, if it is of this run."""
        saved = find_state(self.folder)
        if saved is None:
            return None
        changed = changed_settings(saved.about.fingerprint, self.fingerprint, free=_FREE)
        if changed:
            raise ValueError(
                f"{saved.path} is of a run with other settings: {'; '.join(changed)}; give them as they were "
                "to go on with it, or choose another folder for a new run"
            )
        if saved.about.step > self.config.steps:
            raise ValueError(
                f"{saved.path} is of a run that has taken {saved.about.step} steps, and this one would "
                f"end after {self.config.steps}; train for more epochs, or choose another folder"
            )
        return saved


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Make steps on a CPU repeatable to the last bit, which costs nothing there.

    Some backward passes otherwise add in the order in which threads happen to finish.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        memory.fill_uninitialized_memory = fills


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """While active, the first Ctrl-C or SIGTERM only sets a flag, so that a step is never cut in two."""
    caught = []
    former = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        caught.append(number)
        for s, handler in former.items():
            signal.signal(s, handler)

    for s in former:
        signal.signal(s, note)
    try:
        yield lambda: bool(caught)
    finally:
        for s, handler in former.items():
            signal.signal(s, handler)
