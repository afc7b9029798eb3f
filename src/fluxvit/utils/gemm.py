"""The rate of large matrix products on a device, to which the speed of a network is compared."""

from __future__ import annotations

import time
from functools import lru_cache

import torch


@lru_cache(maxsize=16)
def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-accumulates per second of PyTorch's products of large square matrices: the fastest of several.

    The first call for a device and a number format takes about a second; the random state stays as it is.
    """
    size = 2048 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.rand(size, size, device=device, generator=generator).to(dtype)
    seconds: list[float] = []
    while len(seconds) < 4 or (len(seconds) < 20 and sum(seconds) < 0.5):
        start = time.perf_counter()
        matrix @ matrix
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        seconds.append(time.perf_counter() - start)
    return size**3 / min(seconds)
