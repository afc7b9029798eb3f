"""Flux-UMT: a student learns a frozen teacher's features at several token budgets at once.

One step (paper section 3 and figure 2; where these are silent, InternVideo2's distillation of S and B):

1. The clip is embedded once. The selector keeps the teacher's tokens of the pool.
2. The teacher runs once, on the whole clip or on these tokens.
3. For each budget, some of these tokens are drawn by the teacher's attention, and only they enter the
   student. A smaller budget's are a subset of a larger one's.
4. Decoders compare the student's last layers with layers of the teacher at the same tokens, and its pooled
   vector, of few tokens, with the teacher's, of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import Clip
from fluxvit.flux.selection import Selector, gather_tokens, get_selector, keep_best
from fluxvit.models.decoders import DistillationDecoders
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.teachers import Teacher, TeacherFeatures, TokenShape
from fluxvit.training.tasks.base import Batch, Task

MASKS = ("sampled", "top", "random")
SCOPES = ("clip", "frame")
LOSSES = ("cosine", "mse", "smooth_l1")


class Targets(Protocol):
    """Where a teacher's features come from; ``widths`` of the layers that it gives, the first one first."""

    @property
    def widths(self) -> Sequence[int]: ...

    @property
    def pooled_width(self) -> int: ...

    @property
    def class_token(self) -> bool: ...

    def __call__(
        self, video: Tensor, item: Tensor, shape: TokenShape, kept: Tensor | None
    ) -> TeacherFeatures:
        """Features of clips.

        Args:
            video: As the student sees them, ``[B, 3, T, H, W]``.
            item: Their numbers in the data set ``[B]``.
            shape: Tokens (t, h, w) of the student's pool.
            kept: Indices ``[B, K]`` into it; None: all.
        """
        ...


class LiveTargets:
    """Runs a teacher on the student's clips.

    Args:
        teacher: Any.
        layers: Which of its layers to give.
        mean, std: The student's normalisation, which is undone for the teacher.
    """

    def __init__(
        self, teacher: Teacher, layers: Sequence[int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.teacher, self.layers = teacher, list(layers)
        self.widths = [teacher.widths[layer] for layer in layers]
        self.pooled_width, self.class_token = teacher.pooled_width, teacher.class_token
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1, 1) for values in (mean, std))

    def __call__(
        self, video: Tensor, item: Tensor, shape: TokenShape, kept: Tensor | None
    ) -> TeacherFeatures:
        pixels = video * self._std.to(video.device) + self._mean.to(video.device)
        return self.teacher.features(pixels, shape, kept, self.layers)


