"""Questions about videos as their authors ship them: conversations of LLaVA and VideoChat2, question lists of
UMT, captions to choose from (MSRVTT-MC, SSv2-MC), MVBench and DREAM-1K.

The readers take the annotations (a file or a folder), the folder of the videos and the split; see
`fluxvit.data.sources`. Questions become the key ``qa`` of a manifest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fluxvit.data.layout import (
    VideoList,
    files_in,
    find_video,
    index_videos,
    name_split,
)
from fluxvit.data.manifest import Entry
from fluxvit.data.questions import DESCRIBE
from fluxvit.data.text_files import first_line, read_annotations, text_lines

_PLACE = ("<video>", "<image>")


class _Task(NamedTuple):
    """Of MVBench: its file, the folder of its videos, and the rate of those that are folders of frames."""

    name: str
    file: str
    folder: str
    frames_per_second: float | None = None


_MVBENCH = (
    _Task("Action Sequence", "action_sequence", "star/Charades_v1_480"),
    _Task("Action Prediction", "action_prediction", "star/Charades_v1_480"),
    _Task("Action Antonym", "action_antonym", "ssv2_video"),
    _Task("Fine-grained Action", "fine_grained_action", "Moments_in_Time_Raw/videos"),
    _Task("Unexpected Action", "unexpected_action", "FunQA_test/test"),
    _Task("Object Existence", "object_existence", "clevrer/video_validation"),
    _Task("Object Interaction", "object_interaction", "star/Charades_v1_480"),
    _Task("Object Shuffle", "object_shuffle", "perception/videos"),
    _Task("Moving Direction", "moving_direction", "clevrer/video_validation"),
    _Task("Action Localization", "action_localization", "sta/sta_video"),
    _Task("Scene Transition", "scene_transition", "scene_qa/video"),
    _Task("Action Count", "action_count", "perception/videos"),
    _Task("Moving Count", "moving_count", "clevrer/video_validation"),
    _Task("Moving Attribute", "moving_attribute", "clevrer/video_validation"),
    _Task("State Change", "state_change", "perception/videos"),
    _Task("Fine-grained Pose", "fine_grained_pose", "nturgbd"),
    _Task("Character Order", "character_order", "perception/videos"),
    _Task("Egocentric Navigation", "egocentric_navigation", "vlnqa"),
    _Task("Episodic Reasoning", "episodic_reasoning", "tvqa/frames_fps3_hq", 3.0),
    _Task("Counterfactual Inference", "counterfactual_inference", "clevrer/video_validation"),
)
# Folders of images are read at this rate; seconds of others are stretched.
_FOLDER_FPS = 25.0


def read_conversations(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A JSON list of videos (or images) with what is asked and answered about them, in one of these forms:

    * ``{"video": PATH, "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}``
      (LLaVA). Turns are taken in their order; the mark ``<video>`` or ``<image>`` is cut out.
    * ``{"video": PATH, "QA": [{"i": INSTRUCTION, "q": QUESTION, "a": ANSWER}, ...]}`` (VideoChat2-IT).
      Instruction and question become one text.
    * ``{"video": PATH, "question": ..., "answer": ..., "choices" or "candidates": [...]}`` (UMT and others).

    Paths are relative to ``root``, by default the folder of the list. Rows of the same video are joined.
    """
    root = root or source.parent
    asked: dict[Path, list[dict[str, Any]]] = {}
    for row in read_annotations(source):
        path = root / row["video" if "video" in row else "image"]
        asked.setdefault(path, []).extend(_questions(row))
    entries = [Entry(path, extra={"qa": rows}) for path, rows in asked.items() if rows]
    notes = _passed_over(len(asked) - len(entries))
    return VideoList("", name_split(split, source), root, tuple(entries), notes=notes)


