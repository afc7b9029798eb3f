"""Accuracy of a model on labelled clips at a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import Selector
from fluxvit.models.fluxvit import FluxViT
from fluxvit.video.transforms import normalize


@dataclass(frozen=True)
class Score:
    """``correct`` of ``total`` clips."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        n, p, z = self.total, self.accuracy, 1.959964
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Predictions:
    """Logits ``[N, classes]`` and labels ``[N]`` of a data set, in its order."""

    logits: Tensor
    labels: Tensor

    @property
    def score(self) -> Score:
        return Score(int((self.logits.argmax(-1) == self.labels).sum()), len(self.labels))


@torch.inference_mode()
def predict_dataset(
    model: FluxViT,
    dataset: ClipDataset,
    grid: SamplingGrid,
    keeps: Sequence[int],
    *,
    mean: Sequence[float],
    std: Sequence[float],
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
        progress: Title of a progress bar; None for none.
        indices: Clips to take, at least one; None: all.
        after_batch: Called after each batch; may raise to end it early.

    Returns:
        Predictions for each budget, in the order of the clips.

    Raises:
        VideoError: A video cannot be read. Evaluation never replaces one by another.
    """
    device = next(model.parameters()).device
    model.eval()
    logits: list[list[Tensor]] = [[] for _ in keeps]
    labels = []
    batches = epoch_batches(len(dataset), grid, batch_size, indices)
    clips = loader(dataset, batches, workers)
    for clip in track(clips, progress or "", len(batches), transient=True, disable=progress is None):
        video = normalize(clip.video.to(device), mean, std)
        for rows, out in zip(logits, model(video, list(keeps), head, selector), strict=True):
            rows.append(out.logits.float().cpu())
        labels.append(clip.label)
        if after_batch is not None:
            after_batch()
    return [Predictions(torch.cat(rows), torch.cat(labels)) for rows in logits]
