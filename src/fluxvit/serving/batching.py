"""Requests that wait share a pass of the network."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass
class _Waiting(Generic[Request, Answer]):
    request: Request
    tokens: int
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())


@dataclass(frozen=True)
class Answered(Generic[Answer]):
    """An answer, and the seconds that it waited for the network and spent in it."""

    answer: Answer
    waited: float
    computed: float


class TokenBatcher(Generic[Request, Answer]):
    """Runs requests in batches of up to a number of tokens, one batch after the other, in one thread.

    A batch is what waits when the former batch is done. Requests run in the order in which they came.

    Args:
        run: Answers a batch of requests, in their order; it runs in the thread.
        capacity: Tokens of a batch. A larger request runs alone.
        observe: Is told the number of requests and of tokens of each batch, and its seconds.
        linger: Gives the seconds for which a batch that is not full waits for more requests.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Answer]],
        capacity: int,
        observe: Callable[[int, int, float], None] = lambda requests, tokens, seconds: None,
        linger: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._run, self._capacity, self._observe, self._linger = run, capacity, observe, linger
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._waiting: deque[_Waiting[Request, Answer]] = deque()
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the requests that wait."""
        return sum(waiting.tokens for waiting in self._waiting)

    async def submit(self, request: Request, tokens: int) -> Answered[Answer]:
        """Answer a request. If the caller is cancelled before its batch begins, the request is dropped."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._work())
        waiting = _Waiting[Request, Answer](request, tokens, loop.create_future())
        self._waiting.append(waiting)
        self._came.set()
        return await waiting.answer  # type: ignore[return-value]

    async def call(self, work: Callable[[], Any]) -> Any:
        """Run something else in the thread of the network, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                if self.waiting_tokens < self._capacity and (seconds := self._linger()):
                    await asyncio.sleep(seconds)
                batch = self._next()
                if not batch:
                    break
                start = loop.time()
                try:
                    answers = await loop.run_in_executor(
                        self._thread, self._run, [waiting.request for waiting in batch]
                    )
                    results: Sequence[Any] = answers
                except Exception as error:
                    results = [error] * len(batch)
                seconds = loop.time() - start
                self._observe(len(batch), sum(waiting.tokens for waiting in batch), seconds)
                for waiting, result in zip(batch, results, strict=True):
                    if waiting.answer.done():  # The caller has given up.
                        continue
                    if isinstance(result, Exception):
                        waiting.answer.set_exception(result)
                    else:
                        waiting.answer.set_result(Answered(result, start - waiting.since, seconds))  # type: ignore[arg-type]

    def _next(self) -> list[_Waiting[Request, Answer]]:
        batch: list[_Waiting[Request, Answer]] = []
        tokens = 0
        while self._waiting:
            waiting = self._waiting[0]
            if waiting.answer.done():
                self._waiting.popleft()
                continue
            if batch and tokens + waiting.tokens > self._capacity:
                break
            tokens += waiting.tokens
            batch.append(self._waiting.popleft())
        return batch

    async def close(self) -> None:
        """Stop; requests that still wait are not answered."""
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
