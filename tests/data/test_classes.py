"""One list of videos numbered as another is, by the names of the classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fluxvit.cli import main
from fluxvit.data.classes import match_names, number_list, numbered_like, without_videos
from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.registry import read_source
from fluxvit.data.manifest import NO_LABEL, Entry, Manifest, read_manifest


def manifest(labels: list[int], *names: str) -> Manifest:
    entries = tuple(Entry(Path(f"{i}.mp4"), label) for i, label in enumerate(labels))
    return Manifest(entries, names, "digest")


def labels(numbered: Manifest | VideoList) -> list[int]:
    return [entry.label for entry in numbered.entries]


def test_classes_are_carried_over_by_name(caplog: pytest.LogCaptureFixture) -> None:
    val = numbered_like(
        manifest([0, 1, NO_LABEL], "apple", "cup"), ["apple", "ball", "cup"], 3, "val", "train"
    )
    assert labels(val) == [0, 2, NO_LABEL]
    assert val.labels == ("apple", "ball", "cup")
    assert val.digest == "digest"
    assert caplog.messages == ["val: its classes are numbered as in train, by name"]


def test_several_classes_of_a_video_are_carried_over() -> None:
    entries = (Entry(Path("a"), labels=(0, 1)), Entry(Path("b"), labels=()))
    val = numbered_like(Manifest(entries, ("x", "y"), ""), ["y", "z", "x"], 3, "val", "train")
    assert [entry.labels for entry in val.entries] == [(0, 2), ()]
    with pytest.raises(ValueError, match=r"val uses classes that train does not name: 'y' \(videos: 1\)"):
        numbered_like(Manifest(entries, ("x", "y"), ""), ["x"], 1, "val", "train")


def test_equal_lists_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    # Even with a name that stands twice: the indices say which is meant.
    same, unnamed = manifest([1], "a", "a"), manifest([7])
    assert numbered_like(same, ["a", "a"], 2, "val", "train") is same
    assert numbered_like(unnamed, [], 3, "val", "train") is unnamed
    assert not caplog.messages


def test_a_class_that_no_video_uses_may_be_unknown() -> None:
    assert labels(numbered_like(manifest([0, 0], "a", "x"), ["b", "a"], 2, "val", "train")) == [1, 1]


@pytest.mark.parametrize(
    ("val", "names", "message"),
    [
        (
            manifest([0, 1, 1, 2], "a", "x", "y"),
            ["a", "b"],
            "val uses classes that train does not name: 'x', 'y' (videos: 3); train names 2: 'a', 'b'",
        ),
        (manifest([0, 1], "a", "a"), ["a", "b"], "val: several classes have the same name: 'a'"),
        (manifest([0, 1], "a", "b"), ["c", "c"], "train: several classes have the same name: 'c'"),
        (
            manifest([0, 2]),
            ["a", "b"],
            "val numbers its classes without naming them, 0 to 2, but train names 2, so that the two may "
            "differ; name them with: fluxvit data check --like",
        ),
        (
            manifest([0, 1], "a", "b", "c"),
            [],
            "train numbers its classes without naming them, 0 to 1, but val names 3",
        ),
        # A list that lacks the last class, or has been numbered without another one.
        (manifest([0]), ["a", "b"], "val numbers its classes without naming them, 0 to 0, but train names 2"),
    ],
)
def test_what_cannot_be_carried_over_is_named(val: Manifest, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        numbered_like(val, names, 2, "val", "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("val", "names"), [(manifest([0, 1]), ["a", "b"]), (manifest([0], "a", "b"), [])])
def test_numbers_without_names_are_trusted_and_said(
    val: Manifest, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    trusted = numbered_like(val, names, 2, "val", "train")
    assert labels(trusted) == labels(val)
    assert trusted.labels == ("a", "b")
    assert (
        "numbers its classes without naming them; the numbers are taken to be those of" in caplog.messages[0]
    )


def test_names_that_differ_in_writing_only_are_the_same() -> None:
    theirs = ["Apply Lipstick", "archery", "A.B", "a b", "++"]
    ours = ["archery", "ApplyLipstick", "ab", "--", "Archery"]
    # "archery" is there letter by letter, and "ab" can be only one of the two that are alike.
    assert match_names(theirs, ours, "x", "y") == {0: 1, 1: 0, 2: 2}
    val = numbered_like(manifest([0], "caf\u00e9"), ["b", "CAFE\u0301"], 2, "val", "train")
    assert (labels(val), val.labels) == ([1], ("b", "CAFE\u0301"))


def test_lists_of_videos_take_names_over() -> None:
    entries = manifest([0, 1, NO_LABEL]).entries
    videos = VideoList("val", Path(), entries, ("brush hair", "run"))
    numbered = number_list(videos, ["jump", "run", "brush_hair"], "val.csv", "train.jsonl")
    assert labels(numbered) == [2, 1, NO_LABEL]
    assert numbered.labels == ("jump", "run", "brush_hair")
    with pytest.raises(ValueError, match=r"val\.csv uses classes that train\.jsonl does not name: 'run'"):
        number_list(videos, ["brush hair", "jump"], "val.csv", "train.jsonl")


def test_classes_without_videos() -> None:
    assert without_videos(4, manifest([1, 1, 3, NO_LABEL])) == [0, 2]


# fluxvit data check -----------------------------------------------------------------------------------------


@pytest.fixture
def lists(clip: Path) -> Path:
    folder = clip.parent
    (folder / "train.csv").write_text(f"{clip.name},cup\n{clip.name},apple\n{clip.name},ball\n")
    (folder / "val.csv").write_text(f"{clip.name},cup\n{clip.name},apple\n")
    return folder


def probe(folder: Path, name: str, *options: str) -> int:
    source, out = str(folder / f"{name}.csv"), str(folder / f"{name}.jsonl")
    return main(["data", "check", source, "--out", out, "--workers", "1", *options])


def test_one_split_is_numbered_like_another(
    lists: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(lists, "train") == 0
    assert labels(read_manifest(lists / "train.jsonl")) == [2, 0, 1]
    assert probe(lists, "val", "--like", str(lists / "train.jsonl")) == 0
    val = read_manifest(lists / "val.jsonl")
    assert labels(val) == [2, 0]
    assert val.labels == ("apple", "ball", "cup")
    capsys.readouterr()
    (lists / "val.jsonl").unlink()
    assert probe(lists, "val", "--like", str(checkpoint)) == 2
    assert "does not name: 'apple', 'cup' (videos: 2);" in capsys.readouterr().err
    assert not (lists / "val.jsonl").exists()


def test_a_file_of_names_numbers_lists_that_have_names(lists: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("0 zebra\n1 cup\n2 apple\n")
    assert labels(read_source(lists / "val.csv", like=names)) == [1, 2]
    (lists / "val.csv").write_text("clip.mp4,1\n")
    videos = read_source(lists / "val.csv", like=names)
    assert videos.labels == ("zebra", "cup", "apple")
    assert "the numbers are taken to be those of" in videos.notes[-1]


def test_a_manifest_without_names_is_no_pattern(lists: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lists / "train.jsonl").write_text(json.dumps({"path": "clip.mp4", "label": 0}) + "\n")
    assert probe(lists, "val", "--like", str(lists / "train.jsonl")) == 2
    assert "train.jsonl: this manifest does not name its classes" in capsys.readouterr().err