def read_choices(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Captions to choose from, of which one is right, as for MSRVTT-MC and SSv2-MC: a JSON list of
    ``{"video" or "image": PATH, "caption": [TEXT, ...], "answer": INDEX}`` (UMT, InternVideo2), or lines of
    ``{"clip_name": PATH, "options": [TEXT, ...], "answer": INDEX}``.

    Paths are relative to ``root``, by default the folder of the list. Captions that are there twice are taken
    once.
    """
    root = root or source.parent
    rows = _json_lines(source) if source.suffix == ".jsonl" else read_annotations(source)
    entries, twice = [], 0
    for row in rows:
        texts = [text.strip() for text in row["options" if "options" in row else "caption"]]
        path = root / row[next(key for key in ("video", "image", "clip_name") if key in row)]
        number = int(row["answer"])
        if not 0 <= number < len(texts):
            raise ValueError(f"{source}: {path.name} has answer {number}, but {len(texts)} captions, from 0")
        choices = list(dict.fromkeys(texts))
        twice += len(choices) < len(texts)
        question = {"question": DESCRIBE, "answer": texts[number], "choices": choices}
        entries.append(Entry(path, extra={"qa": [question]}))
    notes = (f"{twice} videos have a caption twice, which was taken once",) if twice else ()
    return VideoList("", name_split(split, source), root, tuple(entries), notes=notes)


def read_mvbench(source: Path, root: Path | None, split: str | None) -> VideoList:
    """MVBench: a folder ``json`` with a file for each of 20 tasks, each a list of ``video``, ``question``,
    ``candidates``, ``answer``, and of some ``start`` and ``end`` in seconds.

    ``source`` is that folder, or the one that holds it; videos are below ``root`` in the folders that MVBench
    has them in, such as ``star/Charades_v1_480``. Tasks without a file are passed over, and told. What is
    left of a question is one entry, with the name of its task.
    """
    folder = source / "json" if (source / "json").is_dir() else source
    root = root or source
    entries, missing = [], []
    for task in _MVBENCH:
        file = folder / f"{task.file}.json"
        if not file.is_file():
            missing.append(task.name)
            continue
        for row in read_annotations(file):
            question = {
                "question": row["question"],
                "answer": row["answer"],
                "choices": list(row["candidates"]),
                "task": task.name,
            }
            entry = Entry(root / task.folder / row["video"], extra={"qa": [question]})
            if "start" in row and "end" in row:
                stretch = (task.frames_per_second or _FOLDER_FPS) / _FOLDER_FPS
                entry = replace(entry, start=row["start"] * stretch, end=row["end"] * stretch)
            entries.append(entry)
    notes = (f"no file of {', '.join(missing)}",) if missing else ()
    return VideoList("", split or "test", root, tuple(entries), notes=notes)


def read_dream1k(source: Path, root: Path | None, split: str | None) -> VideoList:
    """DREAM-1K: ``DREAM-1k.jsonl``, each line with ``vid``, ``dataset``, ``text`` (``prompt``, ``response``)
    and ``extra_info`` with ``events``.

    The response becomes the caption, the events are kept, and the prompt is an open question. Videos are
    ``VID`` with any suffix in any folder below ``root``.
    """
    root = root or source.parent
    index = index_videos(root)
    entries = []
    for row in _json_lines(source):
        text, name = row["text"], str(row["vid"])
        question = {
            "question": _bare(text["prompt"]),
            "answer": text["response"],
            "task": row["dataset"].rpartition("/")[2],
        }
        path = find_video(index, [name], root / f"{name}.mp4")
        extra = {"qa": [question], "events": list(row["extra_info"]["events"])}
        entries.append(Entry(path, captions=(text["response"],), extra=extra))
    return VideoList("", split or "test", root, tuple(entries))


def _json_lines(source: Path) -> list[Any]:
    """The lines of a file, each read as JSON.

    Raises:
        ValueError: One is none.
    """
    try:
        return [json.loads(line) for line in text_lines(source)]
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: a line that is not JSON: {error}") from error


def _questions(row: dict[str, Any]) -> list[dict[str, Any]]:
    if "conversations" in row:
        turns = row["conversations"]
        pairs = zip(turns[::2], turns[1::2], strict=False)
        return [{"question": _bare(one["value"]), "answer": other["value"].strip()} for one, other in pairs]
    if "QA" in row:
        return [
            {"question": _joined((qa.get("i", ""), qa["q"])), "answer": qa["a"].strip()} for qa in row["QA"]
        ]
    question = {"question": row["question"].strip(), "answer": row["answer"]}
    choices = row.get("choices", row.get("candidates"))
    return [question if choices is None else {**question, "choices": list(choices)}]


def _bare(text: str) -> str:
    for place in _PLACE:
        text = text.replace(place, " ")
    return text.strip()


def _joined(parts: Sequence[str]) -> str:
    return " ".join(part.strip() for part in parts if part.strip())


def _passed_over(count: int) -> tuple[str, ...]:
    return (f"{count} videos without a question were passed over",) if count else ()


def detect_question_set(path: Path) -> str:
    """The key of the format of a file or folder, by its content; empty if it is none of these."""
    if path.is_dir():
        names = {
            file.stem for folder in (path, path / "json") if folder.is_dir() for file in files_in(folder)
        }
        return "mvbench" if len(names & {task.file for task in _MVBENCH}) > 1 else ""
    if path.suffix == ".jsonl":
        keys = set(_first_row(path))
        if {"extra_info", "vid"} <= keys:
            return "dream1k"
        return "choices" if {"clip_name", "options", "answer"} <= keys else ""
    if path.suffix == ".json":
        content = read_annotations(path)
        first = content[0] if isinstance(content, list) and content else None
        keys = set(first) if isinstance(first, dict) else set()
        if {"caption", "answer"} <= keys and keys & {"video", "image"}:
            return "choices"
        asked = keys & {"conversations", "QA"} or {"question", "answer"} <= keys
        if asked and keys & {"video", "image"}:
            return "conversations"
    return ""


def _first_row(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(first_line(path))
    except json.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}
