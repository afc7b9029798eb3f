"""Data sets whose videos show several classes at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.registry import detect, read_source

CHARADES = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food;stove,"Walks; cooks",'
    "c001 11.90 21.20;c000 0.00 12.60;c001 25.00 30.00,24.83\n"
    "N11GT,0KZ7,Stairs,5,7,No,,broom,Nothing.,,18.3\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Charades_v1_480/46GP8.mp4", "Charades_v1_480/N11GT.mp4", "a/x.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def listed(videos: VideoList) -> dict[str, tuple[int, ...] | None]:
    return {entry.path.relative_to(videos.root).as_posix(): entry.labels for entry in videos.entries}


def charades(
    folder: Path, text: str = CHARADES, classes: str = "c000 Hold a box\nc001 Put a box, a bag\n"
) -> Path:
    (folder / "Charades_v1_classes.txt").write_text(classes)
    (folder / "Charades_v1_train.csv").write_text("id,script,actions\n46GP8,,c000 0.0 1.0\n")
    (folder / "Charades_v1_test.csv").write_text(text)
    return folder


def test_charades(folder: Path) -> None:
    assert detect(charades(folder)) == "charades"
    assert detect(folder / "Charades_v1_test.csv") == "charades"
    videos = read_source(folder, split="test")
    assert listed(videos) == {"Charades_v1_480/46GP8.mp4": (0, 1), "Charades_v1_480/N11GT.mp4": ()}
    assert videos.labels == ("Hold a box", "Put a box, a bag")
    assert videos.split == "test"
    assert videos.entries[0].captions == ("A person, cooking.",)
    assert videos.entries[0].extra["actions"][0] == {"label": 1, "start": 11.9, "end": 21.2}
    assert [entry.labels for entry in read_source(folder, split="train").entries] == [(0,)]
    assert listed(read_source(folder / "Charades_v1_test.csv")) == listed(videos)


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("id,script,actions\nx,,c007 0 1\n", "c000 A\n", "line 2: 'c007 0 1' is not an action"),
        ("id,script,actions\nx,,c000 nan 1\n", "c000 A\n", "'c000 nan 1' is not an action"),
        ("id,script,actions\nx,,walk\n", "c000 A\n", "'walk' is not an action such as c092 11.90 21.20"),
        ("id,script,actions\nx\n", "c000 A\n", "line 2: no script and no actions"),
        (CHARADES, "c000 A\nc002 B\n", "'c002 B' is not the class c001 and its name"),
    ],
)
def test_odd_charades(text: str, classes: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_source(charades(folder, text, classes), split="test", format="charades")


@pytest.mark.parametrize(
    ("table", "names", "labels"),
    [
        ("path,labels\na/x.mp4,run;jump\nb.mp4,\n", ("jump", "run"), [(0, 1), ()]),
        ("n,labels,video\n7,3|17|3,a/x.mp4\n8,0,b.mp4\n", (), [(3, 17), (0,)]),
        ('id,labels\nx,"[3, 17]"\nb,"[]"\n', (), [(3, 17), ()]),
        ("id;labels\nx;\"['run', 'jump']\"\nb;\"['run']\"\n", ("jump", "run"), [(0, 1), (1,)]),
    ],
)
def test_tables_of_labels(
    table: str, names: tuple[str, ...], labels: list[tuple[int, ...]], folder: Path
) -> None:
    (folder / "train.csv").write_text(table)
    videos = read_source(folder / "train.csv")
    assert videos.name == "multi_label"
    assert videos.labels == names
    assert listed(videos) == dict(zip(("a/x.mp4", "b.mp4"), labels, strict=True))


def test_classes_are_numbered_like_those_of_another_split(folder: Path) -> None:
    (folder / "val.csv").write_text("path,labels\na/x.mp4,run;jump\n")
    (folder / "names.txt").write_text("fly\njump\nrun\n")
    assert listed(read_source(folder / "val.csv", labels=folder / "names.txt")) == {"a/x.mp4": (1, 2)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,labels\na/x.mp4,3;run\n", "'run' is a label, but others are numbers"),
        ('path,labels\na/x.mp4,"[3, 4"\n', "line 2: '[3, 4' is not a list of labels"),
        ('path,labels\na/x.mp4,"[[3]]"\n', "line 2: '[[3]]' is not a list of labels"),
        ("path,tags\na/x.mp4,3;4\n", "line 2: expected a path and a column labels"),
    ],
)
def test_odd_tables(table: str, message: str, folder: Path) -> None:
    (folder / "train.csv").write_text(table)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_source(folder / "train.csv", format="multi_label")


@pytest.mark.parametrize(
    ("text", "names", "labels"),
    [
        (",Path,Labels\n0,a/x.mp4,run;jump\n", ("jump", "run"), (0, 1)),
        ("# made by hand\n\npath,labels\na/x.mp4,run|jump\n", ("jump", "run"), (0, 1)),
        ("sep=;\npath;labels\na/x.mp4;run|jump\n", ("jump", "run"), (0, 1)),
        ("#path,labels\na/x.mp4,run|jump\n", ("jump", "run"), (0, 1)),
        ("path,labels\na/x.mp4,3.0;1.0\n", (), (1, 3)),
        ('path,labels\na/x.mp4,"[\'run\', ""dog\'s tail""]"\n', ("dog's tail", "run"), (0, 1)),
    ],
)
def test_tables_of_other_forms(
    folder: Path, text: str, names: tuple[str, ...], labels: tuple[int, ...]
) -> None:
    (folder / "list.csv").write_text(text)
    assert detect(folder / "list.csv") == "multi_label"
    videos = read_source(folder / "list.csv")
    assert (videos.labels, listed(videos)) == (names, {"a/x.mp4": labels})


def test_file_urls_are_paths(folder: Path) -> None:
    (folder / "list.csv").write_text(f"path,labels\nfile://{folder}/a/x.mp4,run;jump\n")
    assert listed(read_source(folder / "list.csv")) == {"a/x.mp4": (0, 1)}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[-1]", "the label '-1' is not a class index, which is 0 to 9999999"),
        ("10000000;1", "the label '10000000' is not a class index"),
        ("9" * 5000 + ";1", "9...' is not a class index"),
        ("[true]", "line 2: '[true]' is not a list of labels"),
        ("[" * 100_000, "[...' is not a list of labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(folder: Path, cell: str, message: str) -> None:
    (folder / "list.csv").write_text(f"path,labels\na/x.mp4,{cell}\n")
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        read_source(folder / "list.csv")
    assert str(folder / "list.csv") in str(refusal.value)


def test_videos_that_are_listed_again_with_other_labels_are_named(folder: Path) -> None:
    (folder / "list.csv").write_text("path,labels\na/x.mp4,run;jump\na/x.mp4,sit;lie\n")
    assert any("with another label" in note for note in read_source(folder / "list.csv").notes)


def test_endless_times_in_charades_are_refused(folder: Path) -> None:
    charades(folder, f"id,script,actions\n46GP8,,c000 {'9' * 500} 1\n")
    with pytest.raises(ValueError, match="is not a number of seconds"):
        read_source(folder, split="test")
