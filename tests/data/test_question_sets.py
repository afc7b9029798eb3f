"""Questions on files laid out as they ship. Files need not be videos here: nothing is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_sources import dump, touch

from fluxvit.data.formats.registry import read_source
from fluxvit.data.questions import questions_of


def test_conversations_in_all_their_forms(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.mp4" for name in "abc"))
    llava = [
        {
            "id": "1",
            "video": "a.mp4",
            "conversations": [
                {"from": "human", "value": "<video>\nWhat is it?"},
                {"from": "gpt", "value": "A cat. "},
                {"from": "human", "value": "Where?"},
                {"from": "gpt", "value": "On a mat."},
            ],
        },
        {"id": "2", "image": "b.mp4", "conversations": []},
    ]
    videos = read_source(dump(tmp_path / "train_llava.json", llava))
    assert (videos.name, videos.split) == ("conversations", "train")
    (entry,) = videos.entries
    assert [(q.question, q.answer) for q in questions_of(entry)] == [
        ("What is it?", "A cat."),
        ("Where?", "On a mat."),
    ]
    assert videos.notes == ("left out 1 videos without a question",)

    videochat = [
        {
            "video": "c.mp4",
            "QA": [{"i": "Look closely.", "q": "How many?", "a": "Two"}, {"q": "Who?", "a": "She"}],
        }
    ]
    (entry,) = read_source(dump(tmp_path / "videochat.json", videochat)).entries
    assert [(q.question, q.answer) for q in questions_of(entry)] == [
        ("Look closely. How many?", "Two"),
        ("Who?", "She"),
    ]

    plain = [
        {"video": "a.mp4", "question": "What?", "answer": "this"},
        {"video": "a.mp4", "question": "Which?", "answer": "x", "candidates": ["x", "y"]},
    ]
    (entry,) = read_source(dump(tmp_path / "qa.json", plain)).entries
    assert [(q.question, q.answer, q.choices) for q in questions_of(entry)] == [
        ("What?", "this", ()),
        ("Which?", "x", ("x", "y")),
    ]


def test_mvbench(tmp_path: Path) -> None:
    touch(tmp_path / "video" / "star" / "Charades_v1_480" / "ZS9XR.mp4")
    touch(tmp_path / "video" / "tvqa" / "frames_fps3_hq" / "castle_s01" / "00001.jpg")
    sequence = {
        "video": "ZS9XR.mp4",
        "question": "What happened after the person took the food?",
        "candidates": ["Ate the medicine.", "Tidied up the blanket."],
        "answer": "Ate the medicine.",
        "start": 11.1,
        "end": 19.6,
    }
    dump(tmp_path / "json" / "action_sequence.json", [sequence])
    episode = {**sequence, "video": "castle_s01", "start": 3.0, "end": 9.0}
    dump(tmp_path / "json" / "episodic_reasoning.json", [episode])
    videos = read_source(tmp_path, root=tmp_path / "video")
    assert (videos.name, videos.split) == ("mvbench", "test")
    first, second = videos.entries
    assert first.path == tmp_path / "video" / "star" / "Charades_v1_480" / "ZS9XR.mp4"
    assert (first.start, first.end) == (11.1, 19.6)
    # Three frames a second, in a folder that is read as if they were 25.
    assert (second.start, second.end) == pytest.approx((3 * 3 / 25, 9 * 3 / 25))
    (question,) = questions_of(first)
    assert question.task == "Action Sequence"
    assert question.choices == ("Ate the medicine.", "Tidied up the blanket.")
    assert len(videos.notes[0].split(", ")) == 18
    bad = {**sequence, "options": sequence["candidates"]}
    del bad["candidates"]
    (tmp_path / "json" / "action_sequence.json").write_text(json.dumps([bad]))
    with pytest.raises(
        ValueError, match=r"action_sequence.json: none of its 1 rows can be used; row 1: no candid"
    ):
        read_source(tmp_path, root=tmp_path / "video")


def test_dream1k(tmp_path: Path) -> None:
    touch(tmp_path / "video" / "DREAM-1K_videos" / "7.mp4")
    row = {
        "idx": 1,
        "dataset": "DREAM/movie_animation",
        "text": {"prompt": "<video>\nDescribe the video in detail.", "response": "A dog runs, then it sits."},
        "video_file": "<placeholder>",
        "extra_info": {"duration": 5.09, "events": ["A dog runs.", "The dog sits."], "n_events": 2},
        "vid": 7,
    }
    source = dump(tmp_path / "DREAM-1k.jsonl", row)
    videos = read_source(source, root=tmp_path / "video")
    assert (videos.name, videos.split) == ("dream1k", "test")
    (entry,) = videos.entries
    assert entry.path.name == "7.mp4"
    assert entry.captions == ("A dog runs, then it sits.",)
    assert entry.extra["events"] == ["A dog runs.", "The dog sits."]
    (question,) = questions_of(entry)
    assert (question.question, question.task) == ("Describe the video in detail.", "movie_animation")
    source.write_text(source.read_text() + "{\n")
    with pytest.raises(ValueError, match=r"DREAM-1k\.jsonl, line 2: not JSON"):
        read_source(source, root=tmp_path / "video")
