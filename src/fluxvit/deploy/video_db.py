"""A database of video windows and their vectors: one SQLite file, no server, nothing to install.

A database appears under its name when its tables are complete. SQLite writes each file's windows in one
transaction, so that a killed run leaves whole files only, and answers questions about times. Vectors are
compared by exact products in memory (``benchmarks/search_speed.py``), where an approximate index would save
little and miss some.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fluxvit.files import atomic_path
from fluxvit.schema import Finite, check

FORMAT = 1
LOCKED_SECONDS = 30.0
"""How long a database that another process has locked is waited for."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION = 0x666C7876  # "flxv", where SQLite keeps whose database it is; the first ones do not tell.
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    mark TEXT NOT NULL,      -- Tells whether the file has changed.
    modified REAL NOT NULL,  -- Seconds since 1970.
    error TEXT               -- Why it cannot be read; NULL if it can.
);
CREATE TABLE windows (
    id INTEGER PRIMARY KEY,
    file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    start REAL NOT NULL,
    end REAL NOT NULL,
    vector BLOB NOT NULL     -- fp16, little-endian.
);
CREATE INDEX windows_of_file ON windows (file);
"""
_OUR_WORDS = b"-- fp16, little-endian."
_COLUMNS = {
    "settings": {"name", "value"},
    "files": {"id", "path", "mark", "modified", "error"},
    "windows": {"id", "file", "start", "end", "vector"},
}


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
        path: Of the database.
        create: Make it if there is none, or one whose making was cut off before anything was entered.

    Raises:
        ValueError: There is no such file; it is empty, damaged, of another version, locked by another process
            for `LOCKED_SECONDS`, or not a database of fluxvit. The message says which, and what to do.
    """

    def __init__(self, path: str | Path, create: bool = False) -> None:
        self.path = Path(path)
        status, reason = _inspect(self.path)
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
        self._sql = sqlite3.connect(self.path.absolute(), timeout=LOCKED_SECONDS, isolation_level=None)
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

        Of windows of a file that overlap only the best one is a hit.
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
            raise _as_user_error(self.path, error) or self._broken(error) from error

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


# What is in a file ----------------------------------------------------------------------------------------

_Status = Literal["missing", "empty", "good", "version", "broken", "foreign"]


def is_new(path: str | Path) -> bool:
    """Whether there is no database yet, or one whose making was cut off before anything was entered.

    Raises:
        ValueError: Another process has locked it.
    """
    return _inspect(Path(path))[0] in ("missing", "empty")


def check_removable(path: str | Path) -> None:
    """Check that a file is a database of fluxvit, in whatever state, or that there is none.

    Raises:
        ValueError: It is something else.
    """
    status, reason = _inspect(Path(path))
    if status == "foreign":
        raise ValueError(
            f"{path} is no database of fluxvit: it is {reason}; it is not removed, choose another file"
        )


def make_database(path: str | Path, **settings: Any) -> None:
    """Make an empty database, whole with its settings or not at all, in place of an older one.

    Raises:
        ValueError: The file is something else, which is not replaced.
        OSError: It cannot be written, for example because the disk is full.
    """
    path = Path(path)
    check_removable(path)
    rows = [(name, json.dumps(value)) for name, value in {"format": FORMAT, **settings}.items()]
    with atomic_path(path) as partial:
        try:
            with closing(sqlite3.connect(partial.absolute(), isolation_level=None)) as sql:
                sql.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION}; {_TABLES} COMMIT;")
                sql.executemany("INSERT INTO settings VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise OSError(errno.EIO, f"the database cannot be written ({error})", str(path)) from error
        # SQLite would play back into the new database what a killed process left of writing the old one.
        for kind in ("journal", "wal", "shm"):
            path.with_name(f"{path.name}-{kind}").unlink(missing_ok=True)


def _inspect(path: Path) -> tuple[_Status, str]:
    """What a file is, and a reason: why it is broken, what else it is, or its version.

    ``empty`` is one whose making was cut off before anything was entered.

    Raises:
        ValueError: Another process has locked it.
        OSError: It cannot be read.
    """
    if not path.exists():
        return "missing", ""
    if not path.is_file():
        return "foreign", "a folder" if path.is_dir() else "not a regular file"
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head:
        return "empty", ""
    application = int.from_bytes(head[68:72], "big")
    # SQLite keeps the text of definitions, which may still be there where tables cannot be read any more.
    ours = _OUR_WORDS in head or (application == _APPLICATION and head.startswith(_MAGIC))
    if not head.startswith(_MAGIC):
        return (
            ("broken", "it does not begin as SQLite files do") if ours else ("foreign", "not an SQLite file")
        )
    if application not in (0, _APPLICATION) and not ours:
        return "foreign", "a database of another application"
    try:
        with closing(sqlite3.connect(path.absolute(), timeout=LOCKED_SECONDS)) as sql:
            return _inspect_tables(sql, ours)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        known = _as_user_error(path, error)
        if known is not None:
            raise known from error
        return ("broken", str(error)) if ours else ("foreign", f"a damaged SQLite file ({error})")


def _inspect_tables(sql: sqlite3.Connection, ours: bool) -> tuple[_Status, str]:
    entries = sql.execute("SELECT type, name FROM sqlite_master").fetchall()
    if not {kind for kind, _ in entries} <= {
        "table",
        "index",
    }:  # Views and triggers would run in our queries.
        return "foreign", "a database of another application"
    names = {name for kind, name in entries if kind == "table"}
    columns = {name: {row[1] for row in sql.execute(f"PRAGMA table_info({name})")} for name in _COLUMNS}
    missing = [
        f"{table}.{column}" for table in _COLUMNS for column in sorted(_COLUMNS[table] - columns[table])
    ]
    tables = names & _COLUMNS.keys()
    whole = {table for table in tables if _COLUMNS[table] <= columns[table]}
    if not names or (names == whole and not _has_rows(sql, whole)):
        return "empty", ""
    version = None
    if "settings" in whole:
        version = sql.execute("SELECT value FROM settings WHERE name = 'format'").fetchone()
    if not ours and (version is None or not tables - {"settings"}):
        return "foreign", "a database of another application"
    if version is None:
        return "broken", "it does not tell its version"
    if str(version[0]) != json.dumps(FORMAT):
        return "version", str(version[0])[:20]
    if missing:
        return "broken", f"it has no {missing[0]}"
    return "good", ""


def _has_rows(sql: sqlite3.Connection, tables: set[str]) -> bool:
    return any(sql.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables)


def _as_user_error(path: Path, error: Exception) -> ValueError | OSError | None:
    """What is not the database's fault, but that of other processes or of the disk."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return ValueError(
            f"{path}: another process has locked the database for {LOCKED_SECONDS:g} s; try again "
            "when it has ended"
        )
    if "full" in text:
        return OSError(errno.ENOSPC, "the disk is full; make room, and the same command goes on", str(path))
    if "readonly" in text or "unable to open" in text:
        return OSError(errno.EACCES, f"it cannot be written ({text})", str(path))
    return None


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
