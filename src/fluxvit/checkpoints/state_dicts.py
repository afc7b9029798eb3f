"""State dicts: finds them in whatever training frameworks save, and prepares them to be saved.

Frameworks wrap a state dict in further dictionaries, and its names in prefixes; :func:`unwrap` removes both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fluxvit.utils.schema import shown

M = TypeVar("M", bound=nn.Module)
Choice = Literal["model", "ema"]
"""Which weights of a file that holds both: those that were trained, or their moving average."""

# Keys under which frameworks keep a model's weights in a larger dictionary (torch.save of a training state,
# timm, MAE and its kin, DeepSpeed, Lightning); and those of a moving average.
_MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "model_weights",
)
_EMA_KEYS = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema_weights",
    "ema",
    "params_ema",
)
# Names by which modules that hold a network call it, and so what stands before its tensors' names.
_PREFIXES = {
    *(
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "model",
        "backbone",
        "net",
    ),
    *("network", "encoder", "student", "online_model"),
}
_EMA_PREFIXES = {"ema", "ema_model", "model_ema", "teacher", "averaged_model", "shadow"}
_COMPILED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What a training module may hold beside its network.
_BESIDE = re.compile(r"(criterion|\w*loss\w*|\w*metrics?|\w*acc(uracy)?\d*)\.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Tensors by which the networks are known, ours and those that can be converted.
_KNOWN = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "embedding_layer.weight", "tokens.weight")


def unwrap(content: Any, weights: Choice = "model", where: str = "") -> dict[str, Tensor]:
    """The state dict of a network in what a file holds, with the names that the network itself gives.

    Args:
        content: A state dict, plain or within dictionaries of any depth, with other data beside it or not.
        weights: Which ones, if there are two kinds; a file that holds one kind gives it for ``model``.
        where: What the content comes from; errors begin with it.

    Raises:
        ValueError: There are no tensors with names, or no weights of the chosen kind.
    """
    prefix = f"{where}: " if where else ""
    if weights not in ("model", "ema"):
        raise ValueError(f"weights {weights!r}: choose model or ema")
    if not isinstance(content, Mapping):
        raise ValueError(f"{prefix}holds no state dict, but {_name_of(content)}")
    try:
        state, averaged = _find(content, weights)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None
    if state is None:
        if "param_groups" in content or any("optim" in str(key) for key in content):
            raise ValueError(
                f"{prefix}holds the state of an optimizer, and no weights of a network beside it"
            )
        keys = ", ".join(shown(key) for key in list(content)[:5])
        raise ValueError(f"{prefix}holds no state dict{f' among its entries ({keys} ...)' if keys else ''}")
    state, stripped = _strip(state, weights)
    if weights == "ema" and not (averaged or stripped):
        raise ValueError(f"{prefix}holds no averaged weights (EMA); take those of the model")
    return state


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what wrappers put before its names.

    A prefix goes if all tensors have it, or if it stands before the tensors by which networks are known.
    """
    return _strip(state, "model")[0]


def _strip(state: Mapping[str, Tensor], weights: Choice) -> tuple[dict[str, Tensor], bool]:
    """As :func:`strip_prefixes`, and whether the names tell of an average; of several networks side by side,
    such as a student and its teacher, ``weights`` chooses.
    """
    found = {_COMPILED.sub("", name): value for name, value in state.items()}
    if len(found) < len(state):  # Two would get the same name.
        found = dict(state)
    averaged = found.pop("n_averaged", None) is not None  # Of torch.optim.swa_utils.AveragedModel.
    for _ in range(8):
        wrapper = _wrapper(found, weights)
        if wrapper is None:
            break
        averaged = averaged or wrapper in _EMA_PREFIXES
        others = tuple(f"{other}." for other in _siblings(found) if other != wrapper)
        found = {
            name.removeprefix(f"{wrapper}."): value
            for name, value in found.items()
            if not name.startswith(others) and not _BESIDE.match(name)
        }
    return found, averaged


def _siblings(state: Mapping[str, Any]) -> list[str]:
    """First parts of names that wrap a known network."""
    heads = dict.fromkeys(name.partition(".")[0] for name in state)
    return [head for head in heads if head in _PREFIXES | _EMA_PREFIXES and _wraps(head, state)]


def _wraps(head: str, state: Mapping[str, Any]) -> bool:
    """Whether a prefix stands before tensors by which networks are known, which do not stand without it."""
    if any(known in state for known in _KNOWN):
        return False
    return any(name.startswith(f"{head}.") and name.endswith(_KNOWN) for name in state)


