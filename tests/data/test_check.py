from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fluxvit.cli import main
from fluxvit.data import check as probe
from fluxvit.data.check import check_videos, guarded, inspect_video
from fluxvit.data.formats.layout import VideoList, videos_below
from fluxvit.data.formats.registry import read_source
from fluxvit.data.formats.walk import LeftOut
from fluxvit.data.manifest import Entry, read_manifest
from fluxvit.video.writer import write_video

sys.path.append(str(Path(__file__).parents[1] / "video"))
from clips import cut_short, encode, encode_sound, save_image


def video(path: Path, frames: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 255, (frames, 24, 32, 3), dtype=np.uint8), 12)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder of two classes with forty videos, eight of them damaged in ways of their own."""
    folder = tmp_path / "set"
    first = video(folder / "a" / "00.mp4")
    (folder / "b").mkdir()
    for number in range(1, 40):
        shutil.copy(first, folder / "ab"[number % 2] / f"{number:02d}.mp4")
    (folder / "a" / "02.mp4").write_bytes(b"")
    (folder / "b" / "03.mp4").write_text("no video")
    encode_sound(folder / "a" / "04.mp4")
    cut_short(folder / "b" / "05.mp4", 0.5)
    cut_short(encode(folder / "a" / "06.mp4", size=(32, 24), muxer={"movflags": "faststart"}), 0.7)
    (folder / "b" / "07.mp4").write_bytes(np.random.default_rng(7).bytes(5000))
    cut_short(encode(folder / "b" / "09.webm", "libvpx", size=(32, 24)), 0.5)
    (folder / "b" / "09.mp4").unlink()
    (folder / "a" / "08.mp4").unlink()
    (folder / "a" / "08.mp4").symlink_to("nowhere.mp4")
    return folder


BROKEN = {
    "a/02.mp4": "the file is empty",
    "b/03.mp4": "not a video",
    "a/04.mp4": "sound but no pictures",
    "b/05.mp4": "moov atom",
    "a/06.mp4": "cut short: ",
    "b/07.mp4": "not a video",
    "a/08.mp4": "missing",
    "b/09.webm": "cut short: ",
}


def test_damaged_files_are_all_named(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "set.jsonl"
    assert main(["data", "check", str(classes), "--out", str(out), "--workers", "2"]) == 0
    printed = capsys.readouterr()
    assert "recognised as folder, 40 videos" in printed.err
    assert "40 videos, 2 classes, 0.00 hours, 8 broken" in printed.out
    assert "32x24 (100 %)" in printed.out

    manifest = read_manifest(out)
    assert manifest.labels == ("a", "b")
    assert manifest.digest in printed.out
    broken = {e.path.relative_to(classes).as_posix(): e.error or "" for e in manifest.entries if not e.ok}
    assert broken.keys() == BROKEN.keys()
    for name, reason in BROKEN.items():
        assert reason in broken[name]
        assert str(classes) not in broken[name]
        assert str(classes / name) in printed.out
    entry = manifest.entries[0]
    assert (entry.frames, entry.fps, entry.width, entry.height) == (6, 12, 32, 24)
    assert (entry.duration, entry.rotation, entry.codec, entry.ok) == (0.5, 0, "h264", True)
    assert [e.path for e in manifest.entries] == sorted(e.path for e in manifest.entries)
    assert not out.with_name("set.jsonl.partial").exists()

    readable = manifest.readable()
    assert len(readable) == 32
    assert readable.digest != manifest.digest
    assert readable.readable() is readable


def test_interrupted_checks_go_on(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, log = tmp_path / "set.jsonl", tmp_path / "set.jsonl.partial"
    videos = read_source(classes)
    jobs: list[Path] = []

    def interrupted(function, paths, workers, time_limit):  # type: ignore[no-untyped-def]
        for number, path in enumerate(paths):
            if number == 20:
                raise KeyboardInterrupt
            jobs.append(path)
            yield path, function(path)

    monkeypatch.setattr(probe, "guarded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_videos(videos, out, progress=False)
    assert not out.exists()
    # Killed in the middle of a line.
    log.write_text(log.read_text() + '{"path": "')
    video(classes / "a" / "02.mp4")
    with pytest.raises(KeyboardInterrupt):
        check_videos(videos, out, progress=False)
    monkeypatch.undo()
    manifest = check_videos(videos, out, 2, progress=False)
    # No readable file was looked at twice; what had been repaired was found to be whole.
    again = {path for path in jobs if jobs.count(path) > 1}
    assert again == {path for path in map(classes.joinpath, BROKEN) if path in jobs[:20]}
    assert sum(not entry.ok for entry in manifest.entries) == len(BROKEN) - 1
    whole = tmp_path / "whole.jsonl"
    check_videos(videos, whole, 2, progress=False)
    assert whole.read_text() == out.read_text()


def test_a_shallow_look_is_no_deep_one(classes: Path, tmp_path: Path) -> None:
    log = tmp_path / "x.partial"
    lines = [{"path": str(n), "deep": deep, "facts": {"ok": True}} for n, deep in enumerate((True, False))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    log.write_text(text)
    assert probe._resume(log, False).keys() == {"0", "1"}
    assert probe._resume(log, True).keys() == {"0"}


def test_a_resumed_check_looks_again_at_files_that_have_changed(tmp_path: Path) -> None:
    log, videos = tmp_path / "x.partial", [tmp_path / name for name in ("same.mp4", "changed.mp4")]
    rows = []
    for video in videos:
        video.write_bytes(b"1234")
        facts = video.stat()
        state = [facts.st_size, facts.st_mtime_ns]
        rows.append({"path": str(video), "deep": False, "state": state, "facts": {"ok": True}})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"path": "cut')
    videos[1].write_bytes(b"12345")
    assert probe._resume(log, False).keys() == {str(videos[0])}


def test_unfinished_videos_are_none(tmp_path: Path) -> None:
    for name in ("a.mp4", ".a.12.partial.mp4", ".b.0a1b2c-12-0f.partial.mp4"):
        (tmp_path / name).touch()
    assert videos_below(tmp_path, LeftOut()) == [tmp_path / "a.mp4"]


def test_digest_follows_content_not_place(classes: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return check_videos(read_source(folder), folder / "set.jsonl", 2, progress=False).digest

    before = digest(classes)
    moved = tmp_path / "moved"
    classes.rename(moved)
    assert read_manifest(moved / "set.jsonl").digest == before == digest(moved)
    assert read_manifest(moved / "set.jsonl").entries[0].path == moved / "a" / "00.mp4"
    (moved / "set.jsonl").rename(tmp_path / "set.jsonl")
    elsewhere = read_manifest(tmp_path / "set.jsonl", root=moved)
    assert elsewhere.digest == before
    (moved / "a" / "10.mp4").rename(moved / "b" / "10.mp4")
    label_changed = digest(moved)
    (moved / "b" / "11.mp4").write_bytes(b"")
    assert len({before, label_changed, digest(moved)}) == 3


def test_segments_must_lie_in_their_videos(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", 24)
    spans = [(0.5, 1.5), (None, None), (1.5, 9.0), (2.5, 3.0), (1.0, 1.0), (-1.0, 1.0)]
    entries = tuple(Entry(path, 0, start=start, end=end) for start, end in spans)
    manifest = check_videos(VideoList("", tmp_path, entries, name="x"), tmp_path / "x.jsonl", progress=False)
    checked = read_manifest(tmp_path / "x.jsonl").entries
    assert [entry.ok for entry in checked] == [True, True, True, False, False, False]
    assert "starts at 2.5 s, but the video ends at 2 s" in (checked[3].error or "")
    assert "0.00 hours, 3 broken" in probe._summary(manifest)


@pytest.mark.parametrize(("part", "usable"), [(0.5, False), (0.03, True)])
def test_a_deep_look_finds_damage_inside(tmp_path: Path, part: float, usable: bool) -> None:
    path = encode(tmp_path / "a.mp4", count=40, size=(64, 48), options={"g": "5", "bf": "0"})
    assert "damaged_frames" not in inspect_video(path, deep=True)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = start - 8 + int.from_bytes(data[start - 8 : start - 4], "big")
    for place in range(end - int(part * (end - start)), end, 20):
        data[place] ^= 255
    path.write_bytes(bytes(data))
    assert inspect_video(path)["ok"]
    found = inspect_video(path, deep=True)
    assert found["ok"] == usable
    if usable:
        videos = VideoList("", tmp_path, (Entry(path, 0),))
        manifest = check_videos(videos, tmp_path / "x.jsonl", deep=True, progress=False)
        assert f"1 usable, with frames that cannot be decoded\n  {path}" in probe._summary(manifest)
        assert 0 < read_manifest(tmp_path / "x.jsonl").entries[0].extra["damaged_frames"] <= 4
    else:
        assert re.fullmatch(r"damaged: \d+ of 40 frames cannot be decoded", found["error"])


def test_frame_folders(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / "a" / str(number)
        folder.mkdir(parents=True)
        for frame in range(3):
            save_image(folder / f"img_{frame:05d}.jpg", np.zeros((16, 24, 3), np.uint8))
    (tmp_path / "a" / "1" / "img_00002.jpg").write_text("damaged")
    assert inspect_video(tmp_path / "a" / "1")["ok"]
    assert inspect_video(tmp_path / "a" / "0", deep=True)["frames"] == 3
    error = inspect_video(tmp_path / "a" / "1", deep=True)["error"]
    assert error == "img_00002.jpg: not an image, or it is damaged"


def awkward(job: str) -> str:
    """Stands in for a decoder that hangs or crashes."""
    if job == "hang":
        time.sleep(100)
    if job == "die":
        os.abort()
    return job.upper()


def test_processes_that_hang_or_die_are_replaced() -> None:
    jobs = ["a", "hang", "b", "die", "c", "d", "die", "e"]
    answers = list(guarded(awkward, jobs, 2, 0.5))
    assert sorted(job for job, _ in answers) == sorted(jobs)
    for job, answer in answers:
        expected = {"hang": "took longer than 0.5 s", "die": "ended the process that read it (signal 6)"}
        assert answer == expected.get(job, job.upper())
    assert list(guarded(awkward, [], 2, 1)) == []


def test_workers_end_when_the_caller_stops() -> None:
    answers = guarded(awkward, ["a", "hang"], 2, 1000)
    assert next(answers) == ("a", "A")
    answers.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_names_that_are_not_unicode(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    video(tmp_path / "a" / "1.mp4")
    odd = tmp_path / "a" / os.fsdecode(b"\xff.mp4")
    odd.write_bytes(b"")
    assert main(["data", "check", str(tmp_path), "--out", str(tmp_path / "x.jsonl")]) == 0
    assert r"\xff.mp4" in capsys.readouterr().out
    assert [entry.path for entry in read_manifest(tmp_path / "x.jsonl").entries if not entry.ok] == [odd]


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    line = {"path": "a.mp4", "label": 3, "mood": "blue", "noflip": True, "caption": "Noise."}
    (tmp_path / "x.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["data", "check", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "x.jsonl")]) == 0
    header, record = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert header["videos"] == 1
    assert record["mood"] == "blue"
    assert record["captions"] == ["Noise."]
    assert record["noflip"] is True
    assert record["frames"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{set}", "--out", "x.json"], "ends in .jsonl"),
        (["{set}", "--out", "x.jsonl", "--workers", "0"], "workers is 0, expected an integer from 1 to 1024"),
        (["{set}", "--out", "x.jsonl", "--time_limit", "0"], "time_limit is 0.0, expected a number above 0"),
        (["{set}", "--out", "x.jsonl", "--format", "vhs"], "format 'vhs': choose auto, activitynet"),
        (["{set}/none", "--out", "x.jsonl"], "no such file or folder"),
        (["{set}", "--out", "x.jsonl", "--like", "{set}/none"], "no such file of class names"),
    ],
)
def test_unusable_input(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    video(tmp_path / "set" / "a" / "1.mp4")
    assert main(["data", "check", *(option.format(set=tmp_path / "set") for option in options)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
