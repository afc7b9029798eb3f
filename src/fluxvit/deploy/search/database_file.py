"""The file of a video database: making it, and recognising it among other files."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fluxvit.utils.files import atomic_path

FORMAT = 1
LOCKED_SECONDS = 30.0
"""Seconds to wait for a database that another process has locked."""

_MAGIC = b"SQLite format 3\0"
_APPLICATION = 0x666C7876  # "flxv". SQLite stores the application of a file in bytes 68 to 71.
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    path TEXT NOT NULL UNIQUE,
    mark TEXT NOT NULL,      -- Changes when the file changes.
    modified REAL NOT NULL,  -- Seconds since 1970.
    error TEXT               -- Why the file cannot be read; NULL if it can.
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


def is_database(path: str | Path) -> bool:
    """Whether a file is a database of fluxvit, perhaps a damaged one; False if it is missing or empty.

    Raises:
        ValueError: The path is something else. It is neither read nor replaced.
        OSError: The file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return False
    kind = "a folder" if path.is_dir() else "not a regular file"
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(72)
        application = int.from_bytes(head[68:], "big")
        if not head or (head.startswith(_MAGIC) and application == _APPLICATION):
            return bool(head)
        kind = "a database of another application" if head.startswith(_MAGIC) else "not an SQLite file"
    raise ValueError(f"{path} is no database of fluxvit: it is {kind}; choose another file")


def make_database(path: str | Path, **settings: Any) -> None:
    """Make an empty database with settings. It replaces an older one, which an interruption leaves intact.

    Raises:
        ValueError: The file is something else. It is not replaced.
        OSError: It cannot be written, for example because the disk is full.
    """
    path = Path(path)
    is_database(path)
    rows = [(name, json.dumps(value)) for name, value in {"format": FORMAT, **settings}.items()]
    with atomic_path(path) as partial:
        try:
            with closing(connect(partial)) as sql:
                sql.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION}; {_TABLES} COMMIT;")
                sql.executemany("INSERT INTO settings VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise OSError(errno.EIO, f"the database cannot be written ({error})", str(path)) from error
        # Otherwise SQLite would replay an unfinished change that a killed process made to the older database.
        for kind in ("journal", "wal", "shm"):
            path.with_name(f"{path.name}-{kind}").unlink(missing_ok=True)


def connect(path: Path) -> sqlite3.Connection:
    """Connect to a database file. Transactions are begun explicitly."""
    sql = sqlite3.connect(path.absolute(), timeout=LOCKED_SECONDS, isolation_level=None)
    sql.execute("PRAGMA foreign_keys = ON")
    return sql


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn an SQLite error about a file into a message of one line that names the cure."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # The caller is at fault, not the file.
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise ValueError(
                f"{path}: another process has locked the database for {LOCKED_SECONDS:g} s; try again "
                "when it has ended"
            ) from error
        if "full" in text:
            reason = "the disk is full; make room, and the same command goes on"
            raise OSError(errno.ENOSPC, reason, str(path)) from error
        if "readonly" in text or "unable to open" in text:
            raise OSError(errno.EACCES, f"it cannot be written ({text})", str(path)) from error
        raise damaged(path, error) from error


def damaged(path: Path, reason: object) -> ValueError:
    """The error for a damaged database."""
    cure = f"make it anew with: fluxvit index FOLDER --db {path} --rebuild"
    return ValueError(f"{path}: a damaged database ({' '.join(str(reason).split())}); {cure}")
