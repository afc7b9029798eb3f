"""Validation while training: the processes share the videos, and the main one keeps the best model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import torch
from torch import Tensor

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.classes import multi_hot
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.evaluation.classification import Predictions, predict_plans
from fluxvit.evaluation.language.recall import answers_of, recall, right_videos
from fluxvit.evaluation.metrics import average_precision, mean_of_classes
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.training.tasks.base import Task
from fluxvit.training.tasks.contrastive import ContrastiveTask
from fluxvit.training.trainer import Trainer
from fluxvit.utils.distributed import fail_together
from fluxvit.utils.files import append_json, read_json_lines, write_json_lines
from fluxvit.utils.system import Stopped

VALIDATION = "validation.jsonl"
BEST = "best"

_log = logging.getLogger(__name__)


class _Row(msgspec.Struct):
    """The keys that a line of the file must have."""

    step: int
    mean: float


class Validation:
    """Scores the model of a trainer every so often and keeps the best, by accuracy or, where videos have
    several classes, by mean average precision.

    Each video is predicted once, by one of the processes. A validation that was cut off leaves no trace and
    is repeated when the run goes on; one that is in ``validation.jsonl`` is not. ``best`` is the first one of
    the highest mean there.

    Args:
        task: The task that is trained.
        dataset: The videos.
        grid: Sampling grid of the videos.
        every: Steps between two validations; the last step is validated, too.
        broken: Further videos that cannot be read; they count as wrong.
        workers: Processes that prepare clips, for each process.
        progress: Show a progress bar.

    Raises:
        ValueError: The grid does not fit the model.
    """

    def __init__(
        self,
        task: Task,
        dataset: ClipDataset,
        grid: SamplingGrid,
        every: int,
        *,
        broken: Sequence[Entry] = (),
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        config = task.model.config
        grid.token_shape(config.patch_size, config.tubelet_size)  # Now, not after an epoch.
        self._checkpoint, self._dataset, self._progress = task.checkpoint, dataset, progress
        self._budgets = task.validation_budgets(grid)
        self._grid, self._every, self._workers, self._broken = grid, every, workers, broken
        self._done: set[int] = set()
        self._best = -1.0
        self._begun = False

    def __call__(self, trainer: Trainer, taken: int) -> None:
        """Validate if it is time; in all processes together.

        Raises:
            Stopped: The trainer is asked to stop.
            VideoError: A video cannot be read.
            ValueError: The same, in another process.
        """
        if not self._begun:
            self._begin(trainer, taken)
        if taken == 0 or taken in self._done or (taken % self._every and taken != trainer.config.steps):
            return
        state = trainer.gather_state()
        scores = self._score(trainer, trainer.task.network(state))
        if trainer.world.is_main:
            self._keep(trainer, taken, state, {"mean": sum(scores.values()) / len(scores), **scores})

    def _score(self, trainer: Trainer, model: Any) -> dict[str, float]:
        """A figure for each budget of the task's network, in all processes; larger is better."""
        results = self._predict(trainer, model)
        if self._checkpoint.multi_label:
            missed = torch.from_numpy(multi_hot(self._broken, model.num_classes))
            lost = torch.full(missed.shape, torch.nan)
            return {
                f"map@{budget}": mean_of_classes(
                    average_precision(torch.cat([result.logits, lost]), torch.cat([result.labels, missed]))
                )
                for budget, result in results.items()
            }
        videos = len(self._dataset) + len(self._broken)
        return {f"accuracy@{budget}": result.score.correct / videos for budget, result in results.items()}

    def _begin(self, trainer: Trainer, taken: int) -> None:
        """Continue what former runs did. A run from the start removes what another left in the folder."""
        world, path = trainer.world, trainer.folder / VALIDATION
        if world.is_main:
            rows = read_json_lines(path, _Row) if taken else []
            if path.exists():
                write_json_lines(path, rows)
            self._done = {row["step"] for row in rows}
            self._best = max((row["mean"] for row in rows), default=-1.0)
        self._done = world.main_value(self._done)
        self._begun = True

    def _keep(self, trainer: Trainer, taken: int, state: dict[str, Tensor], scores: dict[str, float]) -> None:
        try:
            # The checkpoint first: a crash in between repeats the validation.
            if scores["mean"] > self._best:
                trainer.task.export(trainer.folder / BEST, state)
            append_json(trainer.folder / VALIDATION, {"step": taken, **scores})
        except OSError as error:
            text = "%s: the validation of step %d (mean %.4f) could not be written and does not count: %s"
            _log.warning(text, trainer.folder, taken, scores["mean"], error.strerror)
            return
        self._best = max(self._best, scores["mean"])
        trainer.log(taken, {f"val/{name}": value for name, value in scores.items()})

    def _predict(self, trainer: Trainer, model: Any) -> dict[int, Predictions]:
        """Predictions for the whole data set at each budget, in all processes."""
        world, budgets, total = trainer.world, self._budgets, len(self._dataset)
        share = range(world.rank, total, world.size)
        results: list[Predictions] = []
        trouble: Exception | None = None

        def stop_if_asked() -> None:
            if trainer.stopping():
                raise Stopped("stopped while validating")

        try:
            if share:
                results = predict_plans(
                    replace(self._checkpoint, model=model),
                    self._dataset,
                    [Plan(self._grid, budget, selector=self._checkpoint.selector) for budget in budgets],
                    workers=self._workers,
                    progress="Validating" if self._progress and world.is_main else None,
                    indices=share,
                    after_batch=stop_if_asked,
                )
        except Exception as error:  # Whatever it is: the others must hear of it, or they wait for ever.
            trouble = error
        stopped = isinstance(trouble, Stopped)
        fail_together(None if stopped else trouble, world, "validation")
        if world.any(stopped):
            raise Stopped("stopped while validating")
        parts = [part for part in world.gather([result.logits for result in results]) if part]
        labels = torch.stack([self._dataset.label(i) for i in range(total)])
        return {
            budget: Predictions(_interleave([part[i] for part in parts], total), labels)
            for i, budget in enumerate(budgets)
        }


class RetrievalValidation(Validation):
    """Scores a dual encoder by R@1, the mean of both directions, and keeps the best.

    Args:
        task: The task that is trained.
        manifest: The videos, each with captions; all of them are candidates.
        options: Options of `Validation`.
    """

    def __init__(self, task: ContrastiveTask, manifest: Manifest, **options: Any) -> None:
        super().__init__(task, ClipDataset(manifest, sampling=task.checkpoint.sampling), **options)
        self._texts = task.captions.texts
        self._captions = [text for entry in manifest.entries for text in entry.captions]
        self._belongs = right_videos([entry.captions for entry in manifest.entries])

    def _score(self, trainer: Trainer, model: Any) -> dict[str, float]:
        dual = DualEncoderCheckpoint(model, self._texts, self._checkpoint)
        classifier = dual.classifier(dual.embed_texts(self._captions))
        figures = {}
        for budget, result in self._predict(trainer, classifier.model).items():
            to_texts = recall(result.logits, answers_of(self._belongs, len(result.logits)))
            to_videos = recall(result.logits.t(), self._belongs)
            figures[f"recall@{budget}"] = (to_texts.at(1) + to_videos.at(1)) / 2
        return figures


def _interleave(parts: list[Tensor], total: int) -> Tensor:
    """Rows that were dealt out one by one, ``[N / parts, C]`` each, back in their order ``[N, C]``."""
    rows = parts[0].new_empty(total, parts[0].shape[1])
    for first, part in enumerate(parts):
        rows[first :: len(parts)] = part
    return rows
