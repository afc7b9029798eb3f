"""Opens a video file at its main picture stream, or says what the file is instead."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from fluxvit.video.base import VideoError
from fluxvit.video.container import open_container, other_kind, script_kind
from fluxvit.video.limits import VideoLimits, claimed_samples, image_size, is_encrypted, lacks_index
from fluxvit.video.rgb import display_width

_SCRIPT_BYTES = 1024

# The pixels of real videos are at most about twice as wide as high, or the reverse.
_LARGEST_ASPECT = 8.0
_STILLS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
IMAGE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpegls"}


def pixel_aspect(stream: VideoStream) -> float:
    """Width of a stored pixel over its height; 1 if the file gives none, or one that is impossible."""
    aspect = float(stream.sample_aspect_ratio or 0)
    return aspect if 1 / _LARGEST_ASPECT <= aspect <= _LARGEST_ASPECT else 1.0


def open_main_stream(
    path: Path, file: IO[bytes] | None, limits: VideoLimits
) -> tuple[InputContainer, VideoStream]:
    """Open ``path`` at its main video stream, or raise a VideoError that says what it is instead."""
    if file is None:
        if not path.exists():
            raise VideoError.of(path, "a broken link" if path.is_symlink() else "no such file")
        if path.is_dir():
            raise VideoError.of(path, "a folder, not a video file")
        if not path.is_file():
            raise VideoError.of(path, "neither a file nor a folder")
        if path.stat().st_size == 0:
            raise VideoError.of(path, "the file is empty (0 bytes)")
    try:
        with bytes_of(path, file) as opened:
            size, samples = image_size(opened), claimed_samples(opened)
            encrypted = is_encrypted(opened)
        if size is not None and (reason := limits.too_large(*size)):
            raise VideoError.of(path, reason)
        if reason := limits.too_many(samples):
            raise VideoError.of(path, reason)
        if encrypted:
            raise VideoError.of(path, "its pictures are encrypted; decrypt it first")
        container = open_container(path if file is None else file)
    except VideoError:
        raise
    except (FFmpegError, OSError, ValueError) as error:
        raise VideoError.of(path, _why_not_opened(path, file, error)) from None
    try:
        stream = _choose_stream(path, container)
        context = stream.codec_context
        shown = display_width(context.width, pixel_aspect(stream)), context.height
        if reason := limits.too_large(*shown) or limits.too_large(context.width, context.height):
            raise VideoError.of(path, reason)
        if reason := limits.too_many(stream.frames):
            raise VideoError.of(path, reason)
    except BaseException:
        container.close()
        raise
    return container, stream


def _choose_stream(path: Path, container: InputContainer) -> VideoStream:
    """The default picture stream, or else the largest one that is not a still.

    Raises:
        VideoError: There is no such stream.
    """
    streams = container.streams.video
    if not streams:
        sound = container.streams.audio
        raise VideoError.of(
            path, "holds sound but no pictures" if sound else "not a video: no pictures in it"
        )
    moving = [stream for stream in streams if not stream.disposition & _STILLS]
    # Covers and thumbnails are not always marked as such.
    moving = [s for s in moving if s.codec_context is None or not _looks_still(s)] or moving
    if not moving:
        raise VideoError.of(path, "holds sound and a cover picture, but no video")
    known = [stream for stream in moving if stream.codec_context is not None] or moving
    chosen = max(known, key=_preference)
    if chosen.codec_context is None:
        raise VideoError.of(path, "this build of FFmpeg has no decoder for its codec")
    return chosen


def _looks_still(stream: VideoStream) -> bool:
    # An animation in AVIF comes with a still. Matroska does not give the number of frames (0).
    return stream.frames == 1 or (stream.codec_context.name in IMAGE_CODECS and not stream.frames)


def _preference(stream: VideoStream) -> tuple[bool, int, int]:
    context = stream.codec_context
    pixels = context.width * context.height if context is not None else 0
    return bool(stream.disposition & Disposition.default), pixels, -stream.index


@contextmanager
def bytes_of(path: Path, file: IO[bytes] | None) -> Iterator[IO[bytes]]:
    """The bytes of a video, from the first one on."""
    with nullcontext(file) if file is not None else path.open("rb") as opened:
        opened.seek(0)
        yield opened


def _why_not_opened(path: Path, file: IO[bytes] | None, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "permission denied"
    with bytes_of(path, file) as opened:
        start = opened.read(_SCRIPT_BYTES)
        if other := other_kind(start):
            return f"not a video but {other}"
        if kind := script_kind(start):
            return (
                f"not a video but {kind}, which names other files or addresses; if you trust it, open it "
                "as a stream: fluxvit stream"
            )
        if lacks_index(opened):
            return "cut short: its index (moov atom) is missing; copy or download the file again"
    # The class of the error differs between versions of PyAV.
    if getattr(error, "errno", None) == errno.EINVAL:
        # FFmpeg knows the format, which is not one of the containers that are opened as files.
        return "not a video"
    detail = error.strerror if isinstance(error, OSError | FFmpegError) else error
    return f"not a video, or its header is damaged (FFmpeg: {detail})"
