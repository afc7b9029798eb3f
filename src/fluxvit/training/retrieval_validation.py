"""Validation of a dual encoder while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxvit.checkpoints.dual_encoder import DualInfo, copy_language, save_dual
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest
from fluxvit.data.texts import embed_texts
from fluxvit.evaluation.recall import answers_of, recall, right_videos
from fluxvit.evaluation.zero_shot import text_classifier
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.parallel import whole
from fluxvit.training.trainer import Trainer
from fluxvit.training.validation import Validation, exporting


class RetrievalValidation(Validation):
    """Scores a dual encoder by R@1, the mean of both directions, and keeps the best.

    Args:
        trainer: Its model, folder and world.
        language: The language side that is trained with the model.
        info: What goes with the checkpoint.
        manifest: The videos, each with captions; all of these are told apart.
        grid: Sampling of each video.
        options: Options of `Validation`.
    """

    def __init__(
        self,
        trainer: Trainer,
        language: LanguageSide,
        info: DualInfo,
        manifest: Manifest,
        grid: SamplingGrid,
        **options: Any,
    ) -> None:
        dataset = ClipDataset(manifest, sampling=info.video.sampling)
        super().__init__(trainer, info.video, dataset, grid, **options)
        self._language, self._dual_info = language, info
        self._captions = [text for entry in manifest.entries for text in entry.captions]
        self._belongs = right_videos([entry.captions for entry in manifest.entries])

    def _score(self, model: FluxViT) -> dict[str, float]:
        # The copy is kept for the export: to make one takes all processes, and only the main one exports.
        self._gathered = gather_language(self._language)
        encoder = DualEncoder(model, self._gathered).eval()
        vectors = embed_texts(encoder, self._dual_info.texts, self._captions)
        budgets = model.config.budgets
        results = self._predict(text_classifier(encoder, vectors), budgets)
        figures = {}
        for budget, result in zip(budgets, results, strict=True):
            to_texts = recall(result.logits, answers_of(self._belongs, len(result.logits)))
            to_videos = recall(result.logits.t(), self._belongs)
            figures[f"recall@{budget}"] = (to_texts.at(1) + to_videos.at(1)) / 2
        return figures

    def _export(self, folder: Path, model: FluxViT) -> None:
        with exporting(folder):
            save_dual(folder, DualEncoder(model, self._gathered), self._dual_info)


def gather_language(language: LanguageSide) -> LanguageSide:
    """A copy of a language side with all of its weights, which may be shared out between processes; then they
    must all call this.
    """
    state = {name: whole(value).detach().clone() for name, value in language.state_dict().items()}
    return copy_language(language, state).to(state["sharpness"].device)
