"""Questions about videos as their authors ship them: conversations of LLaVA and VideoChat2, question lists of
UMT, MVBench and DREAM-1K.

The readers take the annotations (a file or a folder), the folder of the videos and the split; see
`fluxvit.data.formats.registry`. Questions become the key ``qa`` of a manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fluxvit.data.formats.conversations import (
    TURN_KEYS,
    questions_of_turns,
    video_of_turns,
    without_places,
)
from fluxvit.data.formats.layout import VideoFinder, VideoList, data_format, name_split
from fluxvit.data.formats.rows import (
    OddRowError,
    as_object,
    described,
    text_of,
    texts_of,
    usable_rows,
    value_of,
    video_of,
)
from fluxvit.data.formats.text_files import shown
from fluxvit.data.manifest import Entry


class Task(NamedTuple):
    """A task of MVBench: its file, the folder of its videos, and the rate of those stored as frames."""

    name: str
    file: str
    folder: str
    frames_per_second: float | None = None


MVBENCH = (
    Task("Action Sequence", "action_sequence", "star/Charades_v1_480"),
    Task("Action Prediction", "action_prediction", "star/Charades_v1_480"),
    Task("Action Antonym", "action_antonym", "ssv2_video"),
    Task("Fine-grained Action", "fine_grained_action", "Moments_in_Time_Raw/videos"),
    Task("Unexpected Action", "unexpected_action", "FunQA_test/test"),
    Task("Object Existence", "object_existence", "clevrer/video_validation"),
    Task("Object Interaction", "object_interaction", "star/Charades_v1_480"),
    Task("Object Shuffle", "object_shuffle", "perception/videos"),
    Task("Moving Direction", "moving_direction", "clevrer/video_validation"),
    Task("Action Localization", "action_localization", "sta/sta_video"),
    Task("Scene Transition", "scene_transition", "scene_qa/video"),
    Task("Action Count", "action_count", "perception/videos"),
    Task("Moving Count", "moving_count", "clevrer/video_validation"),
    Task("Moving Attribute", "moving_attribute", "clevrer/video_validation"),
    Task("State Change", "state_change", "perception/videos"),
    Task("Fine-grained Pose", "fine_grained_pose", "nturgbd"),
    Task("Character Order", "character_order", "perception/videos"),
    Task("Egocentric Navigation", "egocentric_navigation", "vlnqa"),
    Task("Episodic Reasoning", "episodic_reasoning", "tvqa/frames_fps3_hq", 3.0),
    Task("Counterfactual Inference", "counterfactual_inference", "clevrer/video_validation"),
)
# Folders of images are read at this rate; seconds of others are stretched.
_FOLDER_FPS = 25.0


@data_format("conversations")
def read_conversations(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A JSON list (or JSON lines) of videos or images with what is asked and answered about them, in one of
    these forms:

    * ``{"video": PATH, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``
      (LLaVA), or ``{"videos": [PATH], "messages": [{"role": "user", "content": ...}, ...]}`` (Qwen,
      LLaMA-Factory), where the content may be a list of ``{"type": "text", "text": ...}`` and videos. Who
      speaks is read from the turn: a human (``human``, ``user``), the model (``gpt``, ``assistant``, ...) or
      the system, whose turns are left out. Marks such as ``<video>`` are cut out.
    * ``{"video": PATH, "QA": [{"i": INSTRUCTION, "q": QUESTION, "a": ANSWER}, ...]}`` (VideoChat2-IT).
      Instruction and question become one text.
    * ``{"video": PATH, "question": ..., "answer": ..., "choices" or "candidates" or "options": [...]}`` (UMT
      and others). The answer is one of the choices, its index from 0, or its letter.

    Paths are relative to ``root``, by default the folder of the list. Rows of the same video are joined. A
    row that has no video, several videos, or is of another form is left out.
    """
    root = root or source.parent
    by_video: dict[Path, list[dict[str, Any]]] = {}
    left_out: Counter[str] = Counter()

    def parse(row: Any) -> tuple[str, list[dict[str, Any]]]:
        row = as_object(row)
        if any(key in row for key in TURN_KEYS):
            return video_of_turns(row), questions_of_turns(row, left_out)
        return video_of(row), _questions(row)

    usable, odd = usable_rows(source, parse)
    for _, (name, questions) in usable:
        by_video.setdefault(root / name, []).extend(questions)
    entries = [Entry(path, extra={"qa": rows}) for path, rows in by_video.items() if rows]
    left_out["videos without a question"] = len(by_video) - len(entries)
    notes = tuple(f"left out {count} {what}" for what, count in left_out.items() if count)
    return VideoList(name_split(split, source), root, tuple(entries), notes=(*odd, *notes))