class Scale(nn.Module):
    """What is taken off a target's channels, and what they are divided by; nothing and 1 at first."""

    center: Tensor
    spread: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to fp32 ``[..., D]``."""
        return (x.float() - self.center) / self.spread


class DistillTask(Task):
    """Distillation at the student's own budgets; one is Flux-Single, several Flux-Multi pre-training.

    The loss is the mean over budgets of the mean over aligned layers and tokens, plus ``pooled_weight`` times
    that of the pooled vectors. Each budget trains its own head's pooling; decoders are shared.

    Args:
        checkpoint: The student.
        targets: Where features come from; its layers are learned by as many of the student's last ones.
        teacher_tokens: Tokens that the teacher sees, kept by the selector; 0: the whole pool.
        mask: How the tokens of a budget are chosen among those: ``sampled`` in proportion to the teacher's
            attention, without replacement (UMT, InternVideo2); ``top``, those of most attention; ``random``.
        scope: Of the choice: the ``clip`` as a whole, or every ``frame`` alike (UMT).
        loss: Of unit vectors: ``cosine``, 2 - 2 cos; ``mse`` or ``smooth_l1``, means over channels.
        pooled_weight: Weight of the pooled vectors.
        selector: Which tokens the teacher sees.

    Raises:
        ValueError: A setting is unknown or out of its range, or does not go with another.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        targets: Targets,
        *,
        teacher_tokens: int = 0,
        mask: str = "sampled",
        scope: str = "clip",
        loss: str = "cosine",
        pooled_weight: float = 1.0,
        selector: str | Selector = "group_dynamic",
    ) -> None:
        super().__init__(checkpoint)
        config = self.model.config
        for name, value, choices in (("mask", mask, MASKS), ("scope", scope, SCOPES), ("loss", loss, LOSSES)):
            if value not in choices:
                raise ValueError(f"{name} {value!r}: choose {', '.join(choices[:-1])} or {choices[-1]}")
        if teacher_tokens and teacher_tokens < config.budgets[0]:
            raise ValueError(
                f"the teacher sees {teacher_tokens} tokens, fewer than the budget of {config.budgets[0]}"
            )
        if scope == "frame" and teacher_tokens:
            raise ValueError("scope frame: frames are whole only if the teacher sees all tokens (0)")
        if len(targets.widths) > config.depth:
            raise ValueError(f"{len(targets.widths)} of the teacher's layers for a student of {config.depth}")
        self.targets = targets
        self.teacher_tokens, self.mask, self.scope, self.loss = teacher_tokens, mask, scope, loss
        self.pooled_weight, self.selector = pooled_weight, get_selector(selector)
        self.decoders = DistillationDecoders(config, targets.widths, targets.pooled_width)
        # Of the layers, and last of the pooled vector.
        self.scales = nn.ModuleList(Scale(width) for width in (*targets.widths, targets.pooled_width))

    @torch.no_grad()
    def standardize(self, clips: Iterable[tuple[Tensor, Tensor, TokenShape]]) -> None:
        """From now on compare with features of mean 0 and deviation 1 in every channel, as over these clips.

        What all clips have in common tells nothing apart but counts most in an angle; features behind a ReLU
        all lie in one corner of their space. (UNIC, arXiv 2408.05088, standardises its teachers' so.)

        Args:
            clips: Normalised videos ``[B, 3, T, H, W]``, their numbers ``[B]``, and the tokens (t, h, w) of
                their pools.
        """
        widths = (*self.targets.widths, self.targets.pooled_width)
        sums = [torch.zeros(3, width, dtype=torch.float64) for width in widths]
        for video, item, shape in clips:
            target = self.targets(video, item, shape, None)
            patches = [layer[:, int(self.targets.class_token) :] for layer in target.layers]
            for total, found in zip(sums, [*patches, target.pooled], strict=True):
                rows = found.cpu().double().flatten(0, -2)
                total += torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), rows.square().sum(0)])
        for scale, (count, total, squares) in zip(self.scales, sums, strict=True):
            center = total / count
            scale.center.copy_(center)
            scale.spread.copy_((squares / count - center**2).clamp_min(1e-12).sqrt())

    def collate(self, clips: Clip) -> Batch:
        return {"video": clips.video, "item": clips.item}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and its parts at each budget, of clips and their numbers in the data set ``[B]``."""
        model, video, item = self.model, batch["video"], batch["item"]
        embeddings, shape = model.patch_embed(video)
        seen = self._seen(model, video, embeddings)
        target = self.targets(video, item, shape, seen)
        *layers, wanted = (
            F.normalize(scale(found), dim=-1)
            for scale, found in zip(self.scales, [*target.layers, target.pooled], strict=True)
        )
        aligned = range(model.config.depth - len(layers), model.config.depth)
        budgets = model.config.budgets
        visible = self._visible(target.attention, shape, budgets)
        result: dict[str, Tensor] = {}
        total = video.new_zeros((), dtype=torch.float32)
        for head, (budget, chosen) in enumerate(zip(budgets, visible, strict=True)):
            kept = seen if chosen is None else chosen if seen is None else seen.gather(1, chosen)
            tokens, outputs = model.encode_layers(model.add_positions(embeddings, shape, kept), aligned)
            decoded = self.decoders.decode_layers(outputs, shape, kept, self.targets.class_token)
            matched = [self._at(layer, chosen) for layer in layers]
            pairs = zip(decoded, matched, strict=True)
            of_layers = torch.stack([self._distance(ours, theirs) for ours, theirs in pairs]).mean()
            pooled = self.decoders.pooled(model.forward_head(tokens, head, pre_logits=True))
            of_pooled = self._distance(pooled, wanted)
            total = total + (of_layers + self.pooled_weight * of_pooled) / len(budgets)
            result[f"layers@{budget}"], result[f"pooled@{budget}"] = of_layers, of_pooled
        return {"loss": total, **result}

    def _seen(self, model: FluxViT, video: Tensor, embeddings: Tensor) -> Tensor | None:
        """Indices ``[B, K]`` of the tokens that the teacher sees; None: all."""
        tokens = model.patch_embed.patchify(video)[0] if self.selector.reads == "pixels" else embeddings
        (seen,) = model.select_indices(tokens, [self.teacher_tokens or None], self.selector)
        return seen

    @torch.no_grad()
    def _visible(self, attention: Tensor, shape: TokenShape, budgets: Sequence[int]) -> list[Tensor | None]:
        """For each budget which of the seen tokens the student gets, ascending ``[B, K]``; None: all."""
        keys = attention
        if self.mask == "sampled":
            # The largest of these are a draw without replacement in proportion to the attention.
            keys = keys / torch.empty_like(keys).exponential_()
        elif self.mask == "random":
            keys = torch.rand_like(keys)
        groups = shape[0] if self.scope == "frame" else 1
        scores = keys.unflatten(1, (groups, -1))
        seen = keys.shape[1]
        return [None if budget >= seen else keep_best(scores, (1,) * groups, budget) for budget in budgets]

    def _at(self, layer: Tensor, chosen: Tensor | None) -> Tensor:
        """A target layer at the chosen tokens; its class token, if it has one, always stays."""
        if chosen is None:
            return layer
        if not self.targets.class_token:
            return gather_tokens(layer, chosen)
        return torch.cat([layer[:, :1], gather_tokens(layer[:, 1:], chosen)], dim=1)

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if self.loss == "cosine":
            return (2 - 2 * (ours * theirs).sum(-1)).mean()
        return {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}[self.loss](ours, theirs)
