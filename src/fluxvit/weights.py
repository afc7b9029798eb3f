"""Tensors in files: read whatever people save, and written so that everybody can read them back.

:func:`read_tensors` and :func:`write_tensors` are for safetensors files; :func:`read_weights` reads whatever
PyTorch writes, too. Training frameworks wrap a state dict in further dictionaries, and its names in prefixes;
:func:`unwrap` takes both away. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import pickle
import re
import struct
import types
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxvit.schema import shown

M = TypeVar("M", bound=nn.Module)
Choice = Literal["model", "ema"]
"""Which weights of a file that holds both: those that were trained, or their moving average."""

# Reading ---------------------------------------------------------------------------------------------------


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: The file is missing, or is something else; the message says what.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise _no_safetensors(Path(path), error) from error


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file; the tensors are not read.

    Raises:
        ValueError: As :func:`read_tensors`.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _no_safetensors(Path(path), error) from error


def read_weights(path: str | Path, weights: Choice = "model") -> dict[str, Tensor]:
    """The state dict in a file that PyTorch, safetensors, or a framework around them wrote.

    Nothing in the file is executed. The tensors of newer files are mapped, not read, until they are used: a
    network may be larger than what is free.

    Args:
        weights: Which ones, if there are two kinds.

    Raises:
        ValueError: The file is missing, damaged, of another kind, holds objects that could run code, or no
            state dict; the message says which, and what to do.
    """
    path = Path(path)
    found = kind_of(path)
    if found == "safetensors":
        return unwrap(read_tensors(path), weights, str(path))
    if found not in ("PyTorch", "older PyTorch"):
        raise ValueError(f"{path}: {_CURES[found]}" if found in _CURES else f"{path}: {found}")
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what is refused; of deprecated kinds of storage.
            if (
                path.suffix == ".safetensors"
            ):  # Newer versions of PyTorch go by that name, not by the content.
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=found == "PyTorch")
    except (
        # What damaged files lead to: a broken pickle can fail in every way that its operations know.
        *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, AssertionError, KeyError),
        *(
            TypeError,
            AttributeError,
            IndexError,
            UnicodeDecodeError,
            struct.error,
            MemoryError,
            OverflowError,
        ),
    ) as error:
        raise ValueError(f"{path}: {_refusal(error, found)}") from error
    return unwrap(content, weights, str(path))


def kind_of(path: Path) -> str:
    """What a file is, by its first bytes: ``PyTorch``, ``older PyTorch``, ``safetensors``, or why it is none.

    Names are not asked: browsers and tools change them.
    """
    if path.is_dir():
        inner = sorted(item.name for item in path.iterdir())
        if "config.json" in inner and "model.safetensors" in inner:
            return "is a folder, not a file; it looks like a checkpoint folder already"
        return "is a folder, not a file; name the file of weights in it"
    if not path.is_file():
        return "no such file"
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        return "the file is empty; fetch it again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "Git LFS"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        return "web page"
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if len(head) > 8 and head[8:9] == b"{" and size >= 8 and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if text[:1] in (b"{", b"["):
        index = b'"weight_map"' in path.read_bytes()[: 1 << 26] if size < 1 << 26 else False
        return "index" if index else "JSON"
    for start, kind in _MAGIC:
        if head.startswith(start):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    if head[:1] == b"\x80":
        return "older PyTorch" if _OLDER in head[:32] else "pickle"
    return "unknown"


def _kind_of_archive(path: Path) -> str:
    """PyTorch's files are zip archives; so are many others."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return "cut"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return "TorchScript"
    if "data.pkl" in last:
        return "PyTorch"
    if last & {"model.weights.h5", "keras_metadata.pb"}:
        return "Keras"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy"
    return "zip"


_AGAIN = "fetch it again and compare its size with the one at its source"
_CURES = {
    "cut": f"the file is cut off or damaged: the end of its archive is missing; {_AGAIN}",
    "web page": "this is a web page, not weights: the download gave a page of the site; open its address "
    "in a browser, or log in, and fetch the file itself",
    "Git LFS": "this is a Git LFS pointer, a text that stands for the file; fetch it with: git lfs pull",
    "index": "this is the index of weights in several files; put them together, for example with "
    "safetensors.torch.load_file on each and save_file on all of them",
    "JSON": "this is JSON text, not weights; give the file of weights (.pth, .pt or .safetensors)",
    "TorchScript": "this is a TorchScript program, which is code; where it was made, save the weights alone "
    "with: torch.save(model.state_dict(), 'weights.pth')",
    "Keras": "this is a Keras model; only weights of PyTorch networks can be read",
    "NumPy": "these are NumPy arrays; save them as weights with torch.save, a tensor for each name",
    "zip": "this is a zip archive without weights of PyTorch; unpack it and give the file in it",
    "tar": "this is a tar archive; unpack it and give the file in it, or if a very old PyTorch wrote it, "
    "load it there and save it again with torch.save",
    "compressed": "this file is compressed; unpack it first",
    "pickle": "this is a pickle that torch.save did not write; it could run code and is not loaded; save the "
    "weights as tensors with torch.save",
    "GGUF": "this is a GGUF file of a language model, not a video model's weights",
    "unknown": f"not a PyTorch file, and no other kind of weights that is known; {_AGAIN}",
}
_OLDER = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # torch.serialization.MAGIC_NUMBER
_MAGIC = (
    (b"\x89HDF", "Keras"),
    (b"GGUF", "GGUF"),
    (b"\x93NUMPY", "NumPy"),
    (b"\x1f\x8b", "compressed"),
    (b"BZh", "compressed"),
    (b"\xfd7zXZ", "compressed"),
    (b"7z\xbc\xaf", "compressed"),
    (b"Rar!", "compressed"),
    (b"\x28\xb5\x2f\xfd", "compressed"),
)


