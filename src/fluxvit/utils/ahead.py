"""Work that threads do ahead of its use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``map(function, items)`` in threads, which work on the next items while a result is used.

    Args:
        function: It may be called in several threads at once.
        items: They are taken as they are needed.
        threads: Number of threads. One more item waits for them.

    Yields:
        The results in the order of the items.
    """
    remaining = iter(items)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            while True:
                free = threads + 1 - len(waiting)
                waiting.extend(pool.submit(function, item) for item in islice(remaining, free))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
