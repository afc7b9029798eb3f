"""Every format on files laid out as the data set ships. Files need not be videos here: nothing is opened."""

from __future__ import annotations

import json
import os
import re
from copy import copy
from pathlib import Path

import pytest

from fluxvit.data.formats import layout
from fluxvit.data.formats import registry as sources
from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.registry import FORMATS, detect, read_source
from fluxvit.data.manifest import NO_LABEL, Entry, read_manifest


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def dump(path: Path, content: object) -> Path:
    return write(path, json.dumps(content))


def listed(videos: VideoList) -> dict[str, int]:
    """Labels by path relative to the root."""
    return {entry.path.relative_to(videos.root).as_posix(): entry.label for entry in videos.entries}


def test_folder_of_classes(tmp_path: Path) -> None:
    touch(
        tmp_path / "walk" / "b.mp4",
        tmp_path / "walk" / "deeper" / "a.MOV",
        tmp_path / "walk" / "notes.txt",
        tmp_path / "run" / "frames" / "1.jpg",
        tmp_path / "run" / "frames" / "2.jpg",
        tmp_path / "run" / "c.webm",
        tmp_path / "run" / ".cache" / "d.mp4",
    )
    videos = read_source(tmp_path)
    assert videos.name == "folder"
    assert videos.labels == ("run", "walk")
    assert listed(videos) == {"run/c.webm": 0, "run/frames": 0, "walk/b.mp4": 1, "walk/deeper/a.MOV": 1}
    assert videos.notes == (
        f"left out 1 files that are not named like videos, such as {tmp_path / 'walk' / 'notes.txt'}",
    )


def test_links_to_folders_of_videos_are_followed(tmp_path: Path) -> None:
    data, disk = tmp_path / "data", tmp_path / "disk"
    touch(data / "jump" / "x.mp4", data / "run" / "y.mp4", disk / "jump" / "j1.mp4", disk / "walk" / "w.mp4")
    (data / "jump" / "part1").symlink_to(disk / "jump")
    (data / "walk").symlink_to(disk / "walk")
    # Neither may put the videos of another class into this one.
    (data / "jump" / "all").symlink_to(data)
    (data / "jump" / "above").symlink_to("../..")
    (data / "all").symlink_to("..")
    (data / "run" / "gone.mp4").symlink_to(disk / "none.mp4")
    (data / "run" / "part2").symlink_to(disk / "none")
    videos = read_source(data)
    assert videos.labels == ("jump", "run", "walk")
    assert listed(videos) == {
        "jump/x.mp4": 0,
        "jump/part1/j1.mp4": 0,
        "run/gone.mp4": 1,
        "run/y.mp4": 1,
        "walk/w.mp4": 2,
    }
    assert videos.notes == (
        f"left out 1 links that lead nowhere, such as {data / 'run' / 'part2'}",
        f"left out 3 links back to folders that were entered already or lie above, such as {data / 'all'}",
    )

    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "train").symlink_to(disk)
    header = "label,youtube_id,time_start,time_end,split"
    train = write(tmp_path / "train.csv", header, "jump,j1,0,10,train")
    assert listed(read_source(train, root=tmp_path / "videos")) == {"train/jump/j1.mp4": 0}


def test_a_list_beside_folders_is_mentioned(tmp_path: Path) -> None:
    touch(tmp_path / "clips" / "1.mp4")
    write(tmp_path / "annotations.csv", "clips/1.mp4,0")
    note = "the folders were read, not annotations.csv beside them; a list is read as SOURCE"
    assert read_source(tmp_path).notes == (note,)


def test_names_that_no_file_can_have_are_missing_videos(tmp_path: Path) -> None:
    touch(tmp_path / "1.mp4")
    long = "x" * 5000
    videos = read_source(write(tmp_path / "list.csv", "1.mp4,0", f"{long},1", f"{long}.mp4,1"))
    assert [entry.label for entry in videos.entries] == [0, 1, 1]
    with pytest.raises(ValueError, match="none of its 1 videos exists"):
        read_source(write(tmp_path / "list.csv", f"{long}.mp4,1"))
    pairs = dump(
        tmp_path / "pairs.json", [{"video": long, "caption": "x"}, {"video": "1.mp4", "caption": "y"}]
    )
    assert len(read_source(pairs).entries) == 2


