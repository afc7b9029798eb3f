"""The kinds of input that are accepted as a video: a path, a file, frames, or a decoder."""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from fluxvit.video.base import VideoError
from fluxvit.video.tar_members import TarMember, Window

if TYPE_CHECKING:
    import torch


class VideoDecoder(Protocol):
    """What is used of torchcodec's ``VideoDecoder``."""

    metadata: Any

    def get_frames_played_at(self, seconds: list[float]) -> Any: ...


VideoInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | np.ndarray | torch.Tensor | "
    "Sequence[Any] | VideoDecoder"
)
"""A video, as `fluxvit.video.reader.open_video` takes it:

- the path of a video file or of a folder of images;
- the content of a video file, as bytes or as a seekable file opened in binary mode;
- frames: an array or tensor, uint8 ``[T, H, W, 3]``, or a list of arrays ``[H, W, 3]`` or PIL images;
- a ``VideoDecoder`` of torchcodec, or an object like it.
"""

# A Path keeps one of the two slashes. A single letter would be a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+.*", re.DOTALL)
_LONGEST_NAME = 4096  # No system has longer paths.


def given_path(video: VideoInput) -> Path | None:
    """The path that a video was given as; None if it was given in memory.

    Raises:
        VideoError: The path is empty, or an address of a network.
    """
    if not isinstance(video, str | os.PathLike):
        return None
    text = os.fsdecode(video)
    if not text:
        raise VideoError("the path of the video is empty")
    address = _ADDRESS.fullmatch(text)
    if address and TarMember.parse(text) is None and not os.path.exists(text):
        raise VideoError.of(
            text,
            "this is an address, not a path; open it as a file, such as fsspec.open(address).open(), or use "
            "fluxvit stream",
        )
    return Path(text)


def as_file(video: Any) -> tuple[str, IO[bytes]]:
    """A name for messages, and a file to read, of a video that is given as bytes or as a file.

    The file is read from its beginning, whatever its position. Closing the returned file does not close it.

    Raises:
        VideoError: It is empty, or is not a readable, seekable binary file.
        ValueError: It is not a video of any kind.
    """
    if isinstance(video, bytes | bytearray | memoryview):
        if isinstance(video, bytes) and len(video) < _LONGEST_NAME and _is_path(video):
            raise VideoError.of("<bytes>", "this is a path, not a video; give it as str or Path")
        name, size, opened = "<bytes>", memoryview(video).nbytes, None
    elif hasattr(video, "read"):
        label = getattr(video, "name", None)
        name = f"<file {label}>" if isinstance(label, str) else "<file>"
        size, opened = _size_of(video, name), video
    else:
        raise ValueError(
            "a video is a path, bytes, a file opened in binary mode, frames uint8 [T, H, W, 3], a list of "
            f"frames or a VideoDecoder of torchcodec, not an object of type {type(video).__name__}"
        )
    if size == 0:
        raise VideoError.of(name, "it is empty (0 bytes)")
    if opened is None:
        return name, io.BytesIO(bytes(video))
    return name, io.BufferedReader(Window(opened, 0, size, name, owned=False))


def _size_of(file: Any, name: str) -> int:
    try:
        nothing = file.read(0)
        if inspect.iscoroutine(nothing):
            nothing.close()
        if not isinstance(nothing, bytes):
            raise ValueError(f"its read() gives {type(nothing).__name__}, not bytes")
        file.seek(0, os.SEEK_END)
        return file.tell()
    except Exception as error:  # Files of other libraries raise errors of any kind.
        cure = "open it as by open(path, 'rb'), or give its content: file.read()"
        raise VideoError.of(name, f"not a seekable binary file ({error}); {cure}") from None


def as_frames(video: Any) -> np.ndarray | list[np.ndarray] | None:
    """The frames of a video that is given as frames, each uint8 ``[H, W, 3]``; None if it is given otherwise.

    Raises:
        ValueError: They are of another type or shape, of several sizes, or there are none.
    """
    if isinstance(video, str | bytes | bytearray | memoryview | os.PathLike):
        return None
    if isinstance(video, list | tuple):
        return _from_list(video)
    if _is_tensor(video) or hasattr(video, "__array__"):
        array = _as_array(video)
        _check_pixels(array, "frames", ("T", "H", "W", "3"))
        return array
    return None


def _from_list(items: Sequence[Any]) -> list[np.ndarray]:
    if not items:
        raise ValueError("a list without frames is not a video")
    frames: list[np.ndarray] = []
    for number, item in enumerate(items):
        # The alpha channel of an image is dropped, as in image files.
        if hasattr(item, "convert"):  # A PIL image.
            image = np.asarray(item.convert("RGB"))
        elif _is_tensor(item) or hasattr(item, "__array__"):
            image = _as_array(item)
        else:
            raise ValueError(
                f"item {number} of the list is of type {type(item).__name__}; frames are arrays [H, W, 3] or "
                "PIL images, and videos are given one by one"
            )
        _check_pixels(image, f"frame {number}", ("H", "W", "3"))
        if frames and image.shape != frames[0].shape:
            height, width = frames[0].shape[:2]
            raise ValueError(
                f"frame {number} is {image.shape[1]}x{image.shape[0]}, the first is {width}x{height}; resize "
                "them to one size"
            )
        frames.append(image)
    return frames


def _as_array(value: Any) -> np.ndarray:
    try:
        if _is_tensor(value):
            value = value.detach()
            # NumPy has no bfloat16. The error about the type names another one then.
            return np.asarray((value.float() if value.is_floating_point() else value).cpu())
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:
        # Sparse tensors, tensors without content, and the arrays of other libraries.
        reason = " ".join(str(error).split())
        raise ValueError(f"frames cannot be read from type {type(value).__name__} ({reason})") from error


def _check_pixels(array: np.ndarray, name: str, axes: tuple[str, ...]) -> None:
    """Raise a ValueError with the cure if an array has another shape or type."""
    is_shape = array.ndim == len(axes) and array.shape[-1] == 3 and array.size > 0
    if is_shape and array.dtype == np.uint8:
        return
    cure = ""
    if is_shape:
        cure = "; convert them to 0..255 and uint8"
        if np.issubdtype(array.dtype, np.floating):
            cure = "; for values from 0 to 1: (255 * frames).round() as uint8"
    elif array.ndim == len(axes) and 3 in array.shape[:-2]:
        first = array.shape.index(3)
        order = (*(axis for axis in range(array.ndim) if axis != first), first)
        cure = f"; the channels come last: permute{order} of a tensor, transpose{order} of an array"
    raise ValueError(
        f"{name} must be uint8 [{', '.join(axes)}], with at least one frame and pixel, got {array.dtype} "
        f"{list(array.shape)}{cure}"
    )


def _is_tensor(value: Any) -> bool:
    # There are no tensors before torch is imported, and other inputs do not need it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_path(content: bytes) -> bool:
    try:
        return os.path.exists(content)
    except ValueError:
        return False
