"""A database of video windows and their vectors in one SQLite file.

The windows of a file are written in one transaction, so a killed run leaves only complete files. Vectors are
compared exactly, in memory: an approximate index would save little and miss some windows
(``benchmarks/search_speed.py``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.deploy.search.database_file import (
    FORMAT,
    clear_errors,
    connect,
    damaged,
    is_database,
    make_database,
)
from fluxvit.utils.schema import Finite, check


@dataclass(frozen=True)
class FileRow:
    """A file in the database.

    Args:
        path: Path of the file.
        mark: Text that changes when the file changes.
        error: Reason why the file cannot be read; None if it can be read.
    """

    path: str
    mark: str
    error: str | None


@dataclass(frozen=True)
class Filter:
    """Conditions on the windows that are searched.

    Args:
        path: Text that the path of the file must contain; empty for all files.
        start, end: Seconds of the video with which a window must overlap.
        since, until: Limits of the time when the file was last modified, in seconds since 1970.

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

_MATCHES = """instr(files.path, :path) > 0
    AND (:start IS NULL OR windows.end > :start) AND (:end IS NULL OR windows.start < :end)
    AND (:since IS NULL OR modified >= :since) AND (:until IS NULL OR modified < :until)"""


@dataclass(frozen=True)
class Hit:
    """A window that was found: its file, its start and end in seconds, and its cosine with the query."""

    path: str
    start: float
    end: float
    score: float


