from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.cli import main
from fluxvit.deploy.search import database_file
from fluxvit.deploy.search.contact_sheet import thumbnail_sheet
from fluxvit.deploy.search.database import Filter, Hit, VideoDatabase
from fluxvit.deploy.search.database_file import is_new, make_database
from fluxvit.deploy.search.index import Embedder, IndexSettings, choose_settings, search, update_index
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.finite import NotFiniteError
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import normalize
from fluxvit.video.writer import write_image, write_video
from language import SENTENCES, saved_encoder

GRID = SamplingGrid(4, 16, 16)
FPS = 10


def shades(path: Path, seconds: float, hue: int = 0, seed: int = 0) -> Path:
    """A video whose blue grows with time, over a little noise; ``hue`` 0 or 1 makes two kinds of shots."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(round(seconds * FPS)):
        frame = rng.integers(0, 20, (24, 32, 3), dtype=np.uint8)
        frame[..., hue] += 130
        frame[..., 2] += np.uint8(40 * i / (seconds * FPS))
        frames.append(frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, frames, FPS, crf=5)
    return path


def spans(path: Path, seconds: float, **options) -> list[tuple[float, float]]:
    return [(round(w.start, 2), round(w.end, 2)) for w in windows(path, GRID, seconds, **options)]


# Windows ---------------------------------------------------------------------------------------------------


def test_windows_overlap_by_half_and_reach_the_end(tmp_path: Path) -> None:
    path = shades(tmp_path / "a.mp4", 9.5)
    assert spans(path, 4) == [(0, 4), (2, 6), (4, 8), (6, 9.5)]
    assert spans(path, 3)[-1] == (7.5, 9.5)
    # What is left is shorter than an eighth of a window.
    assert spans(shades(tmp_path / "c.mp4", 9.3), 3)[-1] == (6.0, 9.0)
    assert spans(path, 20) == [(0, 9.5)]
    assert spans(shades(tmp_path / "b.mp4", 0.1), 4) == [(0, 0.1)]


def test_a_window_shows_its_own_frames_in_order(tmp_path: Path) -> None:
    path = shades(tmp_path / "a.mp4", 8)
    for window in windows(path, GRID, 4):
        assert window.video.shape == (3, 4, 16, 16)
        seen = window.video[2].float().mean((1, 2)) - 9.5
        middles = window.start + (torch.arange(4) + 0.5) / 4 * (window.end - window.start)
        torch.testing.assert_close(seen, 40 * middles / 8, rtol=0, atol=2.5)


def test_windows_do_not_reach_across_cuts(tmp_path: Path) -> None:
    parts = [shades(tmp_path / f"{i}.mp4", 5, hue=i % 2, seed=i) for i in range(3)]
    frames = []
    for part in parts:
        with open_video(part) as reader:
            frames += list(reader.read(reader.times))
    path = tmp_path / "whole.mp4"
    write_video(path, frames, FPS, crf=5)
    found = spans(path, 4)
    assert not any(start < cut < end for start, end in found for cut in (5, 10))
    assert [start for start, _ in found] == [0, 2, 5, 7, 10, 12]
    assert [end for _, end in found] == [4, 5, 9, 10, 14, 15]
    assert any(start < 5 < end for start, end in spans(path, 4, shots=False))


# The database ----------------------------------------------------------------------------------------------


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
    assert {hit.path for hit in database.nearest(query, 30, Filter("*b*"))} == {"/v/b.mp4"}
    assert {hit.path for hit in database.nearest(query, 30, Filter(since=1000))} == {"/v/b.mp4", "/v/c.mp4"}
    assert {hit.path for hit in database.nearest(query, 30, Filter(until=1000))} == {"/v/a.mp4"}
    assert {hit.start for hit in database.nearest(query, 30, Filter(start=8, end=17))} == {8, 12, 16}
    assert database.nearest(query, 30, Filter("*nowhere*")) == []


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
        assert "it is not removed, choose another file" in refusal
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


@pytest.mark.parametrize("cut", ["no bytes", "no table", "one table", "no version"])
def test_a_database_whose_making_was_cut_off_is_made(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "v.db"
    path.touch()
    if cut != "no bytes":  # As former versions made it, in several steps.
        with closing(sqlite3.connect(path)) as sql:
            first, rest = database_file._TABLES.split(";", 1)
            sql.executescript({"no table": "", "one table": first, "no version": f"{first};{rest}"}[cut])
            sql.execute("PRAGMA user_version = 1")  # So that something is written.
    assert is_new(path)
    with pytest.raises(
        ValueError, match=r"an empty database, whose making was cut off; fill it with: fluxvit"
    ):
        VideoDatabase(path)
    with VideoDatabase(path, create=True) as database:
        database.put("/a.mp4", "m", 0, [(0, 1)], np.ones((1, 4)))
    with VideoDatabase(path, create=True) as database:
        assert (database.count_windows(), is_new(path)) == (1, False)


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
    assert rebuilt(path) or place == 60  # There it is told whose it is.


def test_another_applications_database_is_left_alone(tmp_path: Path) -> None:
    for number, statements in enumerate(
        [
            ("CREATE TABLE moz_places (id)",),
            ("CREATE TABLE files (id, name)", "CREATE TABLE settings (key, value)"),
            ("CREATE TABLE settings (name, value)", "INSERT INTO settings VALUES ('theme', 'dark')"),
            ("PRAGMA application_id = 5",),
            ("CREATE TABLE t (x)", "CREATE VIEW windows AS SELECT 1 AS id"),
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
                database.nearest(np.ones(8), 9, Filter("*a*"))
                database.remove(["/v/a.mp4"])
        except (ValueError, OSError) as caught:
            error = str(caught)
        assert "\n" not in error
        refused += not rebuilt(path)
    assert refused < 8  # Where what tells whose it is has gone.


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
    ("pattern", "paths"),
    [
        ("*[2020]*", ["/v/holidays [2020]/a.mp4"]),
        ("*a?b*", ["/v/a?b.mp4"]),
        ("*100%_*", ["/v/100%_x.mp4"]),
        ("*/v/*x*.mp4", ["/v/100%_x.mp4", "/v/x.mp4"]),
        ("*[*]*", ["/v/holidays [2020]/a.mp4"]),
        ("/v/x.mp4", ["/v/x.mp4"]),
        ("*.MP4", []),
        ("", ["/v/100%_x.mp4", "/v/a?b.mp4", "/v/holidays [2020]/a.mp4", "/v/x.mp4"]),
        ("*mp4*mp4*", []),
        ("*x.mp4*x.mp4", []),
    ],
)
def test_only_an_asterisk_is_a_pattern(tmp_path: Path, pattern: str, paths: list[str]) -> None:
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        for name in ("holidays [2020]/a.mp4", "a?b.mp4", "100%_x.mp4", "x.mp4"):
            database.put(f"/v/{name}", "m", 0, [(0, 1)], np.ones((1, 4)))
        hits = database.nearest(np.ones(4), 9, Filter(pattern))
        assert sorted(hit.path for hit in hits) == paths
        assert database.count_files(pattern) == len(paths)


def test_many_asterisks_cost_no_more_than_few(tmp_path: Path) -> None:
    """SQLite's own GLOB would take longer than the universe has lasted."""
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        database.put("/" + "a" * 2000 + ".mp4", "m", 0, [(0, 1)], np.ones((1, 4)))
        assert database.nearest(np.ones(4), 9, Filter("*a" * 40 + "*b")) == []
        assert len(database.nearest(np.ones(4), 9, Filter("*a" * 40 + "*"))) == 1


