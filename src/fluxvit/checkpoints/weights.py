"""Files of tensors.

:func:`read_tensors` and :func:`write_tensors` are for safetensors files; :func:`read_weights` also reads what
PyTorch writes. Nothing in a file is executed.
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
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fluxvit.checkpoints.state_dicts import Choice, unwrap


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
    """What a file is, by its first bytes: ``PyTorch``, ``older PyTorch``, ``safetensors``, or why none.

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
