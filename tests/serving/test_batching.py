"""The batcher: capacity, order, errors and callers that give up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from fluxvit.serving.batching import TokenBatcher


class Network:
    """Doubles numbers, and holds each batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        assert self.go.wait(10)
        if 13 in batch:
            raise ValueError("thirteen")
        return [2 * number for number in batch]


async def submit(batcher: TokenBatcher[int, int], *requests: tuple[int, int]) -> list[asyncio.Task]:
    tasks = []
    for number, tokens in requests:
        tasks.append(asyncio.create_task(batcher.submit(number, tokens)))
        await asyncio.sleep(0.02)
    return tasks


def test_what_waits_shares_a_batch_up_to_the_capacity() -> None:
    async def run() -> None:
        network, seen = Network(), []
        batcher = TokenBatcher(network, 100, lambda *facts: seen.append(facts[:2]))
        tasks = await submit(batcher, (1, 10), (2, 60), (3, 40), (4, 10), (5, 500), (6, 5))
        assert batcher.waiting_tokens == 615
        network.go.set()
        assert [(await task).answer for task in tasks] == [2, 4, 6, 8, 10, 12]
        # The first came alone, and one above the capacity runs alone.
        assert network.batches == [[1], [2, 3], [4], [5], [6]]
        assert seen == [(1, 10), (2, 100), (1, 10), (1, 500), (1, 5)]
        await batcher.close()

    asyncio.run(run())


def test_a_batch_with_room_waits_for_more_requests() -> None:
    async def run() -> None:
        network, asked = Network(), []
        network.go.set()
        batcher = TokenBatcher(network, 25, linger=lambda: asked.append(1) or 0.2)
        tasks = await submit(batcher, (1, 10), (2, 10))
        assert [(await task).answer for task in tasks] == [2, 4]
        assert network.batches == [[1, 2]]
        await batcher.submit(3, 25)
        assert len(asked) == 1  # A full one does not.
        await batcher.close()

    asyncio.run(run())


def test_requests_that_were_given_up_are_not_computed() -> None:
    async def run() -> None:
        network = Network()
        batcher = TokenBatcher(network, 100)
        tasks = await submit(batcher, (1, 10), (2, 10), (3, 10))
        tasks[0].cancel()  # It is in the network already, which is not interrupted.
        tasks[1].cancel()
        network.go.set()
        assert (await tasks[2]).answer == 6
        assert network.batches == [[1], [3]]
        await batcher.close()

    asyncio.run(run())


def test_an_error_is_that_of_its_batch() -> None:
    async def run() -> None:
        network = Network()
        batcher = TokenBatcher(network, 100)
        tasks = await submit(batcher, (13, 10), (2, 10))
        network.go.set()
        with pytest.raises(ValueError, match="thirteen"):
            await tasks[0]
        assert (await tasks[1]).answer == 4
        assert await batcher.call(lambda: threading.current_thread().name) == "network_0"
        await batcher.close()

    asyncio.run(run())
