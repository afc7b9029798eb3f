"""Every captioned set on files laid out as it ships. Files need not be videos here: nothing is opened."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from test_sources import dump, touch, write

from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.registry import read_source


def captions_of(videos: VideoList) -> dict[str, tuple[str, ...]]:
    """Captions by path relative to the root."""
    return {entry.path.relative_to(videos.root).as_posix(): entry.captions for entry in videos.entries}


def test_msrvtt(tmp_path: Path) -> None:
    touch(*(tmp_path / "videos" / "all" / f"video{i}.mp4" for i in (7, 9770, 9771)))
    test = write(
        tmp_path / "MSRVTT_JSFUSION_test.csv",
        "key,vid_key,video_id,sentence",
        'ret0,msr9770,video9770,"a person is connecting something, slowly"',
        "ret1,msr9771,video9771,a little girl does gymnastics",
    )
    videos = read_source(test, root=tmp_path / "videos")
    assert (videos.split, videos.labels) == ("test", ())
    expected = {
        "all/video9770.mp4": ("a person is connecting something, slowly",),
        "all/video9771.mp4": ("a little girl does gymnastics",),
    }
    assert captions_of(videos) == expected
    assert captions_of(read_source(tmp_path, root=tmp_path / "videos", split="test")) == expected

    write(tmp_path / "MSRVTT_train.9k.csv", "video_id", "video7", "video8")
    sentences = [
        {"caption": "a car is driving", "video_id": "video7", "sen_id": 1},
        {"caption": "someone drives", "video_id": "video7", "sen_id": 2},
        {"caption": "a test", "video_id": "video9770", "sen_id": 3},
    ]
    dump(tmp_path / "MSRVTT_data.json", {"videos": [], "sentences": sentences})
    train = read_source(tmp_path, root=tmp_path / "videos", split="train")
    assert captions_of(train) == {"all/video7.mp4": ("a car is driving", "someone drives")}
    assert train.notes == ("left out 1 videos without a caption",)


def test_didemo(tmp_path: Path) -> None:
    names = ["10015567@N08_3655084291_e8b58a7d1e.mov", "11111@N00_22_aa.avi", "2@N1_3_b.mp4"]
    touch(tmp_path / "videos" / names[0], tmp_path / "videos" / f"{names[1]}.mp4")
    rows = [
        {"annotation_id": 1, "description": "a dog jumps.", "video": names[0], "times": [[0, 1]]},
        {"annotation_id": 2, "description": "a child claps", "video": names[1], "times": [[2, 2]]},
        {"annotation_id": 3, "description": " it shakes", "video": names[0], "times": [[0, 0]]},
        {"annotation_id": 4, "description": "lost", "video": names[2], "times": [[0, 0]]},
    ]
    videos = read_source(dump(tmp_path / "test_data.json", rows), root=tmp_path / "videos")
    assert (videos.name, videos.split) == ("didemo", "test")
    assert captions_of(videos) == {
        names[0]: ("a dog jumps. it shakes",),
        f"{names[1]}.mp4": ("a child claps",),
        names[2]: ("lost",),
    }
    assert {entry.end for entry in videos.entries} == {30.0}
    assert len(read_source(tmp_path, "didemo", tmp_path / "videos", "test").entries) == 3


def test_activitynet_captions(tmp_path: Path) -> None:
    touch(tmp_path / "videos" / "v_abc.mkv", tmp_path / "videos" / "-xyz.mp4")
    content = {
        "v_abc": {
            "duration": 82.7,
            "timestamps": [[17.37, 60.81], [0.83, 19.86]],
            "sentences": [" She fixes her bike.", "A woman stands."],
        },
        "v_-xyz": {"duration": 9, "timestamps": [[0, 9]], "sentences": ["A man plays."]},
    }
    videos = read_source(dump(tmp_path / "val_1.json", content), root=tmp_path / "videos")
    assert (videos.name, videos.split) == ("activitynet_captions", "val")
    assert captions_of(videos) == {
        "v_abc.mkv": ("A woman stands. She fixes her bike.",),
        "-xyz.mp4": ("A man plays.",),
    }
    folder = read_source(tmp_path, "activitynet_captions", tmp_path / "videos", "val")
    assert captions_of(folder) == captions_of(videos)


def test_lsmdc(tmp_path: Path) -> None:
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    touch(tmp_path / "videos" / "0001_American_Beauty" / f"{clip}.avi")
    row = f"{clip}\t00.00.51.926\t00.00.54.129\t00.00.51.926\t00.00.54.129\tSOMEONE looks up."
    source = write(tmp_path / "LSMDC16_challenge_1000_publictect.csv", row)
    videos = read_source(source, root=tmp_path / "videos")
    assert (videos.name, videos.split) == ("lsmdc", "test")
    assert captions_of(videos) == {f"0001_American_Beauty/{clip}.avi": ("SOMEONE looks up.",)}
    train = write(tmp_path / "LSMDC16_annos_training.csv", row)
    assert read_source(train, root=tmp_path / "videos").split == "train"
    with pytest.raises(ValueError, match="does not have six columns"):
        read_source(write(tmp_path / "LSMDC16_annos_val.csv", "a\tb"), root=tmp_path / "videos")


def test_msvd(tmp_path: Path) -> None:
    touch(*(tmp_path / "YouTubeClips" / f"{name}.avi" for name in ("a_1_5", "b_0_9")))
    write(tmp_path / "test_list.txt", "a_1_5", "b_0_9")
    captions = {
        "a_1_5": [["a", "man", "runs"], ["someone", "runs"]],
        "b_0_9": [["a", "cat"]],
        "c_0_1": [["no"]],
    }
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    videos = read_source(tmp_path, root=tmp_path / "YouTubeClips", split="test")
    assert (videos.name, videos.split) == ("msvd", "test")
    assert captions_of(videos) == {"a_1_5.avi": ("a man runs", "someone runs"), "b_0_9.avi": ("a cat",)}

    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a_1_5": Path("x")}))
    with pytest.raises(ValueError, match=r"not a pickle of plain lists \(it wants to run pathlib"):
        read_source(tmp_path, root=tmp_path / "YouTubeClips", split="test")


def test_pairs(tmp_path: Path) -> None:
    touch(tmp_path / "v" / "1.mp4", tmp_path / "v" / "2.jpg")
    rows = [
        {"video": "v/1.mp4", "caption": ["first.", "second."]},
        {"image": "v/2.jpg", "caption": "a picture"},
    ]
    source = dump(tmp_path / "webvid_train.json", rows)
    videos = read_source(source)
    assert (videos.name, videos.split) == ("pairs", "train")
    assert captions_of(videos) == {"v/1.mp4": ("first.", "second."), "v/2.jpg": ("a picture",)}


@pytest.mark.parametrize("format", ["didemo", "pairs", "activitynet_captions", "msrvtt", "lsmdc"])
def test_files_of_another_shape_are_named(tmp_path: Path, format: str) -> None:
    touch(tmp_path / "videos" / "a.mp4")
    for name, content in (("test_a.json", [{"path": "a.mp4"}]), ("test_b.json", [1])):
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}.*: "):
            read_source(
                dump(tmp_path / name, content),
                format,
                tmp_path / "videos",
                "test" if format == "msrvtt" else "val",
            )


GOOD = {"video": "a.mp4", "caption": "A dog."}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"video": "a.mp4", "caption": None}, "caption is null, not a text"),
        ({"video": "a.mp4", "caption": " "}, "caption is ' ', not a text"),
        ({"video": "a.mp4", "caption": []}, "caption is empty"),
        ({"video": "a.mp4", "caption": ["A cat.", None]}, "caption is null, not a text"),
        ({"caption": "A cat."}, "no video or image; its keys are caption"),
        ({"video": ["a.mp4", "b.mp4"], "caption": "A cat."}, "2 videos, where one is read of each row"),
        (["a.mp4", "A cat."], "an object is expected, not a list of 2"),
    ],
)
def test_odd_pairs_are_left_out_and_the_first_is_named(tmp_path: Path, odd: object, reason: str) -> None:
    touch(tmp_path / "a.mp4")
    videos = read_source(dump(tmp_path / "x.json", [GOOD, odd, odd, {**GOOD, "video": ["b.mp4"]}]), "pairs")
    assert [entry.captions for entry in videos.entries] == [("A dog.",), ("A dog.",)]
    assert videos.notes == (f"left out 2 of 4 rows of x.json, the first is row 2: {reason}",)
    # The first row may be odd, too.
    assert len(read_source(dump(tmp_path / "y.json", [odd, GOOD])).entries) == 1
    with pytest.raises(ValueError, match=re.escape(f"none of its 1 rows can be used; row 1: {reason}")):
        read_source(dump(tmp_path / "z.json", [odd]), "pairs")


def test_odd_rows_of_other_sets_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "v_a.mp4", tmp_path / "a.mp4")
    content = {
        "v_b": {"timestamps": [[0, 1]], "sentences": ["One.", "Two."]},
        "v_a": {"timestamps": [[0, 1]], "sentences": ["One."]},
        "v_c": {"timestamps": ["0"], "sentences": ["One."]},
    }
    videos = read_source(dump(tmp_path / "val_1.json", content))
    assert captions_of(videos) == {"v_a.mp4": ("One.",)}
    (note,) = videos.notes
    assert note.startswith(
        "left out 2 of 3 rows of val_1.json, the first is v_b: timestamps are a list of 1, "
    )
    rows = [{"video": "a.mp4", "description": "One.", "times": []}, {"video": "a.mp4", "times": []}]
    videos = read_source(dump(tmp_path / "val_data.json", rows))
    reason = "no description; its keys are video, times"
    assert videos.notes == (f"left out 1 of 2 rows of val_data.json, the first is row 2: {reason}",)
    row = "a\t0\t1\t0\t1\tSOMEONE looks up."
    videos = read_source(write(tmp_path / "LSMDC16_annos_val.csv", "a\tb", row), root=tmp_path)
    assert captions_of(videos) == {"a.mp4": ("SOMEONE looks up.",)}
    assert "the first is line 1: 'a\\tb' does not have six columns" in videos.notes[0]


def test_pairs_as_json_lines(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    list_ = write(tmp_path / "train.jsonl", '{"video": "a.mp4", "caption": "a cup"}')
    assert captions_of(read_source(list_)) == {"a.mp4": ("a cup",)}
