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
def report(label: str, total: int, done: int = 0, *, enabled: bool = True) -> Iterator[Callable[..., None]]:
    """Report the progress of work on standard error.

    Args:
        label: What is being done.
        total: Number of items.
        done: Number of items that are finished already.

    Yields:
        A function ``advance(count, note="")`` that takes the number of items just finished, and a note to
        show behind them.
    """
    console = Console(stderr=True, quiet=not enabled)
    if console.is_terminal:
        label_column, note_column = TextColumn("{task.description}"), TextColumn("[red]{task.fields[note]}")
        columns = label_column, BarColumn(), MofNCompleteColumn(), note_column, TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total, completed=done, note="")
            yield lambda count, note="": bar.update(task, advance=count, note=note)
        return

    start = last = time.monotonic()
    first = done

    def advance(count: int, note: str = "") -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if done >= total or now - last >= LOG_SECONDS:
            last = now
            rate = (done - first) / max(now - start, 1e-9)
            facts = [f"{done}/{total}", f"{rate:.1f} a second", f"{(total - done) / rate:.0f} s left"]
            console.print(f"{label}: {', '.join(facts + [note] * bool(note))}", highlight=False)

    yield advance
