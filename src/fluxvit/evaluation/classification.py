"""Accuracy of a model on labelled clips at a plan."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.classes import numbered_like
from fluxvit.data.dataset import Clip, ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import Manifest
from fluxvit.evaluation.config import ONE_VIEW, Views
from fluxvit.evaluation.metrics import Score
from fluxvit.evaluation.views import ReadableOrBlack, merge_views
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.flux.selection import Selector, get_selector
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViT


@dataclass(frozen=True)
class Predictions:
    """Logits ``[N, classes]`` and labels of a data set, in its order.

    Labels are class indices ``[N]``, or multi-hot ``[N, classes]``. Of several views the logits are the
    logarithms of the mean probabilities. Those of a clip that could not be read are not numbers;
    ``unreadable`` has the reason by its row.
    """

    logits: Tensor
    labels: Tensor
    unreadable: Mapping[int, str] = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """Accuracy; clips that could not be read count as wrong. Labels must be class indices."""
        right = (self.logits.argmax(-1) == self.labels) & ~self.logits.isnan().any(-1)
        return Score(int(right.sum()), len(self.labels))


def predict_dataset(
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    grid: SamplingGrid,
    keeps: Sequence[int],
    *,
    head: int | None = None,
    selector: str | Selector = "group_dynamic",
    batch_size: int = 32,
    workers: int = 0,
    progress: str | None = None,
    indices: Sequence[int] | None = None,
    after_batch: Callable[[], None] | None = None,
) -> list[Predictions]:
    """Run a model over every clip of a data set, one central view each.

    Args:
        grid: Sampling of every clip.
        keeps: Budgets; the pool is embedded once for all of them.
        head: Head to read; None: the nearest to each budget.
        selector: Which tokens are kept.
        batch_size, workers, progress, indices, after_batch: As for :func:`predict_requests`.

    Returns:
        Predictions for each budget, in the order of the clips.

    Raises:
        VideoError: A video cannot be read. Evaluation never replaces one by another.
    """
    return predict_requests(
        checkpoint,
        dataset,
        grid,
        [Request(keep, head, selector) for keep in keeps],
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        indices=indices,
        after_batch=after_batch,
    )


@dataclass(frozen=True)
class Request:
    """What to do with the clips of a grid: a plan without it. A selector may be one that has no name."""

    keep: int
    head: int | None = None
    selector: str | Selector = "group_dynamic"

    @classmethod
    def of(cls, plan: Plan, seed: int = 0) -> Request:
        """The selector of a plan; ``seed`` is for selectors that draw at random."""
        chooser = get_selector(plan.selector)
        if hasattr(chooser, "seed"):
            chooser = replace(chooser, seed=seed)  # type: ignore[type-var]
        return cls(plan.keep, plan.head, chooser)


@torch.inference_mode()
def predict_requests(
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    grid: SamplingGrid,
    requests: Sequence[Request],
    *,
    views: Views = ONE_VIEW,
    precision: str = "fp32",
    batch_size: int = 32,
    workers: int = 0,
    progress: str | None = None,
    indices: Sequence[int] | None = None,
    after_batch: Callable[[], None] | None = None,
    tolerant: bool = False,
) -> list[Predictions]:
    """Run a model over every clip of a data set, read once for all requests of a grid.

    Args:
        grid: Sampling of every clip.
        requests: Budgets, heads and selectors. The pool is embedded once for all that share head and
            selector.
        views: Views of each clip, whose probabilities are averaged.
        precision: ``fp32``, or ``bf16`` (autocast).
        batch_size: Clips at once. All their views are.
        workers: Processes that decode; 0: this one.
        progress: Title of a progress bar; None for none.
        indices: Clips to take, at least one; None: all.
        after_batch: Called after each batch; may raise to end it early.
        tolerant: Go on if a video cannot be read, and name it in the predictions.

    Returns:
        Predictions for each request, in the order of the clips.

    Raises:
        VideoError: A video cannot be read, and that is not tolerated.
        NotFiniteError: The model's output for a video is not finite.
    """
    model, device = checkpoint.model.eval(), checkpoint.device
    logits: list[list[Tensor]] = [[] for _ in requests]
    labels: list[Tensor] = []
    unreadable: dict[int, str] = {}
    batches = epoch_batches(len(dataset), grid, batch_size, indices, views)
    source = ReadableOrBlack(dataset) if tolerant else dataset
    console = Console(stderr=True)  # What is printed may go to a file.
    hidden = progress is None or not console.is_terminal
    clips, done = loader(source, batches, workers, name_faults=False), 0
    for clip in track(clips, progress or "", len(batches), console=console, transient=True, disable=hidden):
        video = checkpoint.normalize(clip.video)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            answers = _answer(model, video, requests)
        bad = clip.replaced[:: views.total] > 0
        for rows, answer in zip(logits, answers, strict=True):
            merged = merge_views(answer.cpu(), views.total, checkpoint.multi_label)
            wrong = ~merged.isfinite().all(-1) & ~bad
            if wrong.any():
                item = int(clip.item[int(wrong.int().argmax()) * views.total])
                check_finite(merged[wrong], dataset.manifest.entries[item].path)
            merged[bad] = math.nan
            rows.append(merged)
        for row in bad.nonzero().flatten().tolist():
            unreadable[done + row] = _reason(dataset, clip, row * views.total)
        labels.append(clip.label[:: views.total])
        done += len(bad)
        if after_batch is not None:
            after_batch()
    return [Predictions(torch.cat(rows), torch.cat(labels), unreadable) for rows in logits]


def _answer(model: FluxViT, video: Tensor, requests: Sequence[Request]) -> list[Tensor]:
    """Logits for each request; those of one head and selector in one pass."""
    together = defaultdict(list)
    for place, request in enumerate(requests):
        together[request.head, request.selector].append(place)
    answers: dict[int, Tensor] = {}
    for (head, selector), places in together.items():
        outs = model(video, [requests[place].keep for place in places], head, selector)
        answers |= {place: out.logits for place, out in zip(places, outs, strict=True)}
    return [answers[place] for place in range(len(requests))]


def _reason(dataset: ClipDataset, clip: Clip, row: int) -> str:
    """Why a clip of a batch could not be read, without its path."""
    path = f"{dataset.manifest.entries[int(clip.item[row])].path}: "
    faults = [fault.removeprefix(path) for fault in clip.faults if fault.startswith(path)]
    return faults[0] if faults else "cannot be read"


def number_for_checkpoint(data: str, manifest: Manifest, name: str, checkpoint: Checkpoint) -> Manifest:
    """A manifest whose classes are numbered as a checkpoint's, so that it can be scored on its videos.

    Args:
        data, name: What manifest and checkpoint are called, for messages.

    Raises:
        ValueError: The checkpoint has no classifier, or does not know all classes that the videos use.
    """
    classes = checkpoint.model.num_classes
    if classes == 0:
        raise ValueError(f"{name} has no classifier; train one with: fluxvit probe")
    if manifest.multi_label and not checkpoint.multi_label:
        raise ValueError(
            f"{data}: its videos have several labels each, but {name} was trained to tell one class of "
            "a video; train it with: --task.loss bce"
        )
    manifest = numbered_like(manifest, checkpoint.labels, classes, data, name)
    highest = max((number for entry in manifest.entries for number in entry.classes), default=-1)
    if highest >= classes:
        raise ValueError(
            f"{data} has a video of class {highest}; {name} tells {classes} classes, 0 to {classes - 1}"
        )
    return manifest
