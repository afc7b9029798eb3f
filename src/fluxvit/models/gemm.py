"""The rate of large matrix products on a device, to which the speed of a network is compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch

from fluxvit.models.inference import PackedLinear, can_pack


def gemm_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """A product of large square matrices, and its multiply-accumulates.

    On a CPU it is a product of packed matrices if PyTorch can pack them: its other products of fp32 may be
    only half as fast.
    """
    size = 2048 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.rand(size, size, device=device, generator=generator).to(dtype)
    if device.type == "cpu" and can_pack(dtype):
        return partial(PackedLinear(matrix, None, dtype, None), matrix), size**3
    return partial(torch.matmul, matrix, matrix), size**3


@lru_cache(maxsize=16)
def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-accumulates per second of large matrix products: the fastest of several.

    The first call for a device and a number format takes about half a second; the random state stays as it
    is.
    """
    product, macs = gemm_product(device, dtype)
    seconds: list[float] = []
    while len(seconds) < 4 or (len(seconds) < 20 and sum(seconds) < 0.5):
        start = time.perf_counter()
        product()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        seconds.append(time.perf_counter() - start)
    return macs / min(seconds)
