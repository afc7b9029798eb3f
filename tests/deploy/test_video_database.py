from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fluxvit.deploy.search import database_file
from fluxvit.deploy.search.database import Filter, VideoDatabase
from fluxvit.deploy.search.database_file import is_database, make_database


def filled(path: Path) -> tuple[VideoDatabase, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    database = VideoDatabase(path, create=True)
    for i in range(3):
        own = [(4.0 * k, 4.0 * k + 4) for k in range(10)]
        database.put(f"/v/{'abc'[i]}.mp4", "m", 1000.0 * i, own, vectors[10 * i : 10 * i + 10])
    return database, vectors


def test_the_nearest_windows_are_found(tmp_path: Path) -> None:
    database, vectors = filled(tmp_path / "v.db")
    query = np.random.default_rng(1).normal(size=8)
    scores = vectors.astype(np.float16).astype(np.float64) @ query
    order = np.argsort(-scores)
    for count in (1, 4, 30, 99):
        hits = database.nearest(query, count)
        assert len(hits) == min(count, 30)
        for place, hit in zip(order, hits, strict=False):
            file, window = divmod(int(place), 10)
            assert (hit.path, hit.start, hit.end) == (f"/v/{'abc'[file]}.mp4", 4 * window, 4 * window + 4)
            assert hit.score == pytest.approx(scores[place], abs=1e-3)


def test_filters_leave_windows_out(tmp_path: Path) -> None:
    database, _ = filled(tmp_path / "v.db")
    query = np.ones(8)
    assert {hit.path for hit in database.nearest(query, 30, Filter("/b"))} == {"/v/b.mp4"}
    assert {hit.path for hit in database.nearest(query, 30, Filter(since=1000))} == {"/v/b.mp4", "/v/c.mp4"}
    assert {hit.path for hit in database.nearest(query, 30, Filter(until=1000))} == {"/v/a.mp4"}
    assert {hit.start for hit in database.nearest(query, 30, Filter(start=8, end=17))} == {8, 12, 16}
    assert database.nearest(query, 30, Filter("nowhere")) == []


def test_of_overlapping_windows_the_best_one_counts(tmp_path: Path) -> None:
    database = VideoDatabase(tmp_path / "v.db", create=True)
    vectors = np.eye(4, dtype=np.float32)[:1] * np.linspace(1, 0.5, 20, dtype=np.float32)[:, None]
    database.put("/a.mp4", "m", 0, [(2.0 * k, 2.0 * k + 4) for k in range(20)], vectors)
    hits = database.nearest(np.eye(4)[0], 5)
    assert [hit.start for hit in hits] == [0, 4, 8, 12, 16]


def test_what_is_written_is_found_at_once_and_whole(tmp_path: Path) -> None:
    database, _ = filled(tmp_path / "v.db")
    assert database.count_windows() == 30
    vector = np.full((1, 8), 9, np.float32)
    database.put("/v/a.mp4", "n", 0, [(0, 1)], vector)
    assert database.nearest(vector[0], 1)[0].path == "/v/a.mp4"
    assert database.count_windows() == 21
    with pytest.raises(TypeError):  # A window that cannot be written: the file stays as it was.
        database.put("/v/b.mp4", "n", 0, [(0, 1), (None, 2)], np.zeros((2, 8)))
    assert database.files()["/v/b.mp4"].mark == "m"
    assert database.count_windows() == 21
    with VideoDatabase(tmp_path / "v.db") as other:  # As another process sees it.
        other.remove(["/v/a.mp4"])
    assert all(hit.path != "/v/a.mp4" for hit in database.nearest(vector[0], 30))


def test_other_files_are_no_databases(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such database; make one with: fluxvit index"):
        VideoDatabase(tmp_path / "v.db")
    (tmp_path / "v.db").write_bytes(b"something else " * 100)
    for create in (False, True):
        with pytest.raises(ValueError, match=r"v\.db is no database of fluxvit: it is not an SQLite file"):
            VideoDatabase(tmp_path / "v.db", create)
    VideoDatabase(tmp_path / "w.db", create=True).set_settings(format=7)
    with pytest.raises(ValueError, match="a database of version 7, this fluxvit reads 1"):
        VideoDatabase(tmp_path / "w.db")


def rebuilt(path: Path) -> bool:
    """Whether a file is made anew; if not, that it is as it was."""
    before = path.read_bytes() if path.is_file() else b""
    refusal = ""
    try:
        make_database(path, a=1)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert "; choose another file" in refusal
        assert (path.read_bytes() if path.is_file() else b"") == before
        return False
    with VideoDatabase(path) as database:
        assert (database.setting("a"), database.files()) == (1, {})
    return True


def made(path: Path, *statements: str) -> Path:
    """A database, changed by statements."""
    filled(path)[0].close()
    with closing(sqlite3.connect(path)) as sql:
        for statement in statements:
            sql.execute(statement)
        sql.commit()
    return path


def test_an_empty_file_becomes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "v.db"
    path.touch()
    assert not is_database(path)
    with pytest.raises(ValueError, match=r"no such database; make one with: fluxvit index"):
        VideoDatabase(path)
    with VideoDatabase(path, create=True) as database:
        database.put("/a.mp4", "m", 0, [(0, 1)], np.ones((1, 4)))
    with VideoDatabase(path, create=True) as database:
        assert (database.count_windows(), is_database(path)) == (1, True)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM settings",
        "ALTER TABLE windows DROP COLUMN vector",
        "DROP TABLE windows",
        "UPDATE files SET mark = x'00'",
        "UPDATE settings SET value = '{' WHERE name = 'format'",
        "UPDATE settings SET value = '2' WHERE name = 'format'",
        "UPDATE settings SET value = '[[[' WHERE name = 'encoder'",
        "UPDATE windows SET start = 'early'",
        "UPDATE windows SET end = 9e999",
        "UPDATE windows SET vector = 'text' WHERE id = 3",
        "UPDATE windows SET vector = x'0000' WHERE id = 3",
        "UPDATE windows SET vector = x'000000'",
        "UPDATE windows SET vector = x''",
        "UPDATE windows SET vector = x'00000000'",
        "UPDATE windows SET vector = x'007e' || substr(vector, 3) WHERE id = 3",
    ],
)
def test_damage_is_one_line_with_the_cure(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "v.db"
    filled(path)[0].set_settings(encoder="abc")
    with closing(sqlite3.connect(path)) as sql:
        sql.execute(statement)
        sql.commit()

    def use() -> None:
        with VideoDatabase(path, create=True) as database:
            database.setting("encoder")
            database.files()
            database.nearest(np.ones(8), 100)

    with pytest.raises(
        ValueError, match=r"v\.db: a da.* anew with: fluxvit index FOLDER --db \S+ --rebuild"
    ) as e:
        use()
    assert "\n" not in str(e.value)
    assert rebuilt(path)


@pytest.mark.parametrize("place", [60, 100, 110, 4096, 4200, 8192])
def test_malformed_pages_are_damage_and_nothing_else(tmp_path: Path, place: int) -> None:
    path = made(tmp_path / "v.db")
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    error = ""
    try:
        with VideoDatabase(path, create=True) as database:
            database.files()
            database.nearest(np.ones(8), 100)
    except ValueError as caught:
        error = str(caught)
    assert not error or ("v.db" in error and "\n" not in error)
    assert rebuilt(path) or place == 60  # These bytes say that it is a database of fluxvit.


def test_another_applications_database_is_left_alone(tmp_path: Path) -> None:
    for number, statements in enumerate(
        [
            ("CREATE TABLE moz_places (id)",),
            ("CREATE TABLE files (id, name)", "CREATE TABLE settings (key, value)"),
            ("CREATE TABLE settings (name, value)", "INSERT INTO settings VALUES ('theme', 'dark')"),
            ("PRAGMA application_id = 5",),
        ]
    ):
        path = tmp_path / f"{number}.db"
        with closing(sqlite3.connect(path)) as sql:
            for statement in statements:
                sql.execute(statement)
            sql.commit()
        for create in (False, True):
            with pytest.raises(ValueError, match=r"it is a database of another application; choose another"):
                VideoDatabase(path, create)
        assert not rebuilt(path)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        VideoDatabase(tmp_path / "folder.db", create=True)
    assert not rebuilt(tmp_path / "folder.db")


def test_random_damage_is_one_line_or_nothing(tmp_path: Path) -> None:
    path = made(tmp_path / "v.db")
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 30)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.3 else data)
        error = ""
        try:
            with VideoDatabase(path, create=True) as database:
                database.files()
                database.nearest(np.ones(8), 9, Filter("a"))
                database.remove(["/v/a.mp4"])
        except (ValueError, OSError) as caught:
            error = str(caught)
        assert "\n" not in error
        refused += not rebuilt(path)
    assert refused < 8  # Only where the bytes that say what it is are damaged.


