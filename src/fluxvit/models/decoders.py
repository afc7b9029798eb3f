"""Decoders from a student's features to its teacher's, which are used in pre-training only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.config import FluxViTConfig
from fluxvit.models.embed import PositionTable


class Decoder(nn.Module):
    """Linear, GELU, linear, layer norm, and onto the unit sphere (InternVideo2's distillation)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` to fp32 unit vectors ``[..., D]``."""
        return F.normalize(self.norm(self.fc2(F.gelu(self.fc1(x)))).float(), dim=-1)


class DistillationDecoders(nn.Module):
    """A decoder for each aligned layer, with its own positions, and one for the pooled vector.

    All budgets share them, so that a token means the same at every budget.

    Args:
        config: The student's configuration.
        widths: Channels of the teacher's layer for each aligned layer.
        pooled_width: Channels of the teacher's pooled vector.
    """

    def __init__(self, config: FluxViTConfig, widths: Sequence[int], pooled_width: int) -> None:
        super().__init__()
        self.positions = PositionTable(config.table_shape, config.embed_dim, affine=False)
        self.layers = nn.ModuleList(Decoder(config.embed_dim, width) for width in widths)
        self.pooled = Decoder(config.pool_dim, pooled_width)

    def decode_layers(
        self,
        layers: Sequence[Tensor],
        positions: tuple[Tensor, Tensor],
        kept: Tensor | None,
        class_token: bool,
    ) -> list[Tensor]:
        """Unit vectors to compare with the teacher's, fp32 ``[B, K, D]`` for each aligned layer.

        Args:
            layers: Layers of the student, ``[B, 1 + K, C]`` each, class token first.
            positions: Positions of the class token and of the pool, as ``self.positions`` gives them.
            kept: Indices ``[B, K]`` into it; None: all.
            class_token: Whether the teacher has a class token; then the result is ``[B, 1 + K, D]``.
        """
        cls_row, rows = positions
        rows = rows.expand(layers[0].shape[0], -1, -1) if kept is None else rows[kept]
        cls = cls_row.expand(len(rows), -1, -1)
        added = torch.cat([cls, rows], dim=1)[:, 0 if class_token else 1 :]
        return [
            decoder(layer[:, -added.shape[1] :] + added.to(layer.dtype))
            for decoder, layer in zip(self.layers, layers, strict=True)
        ]

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {"positions.cls", "positions.grid"}
