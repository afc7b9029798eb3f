"""Predictions of a model for labelled clips, at one plan or several."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.classes import numbered_like
from fluxvit.data.dataset import Clip, ClipDataset, ClipRequest
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import Manifest
from fluxvit.evaluation.config import ONE_VIEW, Views
from fluxvit.evaluation.metrics import Score
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.progress import tracked
from fluxvit.video.base import VideoError


@dataclass(frozen=True)
class Predictions:
    """Logits ``[N, classes]`` and labels of a data set, in its order.

    Labels are class indices ``[N]``, or multi-hot ``[N, classes]``. For several views the logits are the
    logarithms of the mean probabilities. The logits of a clip that could not be read are NaN;
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


def predict_plans(
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    plans: Sequence[Plan],
    *,
    views: Views = ONE_VIEW,
    batch_size: int = 32,
    workers: int = 0,
    progress: str | None = None,
    indices: Sequence[int] | None = None,
    after_batch: Callable[[], None] | None = None,
    tolerant: bool = False,
) -> list[Predictions]:
    """Run a model over every clip of a data set at several plans.

    The videos are read once for all plans of a grid, and the pool is embedded once for all of these that
    share head and selector.

    Args:
        checkpoint: The model, which computes in the form that it is in; see `Checkpoint.prepared`.
        plans: Grids, kept tokens, heads and selectors.
        views: Views of each clip, whose probabilities are averaged.
        batch_size: Clips at once, with all their views.
        workers: Processes that decode; with 0 this process decodes.
        progress: Title of a progress bar; None shows none.
        indices: Clips to take, at least one; None takes all.
        after_batch: Called after each batch; may raise to end early.
        tolerant: Continue if a video cannot be read, and name it in the predictions.

    Returns:
        Predictions for each plan, in the order of the clips.

    Raises:
        VideoError: A video cannot be read, and that is not tolerated.
        NotFiniteError: The model's output for a video is not finite.
    """
    by_grid: dict[SamplingGrid, list[int]] = defaultdict(list)
    for number, plan in enumerate(plans):
        by_grid[plan.grid].append(number)
    results: dict[int, Predictions] = {}
    for grid, numbers in by_grid.items():
        batches = epoch_batches(len(dataset), grid, batch_size, indices, views)
        clips = loader(
            _ReadableOrBlack(dataset) if tolerant else dataset, batches, workers, name_faults=False
        )
        title = None if progress is None else f"{progress} at {grid}"
        pass_ = _Pass(checkpoint, dataset, [plans[number] for number in numbers], views)
        for clip in tracked(clips, title, len(batches)):
            pass_.add(clip)
            if after_batch is not None:
                after_batch()
        results |= zip(numbers, pass_.predictions(), strict=True)
    return [results[number] for number in range(len(plans))]


class _Pass:
    """One pass over a data set, at plans that have one grid."""

    def __init__(self, checkpoint: Checkpoint, dataset: ClipDataset, plans: list[Plan], views: Views) -> None:
        self._checkpoint, self._dataset, self._plans, self._views = checkpoint, dataset, plans, views.total
        self._model = checkpoint.model.eval()
        self._logits: list[list[Tensor]] = [[] for _ in plans]
        self._labels: list[Tensor] = []
        self._unreadable: dict[int, str] = {}

    @torch.inference_mode()
    def add(self, clip: Clip) -> None:
        """Predict a batch of clips."""
        outputs = _outputs(self._model, self._checkpoint.normalize(clip.video), self._plans)
        bad = clip.replaced[:: self._views] > 0
        items = clip.item[:: self._views]
        for rows, logits in zip(self._logits, outputs, strict=True):
            merged = merge_views(logits.cpu(), self._views, self._checkpoint.multi_label)
            wrong = ~merged.isfinite().all(-1) & ~bad
            if wrong.any():
                check_finite(merged[wrong], self._path(items[wrong][0]))
            merged[bad] = math.nan
            rows.append(merged)
        done = sum(map(len, self._labels))
        for row in bad.nonzero().flatten().tolist():
            path = f"{self._path(items[row])}: "
            faults = [fault.removeprefix(path) for fault in clip.faults if fault.startswith(path)]
            self._unreadable[done + row] = faults[0] if faults else "cannot be read"
        self._labels.append(clip.label[:: self._views])

    def _path(self, item: Tensor) -> str:
        return str(self._dataset.manifest.entries[int(item)].path)

    def predictions(self) -> list[Predictions]:
        """The predictions for each plan."""
        labels = torch.cat(self._labels)
        return [Predictions(torch.cat(rows), labels, self._unreadable) for rows in self._logits]


