"""Checks rows of annotations in JSON. Rows that cannot be used are left out, counted and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fluxvit.data.formats.text_files import read_annotations, shown
from fluxvit.utils.terminal import printable

Parsed = TypeVar("Parsed")

VIDEO_KEYS = ("video", "videos", "video_path", "image", "images")
"""Keys of a row that name its video, or the image that is shown like one; the first one counts."""

RECOGNISED_ROWS = 20
"""First rows of a list that tell its format: the very first may be odd."""


class OddRowError(ValueError):
    """One row of annotations cannot be used; the message says why."""


def usable_rows(
    file: Path, parse: Callable[[Any], Parsed], rows: Iterable[tuple[str, Any]] | None = None
) -> tuple[list[tuple[str, Parsed]], tuple[str, ...]]:
    """The rows of a file that can be used, each with its name.

    Args:
        file: A JSON list or a file of JSON lines.
        parse: Extracts what is needed from a row; it raises an `OddRowError` for a row to leave out.
        rows: Rows with their names for messages, such as ``line 3``, if they are not the rows of a JSON list.

    Returns:
        The names with the parsed rows, and a note of one sentence if rows were left out.

    Raises:
        ValueError: The file cannot be read or is not a list, or not one row can be used; the message names
            the first.
    """
    if rows is None:
        content = read_annotations(file)
        if not isinstance(content, list):
            raise ValueError(f"{file}: a JSON list of rows is expected, not {described(content)}")
        rows = ((f"row {number}", row) for number, row in enumerate(content, start=1))
    usable, odd = [], []
    for name, row in rows:
        try:
            usable.append((name, parse(row)))
        except OddRowError as error:
            odd.append(f"{printable(name)}: {error}")
    count = len(usable) + len(odd)
    if odd and not usable:
        raise ValueError(f"{file}: none of its {count} rows can be used; {odd[0]}")
    notes = (f"left out {len(odd)} of {count} rows of {file.name}, the first is {odd[0]}",) if odd else ()
    return usable, notes


def keys_of(row: Mapping[str, Any]) -> str:
    """The keys of an object in a message."""
    return ", ".join(printable(key) for key in list(row)[:8]) or "(none)"


def described(value: Any) -> str:
    """A value of JSON in a message."""
    if isinstance(value, dict):
        return f"an object with the keys {keys_of(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else shown(value) if isinstance(value, str) else str(value)[:40]


# --- What a row holds --------------------------------------------------------------------------------------


def as_object(row: Any) -> Mapping[str, Any]:
    """A row that is an object.

    Raises:
        OddRowError: The value has another type.
    """
    if not isinstance(row, dict):
        raise OddRowError(f"an object is expected, not {described(row)}")
    return row


def value_of(row: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first of the keys that a row has.

    Raises:
        OddRowError: It has none of them.
    """
    for key in keys:
        if key in row:
            return row[key]
    raise OddRowError(f"no {' or '.join(keys)}; its keys are {keys_of(row)}")


def text_of(row: Mapping[str, Any], *keys: str) -> str:
    """The text of the first of the keys that a row has, without white space around it.

    Raises:
        OddRowError: It has none of them, or no text there.
    """
    return as_text(value_of(row, *keys), next(key for key in keys if key in row))


def as_text(value: Any, what: str) -> str:
    """A text that is not empty; numbers become texts.

    Raises:
        OddRowError: It is something else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise OddRowError(f"{what} is {described(value)}, not a text")
    return value.strip()


def texts_of(row: Mapping[str, Any], *keys: str) -> list[str]:
    """The texts of the first of the keys that a row has: a list of some, or one alone.

    Raises:
        OddRowError: It has none of them, or something else there.
    """
    value, key = value_of(row, *keys), next(key for key in keys if key in row)
    texts = value if isinstance(value, list) else [value]
    if not texts:
        raise OddRowError(f"{key} is empty")
    return [as_text(text, key) for text in texts]


def video_of(row: Mapping[str, Any], keys: Sequence[str] = VIDEO_KEYS) -> str:
    """The path of the video of a row; a list of one counts as that one.

    Raises:
        OddRowError: The row has no value, or several.
    """
    if not any(key in row for key in keys):
        value_of(row, "video or image")  # There is no such key, so that this tells which there are.
    value = value_of(row, *keys)
    if isinstance(value, list):
        if len(value) != 1:
            raise OddRowError(f"{len(value) or 'no'} videos, where one is read of each row")
        (value,) = value
    if not isinstance(value, str) or not value.strip():
        raise OddRowError(f"the video is {described(value)}, not a path")
    if "\0" in value:
        raise OddRowError(f"the video is {described(value)}, which no file can be called")
    return value.strip().removeprefix("file://")
