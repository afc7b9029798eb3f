"""The training loop: steps, progress, checkpoints, resuming. It knows no loss and no data set."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fluxvit.data.dataset import Clip
from fluxvit.files import atomic_path
from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.config import TrainConfig
from fluxvit.training.distributed import ALONE, World, parallelize
from fluxvit.training.ema import Ema
from fluxvit.training.mixing import Mixing
from fluxvit.training.optim import cosine_schedule, parameter_groups
from fluxvit.training.tasks import Task
from fluxvit.video.transforms import normalize

STATE = "state.pt"
LOG = "log.jsonl"


class Stopped(Exception):
    """Training was interrupted by a signal; everything is saved."""


def faster_precision(device: torch.device) -> str:
    """``bf16`` or ``fp32``: on a CPU, what multiplies matrices faster, for CPUs differ widely in bf16."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        return min(times)

    return "bf16" if seconds(torch.bfloat16) < 0.8 * seconds(torch.float32) else "fp32"


class LossStep(nn.Module):
    """A task bound to its model: what data parallelism wraps."""

    def __init__(self, model: FluxViT, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, video: Tensor, label: Tensor) -> dict[str, Tensor]:
        return self.task(self.model, video, label)


@dataclass
class Trainer:
    """Trains a model and saves what a later run needs to go on.

    Args:
        model: Trained in place, on ``world.device``.
        task: Computes the loss.
        config: How to train.
        batches: From a first step to an iterable of this process's batches from there on.
        folder: Where the state and the log go.
        mean, std: Normalisation of the clips.
        fingerprint: Identifies the run; a saved state of another run is refused.
        world: The processes of the run.
        mixing: Mixes the clips of a batch in pairs, with soft labels; None: does not.
        after_step: Called with the number of steps taken after each, for evaluation; in every process.

    Attributes:
        precision: What :meth:`run` trained in: ``fp32`` or ``bf16``.
        ema: The moving average of the weights, if the configuration asks for one.
        skipped: Steps left out because the loss or the gradient was not finite.
        replaced: Clips that could not be read, and others taken for them, in this process.
    """

    model: FluxViT
    task: Task
    config: TrainConfig
    batches: Callable[[int], Iterable[Clip]]
    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, Any]
    world: World = ALONE
    mixing: Mixing | None = None
    after_step: Callable[[int], None] | None = None
    precision: str = field(default="", init=False)
    ema: Ema | None = field(default=None, init=False)
    skipped: int = field(default=0, init=False)
    replaced: int = field(default=0, init=False)

    @property
    def best_weights(self) -> FluxViT:
        """The model to evaluate and to keep: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.model

    def run(self, title: str = "Training", progress: bool = True) -> None:
        """Train to the last step, from where a former run stopped if there was one.

        Raises:
            Stopped: A signal asked to stop; the state is saved.
            ValueError: The folder holds the state of another run, or the loss stays not finite.
        """
        config, world = self.config, self.world
        groups = parameter_groups(self.model, config.weight_decay, config.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
        self.precision = config.precision
        self.ema = Ema(self.model, config.ema) if config.ema else None
        first = self._restore(optimizer)
        if world.is_main:
            self._trim_log(first)
        if first == config.steps:
            return
        if self.precision == "auto":
            self.precision = faster_precision(world.device)
        loss_step = parallelize(
            LossStep(self.model, self.task),
            self.model,
            world,
            checkpoint_blocks=config.checkpoint_blocks,
            compile_blocks=config.compile_blocks,
        )
        saved, bad_in_a_row = time.monotonic(), 0
        smooth: dict[str, float] = {}
        shown = progress and world.is_main
        with _stop_on_signals() as stopping, _bar(title, config.steps, first, shown) as advance:
            for step, batch in enumerate(self.batches(first), start=first):
                metrics = self._step(loss_step, batch, step, optimizer)
                bad_in_a_row = 0 if metrics else bad_in_a_row + 1
                if bad_in_a_row == config.max_bad_steps:
                    raise ValueError(
                        f"the loss or its gradient was not finite {bad_in_a_row} times in a row, up to step "
                        f"{step}; lower the learning rate or train in fp32"
                    )
                for name, value in metrics.items():
                    smooth[name] = value + 0.95 * (smooth.get(name, value) - value)
                advance(smooth)
                if step % 10 == 0 and metrics and world.is_main:
                    self._log(step, metrics)
                if self.after_step is not None:
                    self.after_step(step + 1)
                    self.model.train()
                stop = world.any(stopping())
                if stop or world.any(time.monotonic() - saved > config.save_seconds):
                    self._save(optimizer, step + 1)
                    saved = time.monotonic()
                    if stop:
                        raise Stopped(f"stopped after step {step + 1} of {config.steps}")
        self._save(optimizer, config.steps)

    def _step(
        self, loss_step: nn.Module, batch: Clip, step: int, optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        """Take a step; returns its metrics, averaged over processes, or nothing if the step was skipped."""
        config, world = self.config, self.world
        self.model.train()
        # Dropout and drop path must not depend on what ran before: a resumed run takes the same steps.
        torch.manual_seed(hash((config.seed, step)) + world.rank)
        rate = config.lr * cosine_schedule(step, config.steps, config.warmup, config.min_lr_ratio)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        optimizer.zero_grad(set_to_none=True)
        self.replaced += int(batch.replaced.sum())
        totals: dict[str, Tensor] = {}
        parts = list(
            zip(batch.video.chunk(config.accumulate), batch.label.chunk(config.accumulate), strict=True)
        )
        for i, (video, label) in enumerate(parts):
            video = normalize(video.to(world.device), self.mean, self.std)
            target = label.to(world.device)
            if self.mixing is not None:
                seed = (config.seed, step, world.rank, i)
                video, target = self.mixing(video, target, self.model.num_classes, seed)
            # Gradients travel between processes once a step, with the last part.
            waits = isinstance(loss_step, DistributedDataParallel) and i < len(parts) - 1
            with loss_step.no_sync() if waits else nullcontext():
                with torch.autocast(world.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    result = loss_step(video, target)
                # All processes must agree, or those that go on would wait for ever for the one that does not.
                if world.any(not math.isfinite(result["loss"].item())):
                    return self._skip(optimizer)
                (result["loss"] / len(parts)).backward()
            for name, value in result.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach() / len(parts)
        limit = config.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if not math.isfinite(norm.item()):
            return self._skip(optimizer)
        optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step)
        return {name: world.mean(value).item() for name, value in totals.items()}

    def _skip(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        return {}

    def _save(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        if self.world.is_main:
            state = {
                "fingerprint": self.fingerprint,
                "step": step,
                # Not to be chosen again: a resumed run takes the steps that it would have taken.
                "precision": self.precision,
                "skipped": self.skipped,
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            with atomic_path(self.folder / STATE) as partial:
                torch.save(state, partial)
        self.world.barrier()

    def _restore(self, optimizer: torch.optim.Optimizer) -> int:
        path = self.folder / STATE
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(f"{path} is of a run with other settings; choose another folder or remove it")
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        self.precision, self.skipped = state["precision"], state["skipped"]
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        return state["step"]

    def _trim_log(self, first: int) -> None:
        """Drop logged steps that will be taken again, and what a crash left of a line."""
        path = self.folder / LOG
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < first:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                continue
        with atomic_path(path) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, **{k: round(v, 5) for k, v in metrics.items()}}) + "\n")


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


@contextmanager
def _bar(title: str, total: int, done: int, enabled: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, disable=not enabled) as progress:
        task = progress.add_task(title, total=total, completed=done, metrics="")

        def advance(metrics: dict[str, float]) -> None:
            text = " ".join(f"{name.removeprefix('accuracy')} {value:.2f}" for name, value in metrics.items())
            progress.update(task, advance=1, metrics=text)

        yield advance
