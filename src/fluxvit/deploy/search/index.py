"""Search over one's own videos: a folder's windows embedded into a database, and questions to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.formats.layout import videos_below
from fluxvit.data.formats.walk import LeftOut
from fluxvit.deploy.config import IndexConfig
from fluxvit.deploy.search.database import EVERYTHING, Filter, Hit, VideoDatabase
from fluxvit.deploy.search.database_file import check_removable, is_new, make_database
from fluxvit.deploy.search.windows import Window, windows
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import NotFiniteError, check_finite
from fluxvit.utils.files import lock_file
from fluxvit.utils.schema import Count, Natural, check, convert, plain
from fluxvit.utils.system import log_device, usable_device
from fluxvit.utils.terminal import printable
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import check_window

_AT_ONCE = 8


@dataclass(frozen=True)
class IndexSettings:
    """How a database's windows are made; all of one database are alike.

    Args:
        checkpoint: A dual encoder's folder.
        grid, keep, head, selector: Its plan.
        seconds: Length of a window.
        shots: Windows end where shots do.

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
        shots = "" if self.shots else ", shots or not"
        return f"{self.keep} tokens of {self.grid} from every {self.seconds:g} s{shots}"

    @property
    def plan_settings(self) -> dict[str, Any]:
        """Those of its plan."""
        return {"grid": self.grid, "keep": self.keep, "head": self.head, "selector": self.selector}

    @property
    def plan(self) -> Plan:
        return Plan(SamplingGrid.parse(self.grid), self.keep, self.head, self.selector)


class Embedder:
    """A dual encoder that embeds windows by the settings of a database.

    Args:
        settings: Settings of the database.
        device: Where to run; None: the accelerator if there is one.

    Raises:
        ValueError: The checkpoint cannot be read.
    """

    def __init__(self, settings: IndexSettings, device: str | torch.device | None = None) -> None:
        self.settings, self.device = settings, usable_device(device)
        self.checkpoint = DualEncoderCheckpoint.load(settings.checkpoint, self.device)
        self.digest = self.checkpoint.digest()

    def embed_file(self, path: str | Path) -> tuple[list[tuple[float, float]], np.ndarray]:
        """Start and end of each window of a video, and their unit vectors ``[N, D]``.

        Raises:
            VideoError: It cannot be read.
        """
        spans: list[tuple[float, float]] = []
        rows: list[np.ndarray] = []
        for batch in self._batches(path):
            spans += [(window.start, window.end) for window in batch]
            rows.append(self._embed(batch, path))
        return spans, np.concatenate(rows)

    def embed_query(self, path: str | Path) -> np.ndarray:
        """A unit vector ``[D]`` for a whole video, the mean of its windows'.

        Raises:
            VideoError: It cannot be read.
        """
        mean = self.embed_file(path)[1].mean(0)
        return mean / np.linalg.norm(mean)

    def embed_sentence(self, sentence: str) -> np.ndarray:
        """A unit vector ``[D]`` for a sentence.

        Raises:
            ValueError: It is empty.
        """
        return self.checkpoint.embed_texts([sentence])[0].numpy()

    def _batches(self, path: str | Path) -> Iterator[list[Window]]:
        settings, batch = self.settings, list[Window]()
        for window in windows(path, settings.plan.grid, settings.seconds, shots=settings.shots):
            batch.append(window)
            if len(batch) == _AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    @torch.inference_mode()
    def _embed(self, batch: Sequence[Window], path: str | Path) -> np.ndarray:
        plan = self.settings.plan
        video = self.checkpoint.video.normalize(torch.stack([window.video for window in batch]))
        vectors = self.checkpoint.model.embed_video(video, plan.keep, plan.head, plan.selector).float().cpu()
        return check_finite(vectors, path).numpy()