# Indexing --------------------------------------------------------------------------------------------------


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    folder = saved_encoder(tmp_path / "encoder")
    return Embedder(choose_settings(str(folder), Budget(tokens=6), GRID, 2.0, True))


def test_vectors_are_those_of_the_windows(tmp_path: Path, embedder: Embedder) -> None:
    path = shades(tmp_path / "a.mp4", 5)
    found, vectors = embedder.embed_file(path)
    loaded = DualEncoderCheckpoint.load(embedder.settings.checkpoint)
    encoder = loaded.model
    clips = list(windows(path, GRID, 2.0))
    assert found == [(window.start, window.end) for window in clips]
    video = normalize(torch.stack([window.video for window in clips]), loaded.video.mean, loaded.video.std)
    with torch.no_grad():
        np.testing.assert_allclose(vectors, encoder.embed_video(video, 6).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedder.embed_query(path)), 1, atol=1e-6)


def contents(database: VideoDatabase) -> dict[str, tuple]:
    rows = database._sql.execute(
        "SELECT path, error IS NOT NULL, start, vector FROM files LEFT JOIN windows ON file = files.id"
    )
    found: dict[str, tuple] = {}
    for path, broken, *window in rows:
        found[path] = (*found.get(path, (broken,)), *window)
    return found


def test_the_database_follows_the_folder(tmp_path: Path, embedder: Embedder) -> None:
    folder = tmp_path / "videos"
    for i in range(4):
        shades(folder / f"{i}.mp4", 3, hue=i % 2, seed=i)
    shades(tmp_path / "others" / "x.mp4", 3)
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        update_index(database, tmp_path / "others", embedder, progress=False)
        first = update_index(database, folder, embedder, progress=False)
        assert (first.new, first.changed, first.removed, first.same) == (4, 0, 0, 0)
        before = contents(database)

        shades(folder / "0.mp4", 4, hue=1, seed=9)  # Changed,
        (folder / "1.mp4").unlink()  # deleted,
        (folder / "2.mp4").write_bytes((folder / "2.mp4").read_bytes()[:300])  # damaged,
        shades(folder / "deeper" / "4.mp4", 3, seed=4)  # new.
        second = update_index(database, folder, embedder, progress=False)
        assert (second.new, second.changed, second.removed, second.same) == (1, 2, 1, 1)
        assert [Path(path).name for path in second.unreadable] == ["2.mp4"]
        after = contents(database)
        names = sorted(Path(path).name for path in after)
        assert names == ["0.mp4", "2.mp4", "3.mp4", "4.mp4", "x.mp4"]
        assert after[str(folder / "3.mp4")] == before[str(folder / "3.mp4")]
        assert after[str(folder / "0.mp4")] != before[str(folder / "0.mp4")]
        assert after[str(folder / "2.mp4")] == (1, None, None)

        third = update_index(database, folder, embedder, progress=False)
        assert (third.new, third.changed, third.removed, third.same) == (0, 0, 0, 4)
        assert [Path(path).name for path in third.unreadable] == ["2.mp4"]  # Said again, not tried again.
        shades(folder / "2.mp4", 3, seed=2)
        assert update_index(database, folder, embedder, progress=False).unreadable == {}
        assert contents(database)[str(folder / "2.mp4")] == before[str(folder / "2.mp4")]


