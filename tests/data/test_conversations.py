"""Conversations as people's files have them: who speaks is read, and odd rows are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sources import dump, touch

from fluxvit.data.formats.conversations import without_places
from fluxvit.data.formats.layout import VideoList
from fluxvit.data.formats.registry import read_source
from fluxvit.data.questions import questions_of


def says(speaker: str, text: Any) -> dict[str, Any]:
    return {"from": speaker, "value": text}


def row(*turns: Any, **others: Any) -> dict[str, Any]:
    return {"video": "a.mp4", "conversations": list(turns), **others}


ASKED, ANSWERED = says("human", "<video>\nWhat falls?"), says("gpt", "A cup.")
PLAIN = row(ASKED, ANSWERED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    return tmp_path


def read(folder: Path, *rows: Any) -> VideoList:
    return read_source(dump(folder / "train.json", list(rows)))


def asked(videos: VideoList) -> list[tuple[str, str]]:
    return [(each.question, each.answer) for entry in videos.entries for each in questions_of(entry)]


@pytest.mark.parametrize(
    ("given", "notes"),
    [
        (PLAIN, ()),
        (row(says("system", "Be short."), ASKED, ANSWERED), ("left out 1 turns of the system",)),
        (row(says("gpt", "Hello!"), ASKED, ANSWERED), ("left out 1 answers without a question",)),
        (row(ASKED, ANSWERED, says("human", "Why?")), ("left out 1 questions without an answer",)),
        (row(says("human", "<video>"), says("human", "What falls?"), ANSWERED), ()),
        (row(ASKED, says("gpt", "A"), says("gpt", "cup.")), ()),
        (row(ASKED, says("system", "Now answer."), ANSWERED), ("left out 1 turns of the system",)),
        (row(says("user", "What falls? <IMAGE>"), says("Assistant", "A cup.")), ()),
        (row({"role": "user", "content": "What falls?"}, {"role": "assistant", "content": "A cup."}), ()),
        (row({"role": "user", "content": [{"type": "video"}, {"text": "What falls?"}]}, ANSWERED), ()),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"video": "file://a.mp4"}, {"text": "What falls?"}]},
                    {"role": "assistant", "content": ["A cup."]},
                ]
            },
            (),
        ),
        ({"videos": ["a.mp4"], "messages": [ASKED, ANSWERED]}, ()),
        ({"video": ["a.mp4"], "conversations": [ASKED, ANSWERED]}, ()),
        ({"video": "a.mp4", "QA": {"i": "", "q": "What falls?", "a": "A cup."}}, ()),
        ({"video": "a.mp4", "QA": [{"q": "What falls?", "a": "A cup."}]}, ()),
        ({"image": "a.mp4", "question": "What falls?", "answer": "A cup."}, ()),
    ],
)  # fmt: skip
def test_who_speaks_is_read_from_the_turn(folder: Path, given: Any, notes: tuple[str, ...]) -> None:
    videos = read(folder, given)
    assert videos.name == "conversations"
    assert [entry.path for entry in videos.entries] == [folder / "a.mp4"]
    assert asked(videos) == [("What falls?", "A cup.")]
    assert videos.notes == notes


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"conversations": [ASKED, ANSWERED]}, "no video or image; its keys are conversations"),
        ({**PLAIN, "video": ["a.mp4", "b.mp4"]}, "2 videos, where one is read of each row"),
        ({**PLAIN, "video": []}, "no videos, where one is read of each row"),
        ({**PLAIN, "video": None}, "the video is null, not a path"),
        ({**PLAIN, "video": "a\0.mp4"}, "which no file can be called"),
        (row(ASKED, says("gpt", None)), "turn 2: its text is null, not a text"),
        (row(ASKED, says("gpt", "")), "turn 2: its text is '', not a text"),
        (row(ASKED, says("gpt", "<video>")), "turn 2: the answer is empty"),
        (row(ASKED, says("narrator", "A cup.")), "turn 2: the speaker is 'narrator', none of human, user"),
        (row(ASKED, {"gpt": "A cup."}), "turn 2: no from or role; its keys are gpt"),
        (row(ASKED, "A cup."), "turn 2: an object is expected, not 'A cup.'"),
        (row(ASKED, says("gpt", [{"type": "audio"}])), "turn 2: a part of it is an object with the keys "),
        ({"video": "a.mp4", "conversations": "What?"}, "the conversation is 'What\\?', not a list of turns"),
        ({"video": "a.mp4", "QA": [{"q": "What?"}]}, "no a or answer; its keys are q"),
        ({"video": "a.mp4", "question": "What?"}, "no conversations or .* or QA or question and answer"),
        ({"video": "a.mp4", "question": "?", "answer": "dog", "choices": ["a", "b"]}, "'dog' is not among"),
        ({"video": "a.mp4", "question": "?", "answer": 2, "choices": ["a", "b"]}, "'2' is not among its 2"),
        ({"video": "a.mp4", "question": "?", "answer": "C", "choices": ["a", "b"]}, "'C' is not among its 2"),
        ({"video": "a.mp4", "question": "?", "answer": "a", "choices": 3}, "'a' is not among its 1"),
        ({"video": "a.mp4", "question": "?", "answer": True}, "answer is True, not a text"),
        (7, "an object is expected, not 7"),
        (None, "an object is expected, not null"),
    ],
)  # fmt: skip
def test_odd_rows_are_left_out_and_the_first_is_named(folder: Path, odd: Any, reason: str) -> None:
    videos = read(folder, odd, PLAIN, odd, row(says("human", "Why?"), says("gpt", "So."), video="b.mp4"))
    assert asked(videos) == [("What falls?", "A cup."), ("Why?", "So.")]
    (note,) = videos.notes
    assert note.startswith("left out 2 of 4 rows of train.json, the first is row 1: ")
    with pytest.raises(ValueError, match=f"none of its 2 rows can be used; row 1: .*{reason}"):
        read_source(dump(folder / "odd.json", [odd, odd]), "conversations")


@pytest.mark.parametrize("answer", ["cup", " cup", 1, "1", "B", "(B)", "b: cup"])
def test_an_answer_is_a_choice_its_index_or_its_letter(folder: Path, answer: Any) -> None:
    choices = ["apple", "b: cup" if answer == "b: cup" else "cup"]
    content = {"video": "a.mp4", "question": "What?", "answer": answer, "candidates": choices}
    (entry,) = read(folder, content).entries
    (question,) = questions_of(entry)
    assert (question.answer, question.choices) == (choices[1], tuple(choices))


def test_numbers_that_are_choices_are_no_indices(folder: Path) -> None:
    content = {"video": "a.mp4", "question": "How many?", "answer": 2, "options": [3, 2, 1]}
    (entry,) = read(folder, content).entries
    assert questions_of(entry)[0].answer == "2"


@pytest.mark.parametrize(
    "mark",
    ["<video>", "<IMAGE>", "<Video>", "<image-placeholder>", "<|video_pad|>", "<video_0>", "<ImageHere>"],
)
def test_marks_of_videos_are_cut_out(mark: str) -> None:
    assert without_places(f"{mark}\nIs 1 <2> 3?") == "Is 1 <2> 3?"
    assert without_places("Is <vide> in <imaginary>?") == "Is <vide> in <imaginary>?"


def test_json_lines_are_read_under_either_name(folder: Path) -> None:
    text = "\n".join(map(json.dumps, (PLAIN, row(says("human", "Why?"), says("gpt", "So.")))))
    for name in ("train.json", "train.jsonl"):
        (folder / name).write_text(text)
        assert asked(read_source(folder / name)) == [("What falls?", "A cup."), ("Why?", "So.")]


def test_manifests_are_no_conversations(folder: Path) -> None:
    question = {"question": "What falls?", "answer": "A cup."}
    dump(folder / "train.jsonl", {"path": "a.mp4", "qa": [question]})
    assert read_source(folder / "train.jsonl").name == "manifest"
    dump(folder / "train.jsonl", {"path": "a.mp4", "qa": [{**question, "answer": 1}]})
    with pytest.raises(ValueError, match=r"a\.mp4: a question of its qa has something else than texts"):
        questions_of(read_source(folder / "train.jsonl").entries[0])


KEYS = [
    "video",
    "conversations",
    "messages",
    "from",
    "value",
    "role",
    "content",
    "type",
    "text",
    "QA",
    "q",
    "a",
    "question",
    "answer",
    "choices",
]
TEXTS = ["human", "gpt", "A", "<video>", "", "a.mp4"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JSON, max_size=4))
def test_whatever_a_row_holds_the_others_are_read(folder: Path, rows: list[Any]) -> None:
    videos = read_source(dump(folder / "train.json", [*rows, PLAIN]), "conversations")
    assert ("What falls?", "A cup.") in asked(videos)
    assert all(each.question and each.answer for entry in videos.entries for each in questions_of(entry))
