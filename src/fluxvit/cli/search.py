"""``fluxvit search``: print the moments that were found."""

from __future__ import annotations

import datetime

from fluxvit.deploy.config import SearchConfig
from fluxvit.deploy.search.database import Filter, VideoDatabase
from fluxvit.deploy.search.index import Embedder, search, settings_of, with_checkpoint
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import printable, say


def run(config: SearchConfig) -> int:
    """Search the database; the exit code is 1 if nothing is found."""
    only = Filter(config.path, config.start, config.end, _day(config.since), _day(config.until))
    with VideoDatabase(config.db) as database:
        settings = settings_of(database)
        if settings is None:
            raise ValueError(f"{config.db} is empty; fill it with: fluxvit index FOLDER --db {config.db}")
        settings = with_checkpoint(settings, config.checkpoint)
        embedder = Embedder(settings, config.device, config.precision)
        log_device(embedder.device)
        hits = search(database, embedder, config.sentence, config.video, config.count, only)
    for rank, hit in enumerate(hits, start=1):
        say(f"{rank:3}  {hit.score:.3f}  {_clock(hit.start)}-{_clock(hit.end)}  {printable(hit.path)}")
    if not hits:
        say("nothing found: no window passes the filters")
    return 0 if hits else 1


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, to a tenth."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest:04.1f}"


def _day(text: str | None) -> float | None:
    """Seconds since 1970 at which a day begins here."""
    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is not a day; write it as 2026-11-24") from None
