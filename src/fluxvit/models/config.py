"""The configuration of a FluxViT, and the named sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from msgspec import Meta

from fluxvit.flux.cost import NetworkSize
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.schema import check, convert, plain

ACTIVATIONS = ("gelu_tanh", "gelu")
MAX_PARAMETERS = 100_000_000_000
"""Maximum number of parameters, several times that of the largest vision transformers (22e9)."""

# Ranges are far beyond the largest published networks. They stop typing errors and hostile files before
# anything is allocated; `MAX_PARAMETERS` bounds all of them together.
Width = Annotated[int, Meta(ge=1, le=1 << 16)]
Heads = Annotated[int, Meta(ge=1, le=1024)]
Depth = Annotated[int, Meta(ge=1, le=1024)]
Classes = Annotated[int, Meta(ge=0, le=10_000_000)]
Rate = Annotated[float, Meta(ge=0, lt=1)]
Patch = Annotated[int, Meta(ge=1, le=1024)]
MlpRatio = Annotated[float, Meta(gt=0, le=64)]
SelectorWidth = Annotated[int, Meta(ge=0, le=1024)]
ClassWidth = Annotated[int, Meta(ge=0, le=1 << 16)]
LayerScale = Annotated[float, Meta(ge=0, le=1000)]
_Side = Annotated[int, Meta(ge=1, le=4096)]
TableShape = tuple[_Side, _Side, _Side]
Budgets = Annotated[tuple[Annotated[int, Meta(ge=1, le=1 << 24)], ...], Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class FluxViTConfig:
    """Architecture of a FluxViT.

    All values are checked by type and range when a configuration is made; ``128.0`` and ``"128"`` are not
    integers.

    Args:
        embed_dim: Width of the tokens.
        depth: Transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``.
        patch_size: Side of a square patch in pixels.
        tubelet_size: Frames that one token spans.
        in_chans: Colour channels.
        table_shape: Size (time, height, width), in tokens, of the learned position table. Other grids read
            it resampled.
        budgets: Token budgets that have a head each, largest first. Three for Flux-Multi, one for
            Flux-Single.
        pool_dim: Width of the pooled vector, the clip's embedding.
        pool_heads: Attention heads of the pooling.
        num_classes: Classes; 0 for no classifier.
        class_dim: Width of a space in which each class is a vector, such as that of its name in a dual
            encoder, and logits are scaled cosines; 0 for a linear classifier.
        selector_dim: Width of the learned selector, the network that scores tokens for the selector
            ``learned``; 0 for none.
        activation: ``gelu_tanh`` (as the published weights were trained) or ``gelu`` (erf).
        dual_patch_norm: RMS norm before and after patch embedding (DPN).
        global_position: Learned scale and shift of the position table (with ``local_position``: GLPE).
        local_position: Learned per-channel affine of the values, added to the attention output.
        qk_norm: RMS norm of queries and keys over the full width.
        qkv_bias: Bias of the qkv projection.
        layer_scale: Initial value of LayerScale.
        drop_path: Stochastic depth rate of the last block; rises linearly from 0.
        drop_rate: Dropout of the pooled vector before the classifier.

    Raises:
        ValueError: A value has another type, is out of range, or does not fit the others.
    """

    embed_dim: Width = 384
    depth: Depth = 12
    num_heads: Heads = 6
    mlp_ratio: MlpRatio = 4.0
    patch_size: Patch = 14
    tubelet_size: Patch = 1
    in_chans: Annotated[int, Meta(ge=1, le=1024)] = 3
    table_shape: TableShape = (24, 18, 18)
    budgets: Budgets = (3072, 2048, 1024)
    pool_dim: Width = 768
    pool_heads: Heads = 16
    num_classes: Classes = 400
    class_dim: ClassWidth = 0
    selector_dim: SelectorWidth = 0
    activation: str = "gelu_tanh"
    dual_patch_norm: bool = True
    global_position: bool = True
    local_position: bool = True
    qk_norm: bool = True
    qkv_bias: bool = False
    layer_scale: LayerScale = 1e-5
    drop_path: Rate = 0.0
    drop_rate: Rate = 0.0

    def __post_init__(self) -> None:
        check(self)
        for width, heads, what in (
            (self.embed_dim, self.num_heads, "num_heads"),
            (self.embed_dim, self.pool_heads, "pool_heads"),
        ):
            if width % heads:
                raise ValueError(f"embed_dim {width} is not a multiple of {what} {heads}")
        if self.embed_dim % 16:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of 16, as 3-D positions need")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}"
            )
        if list(self.budgets) != sorted(set(self.budgets), reverse=True):
            raise ValueError(f"budgets {self.budgets} must fall from the largest to the smallest")
        if round(self.mlp_ratio * self.embed_dim) < 1:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio:g} of embed_dim {self.embed_dim} leaves the MLP no width"
            )
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(
                f"the settings describe a network of {self.parameters:.3g} parameters, "
                f"more than {MAX_PARAMETERS:.0e}; see embed_dim, depth, table_shape and num_classes"
            )

    @property
    def parameters(self) -> int:
        """Parameters of the network, counted without building it."""
        dim, pool, hidden = self.embed_dim, self.pool_dim, round(self.mlp_ratio * self.embed_dim)
        values = self.in_chans * self.tubelet_size * self.patch_size**2
        frames, height, width = self.table_shape
        patches = values * dim + dim + (values + dim if self.dual_patch_norm else 0)
        positions = 2 * dim + frames * height * width * dim + (2 * dim if self.global_position else 0)
        block = 4 * dim * dim + (3 * dim if self.qkv_bias else 0) + dim  # qkv and proj.
        block += 2 * dim * hidden + hidden + dim  # MLP.
        block += (4 + 2 * self.qk_norm + 2 * self.local_position) * dim  # Norms, LayerScale, LPE.
        head = 6 * dim + 3 * (dim * dim + dim) + dim * pool + pool
        if self.num_classes and self.class_dim:
            head += (pool + 1) * self.class_dim + self.num_classes * self.class_dim + 1
        elif self.num_classes:
            head += (pool + 1) * self.num_classes
        aligners = (len(self.budgets) - 1) * (pool * pool + 3 * pool)
        own, parts = self.selector_dim, 4 if self.patch_size % 2 == 0 else 1
        scorer = (9 + self.in_chans * self.tubelet_size * parts) * own + 56 * own * own + 1 if own else 0
        layers = patches + positions + self.depth * block + len(self.budgets) * head
        return layers + 2 * pool + aligners + scorer

    @property
    def size(self) -> NetworkSize:
        """The part of the configuration that the cost model reads."""
        return NetworkSize(**{field.name: getattr(self, field.name) for field in fields(NetworkSize)})

    def pool(self, grid: SamplingGrid) -> int:
        """The number of tokens of a grid."""
        return grid.tokens(self.patch_size, self.tubelet_size)

    def nearest_head(self, keep: int) -> int:
        """Index of the head with the budget nearest to ``keep`` tokens; of two, the larger budget's."""
        gaps = [abs(budget - keep) for budget in self.budgets]
        return gaps.index(min(gaps))  # torch.export of PyTorch 2.6 does not support min with a key.

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        # Networks without a learned selector stay what they were, and so does what identifies them.
        if not self.selector_dim:
            del values["selector_dim"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "", key: str = "") -> FluxViTConfig:
        """Inverse of :meth:`to_dict`.

        Args:
            where: The file that the values come from; errors begin with it.
            key: Path of the values in that file.

        Raises:
            ValueError: There are unknown keys, or a value has another type or range.
        """
        return convert(plain(values), cls, where, key)


