"""Splits by their names, and what is held out where there is none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from test_sources import listed, touch, write

from fluxvit.data import prepare
from fluxvit.data.formats.layout import VideoList, split_in
from fluxvit.data.formats.registry import read_source
from fluxvit.data.manifest import Manifest, content_digest, read_manifest, write_manifest
from fluxvit.data.prepare import prepare_manifests


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Trainset", "train"),
        ("trainingSet", "train"),
        ("k400_train_list", "train"),
        ("trainlist01", "train"),
        ("train_videos", "train"),
        ("TrainVideos", "train"),
        ("validate", "val"),
        ("valid", "val"),
        ("val_256", "val"),
        ("something-something-v2-validation", "val"),
        ("MSRVTT_JSFUSION_test", "test"),
        ("testing", "test"),
        ("valley", None),
        ("trainer", None),
        ("testament", None),
        ("latest", None),
        ("trainval", None),
        ("train_videos_val", None),
        ("videos", None),
    ],
)
def test_split_by_name(name: str, split: str | None) -> None:
    assert split_in(name) == split


def test_folders_beside_splits_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "a" / "1.mp4", tmp_path / "val" / "a" / "2.mp4", tmp_path / "labels" / "x.txt")
    videos = read_source(tmp_path, split="train")
    assert (listed(videos), videos.labels) == ({"train/a/1.mp4": 0}, ("a",))
    assert videos.notes == ("left out the folders labels, which are no splits",)
    with pytest.raises(ValueError, match=r"which of its splits\? Choose with --split train or val"):
        read_source(tmp_path)


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    touch(*(tmp_path / name / "1.mp4" for name in ("running", "test", "train")))
    assert read_source(tmp_path).labels == ("running", "test", "train")
    touch(tmp_path / "nested" / "test" / "part1" / "1.mp4", tmp_path / "nested" / "walk" / "1.mp4")
    assert read_source(tmp_path / "nested").labels == ("test", "walk")


def test_the_only_split_needs_no_choice(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "folders" / "Trainset" / "run" / "1.mp4")
    write(tmp_path / "train.csv", "a.mp4,0")
    for source in (tmp_path, tmp_path / "folders"):
        assert read_source(source).split == "train"
    with pytest.raises(ValueError, match="no split 'val'; choose train"):
        read_source(tmp_path, split="val")


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are written without looking at the videos."""

    def write_unchecked(videos: VideoList, path: Path, **options: object) -> None:
        digest = content_digest(videos.entries, videos.root)
        write_manifest(path, Manifest(videos.entries, videos.labels, digest, root=videos.root))

    monkeypatch.setattr(prepare, "check_videos", write_unchecked)


def names(path: Path) -> list[str]:
    return [entry.path.name for entry in read_manifest(path, None).entries]


@pytest.mark.usefixtures("unchecked")
def test_videos_are_held_out_of_a_lonely_training_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    touch(*(data / f"{i}.mp4" for i in range(8)))
    write(data / "train.csv", *(f"{i}.mp4,{i % 2}" for i in range(6)))
    write(data / "test.csv", "6.mp4,0", "7.mp4,1")
    with caplog.at_level(logging.WARNING):
        train, val = prepare_manifests(data, tmp_path / "out", progress=False)
    assert len(names(train)) == 4
    assert sorted(names(train) + names(val)) == [f"{i}.mp4" for i in range(6)]
    assert "there is no split val; 2 videos of train are held out for validation" in caplog.text

    (data / "train.csv").unlink()
    with pytest.raises(ValueError, match="has only the split test; there is nothing to train on"):
        prepare_manifests(data, tmp_path / "other", progress=False)


@pytest.mark.usefixtures("unchecked")
def test_segments_of_a_video_are_held_out_together(tmp_path: Path) -> None:
    data = tmp_path / "data"
    touch(*(data / f"{i}.mp4" for i in range(3)))
    lines = [f"{i}.mp4,{start},{start + 1},0" for i in range(3) for start in range(8)]
    source = write(data / "segments.csv", "path,start,end,label", *lines)
    train, val = prepare_manifests(source, tmp_path / "out", progress=False)
    assert not set(names(train)) & set(names(val))
    assert (len(names(train)), len(names(val))) == (16, 8)


@pytest.mark.usefixtures("unchecked")
def test_a_video_in_train_and_val_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    touch(data / "a.mp4", data / "b.mp4", data / "c.mp4")
    write(data / "train.csv", "a.mp4,0", "b.mp4,1", "b.mp4,1")
    write(data / "val.csv", "b.mp4,1", "c.mp4,0")
    with caplog.at_level(logging.WARNING):
        prepare_manifests(data, tmp_path / "out", progress=False)
    assert f"1 videos are both in train and val, such as {data / 'b.mp4'}" in caplog.text
    assert f"1 videos are listed more than once, such as {data / 'b.mp4'}" in caplog.text


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    videos = read_source(write(tmp_path / "x.csv", "a.mp4,0", "b.mp4,1", "a.mp4,0", "b.mp4,0", "a.mp4,0"))
    assert videos.notes == (f"2 videos are listed more than once, such as {tmp_path / 'a.mp4'}",)
    segments = write(tmp_path / "segments.csv", "path,start,end,label", "a.mp4,0,1,0", "a.mp4,1,2,0")
    assert read_source(segments).notes == ()