class VideoDatabase:
    """Windows of video files and their vectors.

    Args:
        path: Path of the database.
        create: Make the database if it does not exist.

    Raises:
        ValueError: There is no such database; or it is damaged, of another version, locked by another process
            for `LOCKED_SECONDS`, or not a database of fluxvit. The message tells what to do.
    """

    def __init__(self, path: str | Path, create: bool = False) -> None:
        self.path = Path(path)
        if not is_database(path):
            if not create:
                raise ValueError(f"{path}: no such database; make one with: fluxvit index FOLDER --db {path}")
            make_database(path)
        with clear_errors(self.path):
            self._sql = connect(self.path)
        self._loaded: tuple[int, Filter, np.ndarray, np.ndarray] | None = None
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        version = self.setting("format")
        if version is None:
            raise damaged(self.path, "it does not tell its version")
        if version != FORMAT:
            raise ValueError(
                f"{self.path}: a database of version {str(version)[:20]}, this fluxvit reads {FORMAT}; use "
                "the fluxvit that made it, or make it anew with: "
                f"fluxvit index FOLDER --db {self.path} --rebuild"
            )

    def close(self) -> None:
        """Release the file."""
        self._sql.close()

    def __enter__(self) -> VideoDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def setting(self, name: str) -> Any:
        """A setting; None if the database does not have it."""
        rows = self._rows("SELECT value FROM settings WHERE name = ?", (name,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except (TypeError, ValueError, RecursionError):
            raise damaged(self.path, f"its setting {name} cannot be read") from None

    def set_settings(self, **settings: Any) -> None:
        """Store plain values by their names."""
        rows = [(name, json.dumps(value)) for name, value in settings.items()]
        with self._transaction():
            self._sql.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)

    def files(self) -> dict[str, FileRow]:
        """All files by their path."""
        rows = {}
        for name, mark, error in self._rows("SELECT path, mark, error FROM files"):
            if not isinstance(mark, str) or not isinstance(error, str | None):
                raise damaged(self.path, f"a file's row holds {mark!r}, {error!r}")
            path = self._path(name)
            rows[path] = FileRow(path, mark, error)
        return rows

    def count_windows(self) -> int:
        """The number of windows in the database."""
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
        """Store a file with all of its windows, replacing what the database had of it.

        Args:
            spans: Start and end of each window, in seconds.
            vectors: float ``[N, D]``.
        """
        blobs = [vector.astype("<f2").tobytes() for vector in vectors]
        error = error and error.encode(errors="backslashreplace").decode()
        with self._transaction():
            self._sql.execute("DELETE FROM files WHERE path = ?", (_to_sql(path),))
            row = self._sql.execute(
                "INSERT INTO files (path, mark, modified, error) VALUES (?, ?, ?, ?)",
                (_to_sql(path), mark, modified, error),
            )
            self._sql.executemany(
                "INSERT INTO windows (file, start, end, vector) VALUES (?, ?, ?, ?)",
                [
                    (row.lastrowid, float(start), float(end), blob)
                    for (start, end), blob in zip(spans, blobs, strict=True)
                ],
            )

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and their windows."""
        with self._transaction():
            self._sql.executemany("DELETE FROM files WHERE path = ?", [(_to_sql(path),) for path in paths])

    def nearest(self, query: np.ndarray, count: int, only: Filter = EVERYTHING) -> list[Hit]:
        """The ``count`` windows with the largest dot products with ``query`` ``[D]``, best first.

        If several windows of a file overlap, only the best of them is returned.
        """
        ids, vectors = self._vectors(only)
        if not len(ids):
            return []
        if vectors.shape[1] != len(query):
            reason = f"its vectors have {vectors.shape[1]} numbers, those of its encoder {len(query)}"
            raise damaged(self.path, reason)
        scores = vectors @ query.astype(np.float32)
        hits: list[Hit] = []
        for i in np.argsort(-scores, kind="stable"):
            hit = self._hit(int(ids[i]), float(scores[i]))
            if hit and not any(
                other.path == hit.path and other.start < hit.end and hit.start < other.end for other in hits
            ):
                hits.append(hit)
                if len(hits) == count:
                    break
        return hits

    def _hit(self, window: int, score: float) -> Hit | None:
        """The window with a number; None if another process has just removed it."""
        rows = self._rows(
            "SELECT path, start, end FROM windows JOIN files ON files.id = windows.file WHERE windows.id = ?",
            (window,),
        )
        for name, start, end in rows:
            if not all(isinstance(time, float) and math.isfinite(time) for time in (start, end)):
                raise damaged(self.path, f"a window's row holds {start!r}, {end!r}")
            return Hit(self._path(name), start, end, score)
        return None

    def _vectors(self, only: Filter) -> tuple[np.ndarray, np.ndarray]:
        """Numbers ``[N]`` and vectors, fp32 ``[N, D]``, of windows; cached until something is written."""
        written = self._rows("PRAGMA data_version")[0][0] + self._sql.total_changes
        if self._loaded is None or self._loaded[:2] != (written, only):
            rows = self._rows(
                "SELECT windows.id, vector FROM windows JOIN files ON files.id = windows.file "
                f"WHERE {_MATCHES}",
                {**asdict(only), "path": _to_sql(only.path)},
            )
            blobs = [blob for _, blob in rows]
            try:
                ids = np.array([number for number, _ in rows], np.int64)
                if len(set(map(len, blobs))) > 1:
                    raise ValueError("vectors differ in length")
                vectors = np.frombuffer(b"".join(blobs), "<f2").reshape(len(rows), -1 if rows else 0)
                if not np.isfinite(vectors).all():
                    raise ValueError("vectors are not all finite")
            except (TypeError, ValueError) as error:
                raise damaged(self.path, f"its windows cannot be read: {error}") from None
            self._loaded = written, only, ids, vectors.astype(np.float32)
        return self._loaded[2:]

    def _rows(self, query: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        with clear_errors(self.path):
            return self._sql.execute(query, values).fetchall()

    def _path(self, name: object) -> str:
        """The path that :func:`_to_sql` has stored."""
        if not isinstance(name, str | bytes):
            raise damaged(self.path, f"the path of a file is {name!r}")
        return os.fsdecode(name)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with clear_errors(self.path):
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # SQLite itself ends it if the disk is full.
                    self._sql.execute("ROLLBACK")
                raise


def _to_sql(path: str) -> str | bytes:
    """A path as text or, if its name is not Unicode, as bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path
