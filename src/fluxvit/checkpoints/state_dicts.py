"""State dicts: takes them out of what training frameworks save, and prepares them to be saved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fluxvit.utils.schema import shown

M = TypeVar("M", bound=nn.Module)

# Keys under which training programs keep the weights of a model in a larger dictionary.
_KEYS = ("state_dict", "model_state_dict", "model", "module", "network")
# Names by which modules that hold a network call it, which precede the names of its tensors.
_PREFIXES = ("module", "model", "backbone", "net", "network", "encoder")
_COMPILED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def unwrap(content: Any, where: str) -> dict[str, Tensor]:
    """The state dict of a network in the content of a file, with the names that the network itself gives.

    Args:
        content: A state dict, plain or within dictionaries under the usual keys, with other data beside it
            or not.
        where: The file, for errors.

    Raises:
        ValueError: There is no state dict, or one of its tensors cannot be used.
    """
    for _ in range(8):
        if not isinstance(content, Mapping):
            raise ValueError(f"{where}: holds no state dict, but {_name_of(content)}")
        inner = next((content[key] for key in _KEYS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    try:
        state = {
            name: _real(name, value)
            for name, value in content.items()
            if isinstance(name, str) and isinstance(value, Tensor)
        }
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not any(value.ndim for value in state.values()):
        keys = ", ".join(shown(key) for key in list(content)[:5])
        raise ValueError(f"{where}: holds no state dict{f' among its entries ({keys} ...)' if keys else ''}")
    return strip_prefixes(state)


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what wrappers add to its names.

    What PyTorch's own wrappers add goes everywhere, and a module's name goes if all tensors have it.
    """
    names = {name: _COMPILED.sub("", name) for name in state}
    if len(set(names.values())) < len(state):  # Two tensors would get the same name.
        names = {name: name for name in state}
    stripped = {names[name]: value for name, value in state.items()}
    stripped.pop("n_averaged", None)  # A counter of torch.optim.swa_utils.AveragedModel.
    for _ in range(8):
        prefix = next(iter(stripped), "").partition(".")[0]
        if prefix not in _PREFIXES or not all(name.startswith(f"{prefix}.") for name in stripped):
            break
        stripped = {name.removeprefix(f"{prefix}."): value for name, value in stripped.items()}
    return stripped


def _real(name: str, value: Tensor) -> Tensor:
    """A tensor of a file, which must have as much content as its shape says: others could take any amount of
    memory.

    Raises:
        ValueError: It has no content, is sparse or quantized, holds weights as integers, or repeats a little
            memory many times.
    """
    if value.is_meta or value.layout is not torch.strided or value.is_quantized:
        raise ValueError(f"tensor {name} has no content, or is sparse or quantized; save plain tensors")
    if name.endswith((".weight", ".bias")) and value.dtype not in _FLOATS:
        raise ValueError(f"tensor {name} is {value.dtype}; weights must be floating-point numbers")
    size = value.numel() * value.element_size()
    if size > max(4 * value.untyped_storage().nbytes(), 1 << 20):
        raise ValueError(
            f"tensor {name} of shape {list(value.shape)} is larger than what the file holds of it"
        )
    return value.detach()


def _name_of(content: Any) -> str:
    return "a single tensor" if isinstance(content, Tensor) else f"a value of type {type(content).__name__}"


def bare(model: nn.Module, kind: type[M]) -> M:
    """The network in a wrapper of ``torch.compile``, DistributedDataParallel, DataParallel, or an average.

    Raises:
        ValueError: There is no network of that kind inside, or its weights are sharded.
    """
    inner: Any = model
    while not isinstance(inner, kind):
        name = type(inner).__name__
        if name == "FullyShardedDataParallel":
            raise ValueError(
                "the weights of this model are sharded between processes (FSDP); gather them with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict, and save a plain model"
            )
        parts = (getattr(inner, part, None) for part in ("_orig_mod", "module"))
        inner = next((part for part in parts if isinstance(part, nn.Module)), None)
        if inner is None:
            raise ValueError(f"{name} is not a {kind.__name__}, and wraps none")
    return inner


def savable(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors in the form that a file can hold: on the CPU, contiguous, each with its own memory, and named
    without wrappers.

    Args:
        what: Beginning of error messages.

    Raises:
        ValueError: A tensor has no content (meta device), is sharded, sparse or quantized, or holds NaN or
            infinite numbers.
    """
    result: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, value in strip_prefixes(state).items():
        if not isinstance(value, Tensor):  # Packed weights of quantized layers, and other extra states.
            raise ValueError(
                f"{what}: {name} is {_name_of(value)}, no tensor; save the network before it is quantized"
            )
        if type(value).__name__ == "DTensor":
            raise ValueError(f"{what}: {name} is sharded between processes; gather the weights first")
        if value.is_meta:
            raise ValueError(f"{what}: {name} has no content (it is on the meta device); load weights first")
        if value.layout is not torch.strided or value.is_quantized:
            raise ValueError(f"{what}: {name} is sparse or quantized; save plain tensors")
        tensor = value.detach().cpu().contiguous()
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{what}: {name} holds {count} numbers that are not finite; the training has diverged"
            )
        memory = (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        if memory in seen or memory[1] != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()  # Tied to another one, or a part of a larger one.
        else:
            seen.add(memory)
        result[name] = tensor
    return result