def test_folder_of_splits_numbers_classes_over_all_of_them(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "b" / "1.mp4", tmp_path / "train" / "a" / "2.mp4")
    touch(tmp_path / "validation" / "b" / "3.mp4")
    assert listed(read_source(tmp_path, split="val")) == {"validation/b/3.mp4": 1}
    assert len(read_source(tmp_path, split="train").entries) == 2
    with pytest.raises(ValueError, match=r"which of its splits\? Choose with --split train or val"):
        read_source(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'"):
        read_source(tmp_path, split="test")


@pytest.mark.parametrize("delimiter", [",", " ", "\t", ";"])
def test_csv_is_cut_at_the_last_delimiter(tmp_path: Path, delimiter: str) -> None:
    names = ["a/plain.mp4", "a/with space.mp4", "b/with, comma.mp4", "b/semi;colon 3.mp4"]
    touch(*(tmp_path / name for name in names))
    lines = [f"{name}{delimiter}{label}" for label, name in enumerate(names)]
    videos = read_source(write(tmp_path / "train.csv", *lines))
    assert videos.name == "csv"
    assert videos.split == "train"
    assert listed(videos) == {name: label for label, name in enumerate(names)}


def test_csv_variants(tmp_path: Path) -> None:
    touch(
        tmp_path / "videos" / "a, b.mp4", tmp_path / "videos" / "12.mp4", tmp_path / "videos" / "f" / "1.jpg"
    )
    path = write(
        tmp_path / "list.txt", "\ufeffpath,label", '"a, b.mp4",jump', "12,fly high", "", "f,fly high  "
    )
    videos = read_source(path, root=tmp_path / "videos")
    # A name without a dot is an mp4, as in the release, unless it is a folder of frames.
    assert listed(videos) == {"a, b.mp4": 1, "12.mp4": 0, "f": 0}
    assert videos.labels == ("fly high", "jump")

    numbers = write(tmp_path / "absolute.csv", f"{tmp_path}/videos/12.mp4 1", f"{tmp_path}/videos/f 0")
    videos = read_source(numbers, like=write(tmp_path / "names.txt", "x", "y"))
    assert videos.root == tmp_path / "videos"
    assert videos.labels == ("x", "y")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.mp4,1", "b.mp4,dog"], "line 2: the label is 'dog', but others are numbers"),
        (["a.mp4,1", "b.mp4,-1"], "class indices are integers from 0"),
        (["a.mp4"], "line 1: expected a path and a label"),
        (["a.mp4,"], "line 1: expected a path and a label"),
        ([""], "the list is empty"),
        (["none.mp4,1"], "none of its 1 videos exists, such as .*none.mp4; say with --root"),
    ],
)
def test_bad_lists(tmp_path: Path, lines: list[str], message: str) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with pytest.raises(ValueError, match=message) as error:
        read_source(write(tmp_path / "list.csv", *lines))
    assert str(tmp_path / "list.csv") in str(error.value)


def test_mixtures(tmp_path: Path) -> None:
    touch(tmp_path / "k" / "a b.mp4", tmp_path / "s" / "1.webm")
    lines = ["k710,k/a b.mp4,20.5,-1,-1,7", "ssv2,s/1.webm,4,0,2,-1"]
    videos = read_source(write(tmp_path / "train_1.1M.csv", *lines), "mixture")
    first, second = videos.entries
    assert (first.source, first.noflip, first.label, first.start) == ("k710", False, 7, None)
    assert (first.duration, first.path) == (20.5, tmp_path / "k" / "a b.mp4")
    assert (second.source, second.noflip, second.label, second.end) == ("ssv2", True, NO_LABEL, 2)
    with pytest.raises(ValueError, match=r"x\.csv, line 1: expected 6 cells: source, path, total_time"):
        read_source(write(tmp_path / "x.csv", "a.mp4,1"), "mixture")


