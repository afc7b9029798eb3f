"""Writing files so that a reader never sees half of one, and so that two runs never write the same ones.

Everything is written under a hidden temporary name and renamed when it is complete. The temporary name tells
which process writes it, so that the next one that writes into the folder can remove what killed processes
left, and leaves alone what living ones are writing:

* of a process of this machine, it is left over if that process has ended (a later process with the same
  number is told apart by its start time);
* of a process of another machine or container, which cannot be looked at, if nothing was written to it for a
  day, or if this process holds the lock of the folder (`lock_folder`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fluxvit.utils.schema import convert

LOCK = ".lock"
LOCK_SECONDS = 3.0
"""How long a lock is waited for: a killed process may take a moment until it has really ended."""

_UNKNOWN_SECONDS = 24 * 3600.0
# The number alone is how versions before the start time was added named the writer.
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?:(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-(?P<start>[0-9a-f]+)|(?P<number>\d+))"
    r"\.(?P<kind>partial|old)(?:\.[^.]+)?"
)
_cleared: set[Path] = set()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it is renamed to ``path``, on error it is removed.

    The temporary name keeps the suffix, because encoders choose a container by it. What was written is on the
    disk before it gets its name: not even a power cut leaves an empty file under it. Before the first write
    into a folder, what killed processes left there is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_once(path.parent)
    partial = path.with_name(f".{path.stem}.{writer_tag()}.partial{path.suffix}")
    try:
        yield partial
        flush_to_disk(partial)
        os.replace(partial, path)
        flush_to_disk(path.parent)
    except OSError as error:
        if error.filename in (None, str(partial)):  # What is written to an open file does not name it.
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside ``folder``; on success it takes its name, and replaces what had it.

    On error it is removed, and what had the name keeps it.
    """
    partial, outdated = (
        folder.with_name(f".{folder.name}.{writer_tag()}.{kind}") for kind in ("partial", "old")
    )
    clear_leftovers(folder.parent)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            os.replace(folder, outdated)
        try:
            os.replace(partial, folder)
        except OSError:
            if outdated.exists():
                os.replace(outdated, folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(outdated, ignore_errors=True)


# What killed processes left -------------------------------------------------------------------------------


def clear_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove what killed processes left of unfinished writes in a folder, by the rule of this module.

    A folder that was to be replaced when the kill came, and has lost its name, gets it back.

    Args:
        locked: This process holds the folder's lock, so that no process of another machine writes there.
    """
    try:
        found = [(Path(entry.path), _LEFTOVER.fullmatch(entry.name)) for entry in os.scandir(folder)]
    except OSError:  # There is no such folder, or it cannot be listed: nothing to do.
        return
    for path, match in found:
        if match is None or not _is_left_over(path, match, locked):
            continue
        with suppress(OSError):  # Another process may have been faster.
            if match["kind"] == "old" and not (folder / match["name"]).exists():
                os.replace(path, folder / match["name"])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _clear_once(folder: Path) -> None:
    """Once for each folder and process: listing a large folder before every write would be slow."""
    folder = folder.absolute()
    if folder not in _cleared:
        _cleared.add(folder)
        clear_leftovers(folder)


def _is_left_over(path: Path, match: re.Match[str], locked: bool) -> bool:
    if match["number"] is None and match["host"] != _host():
        return locked or _is_old(path)
    start = _start_of(int(match["number"] or match["pid"]))
    if start is None:
        return True
    if match["number"] is not None or start == "unknown":  # It may be another process of that number.
        return locked or _is_old(path)
    return "0" not in (start, match["start"]) and start != match["start"]


def _is_old(path: Path) -> bool:
    """Whether nothing was written to a file, or to any file of a folder, for a day."""
    try:
        latest = max(file.stat().st_mtime for file in (path, *(path.rglob("*") if path.is_dir() else ())))
    except OSError:  # It has just got its name.
        return False
    return time.time() - latest > _UNKNOWN_SECONDS


def writer_tag() -> str:
    """Tells this process apart from all others: machine, number and start, as they stand in file names."""
    return f"{_host()}-{os.getpid()}-{_start_of(os.getpid()) or '0'}"


@functools.cache
def _host() -> str:
    """Six hexadecimal digits for this machine and, in a container, for its own numbering of processes."""
    with suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[
            :6
        ]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _start_of(process: int) -> str | None:
    """When a process of this machine began, as hexadecimal digits; ``"0"`` where the system does not tell.

    None if there is no such process any more, ``"unknown"`` if that cannot be found out.
    """
    try:
        # Behind the name, which may hold blanks and brackets, stand the state and, as 20th, the start.
        facts = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        if facts[0] in (b"Z", b"X"):  # It has ended, and its parent has not asked for it yet.
            return None
        return hashlib.sha256(_boot() + facts[19]).hexdigest()[:8]
    except (OSError, IndexError):
        pass
    if os.name == "nt":  # There os.kill would end it.
        return "0" if process == os.getpid() else "unknown"
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return "0"


@functools.cache
def _boot() -> bytes:
    """Tells one start of the machine from another: times of processes count from it."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return b""


# Locks ----------------------------------------------------------------------------------------------------

_held = threading.local()


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes from writing into a folder; what killed ones left in it is removed.

    The folder is made if there is none. The system releases the lock when this process ends, however it ends.
    Functions that call each other may each lock the same folder.

    Raises:
        ValueError: Another process, or another thread of this one, holds the lock; the message names it.
    """
    folder = Path(folder)
    with _made(folder), _lock(folder / LOCK, folder):
        clear_leftovers(folder, locked=True)
        yield


@contextmanager
def lock_file(path: str | Path) -> Iterator[None]:
    """Keep other processes from writing a file, as :func:`lock_folder` does for a folder.

    Raises:
        ValueError: Another process holds the lock; the message names it.
    """
    path = Path(path)
    with _made(path.parent), _lock(path.with_name(f".{path.name}{LOCK}"), path):
        clear_leftovers(path.parent)
        yield


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; it is removed again if nothing has been written into it in the end."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for path in new:
                path.rmdir()


@contextmanager
def _lock(file: Path, target: Path) -> Iterator[None]:
    held: set[Path] = _held.__dict__.setdefault("files", set())
    place = file.resolve()
    if place in held:
        yield
        return
    lock = FileLock(file)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        holder = ""
        with suppress(OSError):  # On Windows it may not be readable while it is locked.
            holder = file.read_text(encoding="utf-8", errors="replace").strip()
        raise ValueError(
            f"{target} is being written by another run ({holder or 'it does not say which'}); wait for its "
            "end, or choose another name"
        ) from None
    try:
        with suppress(OSError):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write_text(f"process {os.getpid()} on {platform.node()}, since {since}\n", encoding="utf-8")
        held.add(place)
        yield
    finally:
        held.discard(place)
        with suppress(OSError):  # While it is still held: who waits for it notices, and makes a new one.
            file.unlink()
        lock.release()


# Reading and writing --------------------------------------------------------------------------------------


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and needs no such thing.
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Raises:
        ValueError: It holds NaN or infinity, which JSON does not know.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: It cannot be read as such; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # Of too many digits, or nested too deeply.
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines; half a line that a crash left at its end is shut off first.

    Raises:
        ValueError: It holds NaN or infinity, which JSON does not know.
    """
    line = json.dumps(row, allow_nan=False).encode()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write(b"\n" * torn + line + b"\n")


def read_json_lines(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without what a crash left of some; none if there is no file.

    Args:
        kind: What msgspec must take a row for, such as a Struct of the keys that are read; others are left
            out, too.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            convert(row, dict[str, Any])
            convert(row, kind)
        except (ValueError, RecursionError):
            continue
        rows.append(row)
    return rows


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of JSON lines anew, atomically."""
    with atomic_path(path) as partial:
        partial.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")
