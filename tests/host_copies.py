"""What fails a test when an accelerator would wait for the host, without one: on PyTorch's meta device, which
computes nothing, every operation and every call that would copy or read a value is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


def _devices(values: Any) -> set[str]:
    return {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = _devices((args, kwargs, result))
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to)
        waits = not (copies and kwargs.get("non_blocking"))
        if "meta" in devices and waits:
            assert devices == {"meta"}, f"{func} works on {sorted(devices)}"
        return result


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        on_device = "meta" in _devices((args, kwargs))
        assert not (on_device and name in READS), f"{name} reads a value back"
        if on_device and name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(each, list) for each in index), "a list as an index is copied"
            assert not any(isinstance(each, Tensor) and each.dtype == torch.bool for each in index), "a mask"
        result = func(*args, **(kwargs or {}))
        if name in ("tensor", "as_tensor", "from_numpy"):
            assert "meta" not in _devices(result), f"torch.{name} copies from the host"
        return result


@contextmanager
def no_host_copies() -> Iterator[None]:
    """Fail on every copy between the host and the meta device that the host waits for."""
    with _Calls(), _Operations():
        yield
