"""A progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_SECONDS = 10.0
"""Least time between two plain lines."""


@contextmanager
def report(label: str, total: int, *, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of items just finished. Writes to standard error."""
    console = Console(stderr=True, quiet=not enabled)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)
        return

    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if done >= total or now - last >= LOG_SECONDS:
            last = now
            rate = done / max(now - start, 1e-9)
            left = (total - done) / rate
            console.print(f"{label}: {done}/{total}, {rate:.1f} a second, {left:.0f} s left", highlight=False)

    yield advance
