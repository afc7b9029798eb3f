"""Reads the lists and annotations of data sets: texts of several encodings, JSON and JSON lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SHOWN = 80  # Characters of a line in a message.


def read_text(path: Path) -> str:
    r"""The text of a file in UTF-8, or in UTF-16 with a byte order mark, with ``\n`` for all line ends.

    Raises:
        ValueError: The file has another encoding or is not text; the message names the first faulty line.
    """
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
        place = text.count("\n", 0, text.index("\0")) + 1 if "\0" in text else None
    except UnicodeDecodeError as error:
        place = data.count(b"\n", 0, error.start) + 1
    if place is not None:
        raise ValueError(
            f"{path}, line {place}: not UTF-8 text; unpack the file if it is compressed, or save it as "
            f"UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_lines(path: Path) -> Iterator[str]:
    """Lines that are not empty, without the white space around them.

    Raises:
        ValueError: The file is not text; see `read_text`.
    """
    yield from filter(None, map(str.strip, read_text(path).split("\n")))


def first_line(path: Path) -> str:
    """The first line that is not empty, or an empty text."""
    return next(text_lines(path), "")


def read_annotations(path: Path) -> Any:
    """The content of a JSON file, or the list of the lines of a file of JSON lines, whatever its suffix.

    Numbers that JSON does not have (``NaN``, ``Infinity``) become None.

    Raises:
        ValueError: The file is neither; the message names the place and what is wrong there.
    """
    text = read_text(path).strip().removeprefix("\ufeff")
    if not text:
        raise ValueError(f"{path}: cannot be read as JSON: the file is empty")
    try:
        content = _parse(text)
        return [content] if path.suffix.lower() == ".jsonl" and not isinstance(content, list) else content
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" and path.suffix.lower() != ".jsonl":
            line = text.split("\n")[error.lineno - 1]
            place = f"line {error.lineno}, column {error.colno}"
            raise ValueError(f"{path}, {place}: not JSON: {error.msg} ({shown(line)})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [_parse(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error} ({shown(line)})") from None
    return rows


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)


def shown(text: object) -> str:
    """A text for a message, in quotes, with control characters escaped, and cut if it is long."""
    text = str(text)
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
