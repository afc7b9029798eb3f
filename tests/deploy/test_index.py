from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.cli import main
from fluxvit.deploy.search.database import VideoDatabase
from fluxvit.deploy.search.index import Embedder, choose_settings, search, update_index
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.budget import Budget
from fluxvit.models.finite import NotFiniteError
from fluxvit.video.transforms import normalize
from language import SENTENCES, saved_encoder
from shades import GRID, shades


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    folder = saved_encoder(tmp_path / "encoder")
    settings = choose_settings(str(folder), Budget(tokens=6), GRID, 2.0, True)
    return Embedder(settings, precision="fp32")


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
        changed = DualEncoderCheckpoint.load(embedder.settings.checkpoint)
        with torch.no_grad():
            changed.model.language.text_proj.weight.mul_(2)
        changed.save(embedder.settings.checkpoint)
        embedder = Embedder(embedder.settings)
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
    assert main(["search", "a red ball", "--db", db, "--count", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[2].startswith("0:0")
    assert main(["search", "a red ball", "--db", db, "--path", "1.mp4"]) == 0
    assert all(line.endswith("1.mp4") for line in capsys.readouterr().out.splitlines())
    assert main(["search", "a red ball", "--db", db, "--since", "2999-01-01"]) == 1
    assert "no window passes the filters" in capsys.readouterr().out
    assert main(["search", "a red ball", "--db", db, "--path", "[1].mp4"]) == 1
    assert "is not a day" in fails("search", "a", "--db", db, "--since", "tomorrow")
    # An encoder that has moved is named.
    os.rename(encoder, tmp_path / "moved")
    assert "no dual encoder" in fails("search", "a ball", "--db", db)
    assert main(["search", "a ball", "--db", db, "--checkpoint", str(tmp_path / "moved")]) == 0
    rebuilt = ["index", videos, "--db", db, "--checkpoint", str(tmp_path / "moved"), "--rebuild"]
    assert main([*rebuilt, "--budget", "12", "--grid", "4x24"]) == 0
    assert "12 tokens of 4x24" in capsys.readouterr().out
