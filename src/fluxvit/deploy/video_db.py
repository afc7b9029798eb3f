"""A database of video windows and their vectors: one SQLite file, no server, nothing to install.

SQLite writes each file's windows in one transaction, so that a killed run leaves whole files only, and
answers questions about paths and times. Vectors are compared by exact products in memory
(``benchmarks/search_speed.py``), where an approximate index would save little and miss some.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    mark TEXT NOT NULL,      -- Tells whether the file has changed.
    modified REAL NOT NULL,  -- Seconds since 1970.
    error TEXT               -- Why it cannot be read; NULL if it can.
);
CREATE TABLE IF NOT EXISTS windows (
    id INTEGER PRIMARY KEY,
    file INTEGER NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    start REAL NOT NULL,
    end REAL NOT NULL,
    vector BLOB NOT NULL     -- fp16, little-endian.
);
CREATE INDEX IF NOT EXISTS windows_of_file ON windows (file);
"""


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
        path: A pattern that the path must match, ``*`` for anything, also in its middle; empty: all.
        start, end: Seconds of the video that a window must touch.
        since, until: When the file was last modified, seconds since 1970.
    """

    path: str = ""
    start: float | None = None
    end: float | None = None
    since: float | None = None
    until: float | None = None


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
        path: Of the database; it is made if there is none and ``create`` is set.

    Raises:
        ValueError: There is no such file, it is no such database, or one of another version.
    """

    def __init__(self, path: str | Path, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise ValueError(f"{path}: no such database; make one with: fluxvit index FOLDER --db {path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._sql = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._sql.execute("PRAGMA foreign_keys = ON")
            if create:
                self._sql.executescript(_TABLES)
            version = self.setting("format")
        except sqlite3.Error as error:
            raise ValueError(f"{path}: no database of fluxvit ({error})") from error
        if version is None and create:
            self.set_settings(format=FORMAT)
        elif version != FORMAT:
            raise ValueError(f"{path}: a database of version {version}, this fluxvit reads {FORMAT}")
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
        row = self._sql.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_settings(self, **settings: Any) -> None:
        """Keep plain values by their names."""
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        with self._transaction():
            self._sql.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def files(self) -> dict[str, FileRow]:
        """All files by their path."""
        rows = self._sql.execute("SELECT path, mark, error FROM files")
        return {path: FileRow(path, mark, error) for path, mark, error in rows}

    def count_windows(self) -> int:
        """Windows in the database."""
        return self._sql.execute("SELECT count(*) FROM windows").fetchone()[0]

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
            self._sql.execute("DELETE FROM files WHERE path = ?", (path,))
            row = self._sql.execute(
                "INSERT INTO files (path, mark, modified, error) VALUES (?, ?, ?, ?)",
                (path, mark, modified, error),
            )
            self._sql.executemany(
                "INSERT INTO windows (file, start, end, vector) VALUES (?, ?, ?, ?)",
                [(row.lastrowid, *span, blob) for span, blob in zip(spans, blobs, strict=True)],
            )

    def remove(self, paths: Sequence[str]) -> None:
        """Forget files."""
        with self._transaction():
            self._sql.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])

    def nearest(self, query: np.ndarray, count: int, only: Filter = EVERYTHING) -> list[Hit]:
        """The windows whose vectors have the largest products with ``query`` ``[D]``, best first.

        Of windows of a file that overlap only the best one is a hit.
        """
        ids, vectors = self._vectors(only)
        if not len(ids):
            return []
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
            path, start, end = self._sql.execute(
                "SELECT path, start, end FROM windows JOIN files ON files.id = windows.file "
                "WHERE windows.id = ?",
                (number,),
            ).fetchone()
            if not any(hit.path == path and hit.start < end and start < hit.end for hit in hits):
                hits.append(Hit(path, start, end, score))
                if len(hits) == count:
                    break
        return hits

    def _vectors(self, only: Filter) -> tuple[np.ndarray, np.ndarray]:
        """Numbers ``[N]`` of windows and their vectors fp32 ``[N, D]``, kept until something is written."""
        written = self._sql.execute("PRAGMA data_version").fetchone()[0] + self._sql.total_changes
        if self._loaded is None or self._loaded[:2] != (written, only):
            clauses, values = _clauses(only)
            rows = self._sql.execute(
                f"SELECT windows.id, vector FROM windows JOIN files ON files.id = windows.file{clauses}",
                values,
            ).fetchall()
            ids = np.array([number for number, _ in rows], np.int64)
            data = b"".join(blob for _, blob in rows)
            vectors = np.frombuffer(data, "<f2").reshape(len(rows), -1) if rows else np.zeros((0, 0), "<f2")
            self._loaded = written, only, ids, vectors.astype(np.float32)
        return self._loaded[2:]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")


def _clauses(only: Filter) -> tuple[str, list[Any]]:
    found: list[tuple[str, Any]] = []
    if only.path:
        found.append(("path GLOB ?", only.path))
    for value, clause in (
        (only.start, "windows.end > ?"),
        (only.end, "windows.start < ?"),
        (only.since, "modified >= ?"),
        (only.until, "modified < ?"),
    ):
        if value is not None:
            found.append((clause, value))
    text = " AND ".join(clause for clause, _ in found)
    return (f" WHERE {text}" if found else ""), [value for _, value in found]
