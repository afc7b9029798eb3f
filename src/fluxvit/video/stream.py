"""Video from a file, a camera, an address or a pipe, sampled at a steady rate while it comes.

Sample j of a period p is the frame shown at ``(j + 0.5) * p`` seconds from the first one. `segment_times`
chooses the same times, so that a stream gives the frames that reading the file by time gives.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import IO, Any, NamedTuple

import numpy as np
from av.container import InputContainer

from fluxvit.utils.terminal import mask_credentials, printable
from fluxvit.video.base import CLOCK_SLACK, VideoError
from fluxvit.video.connection import Address, Picture
from fluxvit.video.container import script_kind
from fluxvit.video.inputs import VideoInput
from fluxvit.video.reader import open_video
from fluxvit.video.rgb import RGBConverter

_log = logging.getLogger(__name__)

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
# Waits before a lost stream is opened again. They begin anew after a connection that held for longer than the
# first of them.
_FIRST_DELAY_S, _LONGEST_DELAY_S = 1.0, 30.0


class Part(NamedTuple):
    """A part of a stream: the seconds at which it starts, the seconds without a frame before it, and its
    frames, as `FrameSource.sample` gives them."""

    start: float
    gap: float
    images: Generator[np.ndarray, None, None]


class FrameSource(ABC):
    """Frames over time. It can be sampled once.

    Attributes:
        name: Name for messages.
        live: The source does not wait: frames are skipped when the receiver falls behind.
        seconds: Its length, None if that is unknown.
        arrived: `time.monotonic` when the frame that was sampled last had arrived, None if that is unknown.
    """

    name: str = "stream"
    live: bool = False
    seconds: float | None = None
    arrived: float | None = None

    @abstractmethod
    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        """RGB frames, uint8 ``[H, W, 3]``, shown at ``(j + 0.5) * period`` seconds, j = 0, 1, ... to the end.

        Open files are released when the iterator ends or is closed.

        Raises:
            VideoError: The stream broke off; the frames before that were yielded.
        """

    def parts(self, period: float) -> Iterator[Part]:
        """Its parts without a gap. A source that is lost and comes back has several.

        Each is read to its end before the next one.

        Raises:
            VideoError: As :meth:`sample`.
        """
        yield Part(0.0, 0.0, self.sample(period))

    def close(self) -> None:  # noqa: B027
        """Wait for no more frames. Any thread may call it, while another one waits for a frame."""


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


class _Encoded(FrameSource):
    """A stream that FFmpeg demuxes as it comes, and that is opened again when it is lost.

    Args:
        address: What to open. It is opened at once.
        reconnect: Seconds for which a lost stream is tried; 0 ends it.

    Raises:
        VideoError: It cannot be opened.
    """

    def __init__(self, address: Address, reconnect: float = 0.0) -> None:
        self.name, self.live = address.name, address.live
        self._address, self._reconnect = address, reconnect
        self._opened: InputContainer | None = address.open()
        self._delay = _FIRST_DELAY_S

    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        for part in self.parts(period):
            with closing(part.images):
                yield from part.images

    def parts(self, period: float) -> Iterator[Part]:
        first = self._begin()
        pictures: _Pictures | None = first
        began = ended = first.first.arrived
        while pictures:
            start = pictures.first.arrived
            images = TimedFrames(pictures, convert=self._converter()).sample(period)
            yield Part(start - began, start - ended, images)
            ended = pictures.last.arrived
            if self._address.left.is_set() or not (self._reconnect or pictures.loss):
                return
            if not self._reconnect and pictures.loss:
                raise pictures.loss
            pictures = self._again(pictures)

    def close(self) -> None:
        self._address.left.set()

    def _begin(self) -> _Pictures:
        container, self._opened = self._opened or self._address.open(), None
        return _Pictures(self._address.pictures(container))

    def _again(self, lost: _Pictures) -> _Pictures | None:
        """The next connection, or None if nobody waits for it any more."""
        loss = lost.loss or VideoError.of(self.name, "ended")
        _log.warning("%s; it is tried again for up to %g seconds", loss, self._reconnect)
        if lost.last.arrived - lost.first.arrived > _FIRST_DELAY_S:
            self._delay = _FIRST_DELAY_S
        until = time.monotonic() + self._reconnect
        while not self._address.left.wait(max(0.0, min(self._delay, until - time.monotonic()))):
            self._delay = min(2 * self._delay, _LONGEST_DELAY_S)
            try:
                again = self._begin()
            except VideoError as error:
                if time.monotonic() < until or self._address.left.is_set():
                    continue
                reason = str(error).removeprefix(f"{printable(self.name)}: ")
                raise VideoError.of(
                    self.name, f"was lost and did not come back within {self._reconnect:g} seconds; {reason}"
                ) from None
            _log.info("%s: back after %.1f seconds", self.name, again.first.arrived - lost.last.arrived)
            return again
        return None

    def _converter(self) -> Callable[[Picture], np.ndarray]:
        converters: list[RGBConverter] = []

        def to_rgb(picture: Picture) -> np.ndarray:
            if not converters:
                converters.append(RGBConverter(picture.frame))
            self.arrived = picture.arrived
            return converters[0](picture.frame)

        return to_rgb


class _Pictures:
    """The pictures of one connection, with their times.

    Attributes:
        first, last: The first and the newest picture.
        loss: Why the connection broke off.

    Raises:
        VideoError: There is not even a first picture.
    """

    def __init__(self, pictures: Iterator[Picture]) -> None:
        self._pictures = pictures
        self.first = self.last = next(pictures)
        self.loss: VideoError | None = None

    def __iter__(self) -> Iterator[tuple[float, Picture]]:
        yield self.first.seconds, self.first
        try:
            for picture in self._pictures:
                self.last = picture
                yield picture.seconds, picture
        except VideoError as error:
            # Its traceback refers to this object, and both would keep the decoder.
            self.loss = error.with_traceback(None)


def open_stream(address: str, *, live: bool | None = None, reconnect: float = 0.0) -> FrameSource:
    """Open a file, a camera, an address or a pipe as a source of frames.

    Args:
        address: A video file or a folder of images; ``-`` for standard input, in any container that FFmpeg
            reads from a pipe; ``/dev/video0``, or ``camera:0`` on any system (``camera:NAME`` with FFmpeg's
            name of the camera); or an address that FFmpeg opens, such as ``rtsp://...``.
        live: Skip frames when falling behind. By default cameras and addresses such as ``rtsp://`` are live,
            and everything else waits.
        reconnect: Seconds for which a live camera or address that was lost is opened again and again, after
            waits that grow from 1 to 30 seconds. 0 ends the stream there. Pipes and files end in any case.

    Raises:
        VideoError: It cannot be opened.
        ValueError: Standard input is a terminal, or a file is to be live.
    """
    protocol = re.match(r"(\w+)://", address)
    if camera := _camera(address):
        device, name = camera
        # avfoundation asks for a rate that few cameras have, if none is given.
        options = {"framerate": "30"} if device == "avfoundation" else {}
        opened = Address(address, name, live is not False, format=device, options=options)
    elif protocol:
        is_live = protocol[1].lower() in _LIVE_PROTOCOLS if live is None else live
        options = {"rtsp_transport": "tcp"} if protocol[1].lower().startswith("rtsp") else {}
        opened = Address(mask_credentials(address), address, is_live, options=options)
    elif address == "-":
        return _Encoded(Address("standard input", _standard_input(), bool(live), cure=_PIPE_CURE))
    elif _is_script(address):
        opened = Address(address, address, bool(live))
    elif live:
        raise ValueError(f"{address}: a file waits, and none of it is skipped; live is for streams")
    else:
        return FileFrames(address)
    return _Encoded(opened, reconnect if opened.live else 0.0)


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
