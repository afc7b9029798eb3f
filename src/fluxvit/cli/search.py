"""``fluxvit search``."""

from __future__ import annotations

from typing import Any

from fluxvit.cli.index import DB
from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import printable, say


def run(argv: list[str]) -> int:
    parser = Parser("search", "Find moments in indexed videos: by a sentence, or by another video.")
    add = parser.add_argument
    add("sentence", nargs="?", help='such as "a red ball bouncing twice"')
    add("--video", help="search for what looks like this video, instead of a sentence")
    add("--db", default=DB, help=f"database file; default: {DB}")
    add("--count", type=int, default=5, help="of answers; default: 5")
    add(
        "--path",
        default="",
        help="only in files whose path has this in it; * stands for anything, all else for itself",
    )
    add("--start", type=float, help="only after this second of a video")
    add("--end", type=float, help="only before this second of a video")
    add("--since", help="only in files modified on this day or later, such as 2026-11-24")
    add("--until", help="only in files modified before this day")
    add("--sheet", help="write thumbnails of the answers here, .jpg or .png, a row for each")
    add("--checkpoint", default="", help="the encoder's folder, if it has moved")
    add_device(parser)
    return _search(**values(parser, argv))


def _search(
    sentence: str | None,
    video: str | None,
    db: str,
    count: int,
    path: str,
    sheet: str | None,
    checkpoint: str,
    device: str | None,
    since: str | None,
    until: str | None,
    **seconds: Any,
) -> int:
    from fluxvit.deploy.index import Embedder, search, settings_of, with_checkpoint
    from fluxvit.deploy.sheet import thumbnail_sheet
    from fluxvit.deploy.video_db import Filter, VideoDatabase
    from fluxvit.machine import log_device
    from fluxvit.video.writer import write_image

    only = Filter(f"*{path}*" if path else "", since=_day(since), until=_day(until), **seconds)
    with VideoDatabase(db) as database:
        settings = settings_of(database)
        if settings is None:
            raise ValueError(f"{db} is empty; fill it with: fluxvit index FOLDER --db {db}")
        embedder = Embedder(with_checkpoint(settings, checkpoint), device)
        log_device(embedder.device)
        hits = search(database, embedder, sentence or "", video, count, only)
        indexed, matching = database.count_files(), database.count_files(only.path)
    if not hits:
        if path and not matching:
            say(f"nothing found: --path {path!r} is in the path of none of the {indexed} indexed files")
        else:
            say("nothing found: no window passes the filters")
        return 1
    for place, hit in enumerate(hits, start=1):
        say(f"{place:3}  {hit.score:.3f}  {_clock(hit.start)}-{_clock(hit.end)}  {printable(hit.path)}")
    if sheet:
        write_image(sheet, thumbnail_sheet(hits))
        say(f"wrote   {sheet}")
    return 0


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds, to a tenth."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{rest:04.1f}"


def _day(text: str | None) -> float | None:
    """Seconds since 1970 at which a day begins here."""
    import datetime

    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no day; write it as 2026-11-24") from None
