"""Decoding in processes of their own, with limits on time and memory.

A damaged file may crash, hang or fill its process; that process is then replaced, and nothing else suffers.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fluxvit.flux.grid import SamplingGrid
from fluxvit.serving.errors import RequestError
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.transforms import read_clips


@dataclass(frozen=True)
class Limits:
    """What a video may be: its length in seconds, the pixels of a frame, and its frames."""

    seconds: float
    pixels: int
    frames: int


@dataclass(frozen=True)
class Clips:
    """Sampled clips of a video.

    Args:
        frames: uint8 ``[clips, T, height, width, 3]``.
        times: Seconds of the frames, float64 ``[clips, T]``.
        seconds: Length of the video.
        size: Height and width of the video in pixels.
    """

    frames: np.ndarray
    times: np.ndarray
    seconds: float
    size: tuple[int, int]


class TooLargeError(ValueError):
    """A video that is beyond the limits."""


def read_length(path: str, name: str, limits: Limits) -> float:
    """The length of a video in seconds.

    Raises:
        VideoError: The video cannot be read.
        TooLargeError: It is beyond the limits.
    """
    return _sample(path, name, limits, None, None, 0)[0]


def read_video(
    path: str, name: str, limits: Limits, sampling: ClipSampling, grid: SamplingGrid, clips: int
) -> Clips:
    """Clips of a video on a grid, at the times of the views of a test; errors are those of `read_length`."""
    _, found = _sample(path, name, limits, sampling, grid, clips)
    assert found is not None
    return found


def _sample(
    path: str,
    name: str,
    limits: Limits,
    sampling: ClipSampling | None,
    grid: SamplingGrid | None,
    clips: int,
) -> tuple[float, Clips | None]:
    try:
        with open_video(path) as reader:
            width, height, frames, end = reader.info.width, reader.info.height, len(reader.times), reader.end
            for what, value, most in (
                ("seconds", end, limits.seconds),
                ("pixels in a frame", width * height, limits.pixels),
                ("frames", frames, limits.frames),
            ):
                if value > most:
                    raise TooLargeError(f"{name} has {value:.6g} {what}; the server takes up to {most:.6g}")
            if grid is None or sampling is None:
                return end, None
            times = [
                sampling.times(0, end, grid.frames, reader.fps, view=view, views=clips)
                for view in range(clips)
            ]
            read = read_clips(reader, [(moments, (grid.height, grid.width)) for moments in times])
    except VideoError as error:
        # The client knows the video by another name than the file here.
        raise VideoError(str(error).replace(path, name)) from None
    return end, Clips(np.stack(read), np.stack(times), end, (height, width))


def _prepare(megabytes: int) -> None:
    """Limit this process, which begins to decode."""
    import torch

    torch.set_num_threads(1)
    try:
        import resource
    except ImportError:  # Windows has no such limits.
        return
    most = megabytes << 20
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_CORE):
        soft = most if kind == resource.RLIMIT_DATA else 0
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _nothing() -> None:
    """What a process does to show that it is there."""


class Decoders:
    """A pool of processes that decode videos.

    Args:
        count: Number of processes.
        seconds: Time limit of a video.
        megabytes: Memory limit of a process.
        limits: Limits on videos.
    """

    def __init__(self, count: int, seconds: float, megabytes: int, limits: Limits) -> None:
        try:
            from pebble import ProcessPool
        except ImportError:
            raise ValueError("serving needs pebble: pip install 'fluxvit[serve]'") from None
        self._seconds, self._limits = seconds, limits
        # Not forked: the threads of the network do not exist in a fork.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(count, context=context, initializer=_prepare, initargs=(megabytes,))
        self._count, self._running = count, 0

    @property
    def saturated(self) -> bool:
        """Whether at least as many videos wait for a process as there are processes."""
        return self._running >= 2 * self._count

    def start(self) -> None:
        """Start the processes, which import their libraries meanwhile, and wait for them."""
        for future in [self._pool.schedule(_nothing) for _ in range(self._count)]:
            future.result()

    async def length(self, path: str, name: str) -> float:
        """See :func:`read_length`.

        Raises:
            RequestError: The video cannot be read, is beyond the limits, or takes too long.
        """
        return await self._run(name, partial(read_length, path, name, self._limits))

    async def read(
        self, path: str, name: str, sampling: ClipSampling, grid: SamplingGrid, clips: int
    ) -> Clips:
        """See :func:`read_video`; errors are those of :meth:`length`."""
        return await self._run(name, partial(read_video, path, name, self._limits, sampling, grid, clips))

    async def _run(self, name: str, work: Any) -> Any:
        from pebble import ProcessExpired

        future = asyncio.wrap_future(self._pool.schedule(work, timeout=self._seconds))
        self._running += 1
        future.add_done_callback(self._done)
        try:
            # Shielded, because stopping a process costs more than finishing a video.
            return await asyncio.shield(future)
        except TooLargeError as error:
            raise RequestError(413, "too_large", str(error)) from None
        except VideoError as error:
            raise RequestError(422, "unreadable_video", str(error)) from None
        except asyncio.TimeoutError:
            message = f"{name} takes more than {self._seconds:g} s to decode; send a shorter or smaller video"
            raise RequestError(413, "too_slow", message) from None
        except ProcessExpired:
            message = f"{name} crashes the decoder or fills its memory; the file is damaged or too large"
            raise RequestError(422, "unreadable_video", message) from None
        except MemoryError:
            message = f"{name} needs more memory to decode than the server allows"
            raise RequestError(413, "too_large", message) from None

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._running -= 1
        if not future.cancelled():
            future.exception()  # Nobody may be there any more to take it.

    def close(self) -> None:
        """Stop the processes at once."""
        self._pool.stop()
        self._pool.join()
