"""Video from a file, a camera, an address or a pipe, sampled at a steady rate while it comes.

Sample j of a period p is the frame shown at ``(j + 0.5) * p`` seconds from the first one. `segment_times`
chooses the same times, so that a stream gives the frames that reading the file by time gives.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from fluxvit.video.base import CLOCK_SLACK, VideoError
from fluxvit.video.clock import Clock
from fluxvit.video.container import open_address, open_container, script_kind
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.rgb import RGBConverter

# FFmpeg's name of the camera input of each system, and how it names a camera.
_CAMERAS = {
    "linux": ("v4l2", "/dev/video{}"),
    "darwin": ("avfoundation", "{}"),
    "win32": ("dshow", "video={}"),
}
# Senders that do not wait for the receiver; http may be a file or not.
_LIVE_PROTOCOLS = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp"}
_PIPE_CURE = "; mp4 with its index at the end cannot be read from a pipe: use ffmpeg ... -f matroska -"
LONGEST_STILL_S = 600.0
"""The longest time in seconds that one frame of a stream is shown; a longer gap is a leap of the clock."""
_SAMPLES_AT_ONCE = 1 << 16
_PATIENCE = 10.0  # Seconds without data after which an address is given up.


class FrameSource(ABC):
    """Frames over time. It can be sampled once.

    Attributes:
        name: Name for messages.
        live: The source does not wait: frames are skipped when the receiver falls behind.
        seconds: Its length, None if that is unknown.
    """

    name: str = "stream"
    live: bool = False
    seconds: float | None = None

    @abstractmethod
    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        """RGB frames, uint8 ``[H, W, 3]``, shown at ``(j + 0.5) * period`` seconds, j = 0, 1, ... to the end.

        Open files are released when the iterator ends or is closed.

        Raises:
            VideoError: The stream broke off; the frames before that were yielded.
        """


class FileFrames(FrameSource):
    """A video file, a folder of images or a video in memory. Only the sampled frames are converted.

    A frame that is shown for more than ten minutes, and much longer than the others, is taken for a leap of
    the clock; it is then shown for as long as the others.

    Args:
        video: Any video that `open_video` takes.
        fps: Frames per second of a folder of images or of frames in memory; 25 by default.

    Raises:
        VideoError, ValueError: See `open_video`.
    """

    def __init__(self, video: VideoInput, *, fps: float | None = None) -> None:
        self._reader = open_video(video, fps=fps)
        self.name = str(self._reader.info.path)
        # How long each frame is shown, and when it starts on a clock without the leaps.
        shown_for = np.diff(np.append(self._reader.times, self._reader.end))
        usual = float(np.median(shown_for))
        self._leaps = shown_for > max(LONGEST_STILL_S, 100 * usual)
        shown_for[self._leaps] = usual
        self._starts = np.append(0.0, shown_for.cumsum()[:-1])
        self.seconds = self._end = float(shown_for.sum()) if self._leaps.any() else self._reader.end

    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        with self._reader as reader:
            count = math.ceil(self._end / period - 0.5)
            # In parts, because the times of a long video at a high rate take much memory.
            for first in range(0, count, _SAMPLES_AT_ONCE):
                times = (np.arange(first, min(count, first + _SAMPLES_AT_ONCE)) + 0.5) * period
                if self._leaps.any():
                    shown = np.searchsorted(self._starts, times + CLOCK_SLACK, side="right") - 1
                    times = reader.times[shown.clip(0)]
                yield from reader.walk(times)


class TimedFrames(FrameSource):
    """Frames that come with their times: ``TimedFrames((k / 25, image) for k, image in enumerate(images))``.

    The last frame is shown for as long as the one before it. Where the clock steps back, as in joined
    streams, or leaps by more than ten minutes, the frames are laid end to end.

    Args:
        frames: (seconds, frame) in display order.
        name: Name for messages.
        live: See :class:`FrameSource`.
        convert: Turns a frame into an RGB uint8 ``[H, W, 3]`` array; called for sampled frames only.
    """

    def __init__(
        self,
        frames: Iterable[tuple[float, Any]],
        name: str = "stream",
        *,
        live: bool = False,
        convert: Callable[[Any], np.ndarray] = np.asarray,
    ) -> None:
        self._frames, self.name, self.live, self._convert = frames, name, live, convert

    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        count = 0
        for frame, end in _shown_until(self._frames):
            image = None
            while (count + 0.5) * period + CLOCK_SLACK < end:
                image = self._convert(frame) if image is None else image
                yield image
                count += 1


def _shown_until(frames: Iterable[tuple[float, Any]]) -> Iterator[tuple[Any, float]]:
    """Each frame with the seconds from the first one at which it stops being shown."""
    shown: Any = None
    origin = start = gap = 0.0
    for seconds, frame in frames:
        if not math.isfinite(seconds):
            raise ValueError(f"the times of frames are finite seconds, got {seconds}")
        if shown is None:
            origin = seconds
        else:
            if not 0 < seconds - origin - start <= LONGEST_STILL_S:
                origin = seconds - start - gap
            gap = seconds - origin - start
            yield shown, start + gap
        start, shown = seconds - origin, frame
    if shown is not None:
        yield shown, start + gap


def open_stream(address: str, *, live: bool | None = None) -> FrameSource:
    """Open a file, a camera, an address or a pipe as a source of frames.

    Args:
        address: A video file or a folder of images; ``-`` for standard input, in any container that FFmpeg
            reads from a pipe; ``/dev/video0``, or ``camera:0`` on any system (``camera:NAME`` with FFmpeg's
            name of the camera); or an address that FFmpeg opens, such as ``rtsp://...``.
        live: Skip frames when falling behind. By default cameras and addresses such as ``rtsp://`` are live,
            and everything else waits.

    Raises:
        VideoError: It cannot be opened.
        ValueError: Standard input is a terminal, or a file is to be live.
    """
    protocol = re.match(r"(\w+)://", address)
    if camera := _camera(address):
        device, name = camera
        # avfoundation asks for a rate that few cameras have, if none is given.
        options = {"framerate": "30"} if device == "avfoundation" else {}
        return _encoded(address, live is not False, name, format=device, options=options)
    if protocol:
        is_live = protocol[1].lower() in _LIVE_PROTOCOLS if live is None else live
        options = {"rtsp_transport": "tcp"} if protocol[1].lower().startswith("rtsp") else {}
        return _encoded(address, is_live, address, options=options, timeout=_PATIENCE)
    if address == "-":
        return _encoded("standard input", bool(live), _standard_input(), cure=_PIPE_CURE)
    if _is_script(address):
        return _encoded(address, bool(live), address)
    if live:
        raise ValueError(f"{address}: a file waits, and none of it is skipped; live is for streams")
    return FileFrames(address)


def _is_script(address: str) -> bool:
    """Whether an address is a file that names what to open, such as a playlist."""
    try:
        with open(address, "rb") as file:
            return script_kind(file.read(1024)) is not None
    except OSError:
        return False


def _camera(address: str) -> tuple[str, str] | None:
    """FFmpeg's device and name of a camera, or None if the address is not a camera."""
    if re.fullmatch(r"/dev/video\d+", address):
        return "v4l2", address
    if not (match := re.fullmatch(r"camera:(.+)", address)):
        return None
    device, name = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
    return device, name.format(match[1])


