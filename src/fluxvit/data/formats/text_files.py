"""Lists and annotations as people have them: texts of several encodings, JSON with its usual faults.

What cannot be read is refused in one line that names the file, the place and the cure.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The marks of UTF-32 start with those of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (codecs.BOM_UTF8, "UTF-8-SIG"),
)
_FOREIGN = (
    (b"\x1f\x8b", "is packed by gzip; unpack it first, for example with gunzip"),
    (b"PK\x03\x04", "is a zip archive or an Excel workbook; unpack it, or save the table as CSV in UTF-8"),
    (b"BZh", "is packed by bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "is packed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is packed by Zstandard; unpack it first"),
    (b"PAR1", "is a Parquet file; save the table as CSV in UTF-8"),
    (b"\x80\x02", "is a pickle, not a text"),
    (b"\x80\x04", "is a pickle, not a text"),
    (
        b"version https://git-lfs.github.com",
        "is a pointer of Git LFS; fetch the file with git lfs pull",
    ),
)
_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<!--|<\?xml)", re.IGNORECASE)
_BEFORE_HEADER = re.compile(r'(?:\s*(?:#(?!.*\blabels\b).*|"?sep=.?"?)?\n)*[ \t]*')
_SHOWN = 80  # Characters of a line in a message.


def read_text(path: Path) -> tuple[str, str]:
    r"""The text of a file with ``\n`` for all line ends, and the name of its encoding.

    It is UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises:
        ValueError: The file has another encoding or is not text; the message names the first faulty line.
    """
    data = path.read_bytes()
    for mark, meaning in _FOREIGN:
        if data.startswith(mark):
            raise ValueError(f"{path}: this {meaning}")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "UTF-8")
    if _WEB_PAGE.match(data.removeprefix(codecs.BOM_UTF8)):
        raise ValueError(f"{path}: this is a web page or XML, not a list; download the file itself")
    if encoding.startswith("UTF-8") and b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise ValueError(
            f"{path}, line {line}: has zero bytes, as UTF-16 without a byte order mark and files that are no "
            "texts have; save it as UTF-8"
        )
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("UTF-8"):
            raise ValueError(
                f"{path}: starts like {encoding} text, but is damaged at byte {error.start}"
            ) from None
        start, number = data.rfind(b"\n", 0, error.start) + 1, data.count(b"\n", 0, error.start) + 1
        row = data[start:].partition(b"\n")[0].decode("cp1252", "replace")
        raise ValueError(
            f"{path}, line {number}: not UTF-8; in Latin-1 (Windows-1252, as "
            f"Excel saves CSV) the line is {shown(row)}; save the file as UTF-8, for example with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name}, or from whatever encoding it has"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding.removesuffix("-SIG")


def text_lines(path: Path) -> Iterator[str]:
    """Lines that are not empty, without the white space around them.

    Raises:
        ValueError: It is no text; see `read_text`.
    """
    yield from filter(None, map(str.strip, read_text(path)[0].split("\n")))


def first_line(path: Path) -> str:
    """The first line that is not empty, or an empty text."""
    return next(text_lines(path), "")


def dict_rows(path: Path, lower: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file by the names in its first row, with the numbers of their lines.

    Comments and Excel's ``sep=;`` before the first row are skipped.

    Args:
        lower: Make the names lower case, without spaces and ``#`` around them.

    Raises:
        ValueError: It is no text, or a quoted cell is never closed.
    """
    text = read_text(path)[0]
    skipped = _BEFORE_HEADER.match(text)
    first = text.count("\n", 0, skipped.end()) if skipped else 0
    text = text[skipped.end() :] if skipped else text
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in header), ",")
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in rows:
            # Cells beyond the header come as a list, those that are missing as None.
            cells = {key: value for key, value in row.items() if key and value is not None}
            if lower:
                cells = {key.strip("# ").lower(): value for key, value in cells.items()}
            yield first + rows.line_num, cells
    except csv.Error as error:
        raise ValueError(f"{path}, line {first + rows.line_num}: {error}") from None


def parse_integer(digits: str) -> int:
    """The number that digits, with or without a sign, say. One of more than 18 digits becomes one of 19:
    Python refuses to convert thousands of digits, and no index is as large as either.
    """
    return int(digits if len(digits) < 20 else f"{digits[0] if digits[0] in '+-' else ''}{10**18}")


def shown(text: object) -> str:
    """A text for a message, in quotes, with control characters escaped, and cut if it is long."""
    text = str(text)
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


# --- JSON --------------------------------------------------------------------------------------------------


def read_annotations(path: Path) -> Any:
    """The content of a JSON file, or the list of the lines of a file of JSON lines, whatever its name says.

    Numbers that JSON does not have (``NaN``, ``Infinity``) become None.

    Raises:
        ValueError: It is neither; the message names the place and what is wrong there.
    """
    text = read_text(path)[0].lstrip("\ufeff")
    if not text.strip():
        raise ValueError(f"{path}: cannot be read as JSON: the file is empty")
    by_line = path.suffix.lower() == ".jsonl"
    try:
        content = _parse(text)
    except RecursionError:
        raise ValueError(f"{path}: cannot be read as JSON: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        if by_line or (error.msg == "Extra data" and "\n" in text[: error.pos]):
            return _lines(path, text)
        raise ValueError(f"{path}: cannot be read as JSON: {_fault(text, error)}") from None
    return [content] if by_line and not isinstance(content, list) else content


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)


def _lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_parse(line))
            except (json.JSONDecodeError, RecursionError) as error:
                reason = _fault(line, error) if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"{path}, line {number}: not JSON: {reason} ({shown(line)})") from None
    return rows


def _fault(text: str, error: json.JSONDecodeError) -> str:
    """A description of what is wrong with a text and how to mend it."""
    place = f"in line {error.lineno}, column {error.colno}"
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    # Python 3.13 points to the comma, older versions to the bracket.
    if re.match(r",\s*[\]}]", after) or (before.endswith(",") and after[:1] in ("]", "}")):
        return f"{place} there is a comma before a closing bracket; take it out"
    if after.startswith("'"):
        return f"{place} a text is in single quotes, as Python prints it; write the file with json.dump"
    if not after or error.msg.startswith("Unterminated string"):
        return f"it ends in the middle, {place}; it was cut short, so download or write it again"
    return f"{place}: {error.msg} ({shown(after.partition(chr(10))[0])})"