def test_a_locked_database_is_told_from_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_file, "LOCKED_SECONDS", 0.01)
    path = made(tmp_path / "v.db")
    database = VideoDatabase(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for use in (database.files, lambda: VideoDatabase(path), lambda: database.remove(["/v/a.mp4"])):
            with pytest.raises(ValueError, match=r"another process has locked the database for 0\.01 s"):
                use()
    assert len(database.files()) == 3


def test_a_journal_of_a_removed_database_is_not_played_back(tmp_path: Path) -> None:
    path = made(tmp_path / "v.db")
    journal = tmp_path / "v.db-journal"
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("PRAGMA cache_size = 1")
        sql.execute("BEGIN IMMEDIATE")
        sql.execute("UPDATE windows SET vector = zeroblob(9000)")
        kept = journal.read_bytes()
    journal.write_bytes(kept)
    path.write_bytes(path.read_bytes())
    assert rebuilt(path)
    assert not journal.exists()


def test_a_kill_while_a_database_is_made_leaves_none(tmp_path: Path) -> None:
    code = (
        "import os, sys; from fluxvit.deploy.search import database_file as video_db\n"
        "real = video_db.sqlite3.connect\n"
        "class Killed(video_db.sqlite3.Connection):\n"
        "    def executemany(self, *_): os.kill(os.getpid(), 9)\n"
        "video_db.sqlite3.connect = lambda *a, **k: real(*a, **k, factory=Killed)\n"
        "video_db.make_database(sys.argv[1])"
    )
    path = tmp_path / "v.db"
    result = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert result.returncode == -9
    assert not path.exists()
    assert list(tmp_path.iterdir())
    make_database(path)
    assert [file.name for file in tmp_path.iterdir()] == ["v.db"]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("[2020]", ["/v/holidays [2020]/a.mp4"]),
        ("a?b", ["/v/a?b.mp4"]),
        ("100%_", ["/v/100%_x.mp4"]),
        (".MP4", []),
        ("\udcff", ["/v/\udcff.mp4"]),
        ("", ["/v/100%_x.mp4", "/v/a?b.mp4", "/v/holidays [2020]/a.mp4", "/v/\udcff.mp4"]),
    ],
)
def test_a_path_is_searched_for_literally(tmp_path: Path, text: str, paths: list[str]) -> None:
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        for name in ("holidays [2020]/a.mp4", "a?b.mp4", "100%_x.mp4", "\udcff.mp4"):
            database.put(f"/v/{name}", "m", 0, [(0, 1)], np.ones((1, 4)))
        hits = database.nearest(np.ones(4), 9, Filter(text))
        assert sorted(hit.path for hit in hits) == paths
