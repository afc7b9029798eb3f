"""Tables in text files: cells between tabs, commas, semicolons, bars or spaces, with quotes and comments."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fluxvit.data.formats.text_files import read_text, shown

DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "space"}


class Table(NamedTuple):
    """A table whose first row names its columns.

    Attributes:
        names: Names of the columns, in lower case and without spaces, hyphens and underscores.
        rows: The number of the first line of each row, from 1, and its cells by the names of the columns.
    """

    names: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]


def read_table(path: Path, is_header: Callable[[Sequence[str]], bool]) -> Table | None:
    """A table, cut at the first delimiter that makes a header of its first row; None if none does.

    Args:
        is_header: Whether names, as in `Table`, are those of the columns.

    Raises:
        ValueError: The file is empty or not text, a quotation mark is never closed, or a row has not as many
            cells as there are columns; the message names the line.
    """
    header = _first_line(path)
    for delimiter, kind in DELIMITERS.items():
        names = tuple(map(plain_name, next(csv.reader([header], delimiter=delimiter, skipinitialspace=True))))
        if not is_header(names):
            continue
        rows = read_rows(path, delimiter)
        next(rows)
        records = []
        for line, cells in rows:
            while len(cells) > len(names) and not cells[-1]:
                cells.pop()
            if len(cells) != len(names):
                raise ValueError(
                    f"{path}, line {line}: expected {len(names)} cells separated by a {kind} "
                    f"({', '.join(filter(None, names))}), not {len(cells)}; a cell that holds a {kind} needs "
                    f"double quotes: {shown(delimiter.join(cells))}"
                )
            records.append((line, dict(zip(names, cells, strict=True))))
        return Table(names, records)
    return None


def named_rows(path: Path, *names: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table that must have columns of these names, as in `Table`."""
    table = read_table(path, lambda found: set(names) <= set(found))
    if table is None:
        raise ValueError(f"{path}: its first row does not name the columns {', '.join(names)}")
    return table.rows


def read_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table with the numbers of their first lines, from 1. Cells may be in double quotes.

    Blank rows and those that begin with ``#`` are skipped.

    Raises:
        ValueError: The file is empty or not text, or a quotation mark is never closed.
    """
    lines = io.StringIO(read_text(path))
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    is_empty, line = True, 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and not cells[0].startswith("#"):
                is_empty = False
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        reason = "a quotation mark that is never closed or lies within a cell"
        raise ValueError(f"{path}, line {line}: {reason} ({error})") from None
    if is_empty:
        raise ValueError(f"{path}: the list is empty")


def first_names(path: Path) -> set[str]:
    """The names in the first row of a table, as in `Table`, whatever separates them."""
    return set(map(plain_name, re.split(r"[\t,;| ]", _first_line(path))))


def _first_line(path: Path) -> str:
    lines = (line for line in read_text(path).split("\n") if line.strip() and not line.startswith("#"))
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path}: the list is empty")
    return first


def plain_name(name: str) -> str:
    """The name of a column in lower case, without spaces, hyphens, underscores and other marks."""
    return re.sub(r"[\W_]", "", name.casefold())
