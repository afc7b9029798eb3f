"""Charades, whose videos show several classes at once."""

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
    assert [entry.labels for entry in read_source(folder, split="train").entries] == [(0,)]
    assert listed(read_source(folder / "Charades_v1_test.csv")) == listed(videos)


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("id,script,actions\nx,,c007 0 1\n", "c000 A\n", "line 2: 'c007 0 1' is not an action"),
        ("id,script,actions\nx,,c000 nan 1\n", "c000 A\n", "'c000 nan 1' is not an action"),
        ("id,script,actions\nx,,walk\n", "c000 A\n", "'walk' is not an action such as c092 11.90 21.20"),
        ("id,script,actions\nx\n", "c000 A\n", "line 2: expected 3 cells"),
        ("id,script\nx,\n", "c000 A\n", "its first row does not name the columns"),
        (CHARADES, "c000 A\nc002 B\n", "'c002 B' is not the class c001 and its name"),
    ],
)
def test_odd_charades(text: str, classes: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_source(charades(folder, text, classes), split="test", format="charades")
