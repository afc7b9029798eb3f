"""Conversations about videos, as LLaVA, Qwen, LLaMA-Factory and others write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fluxvit.data.formats.rows import (
    VIDEO_KEYS,
    OddRowError,
    as_object,
    as_text,
    described,
    value_of,
    video_of,
)

TURN_KEYS = ("conversations", "conversation", "messages")
"""Keys of a row that has turns."""

_SPEAKERS = {
    **dict.fromkeys(("human", "user", "usr", "question", "student"), "question"),
    **dict.fromkeys(("gpt", "assistant", "bot", "model", "chatgpt", "answer", "llm"), "answer"),
    **dict.fromkeys(("system", "developer"), "system"),
}
# Where a video is put into a text: <video>, <Image>, <image-placeholder>, <ImageHere>, <|video_pad|>, ...
_PLACE = re.compile(
    r"<\|?/?(?:vision_start|vision_end|(?:video|image|vid|img)s?(?:here|[-_\d][\w-]*)?)\|?>", re.IGNORECASE
)


def video_of_turns(row: Mapping[str, Any]) -> str:
    """The video that a conversation is about, as a key of the row or in the content of a turn.

    Raises:
        OddRowError: The row has no video, or several.
    """
    if any(key in row for key in VIDEO_KEYS):
        return video_of(row)
    turns = value_of(row, *TURN_KEYS)
    named = []
    for turn in turns if isinstance(turns, list) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                named += [part[key] for key in ("video", "image") if isinstance(part.get(key), str)]
    return video_of({"video": list(dict.fromkeys(named))} if named else row)


def questions_of_turns(row: Mapping[str, Any], left_out: Counter[str]) -> list[dict[str, Any]]:
    """The questions of a conversation with their answers. The speaker decides what a turn is.

    Turns of the system are left out. Turns of the same speaker that follow each other are joined. An answer
    before the first question, and a question without an answer at the end, are left out.

    Args:
        left_out: Counts what is left out.

    Raises:
        OddRowError: A turn has no text, or a speaker that is not known.
    """
    turns = value_of(row, *TURN_KEYS)
    if not isinstance(turns, list):
        raise OddRowError(f"the conversation is {described(turns)}, not a list of turns")
    joined: list[tuple[str, list[str]]] = []
    skipped: Counter[str] = Counter()
    for number, turn in enumerate(turns, start=1):
        try:
            kind, text = _turn(as_object(turn))
        except OddRowError as error:
            raise OddRowError(f"turn {number}: {error}") from None
        if kind == "system":
            skipped["turns of the system"] += 1
        elif joined and joined[-1][0] == kind:
            joined[-1][1].append(text)
        else:
            joined.append((kind, [text]))
    rows = []
    question = ""
    for kind, texts in joined:
        text = " ".join(filter(None, texts))
        if kind == "question":
            question = text
        elif question:
            rows.append({"question": question, "answer": text})
            question = ""
        else:
            skipped["answers without a question"] += 1
    skipped["questions without an answer"] += bool(question)
    left_out += skipped
    return rows


def without_places(text: str) -> str:
    """A text without the marks for where a video is put in."""
    return _PLACE.sub(" ", text).strip()


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Whether a turn is a question, an answer or of the system, and its text."""
    speaker = value_of(turn, "from", "role")
    kind = _SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if kind is None:
        raise OddRowError(f"the speaker is {described(speaker)}, none of {', '.join(_SPEAKERS)}")
    content = value_of(turn, "value", "content", "text")
    if isinstance(content, list):
        content = " ".join(filter(None, map(_part, content))) if content else None
    elif content is not None:
        content = as_text(content, "its text") if content != "" or kind == "answer" else ""
    if content is None:
        raise OddRowError(f"its text is {described(content)}, not a text")
    text = without_places(content)
    if kind == "answer" and not text:
        raise OddRowError("the answer is empty")
    return kind, text


def _part(part: Any) -> str:
    """The text of a part of a turn; empty for videos and images."""
    if isinstance(part, str):
        return part.strip()
    part = as_object(part)
    if "text" in part:
        return as_text(part["text"], "its text")
    if part.get("type") in ("video", "image") or {"video", "image"} & part.keys():
        return ""
    raise OddRowError(f"a part of it is {described(part)}, neither a text nor a video")
