"""The configuration of a FluxViT, and the named sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fluxvit.flux.cost import NetworkSize

ACTIVATIONS = ("gelu_tanh", "gelu")


@dataclass(frozen=True)
class FluxViTConfig:
    """Architecture of a FluxViT.

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
        activation: ``gelu_tanh`` (as the published weights were trained) or ``gelu`` (erf).
        dual_patch_norm: RMS norm before and after patch embedding (DPN).
        global_position: Learned scale and shift of the position table (with ``local_position``: GLPE).
        local_position: Learned per-channel affine of the values, added to the attention output.
        qk_norm: RMS norm of queries and keys over the full width.
        qkv_bias: Bias of the qkv projection.
        layer_scale: Initial value of LayerScale.
        drop_path: Stochastic depth rate of the last block; rises linearly from 0.
        drop_rate: Dropout of the pooled vector before the classifier.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 14
    tubelet_size: int = 1
    in_chans: int = 3
    table_shape: tuple[int, int, int] = (24, 18, 18)
    budgets: tuple[int, ...] = (3072, 2048, 1024)
    pool_dim: int = 768
    pool_heads: int = 16
    num_classes: int = 400
    class_dim: int = 0
    activation: str = "gelu_tanh"
    dual_patch_norm: bool = True
    global_position: bool = True
    local_position: bool = True
    qk_norm: bool = True
    qkv_bias: bool = False
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "table_shape", tuple(self.table_shape))
        object.__setattr__(self, "budgets", tuple(self.budgets))
        for width, heads, what in (
            (self.embed_dim, self.num_heads, "num_heads"),
            (self.embed_dim, self.pool_heads, "pool_heads"),
        ):
            if heads < 1 or width % heads:
                raise ValueError(f"embed_dim {width} is not a multiple of {what} {heads}")
        if self.embed_dim % 16:
            raise ValueError(f"embed_dim {self.embed_dim} is not a multiple of 16, as 3-D positions need")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}"
            )
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"budgets {self.budgets} must be one or more positive token counts")
        if list(self.budgets) != sorted(set(self.budgets), reverse=True):
            raise ValueError(f"budgets {self.budgets} must fall from the largest to the smallest")
        if len(self.table_shape) != 3 or min(self.table_shape) < 1:
            raise ValueError(f"table_shape {self.table_shape} must be three positive token counts")
        if min(self.patch_size, self.tubelet_size, self.depth, self.in_chans, self.pool_dim) < 1:
            raise ValueError("patch_size, tubelet_size, depth, in_chans and pool_dim must be at least 1")
        if min(self.num_classes, self.class_dim) < 0:
            raise ValueError(
                f"num_classes is {self.num_classes} and class_dim {self.class_dim}; use 0 for none"
            )

    @property
    def size(self) -> NetworkSize:
        """What the cost model needs to know."""
        return NetworkSize(**{field.name: getattr(self, field.name) for field in fields(NetworkSize)})

    def nearest_head(self, keep: int) -> int:
        """Index of the head that was trained nearest to ``keep`` tokens; of two, the larger budget's."""
        return min(range(len(self.budgets)), key=lambda i: abs(self.budgets[i] - keep))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FluxViTConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: There are unknown keys, or bad values.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown model settings: {', '.join(sorted(unknown))}")
        return cls(**values)


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
    # The two sizes that the authors released (their S and B).
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
