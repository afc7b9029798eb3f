"""A connection to a camera, an address or a pipe: opening it, and the pictures that come over it."""

from __future__ import annotations

import errno
import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from typing import IO, NamedTuple

import av
from av.container import InputContainer
from av.error import ExitError, FFmpegError, InvalidDataError

from fluxvit.video.base import VideoError
from fluxvit.video.clock import Clock
from fluxvit.video.container import open_address, open_container

PATIENCE = 10.0
"""Seconds without data after which an address is given up."""
# The most of a live stream that waits for the decoder.
_MOST_BEHIND_S = 1.0
_MOST_BEHIND_BYTES = 1 << 25
_TICK = 0.2  # Seconds after which a wait looks whether the user has left.


class Picture(NamedTuple):
    """A decoded frame, its time in seconds, and `time.monotonic` when it arrived."""

    seconds: float
    frame: av.VideoFrame
    arrived: float


@dataclass(frozen=True)
class Address:
    """What to open, and how.

    Args:
        name: Name for messages.
        source: An address or a device for FFmpeg, or a binary file such as a pipe.
        live: The sender does not wait: pictures are dropped when the decoder falls behind.
        cure: The end of the error if no picture comes.
        format: FFmpeg's input device of a camera.
        options: Options of FFmpeg's demuxer or protocol.
        left: Is set when nobody waits for pictures any more.
    """

    name: str
    source: str | IO[bytes]
    live: bool = False
    cure: str = ""
    format: str | None = None
    options: dict[str, str] | None = None
    left: Event = field(default_factory=Event)

    @property
    def patience(self) -> float:
        """Seconds to wait for the next picture. A pipe may wait for as long as it likes."""
        return PATIENCE if isinstance(self.source, str) else math.inf

    def open(self) -> InputContainer:
        """Connect.

        Raises:
            VideoError: It cannot be opened, or contains no pictures.
        """
        try:
            container = self._connect()
        except (FFmpegError, OSError, ValueError) as error:
            reason = f"cannot be opened ({_reason(error)}){self.cure}"
            if self.format:
                reason = (
                    f"no {self.format} camera opens ({_reason(error)}); "
                    "is it connected, allowed, and not in use?"
                )
            elif "://" in self.name and (
                isinstance(error, InvalidDataError) or getattr(error, "errno", 0) == errno.EIO
            ):
                reason += "; check the name of the host, and that it is the address of a video, not of a page"
            raise self.error(reason) from None
        if not container.streams.video:
            container.close()
            raise self.error("no picture stream in it")
        return container

    def _connect(self) -> InputContainer:
        """Open it in another thread, because FFmpeg does not notice Ctrl-C while it waits for an address."""
        source = self.source
        if not isinstance(source, str):
            return open_container(source)
        opened: Future[InputContainer] = Future()

        def connect() -> None:
            try:
                # A camera is not interrupted, only left alone.
                timeout = None if self.format else PATIENCE
                opened.set_result(
                    open_address(source, format=self.format, options=self.options, timeout=timeout)
                )
            except Exception as error:
                opened.set_exception(error)

        Thread(target=connect, daemon=True).start()
        while not wait([opened], timeout=_TICK).done:
            if self.left.is_set():
                raise ValueError("nobody waits for it")
        return opened.result()

    def pictures(self, container: InputContainer) -> Iterator[Picture]:
        """The pictures of an open container, which is closed at the end.

        Raises:
            VideoError: The stream broke off, or contained no picture.
        """
        stream = container.streams.video[0]
        period = float(1 / stream.average_rate) if stream.average_rate else 1 / 25
        seconds, started = -period, False
        clock = Clock(float(stream.time_base or 1 / 90000), 1 / period, int(container.format.flags))
        packets = self._newest(container) if self.live else _packets(container)
        try:
            with closing(packets):
                for packet, arrived in packets:
                    clock.mend(packet)
                    try:
                        frames = stream.decode(packet)
                    except FFmpegError:
                        continue  # Damage; the decoder goes on at the next key frame.
                    for frame in frames:
                        seconds, started = seconds + period if frame.time is None else frame.time, True
                        yield Picture(seconds, frame, arrived)
        except FFmpegError as error:
            raise self.error(f"broke off ({_reason(error)}){'' if started else self.cure}") from None
        if not started:
            raise self.error(f"ended without a frame that could be decoded{self.cure}")

    def _newest(self, container: InputContainer) -> _Packets:
        """The packets of a live stream, which a thread receives at the pace of the sender."""
        backlog, changed, done = _Backlog(), Condition(), Event()
        ended = False
        failure: Exception | None = None

        def receive() -> None:
            nonlocal ended, failure
            try:
                for packet, arrived in _packets(container, close=False):
                    if done.is_set():
                        break
                    with changed:
                        backlog.add(packet, arrived)
                        changed.notify()
            except Exception as error:
                failure = error
            with changed:
                ended = True
                changed.notify()
            # Closed here, because it must not be closed while this thread reads it, and only when its last
            # packet was decoded.
            done.wait()
            container.close()

        Thread(target=receive, daemon=True).start()
        try:
            while True:
                with changed:
                    since = time.monotonic()
                    while not backlog.waiting and not ended:
                        if self.left.is_set():
                            return
                        if time.monotonic() - since > self.patience:
                            # Sound may still come, and a camera may wait in its driver.
                            raise self.error(f"broke off ({_silence()})")
                        changed.wait(_TICK)
                    if not backlog.waiting:
                        break
                    packet, arrived = backlog.take()
                yield packet, arrived
            if failure is not None:
                raise failure
        finally:
            failure = None  # Its traceback refers to this frame, and both would keep the decoder.
            done.set()

    def error(self, reason: str) -> VideoError:
        return VideoError.of(self.name, reason)


