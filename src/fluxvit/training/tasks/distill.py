"""Flux-UMT: a student learns a frozen teacher's features at several token budgets at once.

One step (paper section 3 and figure 2; where these are silent, InternVideo2's distillation of S and B):

1. The student embeds the clip once. The selector keeps the teacher's tokens of the pool.
2. The teacher runs once, on the whole clip or on these tokens.
3. For each budget, some of these tokens are drawn by the teacher's attention, and only they enter the
   student. The tokens of a smaller budget are a subset of those of a larger one.
4. Decoders compare the student's last layers with layers of the teacher at the same tokens, and the pooled
   vector of the student, which sees few tokens, with that of the teacher, which sees all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import Clip
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import gather_tokens, keep_best
from fluxvit.models.decoders import DistillationDecoders
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.teachers import Teacher, TeacherFeatures, TokenShape, spread_layers
from fluxvit.training.recipes import DistillSettings
from fluxvit.training.tasks.base import Batch, Task
from fluxvit.utils.tensors import channel_values


class Scale(nn.Module):
    """Standardises the channels of a target. It is the identity until its buffers are set."""

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
    """Distillation at the student's own budgets: one is Flux-Single, several are Flux-Multi pre-training.

    The loss is the mean over budgets of the mean over aligned layers and tokens, plus ``pooled_weight`` times
    the same loss of the pooled vectors. It is 2 - 2 cos. Each budget trains the pooling of its own head; all
    share the decoders.

    Args:
        checkpoint: The student.
        teacher: The frozen teacher. It is no submodule, so that it is neither saved nor averaged.
        settings: The settings of the loss.

    Raises:
        ValueError: The settings do not fit the student.
    """

    def __init__(self, checkpoint: Checkpoint, teacher: Teacher, settings: DistillSettings) -> None:
        super().__init__(checkpoint, settings.selector)
        config = self.model.config
        if settings.teacher_tokens and settings.teacher_tokens < config.budgets[0]:
            raise ValueError(
                f"the teacher sees {settings.teacher_tokens} tokens, fewer than the budget of "
                f"{config.budgets[0]}"
            )
        self.teacher, self.settings = teacher, settings
        _, self._layers = spread_layers(config.depth, teacher.depth, settings.layers)
        widths = [teacher.widths[layer] for layer in self._layers]
        self.decoders = DistillationDecoders(config, widths, teacher.pooled_width)
        # One for each layer, and one for the pooled vector.
        self.scales = nn.ModuleList(Scale(width) for width in (*widths, teacher.pooled_width))

    @torch.no_grad()
    def standardize(self, clips: Iterable[tuple[Tensor, TokenShape]]) -> None:
        """Compare from now on with features of mean 0 and deviation 1 in every channel, as over these clips.

        What all clips have in common does not distinguish them but counts most in an angle. (UNIC, arXiv
        2408.05088, standardises the features of its teachers likewise.)

        Args:
            clips: Normalised videos ``[B, 3, T, H, W]``, and the tokens (t, h, w) of their pools.
        """
        widths = (*(self.teacher.widths[layer] for layer in self._layers), self.teacher.pooled_width)
        sums = [torch.zeros(3, width, dtype=torch.float64) for width in widths]
        for video, shape in clips:
            target = self._targets(video, shape, None)
            patches = [layer[:, int(self.teacher.class_token) :] for layer in target.layers]
            for total, found in zip(sums, [*patches, target.pooled], strict=True):
                rows = found.cpu().double().flatten(0, -2)
                total += torch.stack([torch.full_like(rows[0], len(rows)), rows.sum(0), rows.square().sum(0)])
        for scale, (count, total, squares) in zip(self.scales, sums, strict=True):
            center = total / count
            scale.center.copy_(center)
            scale.spread.copy_((squares / count - center**2).clamp_min(1e-12).sqrt())

    def blocks(self) -> list[nn.Module]:
        network = self.teacher.network
        return [*self.model.blocks, *(network.blocks if isinstance(network, FluxViT) else ())]

    def count_macs(self, video: Tensor) -> int:
        total, network = super().count_macs(video), self.teacher.network
        if isinstance(network, FluxViT):
            size, shape = network.config.size, self.model.config
            grid = SamplingGrid(*video.shape[2:])
            tokens = grid.token_shape(shape.patch_size, shape.tubelet_size)
            kept = self.settings.teacher_tokens or math.prod(tokens)
            total += len(video) * grid_cost(size, SamplingGrid(*self.teacher.grid(tokens)), kept).total
        return total

    def collate(self, clips: Clip) -> Batch:
        return {"video": clips.video}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of clips, and its parts at each budget."""
        model, video = self.model, batch["video"]
        embeddings, shape = model.patch_embed(video)
        seen = self._seen(model, video, embeddings)
        target = self._targets(video, shape, seen)
        *layers, pooled_target = (
            F.normalize(scale(found), dim=-1)
            for scale, found in zip(self.scales, [*target.layers, target.pooled], strict=True)
        )
        aligned = range(model.config.depth - len(layers), model.config.depth)
        budgets = model.config.budgets
        visible = self._visible(target.attention, shape, budgets)
        result: dict[str, Tensor] = {}
        total = video.new_zeros((), dtype=torch.float32)
        choices = [
            seen if chosen is None else chosen if seen is None else seen.gather(1, chosen)
            for chosen in visible
        ]
        inputs, positions = model.add_positions(embeddings, shape, choices), self.decoders.positions(shape)
        for head, (budget, chosen, kept, tokens) in enumerate(
            zip(budgets, visible, choices, inputs, strict=True)
        ):
            tokens, outputs = model.encode_layers(tokens, aligned)
            decoded = self.decoders.decode_layers(outputs, positions, kept, self.teacher.class_token)
            pairs = zip(decoded, (self._at(layer, chosen) for layer in layers), strict=True)
            layer_loss = torch.stack([_distance(ours, theirs) for ours, theirs in pairs]).mean()
            pooled = self.decoders.pooled(model.forward_head(tokens, head, pre_logits=True))
            pooled_loss = _distance(pooled, pooled_target)
            total = total + (layer_loss + self.settings.pooled_weight * pooled_loss) / len(budgets)
            result[f"layers@{budget}"], result[f"pooled@{budget}"] = layer_loss, pooled_loss
        return {"loss": total, **result}

    def _targets(self, video: Tensor, shape: TokenShape, kept: Tensor | None) -> TeacherFeatures:
        """The teacher's features of normalised clips at the kept tokens ``[B, K]``; None: at all."""
        mean, std = (
            channel_values(tuple(values), video.device)
            for values in (self.checkpoint.mean, self.checkpoint.std)
        )
        return self.teacher.features(video * std + mean, shape, kept, self._layers)

    def _seen(self, model: FluxViT, video: Tensor, embeddings: Tensor) -> Tensor | None:
        """Indices ``[B, K]`` of the tokens that the teacher sees; None: all."""
        tokens = embeddings
        if self.selector.reads == "pixels":
            tokens = model.patch_embed.patchify(video)[0]
        elif self.selector.reads == "thumbnails":
            tokens = model.thumbnails(video)
        budget = self.settings.teacher_tokens or None
        (seen,) = model.select_indices(tokens, [budget], self.selector)
        return seen

    @torch.no_grad()
    def _visible(self, attention: Tensor, shape: TokenShape, budgets: Sequence[int]) -> list[Tensor | None]:
        """For each budget the seen tokens that the student gets, ascending ``[B, K]``; None: all."""
        keys = attention
        if self.settings.mask == "sampled":
            # The largest of these are a draw without replacement in proportion to the attention.
            keys = keys / torch.empty_like(keys).exponential_()
        groups = shape[0] if self.settings.scope == "frame" else 1
        scores = keys.unflatten(1, (groups, -1))
        seen = keys.shape[1]
        return [None if budget >= seen else keep_best(scores, (1,) * groups, budget) for budget in budgets]

    def _at(self, layer: Tensor, chosen: Tensor | None) -> Tensor:
        """A target layer at the chosen tokens. Its class token, if it has one, always stays."""
        if chosen is None:
            return layer
        first = int(self.teacher.class_token)
        return torch.cat([layer[:, :first], gather_tokens(layer[:, first:], chosen)], dim=1)


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return (2 - 2 * (ours * theirs).sum(-1)).mean()
