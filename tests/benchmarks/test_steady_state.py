"""A network that serves random requests keeps nothing of them."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from torch import Tensor

from fluxvit.models.fluxvit import create_model
from fluxvit.models.inference import prepare
from steady_state import request, run


def living() -> int:
    """Bytes of all tensors that Python knows."""
    gc.collect()
    # Tensors that other tests left may have no storage.
    return sum(x.numel() * x.element_size() for x in gc.get_objects() if type(x) is Tensor)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_tensors_of_requests_do_not_stay(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    model = prepare(create_model("fluxvit_nano", depth=1).eval(), torch.float32, backend)
    rng, sizes = random.Random(0), []
    for _ in range(4):
        for _ in range(25):
            request(model, rng)
        sizes.append(living())
    # The positions of sixteen grids are kept, of at most 16 x 8 x 8 tokens each.
    most = 16 * 8 * 8 * 8 * model.config.embed_dim * 4
    assert max(sizes[1:]) - sizes[0] <= most
    assert len(model.pos_embed._cache) <= 16


def test_a_row_for_each_tenth_of_the_requests() -> None:
    model = prepare(create_model("fluxvit_nano", depth=1).eval(), torch.float32, "torch")
    rows = run(model, 10)
    assert [number for number, *_ in rows] == list(range(1, 11))
    assert all(compiled == 0 and len(times) == 1 for _, _, compiled, times in rows)