@data_format("mvbench")
def read_mvbench(source: Path, root: Path | None, split: str | None) -> VideoList:
    """MVBench: a folder ``json`` with a file for each of 20 tasks, each a list of ``video``, ``question``,
    ``candidates``, ``answer``, and of some ``start`` and ``end`` in seconds.

    ``source`` is that folder, or the one that holds it; videos are below ``root`` in the folders that MVBench
    has them in, such as ``star/Charades_v1_480``. Tasks without a file are skipped, and a note
    names them. Each question becomes one entry with the name of its task.
    """
    folder = source / "json" if (source / "json").is_dir() else source
    root = root or source
    entries, missing, notes = [], [], list[str]()

    def parse(row: Any) -> tuple[str, dict[str, Any], float | None, float | None]:
        row = as_object(row)
        question = _with_choices(row, texts_of(row, "candidates"))
        times = [row.get(key) for key in ("start", "end")]
        if None not in times and not all(type(time) in (int, float) for time in times):
            raise OddRowError(
                f"start and end are {described(times[0])} and {described(times[1])}, not seconds"
            )
        return video_of(row), question, *times

    for task in MVBENCH:
        file = folder / f"{task.file}.json"
        if not file.is_file():
            missing.append(task.name)
            continue
        rows, odd = usable_rows(file, parse)
        for _, (name, question, start, end) in rows:
            entry = Entry(root / task.folder / name, extra={"qa": [{**question, "task": task.name}]})
            if start is not None and end is not None:
                stretch = (task.frames_per_second or _FOLDER_FPS) / _FOLDER_FPS
                entry = replace(entry, start=start * stretch, end=end * stretch)
            entries.append(entry)
        notes += odd
    if missing:
        notes.append(f"no file of {', '.join(missing)}")
    return VideoList(split or "test", root, tuple(entries), notes=tuple(notes))


@data_format("dream1k", row_keys=frozenset({"extra_info", "vid"}))
def read_dream1k(source: Path, root: Path | None, split: str | None) -> VideoList:
    """DREAM-1K: ``DREAM-1k.jsonl``, each line with ``vid``, ``dataset``, ``text`` (``prompt``, ``response``)
    and ``extra_info`` with ``events``.

    The response becomes the caption, the events are kept, and the prompt is an open question. Videos are
    ``VID`` with any suffix in any folder below ``root``.
    """
    videos = VideoFinder(root or source.parent)
    entries = []

    def parse(row: Any) -> tuple[str, dict[str, Any], list[str]]:
        row = as_object(row)
        text = as_object(value_of(row, "text"))
        question = {
            "question": without_places(text_of(text, "prompt")),
            "answer": text_of(text, "response"),
            "task": text_of(row, "dataset").rpartition("/")[2],
        }
        return text_of(row, "vid"), question, texts_of(as_object(value_of(row, "extra_info")), "events")

    rows, notes = usable_rows(source, parse)
    for _, (name, question, events) in rows:
        extra = {"qa": [question], "events": events}
        entries.append(Entry(videos.find(name), captions=(question["answer"],), extra=extra))
    return VideoList(split or "test", videos.root, tuple(entries), notes=notes)


def _questions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The questions of a row without turns."""
    if "QA" in row:
        rows = row["QA"] if isinstance(row["QA"], list) else [row["QA"]]
        return [_question(as_object(qa)) for qa in rows]
    if not {"question", "answer"} <= row.keys():
        value_of(row, *TURN_KEYS, "QA", "question and answer")  # There is none of them, which this tells.
    given = [key for key in ("choices", "candidates", "options") if row.get(key) is not None]
    if given:
        return [_with_choices(row, texts_of(row, *given))]
    return [{"question": text_of(row, "question"), "answer": text_of(row, "answer")}]


def _question(qa: Mapping[str, Any]) -> dict[str, Any]:
    instruction = qa.get("i", qa.get("instruction")) or ""
    question = " ".join(filter(None, (str(instruction).strip(), text_of(qa, "q", "question"))))
    return {"question": without_places(question), "answer": text_of(qa, "a", "answer")}


def _with_choices(row: Mapping[str, Any], choices: list[str]) -> dict[str, Any]:
    """A question whose answer is one of the choices, given as their text, their index or their letter."""
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if answer not in choices:
        letter = re.fullmatch(r"\(?([A-Z])[).:]?", answer)
        number = int(answer) if answer.isdecimal() else ord(letter[1]) - ord("A") if letter else -1
        if not 0 <= number < len(choices):
            raise OddRowError(f"the answer {shown(answer)} is not among its {len(choices)} choices")
        answer = choices[number]
    return {"question": question, "answer": answer, "choices": choices}
