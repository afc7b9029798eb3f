from __future__ import annotations

from pathlib import Path

import pytest
from test_sources import dump, listed, touch, write

from fluxvit.data.formats.registry import read_source


def test_the_root_that_finds_the_videos_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "set" / "data"
    touch(data / "clips" / "kinetics" / "run" / "a.mp4")
    lists = tmp_path / "set" / "lists"
    for name, expected in (
        ("run/a.mp4", data / "clips" / "kinetics"),
        ("clips/kinetics/run/a.mp4", data),
        ("data/clips/kinetics/run/a.mp4", tmp_path / "set"),
        ("/mnt/old/kinetics/run/a.mp4", data / "clips"),
    ):
        source = write(lists / "train.csv", f"{name},0")
        with pytest.raises(
            ValueError, match=f"none of its 1 videos exists, .*; --root {expected} finds them"
        ):
            read_source(source)
        assert [path.rsplit("/", 1)[-1] for path in listed(read_source(source, root=expected))] == ["a.mp4"]
    pairs = dump(lists / "pairs.json", [{"video": "run/a.mp4", "caption": "A run."}])
    with pytest.raises(ValueError, match=f"; --root {data / 'clips' / 'kinetics'} finds them"):
        read_source(pairs)
    with pytest.raises(ValueError, match=r"; say with --root where they are$"):
        read_source(write(lists / "train.csv", "run/b.mp4,0"))
    for content in (["https://host/a.mp4,0"], ["path,label", "s3://bucket/a.mp4,0"]):
        with pytest.raises(ValueError, match=r"that is a URL, so download the videos and list their files$"):
            read_source(write(lists / "train.csv", *content))