PRESETS: dict[str, FluxViTConfig] = {
    # Ours, for CPU work: tubelets of two frames show motion to the first layer.
    "fluxvit_nano": FluxViTConfig(
        embed_dim=128,
        depth=4,
        num_heads=2,
        patch_size=8,
        tubelet_size=2,
        table_shape=(12, 10, 10),
        budgets=(100, 50, 25),
        layer_scale=0.1,
        pool_dim=128,
        pool_heads=4,
    ),
    # Ours, between nano and small.
    "fluxvit_tiny": FluxViTConfig(embed_dim=192, num_heads=3, pool_dim=384, pool_heads=8),
    # The two sizes of the official checkpoints (S and B).
    "fluxvit_small": FluxViTConfig(),
    "fluxvit_base": FluxViTConfig(embed_dim=768, num_heads=12, table_shape=(32, 20, 20)),
    # The paper's L has no published definition; these are the proportions of InternVideo2-L.
    "fluxvit_large": FluxViTConfig(embed_dim=1024, depth=24, num_heads=16, table_shape=(32, 20, 20)),
}


def preset(name: str, **overrides: Any) -> FluxViTConfig:
    """A named configuration, with fields replaced.

    Raises:
        ValueError: The name or a field is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"model {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    unknown = set(overrides) - {field.name for field in fields(FluxViTConfig)}
    if unknown:
        raise ValueError(f"model {name} has no settings {', '.join(sorted(unknown))}")
    return replace(PRESETS[name], **overrides)
