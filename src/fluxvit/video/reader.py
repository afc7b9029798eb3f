"""Open a video, whatever it is: the one door to the backends."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fluxvit.video.base import VideoError, VideoInfo, VideoReader
from fluxvit.video.folder_reader import FolderReader
from fluxvit.video.members import TarMember
from fluxvit.video.pyav_reader import PyAVReader
from fluxvit.video.torchcodec_reader import TorchCodecReader

__all__ = [
    "FolderReader",
    "PyAVReader",
    "TorchCodecReader",
    "VideoError",
    "VideoInfo",
    "VideoReader",
    "open_video",
    "probe",
]

Backend = Literal["pyav", "torchcodec"]


def open_video(
    path: str | Path,
    backend: Backend = "pyav",
    *,
    short_side: int | None = None,
    threads: int = 1,
    fps: float | None = None,
) -> VideoReader:
    """Open a video file, or a folder of images, for reading frames by time.

    Args:
        path: A video file, a folder of jpg, png, webp or bmp images, one a frame, or a video in a shard (see
            `fluxvit.video.members`).
        backend: Decoder of video files. Images are always decoded by PyAV, which alone reads shards.
        short_side: Shrink frames to this many pixels along the shorter side while they are converted to RGB;
            large videos then take less memory and less resizing later, but no less decoding. It never
            enlarges. The filter is FFmpeg's area average, so pixels differ a little from resizing
            afterwards; use the same setting to train and to test.
        threads: Decoding threads; 0 lets FFmpeg choose. Leave 1 where several processes read.
        fps: Images per second of a folder, 25 by default. Video files know theirs.

    Raises:
        VideoError: The video cannot be read; the message is one line and names the file and the reason.
        ValueError: An argument is out of range, or the backend is unknown or not installed.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {short_side}")
    if threads < 0:
        raise ValueError(f"threads must be 0 (automatic) or more, got {threads}")
    if Path(path).is_dir():
        if fps is not None and not fps > 0:
            raise ValueError(f"fps must be above 0, got {fps}")
        return FolderReader(path, fps=25.0 if fps is None else fps, short_side=short_side)
    if fps is not None:
        raise ValueError(f"{path}: fps is only for folders of images; a video file knows its own")
    if backend == "pyav":
        return PyAVReader(path, short_side=short_side, threads=threads)
    if backend == "torchcodec" and TarMember.parse(path) is not None:
        raise ValueError(f"{path}: torchcodec does not read shards here; use backend='pyav'")
    if backend == "torchcodec":
        return TorchCodecReader(path, short_side=short_side, threads=threads)
    raise ValueError(f"unknown backend {backend!r}; choose 'pyav' or 'torchcodec'")


def probe(path: str | Path) -> VideoInfo:
    """Facts about a video from its header and first frame; raises like `open_video`."""
    with open_video(path) as reader:
        return reader.info
