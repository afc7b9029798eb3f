"""Checks the files of a data set in parallel and writes the results into a manifest."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fluxvit.data.config import CheckConfig
from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.registry import read_source
from fluxvit.data.manifest import Entry, Manifest, content_digest, write_manifest
from fluxvit.utils.files import lock_file, read_json_lines, write_json_lines
from fluxvit.utils.progress import report
from fluxvit.utils.schema import shown
from fluxvit.utils.system import follow_parent, processes, signals_held_back
from fluxvit.utils.terminal import printable
from fluxvit.video.reader import PyAVReader, VideoError, open_video
from fluxvit.video.tar_members import may_exist

# Headers are often off by a few frames; a file that has lost more than this part of them is cut short.
_TOLERATED_LOSS = 0.1

_log = logging.getLogger(__name__)

# Frames of a folder decoded at once, which bounds memory.
_IMAGES_AT_ONCE = 32

# Numbers, but not those of names such as h264.
_NUMBER = re.compile(r"(?<![a-zA-Z\d])\d+(\.\d+)?")

_ENTRY_FIELDS = {field.name for field in fields(Entry)}

Job = TypeVar("Job")
Result = TypeVar("Result")


def check_dataset(config: CheckConfig) -> str:
    """Check every video of a data set and write its manifest; returns what was found, for people.

    Raises:
        ValueError: The source cannot be read, or an option is out of range.
    """
    videos = read_source(
        config.source,
        config.format,
        config.root,
        config.split,
        config.like,
        _columns(config.columns),
    )
    recognised = "recognised as" if config.format == "auto" else "read as"
    part = f" {videos.split}" if videos.split else ""
    _log.info("%s: %s %s%s, %d videos", config.source, recognised, videos.name, part, len(videos.entries))
    for note in videos.notes:
        _log.warning("%s", note)
    manifest = check_videos(
        videos, config.out, config.workers, deep=config.deep, time_limit=config.time_limit
    )
    return f"{_summary(manifest)}\nwrote   {config.out}"


def _columns(parts: Sequence[str]) -> dict[str, str] | None:
    pairs = [part.partition("=") for part in parts]
    if not all(role.strip() and name.strip() for role, _, name in pairs):
        raise ValueError(
            f"--columns {shown(','.join(parts))}: give names of columns, such as path=video,label=class"
        )
    return {role.strip(): name.strip() for role, _, name in pairs} or None


def check_videos(
    videos: VideoList,
    out: str | Path,
    workers: int | None = None,
    *,
    deep: bool = False,
    time_limit: float | None = None,
    progress: bool = True,
) -> Manifest:
    """Check every file of a list, and write and return the manifest.

    Results are kept in ``<out>.partial`` as they come: after an interruption the same call goes on where it
    stopped, and looks again at what was broken. The manifest appears when it is complete, in the order of the
    list. Worker processes are spawned: a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        out: The manifest, ``.jsonl``; it replaces an older one.
        workers: Processes, each with one thread; default: one per core.
        deep: Decode every frame, not only the first.
        time_limit: Seconds that one file may take; default: 60, or 600 if ``deep``.
        progress: Show a bar on standard error.

    Raises:
        ValueError: An argument is out of range, or another run is writing the manifest.
    """
    out = Path(out)
    if out.suffix != ".jsonl":
        raise ValueError(f"{out}: the name of a manifest ends in .jsonl")
    workers = processes(workers)
    time_limit = (600.0 if deep else 60.0) if time_limit is None else time_limit

    with lock_file(out):
        paths = list(dict.fromkeys(entry.path for entry in videos.entries))
        log = out.with_name(f"{out.name}.partial")
        known = _resume(log, deep)
        done = {path: known[str(path)] for path in paths if str(path) in known}
        left = [path for path in paths if path not in done]
        look = partial(inspect_video, deep=deep)
        broken = 0
        with (
            log.open("a", encoding="utf-8") as results,
            report("Checking videos", len(paths), len(done), enabled=progress) as advance,
            # Closed at once: on Ctrl-C the processes must not wait for the garbage collector.
            closing(guarded(look, left, workers, time_limit)) as outcomes,
        ):
            for path, outcome in outcomes:
                facts: dict[str, Any] = (
                    {"ok": False, "error": outcome} if isinstance(outcome, str) else outcome
                )
                row = {"path": str(path), "deep": deep, "state": _state(path), "facts": facts}
                results.write(json.dumps(row) + "\n")
                results.flush()
                done[path] = facts
                broken += not facts["ok"]
                advance(1, f"{broken} broken" * bool(broken))

        entries = tuple(_checked(entry, done[entry.path]) for entry in videos.entries)
        digest = content_digest(entries, videos.root)
        manifest = Manifest(entries, videos.labels, digest, videos.name, videos.split, videos.root)
        write_manifest(out, manifest)
        log.unlink()
        return manifest


def inspect_video(path: Path, *, deep: bool = False) -> dict[str, Any]:
    """Read the facts about a file as fields of `Entry`, with ``error`` if it cannot be used. Never raises.

    The packets of the whole file are read, since a header does not know that its file was cut short; the
    first frame is decoded and, if ``deep``, all others. Frames and duration count what the file really holds.
    A file that has lost up to a tenth of its frames is usable; a deep check stores their number as
    ``damaged_frames``.
    """
    facts: dict[str, Any] = {"ok": True, "error": None}
    try:
        if not may_exist(path):
            return {"ok": False, "error": "missing"}
        with open_video(path) as reader:
            info = reader.info
            facts |= {
                "frames": len(reader.times),
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
                "duration": round(reader.end, 6),
                "rotation": info.rotation,
                "codec": info.codec,
            }
            if info.pixel_aspect != 1:
                facts["pixel_aspect"] = round(info.pixel_aspect, 4)
            lost = 0
            if isinstance(reader, PyAVReader):
                _expect_whole(reader)
                if deep:
                    lost = max(0, facts["frames"] - reader.count_intact())
            elif deep:
                for first in range(0, len(reader.times), _IMAGES_AT_ONCE):
                    reader.read(reader.times[first : first + _IMAGES_AT_ONCE])
        if lost > _TOLERATED_LOSS * facts["frames"]:
            raise VideoError.of(path, f"damaged: {lost} of {facts['frames']} frames cannot be decoded")
        if lost:
            facts["damaged_frames"] = lost
    except VideoError as error:
        shown = printable(path)
        facts |= {
            "ok": False,
            "error": str(error).removeprefix(f"{shown}: ").removeprefix(f"{shown}{os.sep}"),
        }
    except Exception as error:
        # Whatever error a decoder raises: one file must not end the check of the others.
        facts |= {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())}
    return facts


def guarded(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, time_limit: float
) -> Generator[tuple[Job, Result | str], None, None]:
    """Call a function in processes that may hang or die, and yield each job with its result as they come.

    If there is no result, a sentence gives the reason: the call took more than ``time_limit`` seconds, or its
    process died. Either way that process is replaced. The function must be picklable and must not raise.

    Raises:
        RuntimeError: A process died before its first job, so another one would, too.
    """
    pending = deque(jobs)
    team: list[_Worker] = []
    try:
        team += (_Worker(function, time_limit) for _ in range(min(workers, len(pending))))
        while team:
            for worker in _due(team):
                job = worker.job
                try:
                    answer = worker.answer()
                except _LostError as loss:
                    if job is None:
                        raise RuntimeError(f"a worker process could not start: it {loss}") from None
                    answer = str(loss)
                    team.remove(worker)
                    worker.stop()
                    if pending:
                        team.append(_Worker(function, time_limit))
                else:
                    if pending:
                        worker.give(pending.popleft())
                    else:
                        team.remove(worker)
                        worker.stop()
                if job is not None:
                    yield job, answer
    finally:
        for worker in team:
            worker.stop()


class _Checked(msgspec.Struct):
    """A line of the log of an unfinished check."""

    path: str
    facts: dict[str, Any]
    deep: bool = False


class _LostError(Exception):
    """A worker gave no answer; the message says why."""


class _Worker:
    """A process that answers one job at a time. Its first answer comes without a job: it has started."""

    def __init__(self, function: Callable[[Any], Any], time_limit: float) -> None:
        # Spawned, not forked: the caller may have threads (PyTorch, BLAS) whose locks a fork would copy.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Any = None
        self.deadline = math.inf
        self._time_limit = time_limit
        self._process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with _one_thread_each(), signals_held_back():
            self._process.start()
        theirs.close()

    def give(self, job: Any) -> None:
        self.job, self.deadline = job, time.monotonic() + self._time_limit
        # If the process has died, `answer` reports it.
        with suppress(ConnectionError):
            self.connection.send(job)

    def answer(self) -> Any:
        """The answer that has come; raises if the process has died instead, or is overdue."""
        try:
            if not self.connection.poll():
                raise _LostError(f"took longer than {self._time_limit:g} s")
            answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise _LostError(f"ended the process that read it ({how})") from None
        self.job, self.deadline = None, math.inf
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _due(team: list[_Worker]) -> list[_Worker]:
    """Wait until there are workers that have answered, died or used up their time, and return them."""
    soonest = min(worker.deadline for worker in team)
    patience = None if soonest == math.inf else max(0.0, soonest - time.monotonic())
    ready = wait([worker.connection for worker in team], patience)
    return [worker for worker in team if worker.connection in ready or time.monotonic() >= worker.deadline]


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer jobs until the parent process ends, even if it is killed while this one hangs in a file."""
    follow_parent()
    # The other end closes when the parent is killed, too.
    with suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            connection.send(function(connection.recv()))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started within do not open a pool of BLAS threads each, one for every core."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _summary(manifest: Manifest) -> str:
    """What a manifest holds, for people: numbers of videos, hours, sizes, rates, and what is broken and why.

    Several segments of a file count once for the hours. Numbers in a reason are written as ``#``.
    """
    readable = [entry for entry in manifest.entries if entry.ok]
    broken: dict[str, list[Path]] = {}
    for entry in manifest.entries:
        if not entry.ok:
            broken.setdefault(_NUMBER.sub("#", entry.error or "unknown"), []).append(entry.path)
    classes = {number for entry in manifest.entries for number in entry.classes}
    hours = sum({entry.path: entry.duration or 0.0 for entry in readable}.values()) / 3600
    count = len(manifest) - len(readable)
    lines = [
        f"{len(manifest)} videos, {len(classes)} classes, {hours:.2f} hours, {count} broken; "
        f"digest {manifest.digest}",
        f"sizes              {_shares(f'{entry.width}x{entry.height}' for entry in readable)}",
        "frames per second  "
        + _shares("unknown" if entry.fps is None else f"{round(entry.fps, 2):g}" for entry in readable),
    ]
    for reason, paths in sorted(broken.items(), key=lambda item: -len(item[1])):
        lines += [f"{len(paths)} broken: {printable(reason)}", *_named(paths)]
    damaged = [entry.path for entry in readable if "damaged_frames" in entry.extra]
    if damaged:
        lines += [f"{len(damaged)} usable, with frames that cannot be decoded", *_named(damaged)]
    return "\n".join(lines)