def test_kinetics_official(tmp_path: Path) -> None:
    touch(
        tmp_path / "videos" / "train" / "zumba" / "--abc_000010_000020.mp4",
        tmp_path / "videos" / "train" / "archery" / "def_000059_000069.mkv",
        tmp_path / "videos" / "test" / "ghi.mp4",
    )
    header = "label,youtube_id,time_start,time_end,split,is_cc"
    rows = ["zumba,--abc,10,20,train,0", '"archery",def,59,69,train,0', "archery,gone,0,10,train,0"]
    write(tmp_path / "lists" / "train.csv", header, *rows)
    write(tmp_path / "lists" / "validate.csv", header, "bowling,jkl,1,11,val,0")
    write(tmp_path / "lists" / "test.csv", "youtube_id,time_start,time_end,split", "ghi,3,13,test")
    videos = read_source(tmp_path / "lists", root=tmp_path / "videos", split="train")
    assert videos.name == "kinetics"
    assert videos.labels == ("archery", "bowling", "zumba")
    assert listed(videos) == {
        "train/zumba/--abc_000010_000020.mp4": 2,
        "train/archery/def_000059_000069.mkv": 0,
        "gone_000000_000010.mp4": 0,
    }
    test = read_source(tmp_path / "lists" / "test.csv", root=tmp_path / "videos")
    assert listed(test) == {"test/ghi.mp4": NO_LABEL}


def test_kinetics_release_lists(tmp_path: Path) -> None:
    touch(tmp_path / "v" / "abc.mp4")
    for name in ("train", "val", "test"):
        write(tmp_path / f"{name}.csv", "v/abc.mp4,709")
    assert listed(read_source(tmp_path, "kinetics", split="validation")) == {"v/abc.mp4": 709}
    assert read_source(tmp_path, split="val").split == "val"


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    touch(tmp_path / "20bn-something-something-v2" / "78687.webm")
    names = {"Holding something next to something": "1", "Approaching something with your camera": "0"}
    dump(tmp_path / "something-something-v2-labels.json", names)
    video = {
        "id": "78687",
        "label": "holding potato next to vicks vaporub bottle",
        "template": "Holding [something] next to [something]",
        "placeholders": ["potato", "vicks vaporub bottle"],
    }
    other = {"id": "42", "label": "approaching a mug", "template": "Approaching [something] with your camera"}
    dump(tmp_path / "something-something-v2-train.json", [video, other])
    dump(tmp_path / "something-something-v2-validation.json", [video])
    dump(tmp_path / "something-something-v2-test.json", [{"id": "78687"}])
    return tmp_path


def test_ssv2(ssv2: Path) -> None:
    videos = read_source(ssv2, split="train")
    assert videos.name == "ssv2"
    assert videos.labels == ("Approaching something with your camera", "Holding something next to something")
    assert listed(videos) == {"20bn-something-something-v2/78687.webm": 1, "42.webm": 0}
    first = videos.entries[0]
    assert first.noflip
    assert first.captions == ("holding potato next to vicks vaporub bottle",)
    assert first.extra["placeholders"] == ["potato", "vicks vaporub bottle"]
    assert read_source(ssv2 / "something-something-v2-validation.json").split == "val"
    assert read_source(ssv2, split="test").entries[0].label == NO_LABEL
    write(ssv2 / "val.csv", "20bn-something-something-v2/78687.webm 1")
    assert read_source(ssv2 / "val.csv", "ssv2").entries[0].noflip

    dump(ssv2 / "something-something-v2-validation.json", [{"id": "1", "template": "Eating [something]"}])
    with pytest.raises(ValueError, match="which is no class"):
        read_source(ssv2, split="val")


def test_coin(tmp_path: Path) -> None:
    touch(tmp_path / "videos" / "131" / "LtRSn-ntcLY.mp4")
    step = {"id": "212", "segment": [60.0, 69.0], "label": "take out the laptop CD drive"}
    first = {"recipe_type": 131, "class": "ReplaceCDDriveWithSSD", "subset": "training", "annotation": [step]}
    other = {"recipe_type": 13, "class": "ChangeCarTire", "subset": "testing", "annotation": []}
    dump(tmp_path / "COIN.json", {"database": {"LtRSn-ntcLY": first, "xyz": other}})
    videos = read_source(tmp_path, root=tmp_path / "videos", split="train")
    assert (videos.name, videos.labels) == ("coin", ("ChangeCarTire", "ReplaceCDDriveWithSSD"))
    assert listed(videos) == {"131/LtRSn-ntcLY.mp4": 1}
    with pytest.raises(ValueError, match="no split 'val'; choose test or train"):
        read_source(tmp_path / "COIN.json", split="val")


