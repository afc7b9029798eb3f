"""Reading the folder of a state without trusting it.

PyTorch's distributed checkpoints describe their files in ``.metadata``, a pickle that PyTorch loads without
limits, so that whoever writes the file could run code. Here it may name only the few classes of such a
description, must describe tensors only (PyTorch unpickles everything else without limits, too), and may point
only to files in its own folder.
"""

from __future__ import annotations

import math
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

_METADATA = ".metadata"
_MAX_BYTES = 1 << 30
_DATA_FILE = re.compile(r"__\d+_\d+\.distcp")
# The classes in descriptions by PyTorch 2.6 to 2.13.
_CLASSES: dict[tuple[str, str], Any] = {
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("collections", "OrderedDict"): dict,
    # The folder in which it was written, which is not used.
    **{
        (module, name): pathlib.PurePosixPath if "Posix" in name else pathlib.PureWindowsPath
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
}


class StateReader(dcp.FileSystemReader):
    """Reads such folders by the checked description of :func:`read_metadata`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        description = read_metadata(Path(self.path))
        description.storage_meta = StorageMeta(load_id=self.load_id)
        return description


def read_metadata(folder: Path) -> Metadata:
    """The description of the files in a folder.

    Raises:
        ValueError: It is missing or damaged, holds anything but plain data, or does not fit the files.
    """
    path = folder / _METADATA
    if not path.is_file():
        raise ValueError(f"{folder} is not a complete state: it has no {_METADATA}; remove it to start anew")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES >> 20} MiB; remove {folder} to start anew")
    try:
        with path.open("rb") as file:
            description = _Unpickler(file).load()
    except _Refused as error:
        raise ValueError(
            f"{path} holds more than the description of tensors, {error}, which is not loaded because it "
            "could run code; the state of somebody else's run is not needed: start from its checkpoint"
        ) from None
    except Exception as error:  # A broken pickle can fail in any way.
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}); remove {folder} to start anew") from error
    problem = _problem(description, folder)
    if problem:
        raise ValueError(f"{path}: {problem}; remove {folder} to start anew")
    return description


class _Refused(Exception):
    """The description names something else than its classes."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a reference to something outside")


def _problem(description: Any, folder: Path) -> str:
    """The fault of a description; empty if it has none."""
    try:
        if not isinstance(description, Metadata):
            return f"it is a {type(description).__name__}, not a description of tensors"
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        for index, info in description.storage_data.items():
            if not (isinstance(index, MetadataIndex) and isinstance(info, filesystem._StorageInfo)):
                return "the position of a tensor has another type"
            if not _DATA_FILE.fullmatch(info.relative_path) or (folder / info.relative_path).is_symlink():
                return f"it points to {info.relative_path!r}, which is no file of this state"
            if info.relative_path not in sizes:
                return f"the file {info.relative_path} is missing"
            start, length = info.offset, info.length
            if start < 0 or length < 0 or start + length > sizes[info.relative_path]:
                return f"the file {info.relative_path} is cut off"
            if getattr(info, "transform_descriptors", None):
                return "its tensors are compressed or encrypted"
        total = sum(sizes.values())
        for name, entry in description.state_dict_metadata.items():
            if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata):
                return f"{name!r} is not a tensor"
            numbers = math.prod(entry.size)
            if numbers < 0 or numbers * entry.properties.dtype.itemsize > total:
                return f"{name} of shape {list(entry.size)} is larger than the files"
            for chunk in entry.chunks:
                if MetadataIndex(name, chunk.offsets) not in description.storage_data:
                    return f"a part of {name} is missing"
    except (AttributeError, TypeError, ValueError, OverflowError):
        return "it is damaged: parts of it have other types"
    return ""