def _outputs(model: FluxViT, video: Tensor, plans: Sequence[Plan]) -> list[Tensor]:
    """Logits for each plan; those that share head and selector are computed in one pass."""
    groups = defaultdict(list)
    for number, plan in enumerate(plans):
        groups[plan.head, plan.selector].append(number)
    logits: dict[int, Tensor] = {}
    for (head, selector), numbers in groups.items():
        outs = model(video, [plans[number].keep for number in numbers], head, selector)
        logits |= {number: out.logits for number, out in zip(numbers, outs, strict=True)}
    return [logits[number] for number in range(len(plans))]


def merge_views(logits: Tensor, views: int, multi_label: bool = False) -> Tensor:
    """Merge logits of all views ``[B * views, C]``, those of a video together, into fp32 ``[B, C]``.

    The result is the logarithm of the views' mean probabilities (softmax of each, averaged in fp64), or with
    ``multi_label`` the logit of the mean of the sigmoids. The logits of a single view stay as they are.
    """
    if views == 1:
        return logits.float()
    if multi_label:
        return logits.double().sigmoid().unflatten(0, (-1, views)).mean(1).logit(eps=1e-12).float()
    rows = logits.double().log_softmax(-1).unflatten(0, (-1, views))
    return (rows.logsumexp(1) - math.log(views)).float()


class _ReadableOrBlack(Dataset[Clip]):
    """Test clips, with black ones in place of those that cannot be read: their ``replaced`` is 1, and
    ``faults`` has the reason. So batches keep their size.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, request: ClipRequest) -> Clip:
        try:
            return self._dataset[request]
        except VideoError as error:
            grid, (clips, crops), label = request.grid, request.views, self._dataset.label(request.item)
            shape = [] if clips * crops == 1 else [clips * crops]
            return Clip(
                torch.zeros(*shape, 3, grid.frames, grid.height, grid.width, dtype=torch.uint8),
                label.expand([*shape, *label.shape]).clone(),
                torch.full(shape, request.item),
                torch.ones(shape, dtype=torch.int64),
                (str(error),),
            )


def number_for_checkpoint(data: str, manifest: Manifest, name: str, checkpoint: Checkpoint) -> Manifest:
    """Number the classes of a manifest as a checkpoint does, so that it can be scored on its videos.

    Args:
        data, name: Names of the manifest and the checkpoint, for messages.

    Raises:
        ValueError: The checkpoint has no classifier, or lacks classes that the videos use.
    """
    classes = checkpoint.model.num_classes
    if classes == 0:
        raise ValueError(f"{name} has no classifier; train one with: fluxvit probe")
    if manifest.multi_label and not checkpoint.multi_label:
        raise ValueError(
            f"{data}: its videos have several labels each, but {name} was trained to predict one class of "
            "a video; train it with: --task.loss bce"
        )
    manifest = numbered_like(manifest, checkpoint.labels, classes, data, name)
    highest = max((number for entry in manifest.entries for number in entry.classes), default=-1)
    if highest >= classes:
        raise ValueError(
            f"{data} has a video of class {highest}; {name} has {classes} classes, 0 to {classes - 1}"
        )
    return manifest