def _shares(names: Iterable[str], shown: int = 5) -> str:
    counts = Counter(names)
    parts = [f"{name} ({100 * count / counts.total():.0f} %)" for name, count in counts.most_common(shown)]
    return ", ".join(parts) + (f", {len(counts) - shown} others" if len(counts) > shown else "")


def _named(paths: list[Path], shown: int = 20) -> list[str]:
    more = [f"  and {len(paths) - shown} more, in the manifest"] if len(paths) > shown else []
    return [f"  {printable(path)}" for path in paths[:shown]] + more


def _resume(log: Path, deep: bool) -> dict[str, dict[str, Any]]:
    """Facts about readable files that an interrupted check has found, by path.

    The log is rewritten without the rest: broken files may have been repaired since, a shallow check is not a
    deep one, a file may have changed, and the last line may have been cut off.
    """
    rows = [
        row
        for row in read_json_lines(log, _Checked)
        if row["facts"].get("ok")
        and row.get("deep", False) >= deep
        and row.get("state") == _state(Path(row["path"]))
    ]
    write_json_lines(log, rows)
    return {row["path"]: row["facts"] for row in rows}


def _state(path: Path) -> list[int] | None:
    """Size and time of a file's last change; None for what is not a file, such as a member of a tar."""
    try:
        facts = path.stat()
    except (OSError, ValueError):  # A name with a null byte is the latter.
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _checked(entry: Entry, facts: dict[str, Any]) -> Entry:
    """The entry with the facts about its file, and whether its segment lies within it."""
    found = {key: value for key, value in facts.items() if key in _ENTRY_FIELDS}
    extra = {key: value for key, value in entry.extra.items() if key != "damaged_frames"}
    extra |= {key: value for key, value in facts.items() if key not in _ENTRY_FIELDS}
    entry = replace(entry, **found, extra=extra)
    if not entry.ok:
        return entry
    start, end = entry.start or 0.0, entry.end
    fault = None
    if start < 0 or (end is not None and end <= start):
        fault = f"its segment is empty: {start:g} to {end:g} s"
    elif entry.duration is not None and start >= entry.duration:
        fault = f"its segment starts at {start:g} s, but the video ends at {entry.duration:g} s"
    return replace(entry, ok=fault is None, error=fault)


def _expect_whole(reader: PyAVReader) -> None:
    """Raise if much less is in a file than its header promises."""
    promised, packets = reader.info.frames, len(reader.contents.packets)
    seconds = reader.info.duration
    # An edit list may leave out frames; the duration is then without them.
    lasts = seconds is not None and abs(reader.end - seconds) <= _TOLERATED_LOSS * seconds
    if promised is not None and packets < (1 - _TOLERATED_LOSS) * promised and not lasts:
        raise VideoError.of(reader.info.path, f"cut short: {packets} of {promised} frames are there")
    # Matroska and WebM promise no frames, but a length; it may be that of the sound.
    container = reader.container
    is_promise = promised is None and "matroska" in container.format.name and not container.streams.audio
    if is_promise and seconds is not None and reader.end < (1 - _TOLERATED_LOSS) * seconds:
        raise VideoError.of(reader.info.path, f"cut short: {reader.end:.1f} of {seconds:.1f} s are there")