def _wrapper(state: Mapping[str, Any], weights: Choice) -> str | None:
    """The prefix to remove next, or None."""
    heads = dict.fromkeys(name.partition(".")[0] for name in state)
    head = next(iter(heads), "")
    if len(heads) == 1 and head in _PREFIXES | _EMA_PREFIXES and head not in state:
        return head
    chosen, other = (_EMA_PREFIXES, _PREFIXES) if weights == "ema" else (_PREFIXES, _EMA_PREFIXES)
    siblings = _siblings(state)
    return next((head for kind in (chosen, other) for head in siblings if head in kind), None)


def _find(
    content: Mapping[Any, Any], weights: Choice, depth: int = 0, seen: set[int] | None = None
) -> tuple[dict[str, Tensor] | None, bool]:
    """The first state dict of the chosen kind in nested dictionaries, or of the other kind if there is but
    one; and whether it is an average.
    """
    order = (*_EMA_KEYS, *_MODEL_KEYS) if weights == "ema" else (*_MODEL_KEYS, *_EMA_KEYS)
    seen = {id(content)} if seen is None else seen  # A pickle may hold the same dictionary in many places.

    def find(key: Any) -> tuple[dict[str, Tensor] | None, bool]:
        inner = content.get(key)
        if not isinstance(inner, Mapping) or id(inner) in seen or depth == 8:
            return None, False
        seen.add(id(inner))
        return _find(inner, weights, depth + 1, seen)

    for key in order:
        if key in content:
            found, averaged = find(key)
            if found is not None:
                return found, averaged or key in _EMA_KEYS
    state = _state(content)
    if state is not None:
        return state, False
    # Under any other key, if there is a known network in one of them alone.
    others = {}
    for key in content:
        if key not in order:
            found, averaged = find(key)
            if found is not None and any(name.endswith(_KNOWN) for name in found):
                others[key] = found, averaged or key in _EMA_PREFIXES
    if len(others) > 1:  # A student and its teacher, which is an average of it.
        others = {key: found for key, found in others.items() if found[1] == (weights == "ema")} or others
    if len(others) > 1:
        keys = ", ".join(map(shown, others))
        raise ValueError(f"holds several networks, under the keys {keys}; save the one that is meant alone")
    return next(iter(others.values()), (None, False))


def _state(content: Mapping[Any, Any]) -> dict[str, Tensor] | None:
    """Content as a state dict, if it is one: NumPy's arrays become tensors, other plain data is left out."""
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            return None
        if isinstance(value, Tensor):
            found[name] = _real(name, value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            with suppress(TypeError):  # Types that PyTorch lacks.
                found[name] = torch.from_numpy(np.array(value).view(np.ndarray))
        elif not (_is_plain(value) or name.endswith("_extra_state")):
            return None
    return found if any(value.ndim for value in found.values()) else None


def _real(name: str, value: Tensor) -> Tensor:
    """A tensor of a file, which must be as large as it says: others could ask for any amount of memory.

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


def _is_plain(value: Any) -> bool:
    """Data that may stand among the tensors of a state dict without being part of it."""
    return value is None or isinstance(value, (bool, int, float, str, bytes))


def _name_of(content: Any) -> str:
    return "a single tensor" if isinstance(content, Tensor) else f"a value of type {type(content).__name__}"


def bare(model: nn.Module, kind: type[M]) -> M:
    """The network in a wrapper: of ``torch.compile``, DistributedDataParallel, DataParallel, or an average.

    Raises:
        ValueError: There is no network of that kind within, or its weights are shared out between processes.
    """
    inner: Any = model
    while not isinstance(inner, kind):
        name = type(inner).__name__
        if name == "FullyShardedDataParallel":
            raise ValueError(
                "the weights of this model are shared out between processes (FSDP); gather them with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict, and save a plain model"
            )
        inner = next(
            (
                found
                for part in ("_orig_mod", "module", "ema_model", "ema")
                if isinstance(found := getattr(inner, part, None), nn.Module)
            ),
            None,
        )
        if inner is None:
            raise ValueError(f"{name} is no {kind.__name__}, and wraps none")
    return inner


def savable(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors as a file can hold them: on the CPU, contiguous, each with a memory of its own, and without
    what wrappers of single layers put into their names.

    Args:
        what: Is saved; errors begin with it.

    Raises:
        ValueError: A tensor has no content (meta device), is shared out between processes, is sparse or
            quantized, or holds NaN or infinite numbers.
    """
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, value in strip_prefixes(state).items():
        if not isinstance(value, Tensor):  # Packed weights of quantized layers, and other extra states.
            raise ValueError(
                f"{what}: {name} is {_name_of(value)}, no tensor; save the network before it is quantized"
            )
        if type(value).__name__ == "DTensor":
            raise ValueError(f"{what}: {name} is shared out between processes; gather the weights first")
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
        place = (tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        if place in seen or place[1] != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()  # Tied to another one, or a part of a larger one.
        else:
            seen.add(place)
        found[name] = tensor
    return found
