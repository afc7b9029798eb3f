"""Tables in text files: cells between commas, tabs, semicolons, bars or spaces, with quotes and comments."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxvit.data.formats.text_files import read_text, shown

DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "space"}
SAMPLE = 200  # Rows that decide on the delimiter and the columns.
_EXCEL_HINT = re.compile(r'"?sep=.?"?')  # A first line that tells Excel the delimiter.
_RECORD_LINES = 100  # A quoted text that spans more lines is a quotation mark that was never closed.


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: Number of its first line in the file, from 1.
        text: The lines as they are in the file.
        fields: The cells; spaces around them are kept.
        unquoted: Quotation marks have been taken off.
    """

    line: int
    text: str
    fields: list[str]
    unquoted: bool

    def cut(self, delimiter: str, before: int, after: int) -> list[str]:
        """``before`` cells from the left, ``after`` from the right, and between them a text that may hold
        delimiters. A row that is too short has fewer cells.
        """
        fields = self.fields
        if len(fields) > before + 1 + after:
            end = len(fields) - after
            fields = [*fields[:before], delimiter.join(fields[before:end]), *fields[end:]]
        return self.clean(fields)

    def clean(self, fields: Sequence[str]) -> list[str]:
        """Fields without white space and quotation marks around them."""
        cells = [field.strip() for field in fields]
        return cells if self.unquoted else [_unquote(cell) for cell in cells]

    @property
    def is_comment(self) -> bool:
        """Whether it looks like a comment."""
        return self.text.lstrip().startswith("#")


@dataclass(frozen=True)
class TextTable:
    """The lines of a file that are not blank, before they are cut into cells.

    Attributes:
        path: The file, for messages.
        encoding: Such as ``UTF-8``.
        lines: Line numbers, from 1, and lines; there is at least one.
    """

    path: Path
    encoding: str
    lines: list[tuple[int, str]]

    @classmethod
    def read(cls, path: Path) -> TextTable:
        """Read a file.

        Raises:
            ValueError: It is empty, no text, or of another encoding; see `read_text`.
        """
        text, encoding = read_text(path)
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if lines and _EXCEL_HINT.fullmatch(lines[0][1].strip()):
            del lines[0]
        if not lines:
            raise ValueError(f"{path}: the list is empty")
        return cls(path, encoding, lines)

    def rows(self, delimiter: str, most: int | None = None) -> Iterator[Row]:
        """Cut the lines at a delimiter; a quoted cell may hold delimiters and line ends.

        Quotation marks count where they enclose a whole cell. A line in which they do not is cut at every
        delimiter, so that file names may hold some.

        Args:
            most: Yield no more than this many rows.
        """
        at = count = 0
        while at < len(self.lines) and (most is None or count < most):
            number, line = self.lines[at]
            quoted = self._quoted(at, delimiter) if '"' in line else None
            fields, used = quoted or (line.split(delimiter), 1)
            text = "\n".join(line for _, line in self.lines[at : at + used])
            yield Row(number, text, fields, unquoted=quoted is not None)
            at, count = at + used, count + 1

    def _quoted(self, at: int, delimiter: str) -> tuple[list[str], int] | None:
        """The fields of the row that begins at a line, and how many of the lines it has; None if quotation
        marks do not enclose cells.
        """
        first, end = self.lines[at][0], min(len(self.lines), at + _RECORD_LINES)
        # A space before a quotation mark is not part of the cell, unless spaces are what separates cells.
        for skip in (False, True) if delimiter != " " else (False,):
            reader = csv.reader(
                self._source(at, end), delimiter=delimiter, strict=True, skipinitialspace=skip
            )
            try:
                fields = next(reader)
            except (csv.Error, StopIteration):
                continue
            if skip or not any(field.startswith(' "') for field in fields):
                last = first + reader.line_num - 1
                return fields, sum(number <= last for number, _ in self.lines[at:end])
        return None

    def _source(self, at: int, end: int) -> Iterator[str]:
        """Lines as they are in the file: blank ones count inside of a quoted cell."""
        expected = self.lines[at][0]
        for number, line in self.lines[at:end]:
            yield from ["\n"] * (number - expected)
            yield line + "\n"
            expected = number + 1

    def error(self, row: Row, reason: str) -> ValueError:
        """An error that names a row."""
        return ValueError(f"{self.path}, line {row.line}: {reason}: {shown(row.text)}")


def _unquote(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1].replace('""', '"') if is_quoted else text
