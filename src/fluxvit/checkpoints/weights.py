"""Files of tensors.

:func:`read_tensors` and :func:`write_tensors` are for safetensors files; :func:`read_weights` also reads
files of PyTorch. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fluxvit.checkpoints.state_dicts import unwrap


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: The file is missing, or is something else; the message says what.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise _no_safetensors(Path(path), error) from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file that PyTorch, safetensors, or a framework around them wrote.

    Nothing in the file is executed. The tensors of newer files are mapped, not read, until they are used: a
    network may be larger than the free memory.

    Raises:
        ValueError: The file is missing, damaged or of another kind, has objects that could run code, or has
            no state dict; the message names the problem and its cure.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors":
        return unwrap(read_tensors(path), str(path))
    if kind not in ("PyTorch", "older PyTorch"):
        raise ValueError(f"{path}: {kind}")
    try:
        with torch.serialization.safe_globals(_PLAIN_DATA), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About refused classes and deprecated kinds of storage.
            if path.suffix == ".safetensors":  # Newer versions of PyTorch go by the name of a path.
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "PyTorch")
    except Exception as error:  # A damaged pickle can fail in any way.
        raise ValueError(f"{path}: {_refusal(error, kind)}") from error
    return unwrap(content, str(path))


_AGAIN = "fetch it again and compare its size with the one at its source"
_CUT = f"the file is cut off or damaged: the end of its archive is missing; {_AGAIN}"
_UNKNOWN = f"not a PyTorch file, and no other kind of weights that is known; {_AGAIN}"
_PICKLE = (
    "this is a pickle that torch.save did not write; it could run code and is not loaded; save the weights "
    "as tensors with torch.save"
)
_OLDER = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # torch.serialization.MAGIC_NUMBER


def kind_of(path: Path) -> str:
    """``PyTorch``, ``older PyTorch`` or ``safetensors``, or the reason why a file is none of them.

    The content decides, not the name: browsers and tools change names.
    """
    if path.is_dir():
        return "is a folder, not a file; name the file of weights in it"
    if not path.is_file():
        return "no such file"
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "the file is empty; fetch it again"
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if head[:1] == b"\x80":
        return "older PyTorch" if _OLDER in head[:32] else _PICKLE
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, a text that stands for the file; fetch it with: git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        return (
            "this is a web page, not weights: the download gave a page of the site; open its address in a "
            "browser, or log in, and fetch the file itself"
        )
    if text.startswith((b"{", b"[")):
        return (
            "this is JSON text, not weights; give the file of weights (.pth, .pt or .safetensors); if it is "
            "the index of several files, load them and save their tensors as one file"
        )
    return _UNKNOWN


def _kind_of_archive(path: Path) -> str:
    """Files of PyTorch are zip archives; so are many others."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return _CUT
    if "constants.pkl" in names:
        return (
            "this is a TorchScript program, which is code; where it was made, save the weights alone with: "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if "data.pkl" in names:
        return "PyTorch"
    return "this is a zip archive without weights of PyTorch; unpack it and give the file in it"


def _no_safetensors(path: Path, error: Exception) -> ValueError:
    """The error for a file that cannot be read as safetensors."""
    kind = kind_of(path)
    if kind == "safetensors":
        reason = f"damaged or not complete, {_AGAIN} ({error})"
    elif kind in ("PyTorch", "older PyTorch"):
        reason = "not a safetensors file: PyTorch's torch.save wrote it, whatever its name says"
    else:
        reason = f"damaged or not a safetensors file: {kind}"
    return ValueError(f"{path}: {' '.join(reason.split())}")


def _scalar(dtype: np.dtype, content: Any) -> Any:
    """A number of NumPy; takes the place of NumPy's own function, which also makes other objects."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub" or not isinstance(content, bytes):
        raise pickle.UnpicklingError("a NumPy scalar that is no plain number")
    return np.frombuffer(content, dtype, 1)[0].item()


# Classes of plain data that training programs save beside weights: settings, and scalars of NumPy under their
# names in all versions. None of them runs anything that the file chooses.
_PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *((type(np.dtype(code)), f"numpy.dtypes.{type(np.dtype(code)).__name__}") for code in "?bBhHiIlLqQefd"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _refusal(error: Exception, kind: str) -> str:
    """The reason why PyTorch did not load a file, and the cure."""
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
    """Write a safetensors file that all users may read.

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
    path.chmod(0o644)  # The library lets only the owner read it.
