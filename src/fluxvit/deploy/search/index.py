"""Search in your own videos: the windows of a folder's videos are embedded into a database."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.formats.layout import videos_below
from fluxvit.data.formats.walk import LeftOut
from fluxvit.deploy.config import IndexConfig
from fluxvit.deploy.search.database import EVERYTHING, Filter, Hit, VideoDatabase
from fluxvit.deploy.search.database_file import is_database, make_database
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import NotFiniteError, check_finite
from fluxvit.models.openvino_blocks import OpenVINOBlocks
from fluxvit.utils.files import lock_file
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import Count, Natural, check, convert, plain
from fluxvit.utils.system import log_device, usable_device
from fluxvit.utils.terminal import printable
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import check_window

_AT_ONCE = 8


@dataclass(frozen=True)
class IndexSettings:
    """Settings with which the windows of a database are made.

    Args:
        checkpoint: Folder of the dual encoder.
        grid, keep, head, selector: Plan with which windows are embedded.
        seconds: Length of a window in seconds.
        shots: Whether windows end at cuts between shots.

    Raises:
        ValueError: A value has another type or range; a window lasts a hundredth of a second to a day.
    """

    checkpoint: str
    grid: str
    keep: Count
    head: Natural | None
    selector: str
    seconds: float
    shots: bool

    def __post_init__(self) -> None:
        check(self)
        check_window(self.seconds, "seconds")

    def __str__(self) -> str:
        shots = "" if self.shots else ", across shots"
        return f"{self.keep} tokens of {self.grid} from every {self.seconds:g} s{shots}"

    @property
    def plan(self) -> Plan:
        return Plan(SamplingGrid.parse(self.grid), self.keep, self.head, self.selector)


class Embedder:
    """A dual encoder that embeds windows with the settings of a database.

    Args:
        settings: Settings of the database.
        device: Device to run on. By default it is the accelerator, or the CPU if there is none.
        precision: Number format in which the network multiplies. It may change from run to run: rounding
            moves a vector far less than another window does.

    Raises:
        ValueError: The checkpoint cannot be read.
    """

    def __init__(
        self,
        settings: IndexSettings,
        device: str | torch.device | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.settings, self.device = settings, usable_device(device)
        loaded = DualEncoderCheckpoint.load(settings.checkpoint, self.device)
        self.digest, self.checkpoint = loaded.digest(), loaded.prepared(precision)
        if isinstance(blocks := self.checkpoint.video.model.blocks, OpenVINOBlocks):
            blocks.clear(0)  # A vector does not depend on the videos before.

    @torch.inference_mode()
    def embed_file(self, path: str | Path) -> tuple[list[tuple[float, float]], np.ndarray]:
        """Start and end of each window of a video, and their unit vectors ``[N, D]``.

        Raises:
            VideoError: The video cannot be read.
        """
        settings, plan = self.settings, self.settings.plan
        spans: list[tuple[float, float]] = []
        rows: list[np.ndarray] = []
        remaining = windows(path, plan.grid, settings.seconds, shots=settings.shots)
        while batch := list(islice(remaining, _AT_ONCE)):
            spans += [(window.start, window.end) for window in batch]
            video = self.checkpoint.video.normalize(torch.stack([window.video for window in batch]))
            vectors = self.checkpoint.model.embed_video(video, plan.keep, plan.head, plan.selector)
            rows.append(check_finite(vectors.float().cpu(), path).numpy())
        return spans, np.concatenate(rows)

    def embed_query(self, path: str | Path) -> np.ndarray:
        """A unit vector ``[D]`` for a video, in the direction of the mean of its windows' vectors.

        Raises:
            VideoError: The video cannot be read.
        """
        mean = self.embed_file(path)[1].mean(0)
        return mean / np.linalg.norm(mean)

    def embed_sentence(self, sentence: str) -> np.ndarray:
        """A unit vector ``[D]`` for a sentence.

        Raises:
            ValueError: The sentence is empty.
        """
        return self.checkpoint.embed_texts([sentence])[0].numpy()


@dataclass(frozen=True)
class Indexed:
    """The result of a run: numbers of files and windows, errors of unreadable files, and skipped files."""

    new: int
    changed: int
    removed: int
    same: int
    windows: int
    unreadable: dict[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.new} new, {self.changed} changed, {self.removed} gone, {self.same} as they were; "
            f"{self.windows} windows in all"
        ]
        lines += [f"not readable: {printable(error)}" for error in self.unreadable.values()]
        lines += map(printable, self.notes)
        return "\n".join(lines)


def choose_settings(
    checkpoint: str, budget: Budget | None, grid: SamplingGrid | None, seconds: float | None, shots: bool
) -> IndexSettings:
    """Settings for a new database, with the checkpoint's plan for a budget.

    Args:
        budget: What a window may cost. By default it is the largest token budget of training.
        seconds: Length of a window. By default it is that of the clips of dense training, or 4 without it.

    Raises:
        ValueError: The checkpoint, the budget or the grid cannot be used, or windows have no length.
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"windows of {seconds:g} seconds; they must be longer than 0")
    video = DualEncoderCheckpoint.load(checkpoint).video
    plan = video.plan(budget, grid)
    seconds = seconds or video.sampling.window(plan.grid.frames) or 4.0
    folder = str(Path(checkpoint).absolute())
    return IndexSettings(folder, str(plan.grid), plan.keep, plan.head, plan.selector, seconds, shots)