@dataclass(frozen=True)
class Indexed:
    """What a run changed: counts of files, why some cannot be read, and what the search for them left out."""

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
        budget: What a window may cost; None: the largest trained token budget.
        seconds: Length of a window; None: that of the clips of dense training, or else 4.

    Raises:
        ValueError: The checkpoint, the budget or the grid cannot be used, or windows have no length.
    """
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ValueError(f"windows of {seconds:g} seconds; they must be longer than 0")
    video = DualEncoderCheckpoint.load(checkpoint).video
    plan = video.plan(budget, grid)
    seconds = seconds or video.sampling.window(plan.grid.frames) or 4.0
    return IndexSettings(
        str(Path(checkpoint).absolute()),
        str(plan.grid),
        plan.keep,
        plan.head,
        plan.selector,
        seconds,
        shots,
    )


def settings_of(database: VideoDatabase) -> IndexSettings | None:
    """The settings of a database; None of one that is still empty."""
    kept = database.setting("index")
    return None if kept is None else convert(kept, IndexSettings, f"{database.path}, its settings")


def update_index(
    database: VideoDatabase, folder: str | Path, embedder: Embedder, *, progress: bool = True
) -> Indexed:
    """Bring a database up to date with the videos below a folder.

    Files that are new or have changed are embedded, one transaction each, so that an interrupted run goes on
    where it was; files that are gone are forgotten. One that cannot be read is entered as such, and tried
    again when it changes; one at which anything else goes wrong is tried again in the next run. Links are
    followed; files behind one that leads nowhere, or in a folder that cannot be read, stay as they are. Files
    elsewhere are not touched.

    Raises:
        ValueError: There is no such folder, no video in it, the database is of another encoder, or the
            encoder's output is not finite.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    former = database.setting("encoder")
    if former not in (None, embedder.digest):
        raise ValueError(
            f"{database.path}: its vectors are of another encoder than {embedder.settings.checkpoint} is "
            "now; make it anew with --rebuild"
        )
    left_out = LeftOut()
    paths = [str(path) for path in videos_below(folder, left_out)]
    known = {path: row for path, row in database.files().items() if Path(path).is_relative_to(folder)}
    if not paths and not known:
        raise ValueError("; ".join((f"{folder}: no videos in it", *left_out.notes)))
    database.set_settings(index=asdict(embedder.settings), encoder=embedder.digest)
    # A disk that is not mounted at the moment must not cost what was embedded from it.
    gone = sorted(path for path in known.keys() - set(paths) if not left_out.may_hold(path))
    database.remove(gone)
    marks = {path: _mark(Path(path)) for path in paths}
    nothing = np.zeros((0, 0), np.float32)
    todo = [
        path
        for path in paths
        if path not in known or known[path].mark != marks[path][0] or not marks[path][0]
    ]
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    for path in track(todo, "Indexing", console=console, transient=True, disable=not shown):
        mark, modified = marks[path]
        spans, vectors, trouble = list[tuple[float, float]](), nothing, None
        try:
            spans, vectors = embedder.embed_file(path)
        except VideoError as error:
            trouble = str(error)
        except NotFiniteError:
            raise  # Not the file's fault, but the encoder's: it would be the same with every other.
        except Exception as error:
            # Whatever a decoder thinks of next: one file must not end the run over the others.
            trouble, mark = f"{path}: {type(error).__name__}: {error}", ""
        database.put(path, mark, modified, spans, vectors, trouble)
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
    if database.setting("encoder") != embedder.digest:
        raise ValueError(
            f"{database.path}: its vectors are of another encoder than {embedder.settings.checkpoint} is "
            "now; make it anew with: fluxvit index FOLDER --db ... --rebuild"
        )
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
        return _run_index(config)


def _run_index(config: IndexConfig) -> str:
    former = _former_settings(config)
    settings = _settings(config, former)
    embedder = Embedder(settings, config.device)
    log_device(embedder.device)
    if former is None or config.rebuild:
        # Now, so that nothing is made or removed for a folder without videos.
        left_out = LeftOut()
        if not videos_below(Path(config.folder), left_out):
            raise ValueError("; ".join((f"{config.folder}: no videos in it", *left_out.notes)))
        # Not before the encoder is known to be good.
        make_database(config.db, index=asdict(settings), encoder=embedder.digest)
    with VideoDatabase(config.db) as database:
        indexed = update_index(database, config.folder, embedder)
    return f"{indexed}\ndatabase  {config.db}, {settings}"


def _former_settings(config: IndexConfig) -> IndexSettings | None:
    """The settings of the database; None if it is new, or if it is to be made anew and does not tell them.

    Raises:
        ValueError: It cannot be used, nor made anew if that is asked for.
    """
    if config.rebuild:
        check_removable(config.db)
    if is_new(config.db):
        return None
    try:
        with VideoDatabase(config.db) as database:
            return settings_of(database)
    except ValueError:
        if config.rebuild:  # What is wrong with it plays no part.
            return None
        raise


def _settings(config: IndexConfig, former: IndexSettings | None) -> IndexSettings:
    """The settings that the database will have: the former ones, unless it is new or made anew."""
    source = config.checkpoint or (former.checkpoint if former else "")
    if not source:
        raise ValueError(f"{config.db}: name the dual encoder that embeds, with --checkpoint")
    kept = None if config.rebuild else former
    plan_given = config.budget is not None or config.grid is not None
    if kept and not plan_given and config.seconds is None and config.shots is None:
        return with_checkpoint(kept, config.checkpoint)
    seconds = config.seconds if config.seconds is not None else kept.seconds if kept else None
    shots = config.shots if config.shots is not None else kept.shots if kept else True
    settings = choose_settings(source, config.budget, config.grid, seconds, shots)
    if kept and not plan_given:
        settings = replace(settings, **kept.plan_settings)
    # The command that made it may be given again.
    if kept and replace(settings, checkpoint=kept.checkpoint) != kept:
        raise ValueError(
            f"{config.db} is there already, made with {kept}, not with {settings}; leave --budget, --grid, "
            "--seconds and --shots out, or make the database anew with --rebuild"
        )
    return settings


def _mark(path: Path) -> tuple[str, float]:
    """What tells whether a file or a folder of images has changed, and when it was modified.

    Of what cannot be looked at, such as a file that has just vanished, nothing is told: it counts as changed.
    """
    try:
        files = sorted(entry.path for entry in os.scandir(path)) if path.is_dir() else [str(path)]
        facts = [os.stat(file) for file in files]
    except (OSError, ValueError):
        return "", 0.0
    latest = max((fact.st_mtime_ns for fact in facts), default=0)
    return f"{len(facts)} {sum(fact.st_size for fact in facts)} {latest}", latest / 1e9


def with_checkpoint(settings: IndexSettings, checkpoint: str) -> IndexSettings:
    """Settings whose checkpoint has moved."""
    return replace(settings, checkpoint=str(Path(checkpoint).absolute())) if checkpoint else settings