def test_links_are_followed_and_a_disk_that_is_away_is_not_forgotten(
    tmp_path: Path, embedder: Embedder
) -> None:
    folder, disk = tmp_path / "videos", tmp_path / "disk"
    shades(folder / "0.mp4", 2)
    shades(disk / "1.mp4", 2, seed=1)
    (folder / "disk").symlink_to(disk)
    (folder / "loop").symlink_to(folder)
    (folder / "gone.mp4").symlink_to(tmp_path / "none.mp4")
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        first = update_index(database, folder, embedder, progress=False)
        assert (first.new, first.unreadable) == (2, {})
        assert f"left out 1 links that lead nowhere, such as {folder / 'gone.mp4'}" in str(first)
        disk.rename(tmp_path / "away")
        second = update_index(database, folder, embedder, progress=False)
        assert (second.new, second.removed, second.same) == (0, 0, 1)
        assert sorted(database.files()) == [str(folder / "0.mp4"), str(folder / "disk" / "1.mp4")]
        (folder / "disk").unlink()
        assert update_index(database, folder, embedder, progress=False).removed == 1


def test_a_killed_run_goes_on(tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "videos"
    for i in range(5):
        shades(folder / f"{i}.mp4", 3, seed=i)
    whole = Embedder.embed_file
    read: list[str] = []

    def killed(self: Embedder, path: str) -> tuple:
        read.append(Path(path).name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return whole(self, path)

    monkeypatch.setattr(Embedder, "embed_file", killed)
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        with pytest.raises(KeyboardInterrupt):
            update_index(database, folder, embedder, progress=False)
        assert update_index(database, folder, embedder, progress=False).new == 3
        assert read == ["0.mp4", "1.mp4", "2.mp4", "2.mp4", "3.mp4", "4.mp4"]
        with VideoDatabase(tmp_path / "w.db", create=True) as other:
            update_index(other, folder, embedder, progress=False)
            assert contents(other) == contents(database)


def test_one_bad_entry_does_not_end_the_run(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    for i in range(4):
        shades(folder / f"{i}.mp4", 2, seed=i)
    odd = os.fsencode(folder) + b"/caf\xe9.mp4"
    os.rename(folder / "3.mp4", odd)
    (folder / "nowhere.mp4").symlink_to(tmp_path / "none.mp4")
    whole = Embedder.embed_file

    def strange(self: Embedder, path: str) -> tuple:
        if path.endswith("0.mp4"):
            raise RecursionError("too deep")
        if path.endswith("1.mp4"):
            os.unlink(path)  # It vanishes while others are read.
        return whole(self, path)

    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        monkeypatch.setattr(Embedder, "embed_file", strange)
        first = update_index(database, folder, embedder, progress=False)
        assert (first.new, sorted(Path(path).name for path in first.unreadable)) == (4, ["0.mp4", "1.mp4"])
        assert "0.mp4: RecursionError: too deep" in str(first)
        assert os.fsdecode(odd) in database.files()
        assert sum(hit.path == os.fsdecode(odd) for hit in database.nearest(np.ones(12), 9)) >= 1
        monkeypatch.setattr(Embedder, "embed_file", whole)
        second = update_index(database, folder, embedder, progress=False)
        assert (second.changed, second.removed, second.same, second.unreadable) == (1, 1, 2, {})


def test_an_encoder_of_nan_ends_the_run(tmp_path: Path, embedder: Embedder) -> None:
    shades(tmp_path / "videos" / "a.mp4", 2)
    with torch.no_grad():
        embedder.checkpoint.model.language.video_proj.weight.fill_(torch.nan)
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        with pytest.raises(NotFiniteError, match=r"a\.mp4: the network's output is not finite"):
            update_index(database, tmp_path / "videos", embedder, progress=False)
        assert database.files() == {}


def test_another_encoder_is_refused(tmp_path: Path, embedder: Embedder) -> None:
    shades(tmp_path / "videos" / "a.mp4", 2)
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        update_index(database, tmp_path / "videos", embedder, progress=False)
        with torch.no_grad():
            embedder.checkpoint.model.language.text_proj.weight.mul_(2)
        embedder.digest = embedder.checkpoint.digest()
        with pytest.raises(ValueError, match="of another encoder"):
            update_index(database, tmp_path / "videos", embedder, progress=False)
        with pytest.raises(ValueError, match="of another encoder"):
            search(database, embedder, "a ball")


def test_sentences_and_videos_find_windows(tmp_path: Path, embedder: Embedder) -> None:
    for i in range(3):
        shades(tmp_path / "videos" / f"{i}.mp4", 2, hue=i % 2, seed=i)
    with VideoDatabase(tmp_path / "v.db", create=True) as database:
        update_index(database, tmp_path / "videos", embedder, progress=False)
        words = embedder.checkpoint.embed_texts(SENTENCES[:1]).numpy()[0]
        expected = sorted(
            (float(embedder.embed_file(tmp_path / "videos" / f"{i}.mp4")[1][0] @ words) for i in range(3)),
            reverse=True,
        )
        hits = search(database, embedder, SENTENCES[0], count=3)
        assert [hit.score for hit in hits] == pytest.approx(expected, abs=2e-3)
        (hit,) = search(database, embedder, video=tmp_path / "videos" / "1.mp4", count=1)
        assert (Path(hit.path).name, round(hit.score, 2)) == ("1.mp4", 1.0)
        for wrong in ({}, {"sentence": "a", "video": "b"}, {"sentence": " "}):
            with pytest.raises(ValueError, match="give one of both"):
                search(database, embedder, **wrong)
        with pytest.raises(ValueError, match="count is 0, expected an integer of at least 1"):
            search(database, embedder, "a ball", count=0)


def test_sheets_have_a_row_for_each_hit(tmp_path: Path) -> None:
    path = shades(tmp_path / "a.mp4", 4)
    sheet = thumbnail_sheet([Hit(str(path), 0, 4, 1.0), Hit(str(tmp_path / "gone.mp4"), 0, 1, 0.5)], 3, 48)
    assert sheet.shape == (2 * 48 + 4, 3 * 64 + 2 * 4, 3)
    assert (sheet[52:, :64] == 128).all()
    blues = [sheet[:48, 68 * k : 68 * k + 64, 2].mean() for k in range(3)]
    assert blues[0] < blues[1] < blues[2]
    for suffix in ("jpg", "png"):
        write_image(tmp_path / f"sheet.{suffix}", sheet)
        folder = tmp_path / suffix
        folder.mkdir()
        os.replace(tmp_path / f"sheet.{suffix}", folder / f"0.{suffix}")
        with open_video(folder) as reader:
            again = reader.read([0.0])[0].astype(int)
        assert np.abs(again - sheet).mean() < (4 if suffix == "jpg" else 0.01)
    with pytest.raises(ValueError, match=r"as \.jpg or \.png"):
        write_image(tmp_path / "sheet.gif", sheet)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    encoder, db = str(saved_encoder(tmp_path / "encoder")), str(tmp_path / "v.db")
    videos = str(tmp_path / "videos")
    for i in range(2):
        shades(tmp_path / "videos" / f"{i}.mp4", 3, hue=i)

    def fails(*argv: str) -> str:
        assert main(list(argv)) == 2
        return capsys.readouterr().err

    assert "name the dual encoder" in fails("index", videos, "--db", db)
    assert "no such folder" in fails("index", str(tmp_path / "nowhere"), "--db", db)
    assert "no such database" in fails("search", "a ball", "--db", db)
    assert "windows of 0 seconds" in fails(
        "index", videos, "--db", db, "--checkpoint", encoder, "--seconds", "0"
    )
    assert not Path(db).exists()
    new = ["index", videos, "--db", db, "--checkpoint", encoder, "--budget", "6", "--grid", "4x16"]
    assert main([*new, "--seconds", "2"]) == 0
    assert "2 new, 0 changed" in capsys.readouterr().out
    assert main(["index", videos, "--db", db]) == 0
    assert "2 as they were; 4 windows" in capsys.readouterr().out
    # The command that made it may be given again, one that would make another may not.
    assert main([*new, "--seconds", "2"]) == 0
    assert "2 as they were; 4 windows" in capsys.readouterr().out
    assert main(["index", videos, "--db", db, "--seconds", "2"]) == 0
    capsys.readouterr()
    for other in (["--budget", "12"], ["--seconds", "3"], ["--grid", "4x24"], ["--shots=false"]):
        assert "made with 6 tokens of 4x16 from every 2 s, not with" in fails(
            "index", videos, "--db", db, *other
        )
    assert main(["search", "a red ball", "--db", db, "--count", "2", "--sheet", str(tmp_path / "s.jpg")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[2].startswith("0:0")
    assert (tmp_path / "s.jpg").stat().st_size > 1000
    assert main(["search", "a red ball", "--db", db, "--path", "1.mp4"]) == 0
    assert all(line.endswith("1.mp4") for line in capsys.readouterr().out.splitlines())
    assert main(["search", "a red ball", "--db", db, "--since", "2999-01-01"]) == 1
    assert "no window passes the filters" in capsys.readouterr().out
    assert main(["search", "a red ball", "--db", db, "--path", "[1].mp4"]) == 1
    assert "'[1].mp4' is in the path of none of the 2 indexed files" in capsys.readouterr().out
    assert "is not a day" in fails("search", "a", "--db", db, "--since", "tomorrow")
    # An encoder that has moved is named.
    os.rename(encoder, tmp_path / "moved")
    assert "no dual encoder" in fails("search", "a ball", "--db", db)
    assert main(["search", "a ball", "--db", db, "--checkpoint", str(tmp_path / "moved")]) == 0
    rebuilt = ["index", videos, "--db", db, "--checkpoint", str(tmp_path / "moved"), "--rebuild"]
    assert main([*rebuilt, "--budget", "12", "--grid", "4x24"]) == 0
    assert "12 tokens of 4x24" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, float("nan"), float("inf"), 1e6])
def test_windows_out_of_range(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"it must be from 0\.01 to 86400 seconds"):
        next(windows(tmp_path, GRID, seconds))
    with pytest.raises(ValueError, match=r"it must be from 0\.01 to 86400 seconds"):
        IndexSettings("x", "4x16", 8, None, "group_dynamic", seconds, True)
