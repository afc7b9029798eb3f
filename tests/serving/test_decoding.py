"""Decoding processes that hang, crash or want too much memory are replaced."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pebble")

from fluxvit.flux.grid import SamplingGrid
from fluxvit.serving.decoding import Decoders, Limits
from fluxvit.serving.errors import RequestError
from fluxvit.video.sampling import ClipSampling


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(1, 2, 2048, Limits(60, 10_000, 1000))
    decoders.start()
    yield decoders
    decoders.close()


@pytest.mark.parametrize(
    ("work", "status", "message"),
    [
        (partial(time.sleep, 60), 413, "x.mp4 takes more than 2 s to decode"),
        (partial(os._exit, 1), 422, "x.mp4 crashes the decoder"),
        pytest.param(
            partial(bytearray, 4 << 30),
            413,
            "x.mp4 needs more memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Other systems do not limit it."),
        ),
    ],
    ids=["hangs", "crashes", "memory"],
)
def test_the_next_video_is_decoded(
    decoders: Decoders, clip: Path, work: Callable[[], Any], status: int, message: str
) -> None:
    async def run() -> tuple[int, ...]:
        with pytest.raises(RequestError, match=message) as refused:
            await decoders._run("x.mp4", work)
        assert refused.value.status == status
        found = await decoders.read(str(clip), "clip.mp4", ClipSampling(), SamplingGrid(4, 16, 16), 1)
        return found.frames.shape

    assert asyncio.run(run()) == (1, 4, 16, 16, 3)
