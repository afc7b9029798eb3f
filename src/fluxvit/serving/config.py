"""Options of ``fluxvit serve``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from fluxvit.flux.budget import Budget
from fluxvit.utils.options import POSITIONAL, ModelOptions
from fluxvit.utils.schema import Count, Positive, check

Port = Annotated[int, Meta(ge=0, le=65535)]


@dataclass(frozen=True)
class ServeConfig(ModelOptions):
    """Serve a checkpoint over HTTP, with a page to try it in a browser.

    Every request names its own budget. Videos are decoded in other processes, and requests that wait share a
    pass of the network. If the environment variable FLUXVIT_SERVE_TOKEN is set, requests must carry it as
    a bearer token.

    Args:
        checkpoint: Checkpoint folder of a classifier, a pre-trained network, a dual encoder or a chat model.
        host: Address to listen on; 0.0.0.0 is all of them.
        port: Port to listen on; 0 takes a free one.
        budget: Budget of requests that name none. By default it is the largest number of tokens that the
            model was trained for.
        db: Database that fluxvit index has written, in which sentences are searched.
        allow: Folders whose videos requests may name by path.
        urls: Addresses that requests may name: none, http addresses of public hosts, or any http address.
        queue: Number of requests that may wait or run; more are refused with status 429.
        batch_tokens: Number of tokens that pass through the network together, and that a request may cost.
        deadline: Seconds after which a request is given up, if it names no other deadline.
        upload: Seconds that a request may take to arrive.
        decoders: Number of processes that decode videos. By default there is one per CPU core.
        decode_time: Seconds that a video may take to decode.
        decode_memory: Megabytes that a decoding process may allocate.
        max_bytes: Bytes of the largest video.
        max_seconds: Length of the longest video in seconds.
        max_pixels: Pixels of the largest frame.
        max_frames: Frames of the longest video.
    """

    checkpoint: str = field(default="fluxvit_nano_motionworld", metadata=POSITIONAL)
    host: str = "127.0.0.1"
    port: Port = 8000
    budget: Budget | None = None
    db: str = ""
    allow: tuple[str, ...] = ()
    urls: Literal["none", "public", "any"] = "none"
    queue: Count = 256
    batch_tokens: Count = 16_384
    deadline: Positive = 30.0
    upload: Positive = 60.0
    decoders: Count | None = None
    decode_time: Positive = 20.0
    decode_memory: Count = 2048
    max_bytes: Count = 1 << 26
    max_seconds: Positive = 3600.0
    max_pixels: Count = 8_847_360
    max_frames: Count = 500_000

    def __post_init__(self) -> None:
        check(self)
