"""Atomic writes, locks, and JSON files.

A reader never sees half of a file, and two runs never write the same ones. Everything is written under a
hidden temporary name and renamed when it is complete. The temporary name holds the machine and the process
that writes it. The next process that writes into the folder removes what killed processes left there:

* the files of a process of this machine that has ended;
* files to which nothing was written for a day;
* the files of other machines and containers, if the process holds the lock of the folder (`lock_folder`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fluxvit.utils.schema import convert

LOCK = ".lock"
LOCK_SECONDS = 3.0
"""How long to wait for a lock: a killed process may take a moment to end."""

_OLD_SECONDS = 24 * 3600.0
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)\.(?P<kind>partial|old)(?:\.[^.]+)?"
)
_cleared: set[Path] = set()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success it is renamed to ``path``, on error it is removed.

    The temporary name keeps the suffix, because encoders choose a container by it. The content is on the disk
    before the file gets its name, so that not even a power cut leaves an empty file. Before the first write
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
        if error.filename in (None, str(partial)):  # Errors of an open file do not name it.
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_replaceable(folder: Path, names: Collection[str], what: str) -> None:
    """Raise a ValueError if what is to be replaced is not ``what``, a folder of files called ``names``."""
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= set(names)):
        raise ValueError(f"{folder} holds something else than {what}; choose another folder")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new, empty folder; on success it replaces ``folder``, on error it is removed.

    Whatever ``folder`` was is lost: see :func:`check_replaceable`.
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


# Leftovers of killed processes ------------------------------------------------------------------------------


def clear_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove the unfinished writes of killed processes from a folder, by the rule of this module.

    A folder that was being replaced when its process was killed, and has lost its name, gets it back.

    Args:
        locked: This process holds the folder's lock, so that no process of another machine writes there.
    """
    try:
        entries = [(Path(entry.path), _LEFTOVER.fullmatch(entry.name)) for entry in os.scandir(folder)]
    except OSError:  # There is no such folder, or it cannot be listed.
        return
    for path, match in entries:
        if match is None:
            continue
        is_ended = not _is_alive(int(match["pid"])) if match["host"] == _host() else locked
        if not is_ended and not _is_old(path):
            continue
        with suppress(OSError):  # Another process may have been faster.
            if match["kind"] == "old" and not (folder / match["name"]).exists():
                os.replace(path, folder / match["name"])
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _clear_once(folder: Path) -> None:
    """Clear a folder once in each process: listing a large folder before every write would be slow."""
    folder = folder.absolute()
    if folder not in _cleared:
        _cleared.add(folder)
        clear_leftovers(folder)


def _is_old(path: Path) -> bool:
    """Whether nothing was written to a file, or to any file of a folder, for a day."""
    try:
        latest = max(file.stat().st_mtime for file in (path, *(path.rglob("*") if path.is_dir() else ())))
    except OSError:  # It has just got its name.
        return False
    return time.time() - latest > _OLD_SECONDS


def writer_tag() -> str:
    """The machine and the number of this process, for names of temporary files."""
    return f"{_host()}-{os.getpid()}"


@functools.cache
def _host() -> str:
    """Six hexadecimal digits for this machine and, in a container, for its own numbering of processes."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:6]


def _is_alive(process: int) -> bool:
    """Whether a process of this machine lives; True where that is unknown."""
    with suppress(OSError, IndexError):
        # The state follows the name, which may hold blanks and brackets. A zombie has ended.
        facts = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return facts[0] not in (b"Z", b"X")
    if os.name == "nt":  # There os.kill would end it.
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# Locks ----------------------------------------------------------------------------------------------------


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes from writing into a folder, and remove what killed ones left in it.

    The folder is made if there is none. The system releases the lock when this process ends, however it ends.
    Functions that call each other may each lock the same folder.

    Raises:
        ValueError: Another process, or another thread of this one, holds the lock; the message names it.
    """
    folder = Path(folder)
    with _lock(folder / LOCK, folder):
        clear_leftovers(folder, locked=True)
        yield


@contextmanager
def lock_file(path: str | Path) -> Iterator[None]:
    """Keep other processes from writing a file, as :func:`lock_folder` does for a folder.

    Raises:
        ValueError: Another process holds the lock; the message names it.
    """
    path = Path(path)
    with _lock(path.with_name(f".{path.name}{LOCK}"), path):
        clear_leftovers(path.parent)
        yield


@contextmanager
def _lock(file: Path, target: Path) -> Iterator[None]:
    """Hold a lock. Folders that are made for its file are removed if nothing else is written into them."""
    new = [path for path in file.parents if not path.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.resolve(), is_singleton=True)
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
    is_outermost = lock.lock_counter == 1
    try:
        if is_outermost:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            with suppress(OSError):
                file.write_text(f"process {os.getpid()} on {platform.node()}, since {since}\n", "utf-8")
        yield
    finally:
        if is_outermost:
            with suppress(OSError):  # While it is still held: who waits for it notices, and makes a new one.
                file.unlink()
        lock.release()
        with suppress(OSError):
            for path in new:
                path.rmdir()


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


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a file of JSON lines, on a line of its own even if a crash left half a line at its end.

    Raises:
        ValueError: It holds NaN or infinity, which JSON does not know.
    """
    line = json.dumps(row, allow_nan=False).encode()
    with path.open("ab+") as file:
        end = b"\n"
        if file.tell():
            file.seek(-1, os.SEEK_END)
            end = file.read(1)
        file.write(b"\n" * (end != b"\n") + line + b"\n")


def read_json_lines(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without the damaged ones; none if there is no file.

    Args:
        kind: A type that msgspec knows, such as a Struct of the keys that are read. Rows of another type are
            left out, too.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            convert(row, kind)
        except (ValueError, RecursionError):
            continue
        rows.append(row)
    return rows


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a new file of JSON lines, atomically."""
    with atomic_path(path) as partial:
        partial.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")
