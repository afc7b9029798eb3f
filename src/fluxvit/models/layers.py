"""The layers of a FluxViT: its blocks, and the pooling and classifier of each budget.

Shapes: B clips, N tokens, C channels, P width of the pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fluxvit.models.attention import Attention, Packing, attention
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.norm import RMSNorm


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.approximate = "tanh" if activation == "gelu_tanh" else "none"
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class LayerScale(nn.Module):
    """Learned scale per channel, multiplied in fp32."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.gamma.float()


class DropPath(nn.Module):
    """Stochastic depth: in training, skip the branch of a clip with probability ``rate``; scale up others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """``[B, N, C]`` to the same; ``packing`` as in :func:`~fluxvit.models.attention.attention`."""
        if not self.training or self.rate == 0:
            return x
        clips = x.shape[0] if packing is None else len(packing.ends) - 1
        stays = (torch.rand(clips, device=x.device) >= self.rate).float() / (1 - self.rate)
        if packing is None:
            return x * stays[:, None, None]
        stays = stays.repeat_interleave(packing.ends.diff(), output_size=x.shape[1])
        return x * stays[None, :, None]


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: FluxViTConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = RMSNorm(dim)
        self.attn = Attention(
            dim,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            local_position=config.local_position,
        )
        self.ls1 = LayerScale(dim, config.layer_scale)
        self.norm2 = RMSNorm(dim)
        self.mlp = Mlp(dim, round(config.mlp_ratio * dim), config.activation)
        self.ls2 = LayerScale(dim, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """``[B, N, C]`` to the same; ``packing`` as in :func:`~fluxvit.models.attention.attention`."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), packing)), packing).to(x.dtype)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), packing).to(x.dtype)


class Blocks(nn.ModuleList):
    """Transformer blocks that run one after the other; there is no norm after the last one."""

    grad_checkpointing = False

    def forward(
        self, x: Tensor, packing: Packing | None = None, indices: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run all blocks.

        Args:
            x: Tokens ``[B, N, C]``.
            packing: As in :func:`~fluxvit.models.attention.attention`.
            indices: Blocks whose outputs are returned besides; negative ones count from the end.

        Returns:
            The output of the last block, and the outputs of the blocks ``indices``, each ``[B, N, C]``.
        """
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(self):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, packing, use_reentrant=False)
            else:
                x = block(x, packing)
            outputs |= {index: x for index in indices if index % len(self) == number}
        return x, [outputs[index] for index in indices]


class AttentionPool(nn.Module):
    """One attention query, the mean token, over all tokens."""

    def __init__(self, dim: int, num_heads: int, out_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, P]``."""
        q, k = self._queries_and_keys(x)
        v = self._split(self.v(self.norm_v(x)))
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(1))

    def attention(self, x: Tensor) -> Tensor:
        """The weight of each token ``[B, N, C]`` in the pooled vector, averaged over heads: fp32 ``[B, N]``;
        rows sum to 1.
        """
        q, k = self._queries_and_keys(x)
        scores = (q.float() @ k.float().transpose(2, 3)) * q.shape[-1] ** -0.5
        return scores.softmax(-1).mean(1)[:, 0]

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query = x.mean(1, keepdim=True)
        return self._split(self.q(self.norm_q(query))), self._split(self.k(self.norm_k(x)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class CosineClassifier(nn.Module):
    """Scaled cosines between a projected vector and the vector of each class, a row of ``classes``. The rows
    are not normalised, so that one may be the mean of several unit vectors.
    """

    def __init__(self, dim: int, class_dim: int, num_classes: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, class_dim)
        self.classes = nn.Parameter(torch.empty(num_classes, class_dim))
        self.scale = nn.Parameter(torch.ones(1))
        init_linear(self.proj)
        nn.init.normal_(self.classes, std=class_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, P]`` to logits ``[B, classes]``, fp32."""
        return self.scale * (F.normalize(self.proj(x).float(), dim=-1) @ self.classes.float().t())


class BudgetHead(nn.Module):
    """Pooling and classifier of one budget."""

    def __init__(self, config: FluxViTConfig) -> None:
        super().__init__()
        self.pool = AttentionPool(config.embed_dim, config.pool_heads, config.pool_dim)
        self.fc = make_classifier(config)


class Aligner(nn.Module):
    """Maps a smaller budget's pooled vector onto the largest's (self-alignment of Flux-Multi)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, P]`` to unit vectors ``[B, P]``."""
        return F.normalize(self.norm(self.proj(x)), dim=-1)


def make_classifier(config: FluxViTConfig) -> nn.Module:
    if config.num_classes == 0:
        return nn.Identity()
    if config.class_dim:
        return CosineClassifier(config.pool_dim, config.class_dim, config.num_classes)
    fc = nn.Linear(config.pool_dim, config.num_classes)
    init_linear(fc)
    return fc


def init_linear(layer: nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
