"""The network never waits for the host: no copy between devices, and no value read back.

An accelerator is not needed: the tests run on PyTorch's meta device, which computes nothing, and look at
every operation and at every call that would copy or read a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fluxvit.flux.selection import SELECTORS, get_selector
from fluxvit.models.fluxvit import FluxViT, create_model

READS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        assert devices <= {"meta"}, f"{func} works on {sorted(devices)}"
        return result


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in READS, f"{name} reads a value back"
        assert name not in ("tensor", "as_tensor", "from_numpy"), f"torch.{name} copies from the host"
        if name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(each, list) for each in index), "a list as an index is copied"
            assert not any(isinstance(each, Tensor) and each.dtype == torch.bool for each in index), "a mask"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_copies() -> Iterator[None]:
    with _Calls(), _Operations():
        yield


def on_meta(**settings: Any) -> tuple[FluxViT, Tensor]:
    with torch.device("meta"):
        return create_model("fluxvit_nano", **settings), torch.empty(2, 3, 8, 64, 64)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: torch.tensor([1, 2], device="meta"),
        lambda x: x + torch.ones(3).to("meta"),
        lambda x: x[[0, 1]],
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
    ],
)
def test_copies_and_reads_are_noticed(copy: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError), no_host_copies():
        copy(torch.empty(3, device="meta"))


@pytest.mark.parametrize("selector", SELECTORS)
def test_inference(selector: str) -> None:
    model, video = on_meta()
    if get_selector(selector).reads == "nothing":
        model(video, budget=50, selector=selector)  # Seeded draws are copied once.
    with no_host_copies(), torch.inference_mode():
        for budget in (50, [100, 50, 25], None):
            model(video, budget=budget, selector=selector)


def test_a_training_step() -> None:
    model, video = on_meta(drop_path=0.1, drop_rate=0.1)
    model.train()
    with no_host_copies():
        outputs = model(video, budget=[100, 50, 25])
        sum(output.logits.sum() for output in outputs).backward()
