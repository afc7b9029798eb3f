"""Supervised training of a classifier at one or several token budgets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.training.mixing import mix_clips
from fluxvit.training.recipes import MixingSettings, TaskSettings
from fluxvit.training.tasks.base import Batch, Task, pooled_at_budgets


class ClassifyTask(Task):
    """Supervised tuning at one or several token budgets (paper section 3; the release's losses).

    The budgets are those of the model: one is Flux-Single, several are Flux-Multi; each trains its own head.
    The pool is embedded once for all. The loss is the sum over budgets of the cross-entropy, plus the
    alignment of the pooled vector of each smaller budget with that of the largest: smooth L1 of unit vectors,
    with no gradient into the largest.

    Args:
        checkpoint: The model that is trained, and its metadata. If videos may show several classes
            (``multi_label``), labels are multi-hot ``[B, classes]``, and the loss is the binary
            cross-entropy, averaged over the classes.
        settings: The settings of the loss. With unit vectors of width P smooth L1 is (1 - cos) / P, so that
            the release's alignment weight of 1 hardly counts.
        mixing: Mixes the clips of a batch in pairs, with soft labels. By default it does not.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: TaskSettings = TaskSettings(),  # noqa: B008
        mixing: MixingSettings = MixingSettings(),  # noqa: B008
    ) -> None:
        super().__init__(checkpoint, settings.selector)
        self.settings, self.mixing = settings, mixing

    def prepare(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        batch = super().prepare(batch, seed)
        if not self.mixing.active:
            return batch
        classes = self.model.num_classes
        video, label = mix_clips(self.mixing, batch["video"], batch["label"], classes, seed)
        return {"video": video, "label": label}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the accuracy at each budget, of clips and their labels.

        ``label`` holds class indices ``[B]``, or soft or multi-hot labels ``[B, classes]``.
        """
        video, label = batch["video"], batch["label"]
        budgets = self.model.config.budgets
        result: dict[str, Tensor] = {}
        # The class of the clip that shows more, where two are mixed.
        truth = label if label.ndim == 1 else label.argmax(-1)
        loss = video.new_zeros((), dtype=torch.float32)
        heads = pooled_at_budgets(self.model, video, budgets, self.selector)
        for head, (budget, (pooled, alignment)) in enumerate(zip(budgets, heads, strict=True)):
            logits = self.model.classify(pooled, head).float()
            loss = loss + self._classification_loss(logits, label)
            # Even with weight 0: data parallelism waits for the gradient of every parameter.
            loss = loss + self.settings.align_weight * alignment
            if self.checkpoint.multi_label:
                # How often the likeliest class is one of the clip's.
                hits = label.gather(1, logits.argmax(-1, keepdim=True)) > 0
                result[f"hit@{budget}"] = hits.float().mean()
            else:
                result[f"accuracy@{budget}"] = (logits.argmax(-1) == truth).float().mean()
        return {"loss": loss, **result}

    def _classification_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of logits ``[B, classes]``, a scalar."""
        if self.checkpoint.multi_label:
            return F.binary_cross_entropy_with_logits(logits, label)
        return F.cross_entropy(logits, label, label_smoothing=self.settings.label_smoothing)