_Packets = Generator[tuple[av.Packet, float], None, None]


class _Backlog:
    """Packets that wait for the decoder, with the times at which they arrived.

    If they wait longer than a second, the decoder continues at a newer key frame, so that it neither lags
    behind nor needs memory without limit.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[av.Packet, float]] = deque()
        self._bytes = 0
        self._keyless: float | None = None  # Since when only a key frame is of use.

    def add(self, packet: av.Packet, arrived: float) -> None:
        if self._keyless is not None and not packet.is_keyframe and arrived - self._keyless < PATIENCE:
            return
        self._keyless = None
        self.waiting.append((packet, arrived))
        self._bytes += packet.size
        if not self._is_late(arrived):
            return
        while len(self.waiting) > 1 and (self._is_late(arrived) or not self.waiting[0][0].is_keyframe):
            self.take()
        if not self.waiting[0][0].is_keyframe:
            self.take()
            self._keyless = arrived

    def take(self) -> tuple[av.Packet, float]:
        packet, arrived = self.waiting.popleft()
        self._bytes -= packet.size
        return packet, arrived

    def _is_late(self, now: float) -> bool:
        return now - self.waiting[0][1] > _MOST_BEHIND_S or self._bytes > _MOST_BEHIND_BYTES


def _packets(container: InputContainer, close: bool = True) -> _Packets:
    """Packets of the pictures, each with the time at which it arrived."""
    try:
        while True:
            try:
                for packet in container.demux(container.streams.video[0]):
                    yield packet, time.monotonic()
                return
            except BlockingIOError:
                # avfoundation does not wait for its next frame.
                time.sleep(0.005)
    finally:
        if close:
            container.close()


def _is_unclear(error: Exception) -> bool:
    """Whether FFmpeg may mean that there is no such host, or that the answer is no video."""
    return isinstance(error, InvalidDataError) or (isinstance(error, OSError) and error.errno == errno.EIO)


def _reason(error: Exception) -> str:
    if isinstance(error, ExitError):
        return _silence()
    return getattr(error, "strerror", None) or str(error)


def _silence() -> str:
    return f"nothing came for {PATIENCE:g} seconds"
