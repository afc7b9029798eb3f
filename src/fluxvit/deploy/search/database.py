"""A database of video windows and their vectors: one SQLite file, no server, nothing to install.

A database appears under its name when its tables are complete. SQLite writes each file's windows in one
transaction, so that a killed run leaves whole files only, and answers questions about times. Vectors are
compared by exact products in memory (``benchmarks/search_speed.py``), where an approximate index would save
little and miss some.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.deploy.search.database_file import (
    FORMAT,
    as_user_error,
    connect,
    inspect_database,
    make_database,
)
from fluxvit.utils.schema import Finite, check


@dataclass(frozen=True)
class FileRow:
    """A file in the database: ``mark`` tells whether it has changed, ``error`` why it cannot be read."""

    path: str
    mark: str
    error: str | None


@dataclass(frozen=True)
class Filter:
    """Which windows are searched.

    Args:
        path: A pattern that the whole path must match: ``*`` stands for anything, all else for itself; empty:
            all.
        start, end: Seconds of the video that a window must touch.
        since, until: When the file was last modified, seconds since 1970.

    Raises:
        ValueError: A number is not finite, or a value has another type.
    """

    path: str = ""
    start: Finite | None = None
    end: Finite | None = None
    since: Finite | None = None
    until: Finite | None = None

    def __post_init__(self) -> None:
        check(self)


EVERYTHING = Filter()


@dataclass(frozen=True)
class Hit:
    """A window that was found: seconds of a file, and its cosine with the query."""

    path: str
    start: float
    end: float
    score: float


class VideoDatabase:
    """Windows of video files and their vectors.

    Args:
        path: Path of the database.
        create: Make the database if it does not exist, or if its making was cut off before anything was
            entered.

    Raises:
        ValueError: There is no such file; it is empty, damaged, of another version, locked by another process
            for `LOCKED_SECONDS`, or not a database of fluxvit. The message says which, and what to do.
    """

    def __init__(self, path: str | Path, create: bool = False) -> None:
        self.path = Path(path)
        status, reason = inspect_database(self.path)
        make = f"fluxvit index FOLDER --db {path}"
        if status == "foreign":
            raise ValueError(f"{path} is no database of fluxvit: it is {reason}; choose another file")
        if status == "broken":
            raise self._broken(reason)
        if status == "version":
            raise ValueError(
                f"{path}: a database of version {reason}, this fluxvit reads {FORMAT}; use the fluxvit that "
                f"made it, or make it anew with: {make} --rebuild"
            )
        if create and status in ("missing", "empty"):
            make_database(self.path)
        elif status == "missing":
            raise ValueError(f"{path}: no such database; make one with: {make}")
        elif status == "empty":
            raise ValueError(f"{path}: an empty database, whose making was cut off; fill it with: {make}")
        self._sql = connect(self.path)
        with self._guarded():
            self._sql.execute("PRAGMA foreign_keys = ON")
        self._loaded: tuple[int, Filter, np.ndarray, np.ndarray] | None = None

    def close(self) -> None:
        """Release the file."""
        self._sql.close()

    def __enter__(self) -> VideoDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def setting(self, name: str) -> Any:
        """A setting; None if it is not there."""
        rows = self._rows("SELECT value FROM settings WHERE name = ?", (name,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except (TypeError, ValueError, RecursionError):
            raise self._broken(f"its setting {name} cannot be read") from None

    def set_settings(self, **settings: Any) -> None:
        """Keep plain values by their names."""
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        with self._transaction():
            self._sql.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def files(self) -> dict[str, FileRow]:
        """All files by their path."""
        found = {}
        for name, mark, error in self._rows("SELECT path, mark, error FROM files"):
            path = _from_sql(name)
            if path is None or not isinstance(mark, str) or not isinstance(error, str | None):
                raise self._broken(f"a file's row holds {name!r}, {mark!r}, {error!r}")
            found[path] = FileRow(path, mark, error)
        return found

    def count_files(self, pattern: str = "") -> int:
        """Files in the database whose path matches a pattern, as in :class:`Filter`."""
        return sum(map(_path_filter(pattern), self.files()))

    def count_windows(self) -> int:
        """Windows in the database."""
        return self._rows("SELECT count(*) FROM windows")[0][0]

    def put(
        self,
        path: str,
        mark: str,
        modified: float,
        spans: Sequence[tuple[float, float]],
        vectors: np.ndarray,
        error: str | None = None,
    ) -> None:
        """Enter a file with all of its windows, in place of what was there of it.

        Args:
            spans: Start and end of each window, in seconds.
            vectors: float ``[N, D]``.
        """
        blobs = [vector.astype("<f2").tobytes() for vector in vectors]
        with self._transaction():
            self._sql.execute("DELETE FROM files WHERE path = ?", (_to_sql(path),))
            row = self._sql.execute(
                "INSERT INTO files (path, mark, modified, error) VALUES (?, ?, ?, ?)",
                (_to_sql(path), mark, modified, _to_text(error)),
            )
            self._sql.executemany(
                "INSERT INTO windows (file, start, end, vector) VALUES (?, ?, ?, ?)",
                [
                    (row.lastrowid, float(start), float(end), blob)
                    for (start, end), blob in zip(spans, blobs, strict=True)
                ],
            )

    def remove(self, paths: Sequence[str]) -> None:
        """Forget files."""
        with self._transaction():
            self._sql.executemany("DELETE FROM files WHERE path = ?", [(_to_sql(path),) for path in paths])

    def nearest(self, query: np.ndarray, count: int, only: Filter = EVERYTHING) -> list[Hit]:
        """The windows whose vectors have the largest products with ``query`` ``[D]``, best first.

        If windows of a file overlap, only the best of them is a hit.
        """
        ids, vectors = self._vectors(only)
        if not len(ids):
            return []
        if vectors.shape[1] != len(query):
            raise self._broken(
                f"its vectors have {vectors.shape[1]} numbers, those of its encoder {len(query)}"
            )
        scores = vectors @ query.astype(np.float32)
        hits: list[Hit] = []
        # Overlapping windows are left out afterwards: more are taken until there are enough.
        taken = min(len(ids), 4 * count)
        while True:
            best = np.argpartition(-scores, taken - 1)[:taken]
            best = best[np.argsort(-scores[best], kind="stable")]
            hits = self._apart([(int(ids[i]), float(scores[i])) for i in best], count)
            if len(hits) == count or taken == len(ids):
                return hits
            taken = min(len(ids), 4 * taken)

    def _apart(self, found: Sequence[tuple[int, float]], count: int) -> list[Hit]:
        hits: list[Hit] = []
        for number, score in found:
            rows = self._rows(
                "SELECT path, start, end FROM windows JOIN files ON files.id = windows.file "
                "WHERE windows.id = ?",
                (number,),
            )
            if not rows:  # Another process has just removed it.
                continue
            ((name, start, end),) = rows
            path = _from_sql(name)
            if path is None or not (_is_number(start) and _is_number(end)):
                raise self._broken(f"a window's row holds {name!r}, {start!r}, {end!r}")
            if not any(hit.path == path and hit.start < end and start < hit.end for hit in hits):
                hits.append(Hit(path, start, end, score))
                if len(hits) == count:
                    break
        return hits

    def _vectors(self, only: Filter) -> tuple[np.ndarray, np.ndarray]:
        """Numbers ``[N]`` of windows and their vectors fp32 ``[N, D]``, kept until something is written."""
        written = self._rows("PRAGMA data_version")[0][0] + self._sql.total_changes
        if self._loaded is None or self._loaded[:2] != (written, only):
            clauses, values = _clauses(only)
            matches = _path_filter(only.path)
            self._sql.create_function("path_matches", 1, lambda name: matches(_from_sql(name) or ""))
            rows = self._rows(
                f"SELECT windows.id, vector FROM windows JOIN files ON files.id = windows.file{clauses}",
                values,
            )
            if not all(isinstance(number, int) for number, _ in rows):
                raise self._broken("its windows are not all numbered")
            ids = np.array([number for number, _ in rows], np.int64)
            blobs = [blob for _, blob in rows]
            if not all(isinstance(blob, bytes) and len(blob) == len(blobs[0]) for blob in blobs):
                raise self._broken("its vectors are not all of one length")
            if blobs and (not blobs[0] or len(blobs[0]) % 2):
                raise self._broken(f"a vector has {len(blobs[0])} bytes")
            data = np.frombuffer(b"".join(blobs), "<f2")
            vectors = data.reshape(len(rows), -1) if rows else np.zeros((0, 0), "<f2")
            if not np.isfinite(vectors).all():
                raise self._broken("its vectors are not all finite")
            self._loaded = written, only, ids, vectors.astype(np.float32)
        return self._loaded[2:]

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._guarded():
            return self._sql.execute(query, values).fetchall()

    def _broken(self, reason: object) -> ValueError:
        why = " ".join(str(reason).split())
        cure = f"make it anew with: fluxvit index FOLDER --db {self.path} --rebuild"
        return ValueError(f"{self.path}: a damaged database ({why}); {cure}")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What SQLite says of the file becomes one line with the cure."""
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # The caller's fault, not the file's.
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise as_user_error(self.path, error) or self._broken(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guarded():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # A full disk ends it by itself.
                    self._sql.execute("ROLLBACK")
                raise


def _clauses(only: Filter) -> tuple[str, list[Any]]:
    """Conditions for windows, and their values; ``path_matches`` is to be a function of SQL."""
    given = [
        (value, clause)
        for value, clause in (
            (only.start, "windows.end > ?"),
            (only.end, "windows.start < ?"),
            (only.since, "modified >= ?"),
            (only.until, "modified < ?"),
        )
        if value is not None
    ]
    clauses = [clause for _, clause in given]
    if only.path:  # Once for each file, not for each of its windows.
        clauses.append("files.id IN (SELECT id FROM files WHERE path_matches(path))")
    return (f" WHERE {' AND '.join(clauses)}" if clauses else ""), [value for value, _ in given]


def _path_filter(pattern: str) -> Callable[[str], bool]:
    """Tells whether a whole path matches a pattern in which ``*`` stands for anything, all else for itself.

    Each part between two asterisks takes the first place that it finds, so that many cost no more than a few.
    """
    if not pattern:
        return lambda path: True
    first, *middle = pattern.split("*")
    if not middle:
        return lambda path: path == first
    last = middle.pop()

    def matches(path: str) -> bool:
        end = len(path) - len(last)
        if not (path.startswith(first) and path.endswith(last) and len(first) <= end):
            return False
        place = len(first)
        for part in middle:
            found = path.find(part, place, end)
            if found < 0:
                return False
            place = found + len(part)
        return True

    return matches


def _to_sql(path: str) -> str | bytes:
    """A path as it is kept: as text, or, if it is no Unicode, as the bytes of its name."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _from_sql(name: object) -> str | None:
    """The path again; None of what no path is kept as."""
    if isinstance(name, bytes):
        return os.fsdecode(name)
    return name if isinstance(name, str) else None


def _to_text(error: str | None) -> str | None:
    return None if error is None else error.encode(errors="backslashreplace").decode()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
