"""``fluxvit index``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say

if TYPE_CHECKING:
    from fluxvit.deploy.index import IndexSettings

DB = "runs/videos.db"


def run(argv: list[str]) -> int:
    parser = Parser(
        "index",
        "Make the videos of a folder searchable: their windows are embedded into a database. Run it again "
        "when files have come, changed or gone; an interrupted run goes on.",
    )
    add = parser.add_argument
    add("folder", help="videos, in any folders below it")
    add("--db", default=DB, help=f"database file; default: {DB}")
    add("--checkpoint", help="folder of a dual encoder; needed for a new database")
    add("--budget", help="what a window may cost, in tokens, gflops or ms; default: the largest trained")
    add("--grid", help="sampling of a window, such as 16x224; default: the plan for the budget")
    add("--seconds", type=float, help="length of a window; default: 4")
    add("--no_shots", action="store_true", help="let windows reach across cuts")
    add("--rebuild", action="store_true", help="forget what the database holds, and embed all anew")
    add_device(parser)
    return _index(**values(parser, argv))


def _index(
    folder: str,
    db: str,
    checkpoint: str | None,
    budget: str | None,
    grid: str | None,
    seconds: float | None,
    no_shots: bool,
    rebuild: bool,
    device: str | None,
) -> int:
    from fluxvit.files import lock_file

    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder")
    with lock_file(db):
        return _index_locked(folder, db, checkpoint, budget, grid, seconds, no_shots, rebuild, device)


def _index_locked(
    folder: str,
    db: str,
    checkpoint: str | None,
    budget: str | None,
    grid: str | None,
    seconds: float | None,
    no_shots: bool,
    rebuild: bool,
    device: str | None,
) -> int:
    from fluxvit.data.layout import videos_below
    from fluxvit.data.walk import LeftOut
    from fluxvit.deploy.index import Embedder, choose_settings, update_index, with_checkpoint
    from fluxvit.deploy.video_db import VideoDatabase
    from fluxvit.deploy.video_db_file import make_database
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid
    from fluxvit.machine import log_device

    former = _settings_to_keep(db, rebuild)
    source = checkpoint or (former.checkpoint if former else "")
    if not source:
        raise ValueError(f"{db}: name the dual encoder that embeds, with --checkpoint")
    kept = None if rebuild else former
    if kept and budget is None and grid is None and seconds is None and not no_shots:
        settings = with_checkpoint(kept, checkpoint or "")
    else:
        length = kept.seconds if kept and seconds is None else seconds
        settings = choose_settings(
            source,
            parse_budget(budget) if budget else None,
            SamplingGrid.parse(grid) if grid else None,
            4.0 if length is None else length,
            kept.shots if kept and not no_shots else not no_shots,
        )
        if kept and budget is None and grid is None:
            settings = replace(settings, **kept.plan_settings)
        # The command that made it may be given again.
        if kept and replace(settings, checkpoint=kept.checkpoint) != kept:
            raise ValueError(
                f"{db} is there already, made with {kept}, not with {settings}; leave --budget, --grid, "
                "--seconds and --no_shots out, or make the database anew with --rebuild"
            )
    embedder = Embedder(settings, device)
    log_device(embedder.device)
    if former is None or rebuild:
        # Now, so that nothing is made or removed for a folder without videos.
        left_out = LeftOut()
        if not videos_below(Path(folder), left_out):
            raise ValueError("; ".join((f"{folder}: no videos in it", *left_out.notes)))
        # Not before the encoder is known to be good.
        make_database(db, index=asdict(settings), encoder=embedder.digest)
    try:
        with VideoDatabase(db) as database:
            say(update_index(database, folder, embedder))
    except KeyboardInterrupt:
        say("fluxvit: interrupted; the same command goes on", error=True)
        return 130
    say(f"database  {db}, {settings}")
    return 0


def _settings_to_keep(db: str, rebuild: bool) -> IndexSettings | None:
    """The settings of a database; None if it is new, or if it is to be made anew and does not tell them.

    Raises:
        ValueError: It cannot be used, nor made anew if that is asked for.
    """
    from fluxvit.deploy.index import settings_of
    from fluxvit.deploy.video_db import VideoDatabase
    from fluxvit.deploy.video_db_file import check_removable, is_new

    if rebuild:
        check_removable(db)
    if is_new(db):
        return None
    try:
        with VideoDatabase(db) as database:
            return settings_of(database)
    except ValueError:
        if rebuild:  # What is wrong with it plays no part.
            return None
        raise
