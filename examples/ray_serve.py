"""The server of ``fluxvit serve`` on the machines of a Ray cluster: the same routes, page and options.

    cd examples
    serve run ray_serve:build checkpoint=../runs/demo/best budget=50 replicas=4

A replica has a network and processes that decode. Ray balances the requests between the replicas, and forms
batches of up to ``batch_tokens`` tokens. The address and the port are those of Ray's proxy.

Needs: pip install 'fluxvit[serve]' 'ray[serve]'
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fastapi import FastAPI
from ray import serve

from fluxvit.cli.command import parse
from fluxvit.serving.app import create_app, server_token
from fluxvit.serving.batching import Answered, TokenBatcher
from fluxvit.serving.config import ServeConfig
from fluxvit.serving.service import Service


class Waiting(NamedTuple):
    """A request, and the time of the event loop at which it came."""

    request: Any
    tokens: int
    since: float


def tokens_of(batch: list[Waiting]) -> int:
    return sum(waiting.tokens for waiting in batch)


class RayBatcher(TokenBatcher):
    """Batches of requests that Ray Serve forms."""

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        capacity: int,
        observe: Callable[[int, int, float], None],
        linger: Callable[[], float],
    ) -> None:
        super().__init__(run, capacity, observe)

        # What waits when the former batch is done is the next one, so that nobody waits for a batch to fill.
        @serve.batch(max_batch_size=capacity, batch_wait_timeout_s=0, batch_size_fn=tokens_of)
        async def compute(batch: list[Waiting]) -> list[Answered]:
            now = asyncio.get_running_loop().time
            start = now()
            answers = await self.call(partial(run, [waiting.request for waiting in batch]))
            observe(len(batch), tokens_of(batch), now() - start)
            pairs = zip(batch, answers, strict=True)
            return [Answered(answer, start - waiting.since, now() - start) for waiting, answer in pairs]

        self._compute = compute

    async def submit(self, request: Any, tokens: int) -> Answered:
        """The answer to a request."""
        return await self._compute(Waiting(request, tokens, asyncio.get_running_loop().time()))


def build(options: dict[str, str]) -> serve.Application:
    """The application.

    Args:
        options: Options of ``fluxvit serve``, and ``replicas``, the number of processes with a network.
    """
    options = dict(options)
    replicas, token = int(options.pop("replicas", 1)), server_token()
    config = parse("serve", ServeConfig, [f"--{name}={value}" for name, value in options.items()])

    def replica() -> FastAPI:
        return create_app(Service(config, RayBatcher), token)

    deployment = serve.deployment(name="fluxvit", num_replicas=replicas, max_ongoing_requests=config.queue)
    return deployment(serve.ingress(replica)()).bind()