def _standard_input() -> IO[bytes]:
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError(
            "standard input is a terminal; pipe a video into it, as by "
            "ffmpeg -i clip.mp4 -f matroska - | fluxvit stream -"
        )
    # Unbuffered: a buffer would wait until it is full.
    return open(os.dup(sys.stdin.fileno()), "rb", buffering=0)


def _encoded(name: str, live: bool, source: str | IO[bytes], *, cure: str = "", **how: Any) -> TimedFrames:
    """A stream that FFmpeg demuxes as it comes; ``cure`` ends the error if no frame comes out of it."""
    try:
        container = open_address(source, **how) if isinstance(source, str) else open_container(source)
    except (FFmpegError, OSError, ValueError) as error:
        reason = f"cannot be opened ({_reason(error)}){cure}"
        if device := how.get("format"):
            reason = f"no {device} camera opens ({_reason(error)}); is it connected, allowed, and not in use?"
        raise VideoError.of(name, reason) from None
    if not container.streams.video:
        container.close()
        raise VideoError.of(name, "no picture stream in it")
    converters: list[RGBConverter] = []

    def to_rgb(frame: av.VideoFrame) -> np.ndarray:
        if not converters:
            converters.append(RGBConverter(frame))
        return converters[0](frame)

    return TimedFrames(_decoded(container, name, cure), name, live=live, convert=to_rgb)


def _decoded(container: InputContainer, name: str, cure: str) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their times."""
    stream = container.streams.video[0]
    period = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
    seconds, started = -period, False
    clock = Clock(float(stream.time_base or 1 / 90000), 1 / period, int(container.format.flags))
    with container:
        try:
            for packet in _packets(container):
                clock.mend(packet)
                try:
                    frames = stream.decode(packet)
                except FFmpegError:
                    continue  # Damage; the decoder goes on at the next key frame.
                for frame in frames:
                    seconds, started = seconds + period if frame.time is None else frame.time, True
                    yield seconds, frame
        except FFmpegError as error:
            raise VideoError.of(name, f"broke off ({_reason(error)}){'' if started else cure}") from None
    if not started:
        raise VideoError.of(name, f"ended without a frame that could be decoded{cure}")


def _packets(container: InputContainer) -> Iterator[av.Packet]:
    while True:
        try:
            yield from container.demux(container.streams.video[0])
            return
        except BlockingIOError:
            # avfoundation does not wait for its next frame.
            time.sleep(0.005)


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return f"nothing came for {_PATIENCE:g} seconds"
    return getattr(error, "strerror", None) or str(error)
