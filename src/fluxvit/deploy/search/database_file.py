"""The file of a video database: its tables, and what a file of that name may be instead."""

from __future__ import annotations

import errno
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from fluxvit.utils.files import atomic_path

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


_Status = Literal["missing", "empty", "good", "version", "broken", "foreign"]


def is_new(path: str | Path) -> bool:
    """Whether there is no database yet, or one whose making was cut off before anything was entered.

    Raises:
        ValueError: Another process has locked it.
    """
    return inspect_database(Path(path))[0] in ("missing", "empty")


def check_removable(path: str | Path) -> None:
    """Check that a file is a database of fluxvit, in whatever state, or that there is none.

    Raises:
        ValueError: It is something else.
    """
    status, reason = inspect_database(Path(path))
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
            with closing(connect(partial)) as sql:
                sql.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION}; {_TABLES} COMMIT;")
                sql.executemany("INSERT INTO settings VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise OSError(errno.EIO, f"the database cannot be written ({error})", str(path)) from error
        # SQLite would play back into the new database what a killed process left of writing the old one.
        for kind in ("journal", "wal", "shm"):
            path.with_name(f"{path.name}-{kind}").unlink(missing_ok=True)


def connect(path: Path) -> sqlite3.Connection:
    """Connect to a database file; transactions are begun explicitly."""
    return sqlite3.connect(path.absolute(), timeout=LOCKED_SECONDS, isolation_level=None)


def inspect_database(path: Path) -> tuple[_Status, str]:
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
        with closing(connect(path)) as sql:
            return _inspect_tables(sql, ours)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        known = as_user_error(path, error)
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


def as_user_error(path: Path, error: Exception) -> ValueError | OSError | None:
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
