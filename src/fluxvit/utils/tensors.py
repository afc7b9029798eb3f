"""Small constant tensors, which are made once for each device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    """One fp32 value for each channel of clips ``[..., C, T, H, W]``, as ``[C, 1, 1, 1]``.

    The result is cached, because a copy from the host stalls an accelerator. Do not change it in place.
    """
    make = _channel_values.__wrapped__ if torch.compiler.is_compiling() else _channel_values
    return make(values, device)


@lru_cache(maxsize=256)
def _channel_values(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # The first caller may be in inference mode, a later one in training.
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1, 1)
