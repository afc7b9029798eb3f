"""What a training step computes. A task owns forward pass and loss; the trainer knows neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.flux.selection import Selector
from fluxvit.models.fluxvit import FluxViT


class Task(Protocol):
    """Computes a batch's loss. A task that is an ``nn.Module`` is trained beside the model; like the model it
    says by ``no_weight_decay`` which of its parameters must not decay.
    """

    def __call__(self, model: FluxViT, video: Tensor, target: Tensor, /) -> dict[str, Tensor]:
        """Normalised clips ``[B, 3, T, H, W]`` to ``{"loss": scalar, name of a metric: scalar}``.

        Args:
            target: What the trainer was told to give for the clips; by default class indices ``[B]``, or soft
                labels ``[B, classes]``.
        """
        ...


@dataclass(frozen=True)
class FluxTuning:
    """Supervised tuning at one or several token budgets (paper section 3; the release's losses).

    The budgets are the model's own: one is Flux-Single, several are Flux-Multi; each trains its own head. One
    embedding of the pool serves all. The loss is the sum over budgets of the cross-entropy, plus
    the alignment of each smaller budget's pooled vector with the largest's: smooth L1 of unit vectors, no
    gradient into the largest.

    Args:
        align_weight: Weight of the alignment. With unit vectors of width P smooth L1 is (1 - cos) / P, so the
            release's weight of 1 hardly counts.
        label_smoothing: Label smoothing of the cross-entropy.
        selector: Which tokens to keep.
        multi_label: Take binary cross-entropy, averaged over the classes, in place of cross-entropy: labels
            are then multi-hot ``[B, classes]``.
        class_weights: Weights ``[classes]`` of the clips of each class in the cross-entropy, whose mean over
            the training clips should be 1; None: all weigh 1. A clip with soft labels has the mean of their
            weights. Weights do not depend on the batch, so that any number of processes computes the same.
    """

    align_weight: float = 1.0
    label_smoothing: float = 0.0
    selector: str | Selector = "group_dynamic"
    multi_label: bool = False
    class_weights: Tensor | None = None

    def __call__(self, model: FluxViT, video: Tensor, label: Tensor) -> dict[str, Tensor]:
        budgets = model.config.budgets
        samples, _ = model.select_tokens(video, budgets, self.selector)
        result: dict[str, Tensor] = {}
        truth = label if label.ndim == 1 else label.argmax(-1)  # Of mixed clips, the one that shows more.
        loss = video.new_zeros((), dtype=torch.float32)
        anchor = None
        for head, (budget, (tokens, _)) in enumerate(zip(budgets, samples, strict=True)):
            pooled = model.forward_head(model.encode(tokens), head, pre_logits=True)
            logits = model.classify(pooled, head).float()
            loss = loss + self._classification_loss(logits, label)
            if self.multi_label:
                # How often the likeliest class is one of the clip's.
                hits = label.gather(1, logits.argmax(-1, keepdim=True)) > 0
                result[f"hit@{budget}"] = hits.float().mean()
            else:
                result[f"accuracy@{budget}"] = (logits.argmax(-1) == truth).float().mean()
            if anchor is None:
                anchor = F.normalize(pooled.detach().float(), dim=-1)
            else:
                # Even with weight 0: data parallelism waits for the gradient of every parameter.
                alignment = F.smooth_l1_loss(model.align(pooled, head).float(), anchor)
                loss = loss + self.align_weight * alignment
        return {"loss": loss, **result}

    def _classification_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of logits ``[B, classes]``, a scalar."""
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits, label)
        if self.class_weights is None:
            return F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing, reduction="none")
        weights = self.class_weights.to(logits)
        return (losses * (weights[label] if label.ndim == 1 else label @ weights)).mean()
