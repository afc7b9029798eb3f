"""Progress as a bar on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from fluxvit.utils.terminal import printable

T = TypeVar("T")

LOG_SECONDS = 10.0
"""Least time between two plain lines."""


@contextmanager
def report(label: str, total: int, done: int = 0, *, enabled: bool = True) -> Iterator[Callable[..., None]]:
    """Report the progress of work on standard error.

    Args:
        label: Name of the work.
        total: Number of items.
        done: Number of items that are finished already.

    Yields:
        A function ``advance(count, note="")`` that takes the number of items just finished, and a note to
        show after them.
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


def tracked(items: Iterable[T], title: str | None, total: int | None = None) -> Iterable[T]:
    """Items with a progress bar, which is drawn on standard error if that is a terminal.

    Args:
        items: What to iterate over.
        title: Text beside the bar; None draws no bar.
        total: Number of items, if ``items`` has no length.
    """
    console = Console(stderr=True)
    hidden = title is None or not console.is_terminal
    text = escape(printable(title or ""))
    return track(items, text, total, console=console, transient=True, disable=hidden)
