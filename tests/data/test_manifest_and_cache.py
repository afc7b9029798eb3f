from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset, ClipRequest, VideoSource
from fluxvit.data.manifest import (
    NO_LABEL,
    Entry,
    Manifest,
    content_digest,
    read_manifest,
    write_manifest,
)
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.files import writer_tag
from fluxvit.video.base import VideoError
from fluxvit.video.writer import write_video


def write_manifest_lines(folder: Path, lines: list[object]) -> Path:
    path = folder / "videos.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A manifest of three videos of different sizes, whose brightness rises with time."""
    for i, (height, width) in enumerate([(48, 64), (64, 48), (50, 50)]):
        frames = [np.full((height, width, 3), 12 * t, np.uint8) for t in range(20)]
        write_video(tmp_path / f"{i}.mp4", frames, 20, crf=0)
    return write_manifest_lines(
        tmp_path, [{"path": f"{i}.mp4", "label": i, "other": 7 - i} for i in range(3)]
    )


def test_manifest(videos: Path) -> None:
    manifest = read_manifest(videos)
    assert [entry.label for entry in manifest.entries] == [0, 1, 2]
    assert manifest.entries[1].path == videos.parent / "1.mp4"
    other = read_manifest(videos, "other")
    assert [entry.label for entry in other.entries] == [7, 6, 5]
    assert other.digest != manifest.digest == read_manifest(videos).digest


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no videos are listed"),
        ([{"path": "a", "label": 0}, "{"], "line 2"),
        ([{"path": "a"}], "line 1: no key 'label'"),
        ([{"label": 1}], "line 1: no key 'path'"),
        ([{"path": "a", "label": "dog"}], "label is 'dog', not a class index"),
        ([{"path": "a", "label": True}], "not a class index"),
        ([[1, 2]], "line 1"),
        (
            [{"manifest": 1, "classes": ["x", "y"]}, {"path": "a", "label": 5}],
            "class 5 is used, but there are 2 class names",
        ),
        (
            [{"manifest": 1, "classes": ["x", "y"]}, {"path": "a", "labels": [0, 2]}],
            "class 2 is used, but there are 2 class names",
        ),
        ([{"path": "a", "labels": 1}], "labels are 1, not a list of class indices"),
        ([{"path": "a", "labels": [0, -1]}], "not a list of class indices"),
        ([{"path": "a", "labels": [True]}], "not a list of class indices"),
        ([{"path": "a", "labels": [0], "label": 0}], "either label, one class index, or labels"),
        (
            [{"path": "a", "labels": []}, {"path": "b", "label": 0}],
            "some videos have a label and others labels",
        ),
        ([{"path": "", "label": 0}], "line 1: path is '', not the name of a file"),
        (
            [{"path": "a", "label": 0, "fps": "fast"}],
            "line 1: fps is 'fast', expected a number of at least 0",
        ),
        (['{"path": "a", "label": 0, "end": NaN}'], "line 1: not JSON: NaN is not a number"),
        ([{"path": "a", "label": 0, "frames": 2.5}], "frames is 2.5, expected an integer"),
        ([{"path": "a", "label": 0, "ok": 1}], "ok is 1, expected true or false"),
        ([{"path": "a", "label": 0, "captions": "Up."}], "captions are 'Up.', not a list of sentences"),
        ([{"path": "a", "label": 10**30}], "not a class index"),
        ([{"path": "a\0b", "label": 0}], "not the name of a file"),
        ([{"path": "a", "label": 0, "start": -1e12}], "start is -1000000000000.0, expected a number from"),
        ([{"path": "a", "label": 0, "start": 1e300}], "start is 1e\\+300, expected"),
        ([{"path": "a", "label": 0, "rotation": 10**400}], "rotation is an integer of 1329 bits"),
        (["[" * 100_000], "line 1: not JSON: it is nested too deeply"),
        (['{"path": ' + "9" * 5000 + "}"], "line 1: not JSON: an integer has too many digits"),
        ([{"manifest": 1, "classes": None}], "line 1: classes is None, expected a list, each text"),
        ([{"manifest": 1, "classes": ["a", 3]}], r"line 1: classes\[1\] is 3, expected text"),
        ([{"manifest": 1, "root": 3}], "line 1: root is 3, expected text"),
        ([{"manifest": 1, "name": ["x"]}], r"line 1: name is \['x'\], expected text"),
        ([{"manifest": 1.0}], "line 1: a manifest of version 1.0"),
        ([{"manifest": 9}], "line 1: a manifest of version 9; this fluxvit reads version 1"),
        ([{"manifest": 1}], "no videos are listed"),
    ],
)
def test_bad_manifests_name_the_line(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(write_manifest_lines(tmp_path, lines))


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ('{"classes": 3}', r"dataset\.json: classes is 3, expected a list"),
        ('{"classes": ["a", null]}', r"dataset\.json: classes\[1\] is None, expected text"),
        ("[]", r"dataset\.json: it is \[\], expected an object"),
        ("{", r"dataset\.json: cannot be read as JSON"),
    ],
)
def test_bad_descriptions_of_data_sets_are_named(videos: Path, facts: str, message: str) -> None:
    (videos.parent / "dataset.json").write_text(facts)
    with pytest.raises(ValueError, match=message):
        read_manifest(videos)


