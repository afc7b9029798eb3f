"""The training loop: steps, progress, checkpoints, resuming. It knows no loss and no data set."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fluxvit.data.dataset import Clip
from fluxvit.files import atomic_path
from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.optim import cosine_schedule, parameter_groups
from fluxvit.training.tasks import Task
from fluxvit.video.transforms import normalize

STATE = "state.pt"
LOG = "log.jsonl"


class Stopped(Exception):
    """Training was interrupted by a signal; everything is saved."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        steps: Optimiser steps.
        batch_size: Clips a step.
        lr: Peak learning rate of AdamW.
        min_lr_ratio: Last learning rate over the peak's.
        warmup: Steps of linear warm-up.
        weight_decay: Of matrices.
        betas: Of AdamW.
        clip_grad: Largest norm of the gradient; 0 for no limit.
        precision: ``fp32``, ``bf16`` (autocast), or ``auto``: what multiplies faster on this device.
        seed: Of initialisation, grids, clip order and augmentation.
        save_seconds: Time between saved states.
    """

    steps: int = 1000
    batch_size: int = 32
    lr: float = 1e-3
    min_lr_ratio: float = 0.01
    warmup: int = 100
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    clip_grad: float = 1.0
    precision: str = "auto"
    seed: int = 0
    save_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision {self.precision!r}: choose auto, fp32 or bf16")
        if min(self.steps, self.batch_size) < 1:
            raise ValueError("steps and batch_size must be at least 1")


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


@dataclass
class Trainer:
    """Trains a model and saves what a later run needs to go on.

    Args:
        model: Trained in place.
        task: Computes the loss.
        config: How to train.
        batches: From a first step to an iterable of batches from there on.
        folder: Where the state and the log go.
        mean, std: Normalisation of the clips.
        fingerprint: Identifies the run; a saved state of another run is refused.
        precision: After :meth:`run`, what it trained in: ``fp32`` or ``bf16``.
    """

    model: FluxViT
    task: Task
    config: TrainConfig
    batches: Callable[[int], Iterable[Clip]]
    folder: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, Any]
    precision: str = field(default="", init=False)

    def run(self, title: str = "Training", progress: bool = True) -> None:
        """Train to the last step, from where a former run stopped if there was one.

        Raises:
            Stopped: A signal asked to stop; the state is saved.
            ValueError: The folder holds the state of another run, or the loss is no longer finite.
        """
        config, device = self.config, next(self.model.parameters()).device
        groups = parameter_groups(self.model, config.weight_decay, self.model.no_weight_decay())
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
        self.precision = config.precision
        first = self._restore(optimizer)
        self._trim_log(first)
        if first == config.steps:
            return
        if self.precision == "auto":
            self.precision = faster_precision(device)
        autocast = torch.bfloat16 if self.precision == "bf16" else None
        self.model.train()
        saved = time.monotonic()
        smooth: dict[str, float] = {}
        with _stop_on_signals() as stopping, _bar(title, config.steps, first, progress) as advance:
            for step, batch in enumerate(self.batches(first), start=first):
                metrics = self._step(batch, step, optimizer, autocast, device)
                for name, value in metrics.items():
                    smooth[name] = value + 0.95 * (smooth.get(name, value) - value)
                advance(smooth)
                if step % 10 == 0:
                    self._log(step, metrics)
                if stopping() or time.monotonic() - saved > config.save_seconds:
                    self._save(optimizer, step + 1)
                    saved = time.monotonic()
                    if stopping():
                        raise Stopped(f"stopped after step {step + 1} of {config.steps}")
        self._save(optimizer, config.steps)

    def _step(
        self,
        batch: Clip,
        step: int,
        optimizer: torch.optim.Optimizer,
        autocast: torch.dtype | None,
        device: torch.device,
    ) -> dict[str, float]:
        config = self.config
        # Dropout and drop path must not depend on what ran before: a resumed run takes the same steps.
        torch.manual_seed(hash((config.seed, step)))
        video = normalize(batch.video.to(device), self.mean, self.std)
        label = batch.label.to(device)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            result = self.task(self.model, video, label)
        loss = result["loss"]
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
        rate = config.lr * cosine_schedule(step, config.steps, config.warmup, config.min_lr_ratio)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        optimizer.step()
        return {name: value.item() for name, value in result.items()}

    def _save(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        state = {
            "fingerprint": self.fingerprint,
            "step": step,
            # Not to be chosen again: a resumed run takes the steps that it would have taken.
            "precision": self.precision,
            "model": self.model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        with atomic_path(self.folder / STATE) as partial:
            torch.save(state, partial)

    def _restore(self, optimizer: torch.optim.Optimizer) -> int:
        path = self.folder / STATE
        if not path.exists():
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(f"{path} is of a run with other settings; choose another folder or remove it")
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        self.precision = state["precision"]
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