def test_motionworld_and_manifests(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "000000.mp4")
    line = {"path": "train/000000.mp4", "label": 1, "captions": ["Up."], "qa": [{"question": "?"}], "fps": 12}
    dump(tmp_path / "train.jsonl", line)
    dump(tmp_path / "dataset.json", {"name": "MotionWorld", "motion_classes": ["a", "b"]})
    for source, split in ((tmp_path, "train"), (tmp_path / "train.jsonl", None)):
        videos = read_source(source, split=split)
        assert listed(videos) == {"train/000000.mp4": 1}
        assert videos.entries[0].captions == ("Up.",)
        assert videos.entries[0].extra == {"qa": [{"question": "?"}]}
    assert videos.name == "manifest"
    assert read_manifest(tmp_path / "train.jsonl").entries[0].fps == 12


@pytest.mark.parametrize(
    ("name", "content", "format", "message"),
    [
        ("COIN.json", '{"database": {"x": {"subset": "training"}}}', "coin", r"no 'recipe_type'\); choose"),
        ("COIN.json", '{"database": {"x": {"class": "a"}}}', "coin", "no 'subset'"),
        (
            "COIN.json",
            '{"database": {"x": {"subset": "training", "recipe_type": 1, "class": true}}}',
            "coin",
            "not as coin ships .a value is of another kind than expected",
        ),
        ("a.json", "[1]", "coin", "not as coin ships .a value is of another kind than expected"),
        ("train.json", '["a", "b"]', "ssv2", "not as ssv2 ships .a value is of another kind than expected"),
    ],
)
def test_annotations_of_another_shape(
    tmp_path: Path, name: str, content: str, format: str, message: str
) -> None:
    write(tmp_path / name, content)
    dump(tmp_path / "labels.json", {})
    with pytest.raises(ValueError, match=message) as error:
        read_source(tmp_path / name, format, split="train")
    assert str(tmp_path) in str(error.value)


def test_what_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (
        tmp_path / "empty",
        dump(tmp_path / "odd.json", {"a": 1}),
        write(tmp_path / "a.xml", "<a/>"),
    ):
        with pytest.raises(ValueError, match="not recognised; choose one with --format"):
            detect(source)
    with pytest.raises(ValueError, match="line 1, column 2: not JSON"):
        detect(write(tmp_path / "broken.json", "{"))
    with pytest.raises(ValueError, match=re.escape(", ".join(sorted(FORMATS)))):
        read_source(tmp_path, "cinema")
    with pytest.raises(ValueError, match="no such file or folder"):
        read_source(tmp_path / "none")
    with pytest.raises(ValueError, match="no such folder of videos"):
        read_source(tmp_path, root=tmp_path / "none")


def test_classes_whose_folders_are_not_named_in_unicode(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")
    try:
        touch(Path(folder) / "x.mp4", tmp_path / "a" / "y.mp4")
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    assert read_source(tmp_path).labels == ("a", r"b\xff")


def test_a_format_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("FORMATS", "FOLDER_MARKS"):
        monkeypatch.setattr(layout, registry, copy(getattr(layout, registry)))
        monkeypatch.setattr(sources, registry, getattr(layout, registry))

    @layout.data_format("mine", "my_*.json")
    def read_mine(source: Path, root: Path | None, split: str | None) -> VideoList:
        videos = layout.VideoFinder(root or source)
        names = json.loads((source / "my_list.json").read_text())
        return VideoList(split or "", videos.root, tuple(Entry(videos.find(name)) for name in names))

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.webm").touch()
    (tmp_path / "my_list.json").write_text('["x", "y"]')
    videos = read_source(tmp_path)
    assert (videos.name, [entry.path.name for entry in videos.entries]) == ("mine", ["x.webm", "y.mp4"])
