"""Open a video of any kind."""

from __future__ import annotations

import os

from fluxvit.video.base import VideoError, VideoInfo, VideoReader
from fluxvit.video.decoder_reader import DecoderReader, is_decoder
from fluxvit.video.folder_reader import FolderReader
from fluxvit.video.frames_reader import DEFAULT_FPS, ArrayReader
from fluxvit.video.inputs import VideoInput, as_file, as_frames, given_path
from fluxvit.video.pyav_reader import PyAVReader
from fluxvit.video.tar_members import split_pattern

__all__ = [
    "ArrayReader",
    "DecoderReader",
    "FolderReader",
    "PyAVReader",
    "VideoError",
    "VideoInfo",
    "VideoInput",
    "VideoReader",
    "open_video",
    "probe",
]


def open_video(
    video: VideoInput,
    *,
    short_side: int | None = None,
    fps: float | None = None,
    motion: bool = False,
) -> VideoReader:
    """Open a video for reading frames by time.

    Args:
        video: One of these:

            - the path of a video file, or of a video in a shard (see `fluxvit.video.tar_members`);
            - the path of a folder of jpg, png, webp or bmp images, one for each frame; if it holds several
              series of images, followed by the name of the images to read, such as ``frames/img_%05d.jpg``
              or ``frames/img_*.jpg`` (see `FolderReader`);
            - the content of a video file: bytes, or a seekable file opened in binary mode. It is read from
              its beginning and is not closed; nothing else may read it meanwhile;
            - frames: an array or tensor, uint8 RGB ``[T, H, W, 3]``, or a list of arrays ``[H, W, 3]`` or PIL
              images of one size. They are not copied;
            - a ``VideoDecoder`` of torchcodec, which nothing else may use meanwhile.
        short_side: Shrink frames to this many pixels along the shorter side while they are converted to RGB.
            Large videos then take less memory and less resizing later, but no less decoding. Frames are never
            enlarged. The filter is FFmpeg's area average, so pixels differ a little from resizing
            afterwards; use the same setting to train and to test.
        fps: Frames per second of a folder of images or of frames in memory, 25 by default. Video files know
            theirs.
        motion: Collect the motion vectors of the codec, for ``motion_maps`` of the reader, which takes about
            a quarter more time. Only video files that are not read by torchcodec can have them.

    Raises:
        VideoError: The video cannot be read; the message is one line and names the file and the reason.
        ValueError: An argument is out of range, or frames have another shape or type.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {short_side}")
    rate = DEFAULT_FPS if fps is None else fps
    path = given_path(video)
    if is_decoder(video):
        if fps is not None:
            raise ValueError(
                "fps is only for folders of images and frames in memory; a decoder knows its own"
            )
        return DecoderReader(video, short_side=short_side)
    if path is None and (frames := as_frames(video)) is not None:
        return ArrayReader(frames, fps=rate, short_side=short_side)
    if path is not None and os.path.isdir(path):
        return FolderReader(path, fps=rate, short_side=short_side)
    if path is not None and not os.path.exists(path) and (split := split_pattern(path)) is not None:
        folder, pattern = split
        return FolderReader(folder, fps=rate, short_side=short_side, pattern=pattern)
    name, file = as_file(video) if path is None else (str(path), None)
    if fps is not None:
        raise ValueError(
            f"{name}: fps is only for folders of images and frames in memory; a video file knows its own"
        )
    return PyAVReader(name, short_side=short_side, file=file, motion=motion)


def probe(video: VideoInput) -> VideoInfo:
    """Facts about a video from its header and first frame; takes and raises what `open_video` does."""
    with open_video(video) as reader:
        return reader.info
