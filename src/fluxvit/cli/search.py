"""``fluxvit search``: print the moments that were found."""

from __future__ import annotations

import datetime

from fluxvit.deploy.config import SearchConfig
from fluxvit.deploy.search.contact_sheet import thumbnail_sheet
from fluxvit.deploy.search.database import Filter, VideoDatabase
from fluxvit.deploy.search.index import Embedder, search, settings_of, with_checkpoint
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import printable, say
from fluxvit.video.writer import write_image


def run(config: SearchConfig) -> int:
    """Search the database; the exit code is 1 if nothing is found."""
    pattern = f"*{config.path}*" if config.path else ""
    only = Filter(
        pattern, since=_day(config.since), until=_day(config.until), start=config.start, end=config.end
    )
    with VideoDatabase(config.db) as database:
        settings = settings_of(database)
        if settings is None:
            raise ValueError(f"{config.db} is empty; fill it with: fluxvit index FOLDER --db {config.db}")
        embedder = Embedder(with_checkpoint(settings, config.checkpoint), config.device)
        log_device(embedder.device)
        hits = search(database, embedder, config.sentence, config.video, config.count, only)
        indexed, matching = database.count_files(), database.count_files(only.path)
    if not hits:
        if config.path and not matching:
            say(
                f"nothing found: --path {config.path!r} is in the path of none of the {indexed} indexed files"
            )
        else:
            say("nothing found: no window passes the filters")
        return 1
    for rank, hit in enumerate(hits, start=1):
        say(f"{rank:3}  {hit.score:.3f}  {_clock(hit.start)}-{_clock(hit.end)}  {printable(hit.path)}")
    if config.sheet:
        write_image(config.sheet, thumbnail_sheet(hits))
        say(f"wrote   {config.sheet}")
    return 0


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
