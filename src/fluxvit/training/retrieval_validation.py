"""Validation of a dual encoder while it is trained."""

from __future__ import annotations

from typing import Any

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest
from fluxvit.evaluation.language.recall import answers_of, recall, right_videos
from fluxvit.flux.grid import SamplingGrid
from fluxvit.training.tasks.contrastive import ContrastiveTask
from fluxvit.training.trainer import Trainer
from fluxvit.training.validation import Validation


class RetrievalValidation(Validation):
    """Scores a dual encoder by R@1, the mean of both directions, and keeps the best.

    Args:
        task: The task that is trained.
        manifest: The videos, each with captions; all of these are told apart.
        grid: Sampling of each video.
        options: Options of `Validation`.
    """

    def __init__(self, task: ContrastiveTask, manifest: Manifest, grid: SamplingGrid, **options: Any) -> None:
        super().__init__(task, ClipDataset(manifest, sampling=task.checkpoint.sampling), grid, **options)
        self._texts, self._video = task.captions.texts, task.checkpoint
        self._captions = [text for entry in manifest.entries for text in entry.captions]
        self._belongs = right_videos([entry.captions for entry in manifest.entries])

    def _score(self, trainer: Trainer, model: Any) -> dict[str, float]:
        dual = DualEncoderCheckpoint(model, self._texts, self._video)
        budgets = model.video.config.budgets
        checkpoint = dual.classifier(dual.embed_texts(self._captions))
        results = self._predict(trainer, checkpoint.model, budgets)
        figures = {}
        for budget, result in zip(budgets, results, strict=True):
            to_texts = recall(result.logits, answers_of(self._belongs, len(result.logits)))
            to_videos = recall(result.logits.t(), self._belongs)
            figures[f"recall@{budget}"] = (to_texts.at(1) + to_videos.at(1)) / 2
        return figures
