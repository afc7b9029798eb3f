"""Validation while training: all processes share the videos, the main one keeps the best model."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor

from fluxvit.checkpoints.folder import CheckpointInfo, save_checkpoint
from fluxvit.data.classes import multi_hot
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Entry
from fluxvit.evaluation.classification import Predictions, predict_dataset
from fluxvit.evaluation.metrics import average_precision, mean_of_classes
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.trainer import Trainer
from fluxvit.utils.distributed import fail_together
from fluxvit.utils.files import append_json, read_json_lines, write_json_lines
from fluxvit.utils.system import Stopped

VALIDATION = "validation.jsonl"
BEST = "best"

_log = logging.getLogger(__name__)


class _Row(msgspec.Struct):
    """What a line of the file must have."""

    step: int
    mean: float


class Validation:
    """Scores a trainer's model every so often and keeps the best, by accuracy or, where videos have several
    classes, by mean average precision.

    Each video is predicted once, by one of the processes. A validation that was cut off leaves no trace and
    is done again when the run goes on; one that is in ``validation.jsonl`` is not, and ``best`` is the first
    of the highest mean accuracy there.

    Args:
        trainer: Its model, folder and world.
        info: What goes with the checkpoint.
        dataset: The videos.
        grid: Sampling of each.
        broken: Further videos that cannot be read; they count as wrong, and are never found.
        every: Steps between two; the last step is validated too.
        workers: Processes that prepare clips, for each process.
        progress: Show a bar.

    Raises:
        ValueError: The grid does not fit the model.
    """

    def __init__(
        self,
        trainer: Trainer,
        info: CheckpointInfo,
        dataset: ClipDataset,
        grid: SamplingGrid,
        every: int,
        *,
        broken: Sequence[Entry] = (),
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        config = trainer.model.config
        grid.token_shape(config.patch_size, config.tubelet_size)  # Now, not after an epoch.
        self._trainer, self._info, self._dataset = trainer, info, dataset
        self._grid, self._every, self._workers, self._broken = grid, every, workers, broken
        self._title = "Validating" if progress and trainer.world.is_main else None
        self._path = trainer.folder / VALIDATION
        self._done: set[int] = set()
        self._best = -1.0
        self._begun = False

    def __call__(self, taken: int) -> None:
        """Validate if it is time; in all processes together.

        Raises:
            Stopped: The trainer is asked to stop.
            VideoError: A video cannot be read.
            ValueError: The same, in another process.
        """
        if not self._begun:
            self._begin(taken)
        last = self._trainer.config.steps
        if taken == 0 or taken in self._done or (taken % self._every and taken != last):
            return
        model = self._trainer.gather_model()
        scores = self._score(model)
        if self._trainer.world.is_main:
            self._keep(taken, model, {"mean": sum(scores.values()) / len(scores), **scores})

    def _score(self, model: FluxViT) -> dict[str, float]:
        """A figure for each budget, in all processes; the larger, the better."""
        budgets = model.config.budgets
        results = self._predict(model, budgets)
        if self._info.multi_label:
            missed = torch.from_numpy(multi_hot(self._broken, model.num_classes))
            lost = torch.full(missed.shape, torch.nan)
            return {
                f"map@{budget}": mean_of_classes(
                    average_precision(torch.cat([result.logits, lost]), torch.cat([result.labels, missed]))
                )
                for budget, result in zip(budgets, results, strict=True)
            }
        videos = len(self._dataset) + len(self._broken)
        return {
            f"accuracy@{budget}": result.score.correct / videos
            for budget, result in zip(budgets, results, strict=True)
        }

    def _export(self, folder: Path, model: FluxViT) -> None:
        """Save the best checkpoint, in the main process."""
        export_checkpoint(folder, model, self._info)

    def _begin(self, taken: int) -> None:
        """Take up what former runs did; a run from the start forgets what another left in the folder."""
        world = self._trainer.world
        if world.is_main:
            rows = read_json_lines(self._path, _Row) if taken else []
            if self._path.exists():
                write_json_lines(self._path, rows)
            self._done = {row["step"] for row in rows}
            self._best = max((row["mean"] for row in rows), default=-1.0)
        self._done = world.main_value(self._done)
        self._begun = True

    def _keep(self, taken: int, model: FluxViT, scores: dict[str, float]) -> None:
        try:
            # The checkpoint first: a crash in between repeats the validation.
            if scores["mean"] > self._best:
                self._export(self._path.with_name(BEST), model)
            append_json(self._path, {"step": taken, **scores})
        except OSError as error:
            text = "%s: the validation of step %d (mean %.4f) could not be written and does not count: %s"
            _log.warning(text, self._path.parent, taken, scores["mean"], error.strerror)
            return
        self._best = max(self._best, scores["mean"])
        self._trainer.log(taken, {f"val/{name}": value for name, value in scores.items()})

    def _predict(self, model: FluxViT, budgets: Sequence[int]) -> list[Predictions]:
        """Predictions for the whole data set, in all processes."""
        world = self._trainer.world
        part: list[Tensor] = []
        trouble: Exception | None = None
        try:
            part = self._predict_share(model, budgets)
        except Exception as error:  # Whatever it is: the others must hear of it, or they wait for ever.
            trouble = error
        stopped = isinstance(trouble, Stopped)
        fail_together(None if stopped else trouble, world, "validation")
        if world.any(stopped):
            raise Stopped("stopped while validating")
        parts = world.gather(part)
        labels = torch.stack([self._dataset.label(i) for i in range(len(self._dataset))])
        return [
            Predictions(_interleave([p[i] for p in parts if p], len(self._dataset)), labels)
            for i in range(len(budgets))
        ]

    def _predict_share(self, model: FluxViT, budgets: Sequence[int]) -> list[Tensor]:
        """Logits of this process's videos for each budget; nothing if it has none."""
        world = self._trainer.world
        share = range(world.rank, len(self._dataset), world.size)
        if not share:
            return []
        results = predict_dataset(
            model,
            self._dataset,
            self._grid,
            budgets,
            mean=self._info.mean,
            std=self._info.std,
            workers=self._workers,
            progress=self._title,
            indices=share,
            after_batch=self._stop_if_asked,
        )
        return [result.logits for result in results]

    def _stop_if_asked(self) -> None:
        if self._trainer.stopping():
            raise Stopped("stopped while validating")


def _interleave(parts: list[Tensor], total: int) -> Tensor:
    """Rows that were dealt out one by one, ``[N / parts, C]`` each, back in their order ``[N, C]``."""
    rows = parts[0].new_empty(total, parts[0].shape[1])
    for first, part in enumerate(parts):
        rows[first :: len(parts)] = part
    return rows


def export_checkpoint(folder: Path, model: FluxViT, info: CheckpointInfo) -> None:
    """Save a checkpoint, as :func:`exporting` does."""
    with exporting(folder):
        save_checkpoint(folder, model, info)


@contextmanager
def exporting(folder: Path) -> Iterator[None]:
    """While a checkpoint is saved: what the weights' library says of a full disk becomes an
    :class:`OSError`.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(folder)) from error
