"""Text towers, which turn the token ids of a text into a vector."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.attention import attention
from fluxvit.models.config import MAX_PARAMETERS, Depth, Heads, Width
from fluxvit.utils.schema import check


@dataclass(frozen=True)
class TextConfig:
    """Shape of a `TextTransformer`; the defaults are MobileCLIP-B's, 63 428 096 parameters.

    Args:
        vocab_size: Number of token ids.
        context: Maximum number of tokens of a text.
        embed_dim: Width of the tokens.
        depth: Transformer blocks.
        num_heads: Attention heads.
        out_dim: Width of the output vectors.

    Raises:
        ValueError: A value has another type, is out of range, or does not fit the others.
    """

    vocab_size: Annotated[int, Meta(ge=1, le=10_000_000)] = 49408
    context: Annotated[int, Meta(ge=1, le=1 << 20)] = 77
    embed_dim: Width = 512
    depth: Depth = 12
    num_heads: Heads = 8
    out_dim: Width = 512

    def __post_init__(self) -> None:
        check(self)
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(f"the settings describe a text tower of {self.parameters:.3g} parameters")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")

    @property
    def parameters(self) -> int:
        """Parameters of the tower, counted without building it."""
        dim = self.embed_dim
        block = 12 * dim * dim + 13 * dim
        return (self.vocab_size + self.context + self.out_dim + 2) * dim + self.depth * block


class TextTower(nn.Module):
    """A network that turns texts into vectors.

    Attributes:
        out_dim: Width of the vectors.
        context: Maximum number of tokens of a text.
    """

    out_dim: int
    context: int

    @abstractmethod
    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Texts to vectors ``[B, out_dim]``, not normalised.

        Args:
            ids: int64 ``[B, N]``, N at most the context; ids after the end of a text are ignored.
            lengths: int64 ``[B]``, the number of tokens of each text.

        Raises:
            ValueError: A text is longer than the context.
        """

    @abstractmethod
    def blocks_in_order(self) -> list[nn.Module]:
        """The transformer blocks in order."""

    @abstractmethod
    def stem(self) -> list[Tensor]:
        """The parameters before the blocks, such as embeddings."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values from which a tower of this shape can be built."""

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""

    def train_last(self, blocks: int) -> None:
        """Train only the last blocks and the layers after them. The stem is trained only with all blocks.

        Args:
            blocks: Number of blocks to train; 0 freezes the whole tower.

        Raises:
            ValueError: There are fewer blocks.
        """
        layers = self.blocks_in_order()
        if not 0 <= blocks <= len(layers):
            raise ValueError(f"the last {blocks} blocks of a text tower that has {len(layers)}")
        self.requires_grad_(blocks > 0)
        frozen = [parameter for layer in layers[: len(layers) - blocks] for parameter in layer.parameters()]
        for parameter in (*frozen, *(self.stem() if frozen else ())):
            parameter.requires_grad_(False)


class TextBlock(nn.Module):
    """Pre-norm block in which a token attends to itself and to the tokens before it."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attention(q, k, v, causal=True).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class TextTransformer(TextTower):
    """A text tower like CLIP's: causal, and read at the end of the text.

    No token attends to a later one, so that padding after the end needs no mask.

    Args:
        config: Shape of the tower.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config, self.out_dim, self.context = config, config.out_dim, config.context
        self.tokens = nn.Embedding(config.vocab_size, config.embed_dim)
        self.positions = nn.Parameter(torch.empty(config.context, config.embed_dim))
        self.blocks = nn.ModuleList(
            TextBlock(config.embed_dim, config.num_heads) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.out_dim, bias=False)
        self._init()

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        count = ids.shape[1]
        if count > self.context:
            raise ValueError(f"texts of {count} tokens for a context of {self.context}: cut them")
        x = self.tokens(ids) + self.positions[:count]
        for block in self.blocks:
            x = block(x)
        return self.proj(self.norm(x[torch.arange(len(x), device=x.device), lengths - 1]))

    def blocks_in_order(self) -> list[nn.Module]:
        return list(self.blocks)

    def stem(self) -> list[Tensor]:
        return [self.tokens.weight, self.positions]

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def describe(self) -> dict[str, Any]:
        return {"kind": "transformer", **asdict(self.config)}

    def no_weight_decay(self) -> set[str]:
        return {"tokens.weight", "positions"}

    @torch.no_grad()
    def _init(self) -> None:
        """Initialise like CLIP (arXiv 2103.00020, the release's ``initialize_parameters``)."""
        dim, depth = self.config.embed_dim, self.config.depth
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        for block in self.blocks:
            assert isinstance(block, TextBlock)
            nn.init.normal_(block.qkv.weight, std=dim**-0.5)
            nn.init.normal_(block.proj.weight, std=dim**-0.5 * (2 * depth) ** -0.5)
            nn.init.normal_(block.fc1.weight, std=(2 * dim) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=dim**-0.5 * (2 * depth) ** -0.5)
            for linear in (block.qkv, block.proj, block.fc1, block.fc2):
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.proj.weight, std=dim**-0.5)