def test_manifests_are_read_as_written(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    entries = (
        Entry(root / "a b.mp4", 1, ("Up.",), 0.5, 2.0, 60, 29.97, 64, 48, 2.0, 90, "vp9", noflip=True),
        Entry(root / "sub" / "ü.mp4", 0, ok=False, error="missing", source="k710", extra={"mood": ["blue"]}),
        Entry(Path("/elsewhere/c.mp4")),
    )
    digest = content_digest(entries, root)
    manifest = Manifest(entries, ("x", "y"), digest, "clips", "val", root)
    write_manifest(tmp_path / "x.jsonl", manifest)
    assert read_manifest(tmp_path / "x.jsonl", target=None) == manifest
    header, *records = map(json.loads, (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines())
    assert header["root"] == "videos"
    assert (header["videos"], header["broken"], header["digest"]) == (3, 1, digest)
    assert [record["path"] for record in records] == ["a b.mp4", "sub/ü.mp4", "/elsewhere/c.mp4"]
    assert manifest.entries[2].label == NO_LABEL
    with pytest.raises(ValueError, match="line 4: no key 'label'"):
        read_manifest(tmp_path / "x.jsonl")


def test_videos_of_several_classes(tmp_path: Path) -> None:
    lines: list[object] = [{"path": "a", "labels": [4, 0, 4]}, {"path": "b", "labels": []}]
    manifest = read_manifest(write_manifest_lines(tmp_path, lines))
    assert manifest.multi_label
    assert [entry.labels for entry in manifest.entries] == [(0, 4), ()]
    assert [entry.classes for entry in manifest.entries] == [(0, 4), ()]
    write_manifest(tmp_path / "x.jsonl", manifest)
    assert read_manifest(tmp_path / "x.jsonl") == manifest
    other: list[object] = [{"path": "a", "labels": [0]}, {"path": "b", "labels": [4]}]
    assert read_manifest(write_manifest_lines(tmp_path, other)).digest != manifest.digest
    assert Entry(Path("a"), 3).classes == (3,)
    assert Entry(Path("a")).classes == ()
    assert not Manifest((Entry(Path("a"), 3),), (), "").multi_label


def test_digest_covers_what_decides_a_result(tmp_path: Path) -> None:
    def digest(*changes: dict[str, object]) -> str:
        lines: list[object] = [{"path": f"{n}.mp4", "label": n} | dict(c) for n, c in enumerate(changes)]
        return read_manifest(write_manifest_lines(tmp_path, lines)).digest

    before = digest({}, {})
    # What headers say of the files, and what else is known about them.
    assert digest({"fps": 25, "frames": 10, "ok": True}, {"note": "x"}) == before
    changed = [{"label": 4}, {"path": "z"}, {"start": 1.0}, {"end": 1.0}, {"ok": False}, {"noflip": True}]
    digests = {digest({}, dict(change)) for change in changed}
    assert len(digests | {before}) == 1 + len(changed)


def test_only_readable_videos(tmp_path: Path) -> None:
    good, bad = Entry(tmp_path / "a", 0), Entry(tmp_path / "b", 1, ok=False, error="missing")
    manifest = Manifest((good, bad), ("x", "y"), "digest")
    assert manifest.readable().entries == (good,)
    with pytest.raises(ValueError, match="all 1 videos of the manifest are broken: missing"):
        Manifest((bad,), (), "digest").readable()


def test_missing_manifests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")


def test_cache_holds_what_the_files_show(videos: Path) -> None:
    manifest = read_manifest(videos)
    cache = FrameCache(videos.parent / "cache", manifest, 12, 32).build(workers=1, progress=False)
    source = VideoSource(manifest)
    positions = (np.arange(12) + 0.5) / 12
    for item in range(3):
        cached, decoded = cache.read(item, positions), source.read(item, positions)
        assert min(cached.shape[1:3]) == 32
        # Brightness tells the frame: the same ones were taken.
        np.testing.assert_allclose(cached.mean((1, 2, 3)), decoded.mean((1, 2, 3)), atol=3)
    with pytest.raises(ValueError, match="cache more frames"):
        cache.read(0, np.linspace(0, 0.9, 13))


def test_cache_is_built_once_and_only_whole(videos: Path) -> None:
    manifest = read_manifest(videos)
    folder = videos.parent / "cache"
    (videos.parent / "2.mp4").write_text("broken")
    with pytest.raises(VideoError, match=r"2\.mp4"):
        FrameCache(folder, manifest, 4, 16).build(workers=1, progress=False)
    assert list(folder.iterdir()) == []
    write_video(videos.parent / "2.mp4", [np.zeros((20, 20, 3), np.uint8)], 20)
    FrameCache(folder, manifest, 4, 16).build(workers=1, progress=False)
    for i in range(3):
        (videos.parent / f"{i}.mp4").unlink()
    FrameCache(folder, manifest, 4, 16).build(workers=1, progress=False)


def test_clips_fit_their_grid(videos: Path) -> None:
    data = ClipDataset(read_manifest(videos))
    for item in range(3):
        clip = data[ClipRequest(item, SamplingGrid(6, 24, 40))]
        assert clip.video.shape == (3, 6, 24, 40)
        assert clip.label == clip.item == item
        brightness = clip.video.float().mean((0, 2, 3))
        assert (brightness.diff() > 0).all()


def test_segments_are_what_is_shown(videos: Path) -> None:
    """The second half alone, decoded and cached; a segment beyond the end is an error that names the file."""
    lines = [
        {"path": "0.mp4", "label": 0, "start": 0.5, "end": 9.0},
        {"path": "1.mp4", "label": 0, "start": 7},
    ]
    manifest = read_manifest(write_manifest_lines(videos.parent, lines))
    positions = (np.arange(5) + 0.5) / 5
    decoded = VideoSource(manifest).read(0, positions).mean((1, 2, 3))
    # Twenty frames a second, each 12 brighter than the one before: frames 11, 13, 15, 17, 19.
    np.testing.assert_allclose(decoded, [132, 156, 180, 204, 228], atol=3)
    only = read_manifest(write_manifest_lines(videos.parent, lines[:1]))
    cache = FrameCache(videos.parent / "cache", only, 5, 32).build(workers=1, progress=False)
    np.testing.assert_allclose(cache.read(0, positions).mean((1, 2, 3)), decoded, atol=3)
    with pytest.raises(VideoError, match=r"1\.mp4: its segment from -2 s on lies outside"):
        Entry(videos.parent / "1.mp4", start=-2.0).span(4.0)
    with pytest.raises(VideoError, match=r"1\.mp4: its segment from 7 s on lies outside"):
        VideoSource(manifest).read(1, positions)


def test_a_cache_clears_what_killed_processes_left_of_it(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    manifest = read_manifest(videos)
    FrameCache(folder, manifest, 2, 16).build(workers=1, progress=False)
    (pixels,) = folder.glob("*.u8")
    pixels.with_suffix(".json").unlink()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    # Its number may be given anew, but not within the life of a test.
    host = writer_tag().partition("-")[0]
    dead, mine = (folder / f".{pixels.stem}.{host}-{pid}.partial.u8" for pid in (ended.pid, os.getppid()))
    dead.touch()
    mine.touch()
    FrameCache(folder, manifest, 2, 16).build(workers=1, progress=False)
    assert not dead.exists()
    assert mine.exists()


def test_class_names_of_what_was_made_lie_beside_it(tmp_path: Path) -> None:
    path = write_manifest_lines(tmp_path, [{"path": "a.mp4", "label": 1, "object": 0, "other": 0}])
    facts = {"motion_classes": ["left", "right"], "object_classes": ["cat"]}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    assert read_manifest(path).labels == ("left", "right")
    assert read_manifest(path, "object").labels == ("cat",)
    assert read_manifest(path, "other").labels == ()
    # A header's names are of the label, not of other keys.
    write_manifest(tmp_path / "checked.jsonl", read_manifest(path))
    assert read_manifest(tmp_path / "checked.jsonl").labels == ("left", "right")


def test_a_byte_order_mark_before_a_manifest_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('\ufeff{"path": "a.mp4", "label": 1}\n', encoding="utf-8")
    assert read_manifest(tmp_path / "list.jsonl").entries[0].label == 1
