"""Our weights under the names of the official release, for comparisons with it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fluxvit.checkpoints.official import _NAMES, _rename
from fluxvit.models.config import FluxViTConfig


def to_official(state: Mapping[str, Tensor], config: FluxViTConfig) -> dict[str, Tensor]:
    """Inverse of :func:`from_official`, for a state dict of ours or tensors shaped and named like it."""
    theirs: dict[str, Tensor] = {}
    reverse = [(ours, theirs) for theirs, ours in _NAMES]
    for name, value in state.items():
        if name == "patch_embed.proj.weight":
            p, t = config.patch_size, config.tubelet_size
            theirs[name] = value.unflatten(1, (t, p, p, config.in_chans)).permute(0, 4, 1, 2, 3)
        elif name == "pos_embed.cls":
            theirs["pos_embed"] = torch.cat([value, state["pos_embed.grid"].flatten(0, 2)])[None]
        elif name != "pos_embed.grid":
            renamed = _rename(name, reverse)
            affine = renamed.endswith("depthwise_conv.weight")
            theirs[renamed] = value[:, None, None, None, None] if affine else value
    return {name: value.contiguous() for name, value in theirs.items()}