def _no_safetensors(path: Path, error: Exception) -> ValueError:
    """What is wrong with a file that cannot be read as safetensors."""
    kind = kind_of(path)
    if kind == "safetensors":
        reason = f"damaged or not complete, {_AGAIN} ({error})"
    elif kind in ("PyTorch", "older PyTorch"):
        reason = "not a safetensors file: PyTorch's torch.save wrote it, whatever its name says"
    elif kind == "unknown":
        reason = f"damaged or not a safetensors file; {_AGAIN}"
    else:
        reason = f"damaged or not a safetensors file: {_CURES.get(kind, kind)}"
    return ValueError(f"{path}: {' '.join(reason.split())}")


# Classes of plain data that people save beside weights. Each is a name in files, and what is made of it here;
# names of other versions, and of libraries that need not be installed, are among them. None of them runs
# anything that the file chooses.
_PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    *(
        (kind, f"{module}.{kind.__name__}")
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, set, frozenset, tuple, int, float, complex, bytearray)
    ),
    *(
        (pathlib.PurePosixPath if "Posix" in name else pathlib.PureWindowsPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    ),
    np.ndarray,
    np.dtype,
    *((type(np.dtype(code)), f"numpy.dtypes.{type(np.dtype(code)).__name__}") for code in "?bBhHiIlLqQefdSU"),
    *(
        (dict, f"{module}.AttributeDict")
        for module in (
            "lightning.fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "lightning_fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
        )
    ),
]


def _latin(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for ``_codecs.encode``, by which older pickles write bytes; it knows this codec alone."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the codec {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: np.dtype, content: Any = None) -> Any:
    """Stands in for NumPy's own function, of which the place differs between versions."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("a NumPy scalar that is no plain number")
    return np.frombuffer(bytes(content), dtype, 1)[0].item()


class _Array(np.ndarray):
    """An array as pickles build it: made empty, then given a state. Arrays of objects are refused."""

    def __setstate__(self, state: Any) -> None:
        if len(state) == 5 and isinstance(state[2], np.dtype) and not state[2].hasobject:
            super().__setstate__(state)
        else:
            raise pickle.UnpicklingError("a NumPy array that is not of plain numbers")


def _array(*_: Any) -> Any:
    return np.ndarray.__new__(_Array, (0,), np.int8)


def _dict(*_: Any) -> dict:
    """Stands in for a dictionary with defaults, whose factory could be any function."""
    return {}


_PLAIN_DATA += [(_latin, "_codecs.encode"), (_dict, "collections.defaultdict"), _Array]
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _PLAIN_DATA += [(_scalar, f"{_module}.scalar"), (_array, f"{_module}._reconstruct")]


def _refusal(error: Exception, kind: str) -> str:
    """Why PyTorch did not load a file, and what helps."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)|unrecognized function (.+?)(?:\n|$)|but got (<class .+?>)", text)
    if named and isinstance(error, pickle.UnpicklingError):
        name = next(part for part in named.groups() if part).removeprefix("<class '").removesuffix("'>")
        return (
            f"it holds more than tensors and plain data, {name}, which is not loaded because it could run "
            "code; where the file was made, save the weights alone with: "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if "operand" in text and kind == "PyTorch":
        return (
            "it was saved with another pickle protocol, which PyTorch cannot read without running code; save "
            "it again without pickle_protocol, or as safetensors"
        )
    if kind == "older PyTorch":
        return f"the file is cut off or damaged; {_AGAIN}"
    return f"the file is damaged; {_AGAIN} ({' '.join(text.split())[:100] or type(error).__name__})"


# Unwrapping ------------------------------------------------------------------------------------------------

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
    """The prefix to take away next; None if there is none."""
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


# Writing ---------------------------------------------------------------------------------------------------


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


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, which everybody may read.

    Raises:
        OSError: It cannot be written, for example because the disk is full.
    """
    try:
        safetensors.torch.save_file(dict(state), path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(0o644)  # The library writes for the owner's eyes only.
