"""Supervised training of a classifier at one or several token budgets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.selection import Selector
from fluxvit.training.mixing import Mixing
from fluxvit.training.tasks.base import Batch, Task, pooled_at_budgets


class ClassifyTask(Task):
    """Supervised tuning at one or several token budgets (paper section 3; the release's losses).

    The budgets are the model's own: one is Flux-Single, several are Flux-Multi; each trains its own head. One
    embedding of the pool serves all. The loss is the sum over budgets of the cross-entropy, plus
    the alignment of each smaller budget's pooled vector with the largest's: smooth L1 of unit vectors, no
    gradient into the largest.

    Args:
        model: The model that is trained.
        info: Metadata of its checkpoints. If videos may show several classes (``multi_label``), labels are
            multi-hot ``[B, classes]``, and the loss is the binary cross-entropy, averaged over the classes.
        align_weight: Weight of the alignment. With unit vectors of width P smooth L1 is (1 - cos) / P, so the
            release's weight of 1 hardly counts.
        label_smoothing: Label smoothing of the cross-entropy.
        selector: Selector of the tokens that are kept.
        mixing: Mixes the clips of a batch in pairs, with soft labels; None does not mix.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        align_weight: float = 1.0,
        label_smoothing: float = 0.0,
        selector: str | Selector = "group_dynamic",
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(checkpoint)
        self.align_weight, self.label_smoothing, self.selector = align_weight, label_smoothing, selector
        self.mixing = mixing

    def prepare(self, batch: Batch, seed: tuple[int, ...]) -> Batch:
        batch = super().prepare(batch, seed)
        if self.mixing is None:
            return batch
        video, label = self.mixing(batch["video"], batch["label"], self.model.num_classes, seed)
        return {"video": video, "label": label}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the accuracy at each budget, of clips and their labels.

        ``label`` holds class indices ``[B]``, or soft or multi-hot labels ``[B, classes]``.
        """
        video, label = batch["video"], batch["label"]
        budgets = self.model.config.budgets
        result: dict[str, Tensor] = {}
        truth = label if label.ndim == 1 else label.argmax(-1)  # Of mixed clips, the one that shows more.
        loss = video.new_zeros((), dtype=torch.float32)
        heads = pooled_at_budgets(self.model, video, budgets, self.selector)
        for head, (budget, (pooled, alignment)) in enumerate(zip(budgets, heads, strict=True)):
            logits = self.model.classify(pooled, head).float()
            loss = loss + self._classification_loss(logits, label)
            # Even with weight 0: data parallelism waits for the gradient of every parameter.
            loss = loss + self.align_weight * alignment
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
        return F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