def settings_of(database: VideoDatabase) -> IndexSettings | None:
    """The settings of a database; None if nothing was indexed yet."""
    kept = database.setting("index")
    return None if kept is None else convert(kept, IndexSettings, f"{database.path}, its settings")


def update_index(
    database: VideoDatabase, folder: str | Path, embedder: Embedder, *, progress: bool = True
) -> Indexed:
    """Bring a database up to date with the videos below a folder.

    Files that are new or have changed are embedded, each in one transaction, so an interrupted run continues
    where it stopped. Missing files are removed from the database. A file that cannot be read is stored
    with the reason, and tried again when it changes; after any other error a file is tried again in the next
    run. Links are followed. The database keeps its entries of files behind a broken link, in a folder
    that cannot be read, or outside the folder.

    Raises:
        ValueError: There is no such folder, no video in it, the database was made with another
            encoder, or the output of the encoder is not finite.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    _check_encoder(database, embedder)
    known = {path: row for path, row in database.files().items() if Path(path).is_relative_to(folder)}
    paths, left_out = _list_videos(folder, may_be_empty=bool(known))
    database.set_settings(index=asdict(embedder.settings), encoder=embedder.digest)
    # The vectors of videos on a disk that is not mounted at the moment must not be lost.
    gone = sorted(path for path in known.keys() - set(paths) if not left_out.may_hold(path))
    database.remove(gone)
    marks = {path: _mark(Path(path)) for path in paths}
    todo = [
        path
        for path in paths
        if path not in known or known[path].mark != marks[path][0] or not marks[path][0]
    ]
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    for path in track(todo, "Indexing", console=console, transient=True, disable=not shown):
        mark, modified = marks[path]
        spans, vectors, reason = list[tuple[float, float]](), np.zeros((0, 0), np.float32), None
        try:
            spans, vectors = embedder.embed_file(path)
        except VideoError as error:
            reason = str(error)
        except NotFiniteError:
            raise  # The encoder is at fault, not the file; every other file would fail, too.
        except Exception as error:
            # An unforeseen error of a decoder: one file must not end the run over the others.
            reason, mark = f"{path}: {type(error).__name__}: {error}", ""
        database.put(path, mark, modified, spans, vectors, reason)
    now = database.files()
    return Indexed(
        new=sum(path not in known for path in todo),
        changed=sum(path in known for path in todo),
        removed=len(gone),
        same=len(paths) - len(todo),
        windows=database.count_windows(),
        unreadable={path: row.error for path in paths if (row := now[path]).error},
        notes=left_out.notes,
    )


def search(
    database: VideoDatabase,
    embedder: Embedder,
    sentence: str = "",
    video: str | Path | None = None,
    count: int = 5,
    only: Filter = EVERYTHING,
) -> list[Hit]:
    """The windows nearest to a sentence, or to a video.

    Raises:
        ValueError: Neither or both are given, the count is below 1, or the database is of another encoder.
        VideoError: The video cannot be read.
    """
    if bool(sentence.strip()) == (video is not None):
        raise ValueError("search for a sentence or for a video: give one of both")
    count = convert(plain(count), Count, key="count")
    _check_encoder(database, embedder)
    query = embedder.embed_sentence(sentence) if video is None else embedder.embed_query(video)
    return database.nearest(query, count, only)


def run_index(config: IndexConfig) -> str:
    """Make or update the database of a folder; returns what was done, for people.

    Raises:
        ValueError: The folder, the database or the encoder cannot be used, or the database was made with
            other settings; the message says which.
    """
    if not Path(config.folder).is_dir():
        raise ValueError(f"{config.folder}: no such folder")
    with lock_file(config.db):
        former = _former_settings(config)
        settings = _settings(config, former)
        embedder = Embedder(settings, config.device, config.precision)
        log_device(embedder.device)
        if former is None or config.rebuild:
            # The database is made or replaced only when folder and encoder are known to be usable.
            _list_videos(Path(config.folder))
            make_database(config.db, index=asdict(settings), encoder=embedder.digest)
        with VideoDatabase(config.db) as database:
            indexed = update_index(database, config.folder, embedder)
    return f"{indexed}\ndatabase  {config.db}, {settings}"


def _check_encoder(database: VideoDatabase, embedder: Embedder) -> None:
    if database.setting("encoder") not in (None, embedder.digest):
        raise ValueError(
            f"{database.path}: its vectors are of another encoder than {embedder.settings.checkpoint} is "
            f"now; make it anew with: fluxvit index FOLDER --db {database.path} --rebuild"
        )


def _list_videos(folder: Path, may_be_empty: bool = False) -> tuple[list[str], LeftOut]:
    left_out = LeftOut()
    paths = [str(path) for path in videos_below(folder, left_out)]
    if not paths and not may_be_empty:
        raise ValueError("; ".join((f"{folder}: no videos in it", *left_out.notes)))
    return paths, left_out


def _former_settings(config: IndexConfig) -> IndexSettings | None:
    """The settings of the existing database; None if it is new, or if it is rebuilt and cannot be read."""
    if not is_database(config.db):
        return None
    try:
        with VideoDatabase(config.db) as database:
            return settings_of(database)
    except ValueError:
        if config.rebuild:
            return None
        raise


def _settings(config: IndexConfig, former: IndexSettings | None) -> IndexSettings:
    """The settings for the database: the existing ones, unless it is new or rebuilt."""
    checkpoint = config.checkpoint or (former.checkpoint if former else "")
    if not checkpoint:
        raise ValueError(f"{config.db}: name the dual encoder that embeds, with --checkpoint")
    if former is None or config.rebuild:
        shots = True if config.shots is None else config.shots
        return choose_settings(checkpoint, config.budget, config.grid, config.seconds, shots)
    kept = with_checkpoint(former, config.checkpoint)
    requested = replace(
        kept,
        seconds=kept.seconds if config.seconds is None else config.seconds,
        shots=kept.shots if config.shots is None else config.shots,
    )
    if config.budget is not None or config.grid is not None:
        requested = choose_settings(
            checkpoint, config.budget, config.grid, requested.seconds, requested.shots
        )
    # Options that agree with the settings of the database are accepted.
    if requested != kept:
        raise ValueError(
            f"{config.db} is there already, made with {kept}, not with {requested}; leave --budget, --grid, "
            "--seconds and --shots out, or make the database anew with --rebuild"
        )
    return kept


def _mark(path: Path) -> tuple[str, float]:
    """Text that changes when a file or a folder of images changes, and the time of its last change.

    The text is empty if the file cannot be inspected, for example because it has just vanished. The file then
    counts as changed.
    """
    try:
        files = sorted(entry.path for entry in os.scandir(path)) if path.is_dir() else [str(path)]
        facts = [os.stat(file) for file in files]
    except (OSError, ValueError):
        return "", 0.0
    latest = max((fact.st_mtime_ns for fact in facts), default=0)
    return f"{len(facts)} {sum(fact.st_size for fact in facts)} {latest}", latest / 1e9


def with_checkpoint(settings: IndexSettings, checkpoint: str) -> IndexSettings:
    """Settings with another checkpoint folder, if one is given."""
    return replace(settings, checkpoint=str(Path(checkpoint).absolute())) if checkpoint else settings
