"""Reads class names from lists of names, tables of indices and names, manifests and checkpoint folders."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxvit.data.formats.text_files import parse_integer, read_text
from fluxvit.data.manifest import read_manifest
from fluxvit.utils.files import read_json

_LEADING = re.compile(r"\s*(\d+)\s*[\s,:;]\s*(\S.*)")
_TRAILING = re.compile(r"(.*\S)\s*([\s,:;])\s*(\d+)\s*")
_INDEX = re.compile(r"\d{1,9}(\.0*)?")
_INDEX_COLUMNS = ("id", "index", "idx", "class_id", "label_id", "class_index", "label_index", "number")
_NAME_COLUMNS = ("name", "class_name", "display_name", "class", "label", "category")
_NAME_KEYS = ("id2label", "labels", "classes", "class_names")


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The class names that something lists, in the order of their indices.

    Args:
        path: One of

            * a text file with a name on each line, or with ``INDEX NAME`` or ``NAME,INDEX`` on each;
            * a ``.csv`` or ``.tsv`` file with such columns, with or without a header such as ``id,name``;
            * a ``.json`` file: a list of names, or an object from indices to names or from names to indices;
            * a manifest, or a checkpoint folder.

    Raises:
        ValueError: There is no such file, it names no classes, a name is empty or occurs twice, or its
            indices are not 0, 1, 2 and so on without a gap; the message says which.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file of class names")
    if path.suffix == ".jsonl":
        names = list(read_manifest(path, None).labels)
        if not names:
            raise ValueError(f"{path}: this manifest does not name its classes; give a text file of names")
    elif path.suffix.lower() in (".yaml", ".yml"):
        raise ValueError(
            f"{path}: class names are not read from YAML; write them one a line into a text file"
        )
    elif path.suffix == ".json":
        names = _from_json(read_json(path), path)
    else:
        lines = read_text(path)[0].split("\n")
        while lines and not lines[-1].strip():
            del lines[-1]
        table = path.suffix in (".csv", ".tsv")
        names = _from_rows(lines, path) if table else _from_lines(lines, path)
    if not names:
        raise ValueError(f"{path}: it names no classes")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: the name of class {number} is {name!r}, not a text")
    names = [name.strip() for name in names]
    for name, count in Counter(names).items():
        if count > 1:
            first = names.index(name)
            raise ValueError(f"{path}: classes {first} and {names.index(name, first + 1)} are both {name!r}")
    return tuple(names)


def _from_lines(lines: Sequence[str], path: Path) -> list[str]:
    filled = [line for line in lines if line.strip()]
    leading = [_LEADING.fullmatch(line) for line in filled]
    if filled and all(leading):
        return _in_order([(parse_integer(match[1]), match[2]) for match in leading if match], path)
    trailing = [match for line in filled if (match := _TRAILING.fullmatch(line))]
    if filled and len(trailing) == len(filled):
        pairs = [(parse_integer(match[3]), match[1]) for match in trailing]
        is_sure = all(match[2] in ",:;\t" for match in trailing)
        # "Route 66" is a name, unless all lines end in the numbers that classes have.
        if is_sure or sorted(number for number, _ in pairs) == list(range(len(pairs))):
            return _in_order(pairs, path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(
                f"{path}: line {number} is empty; class names are numbered by their lines, so every line "
                "needs one"
            )
    return [line.strip() for line in lines]


def _from_rows(lines: Sequence[str], path: Path) -> list[str]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    if delimiter == "," and lines and "," not in lines[0] and ";" in lines[0]:
        delimiter = ";"
    read = csv.reader((f"{line}\n" for line in lines if line.strip()), delimiter=delimiter, strict=True)
    try:
        rows = [[cell.strip() for cell in row] for row in read]
    except csv.Error as error:
        raise ValueError(f"{path}: not a table of class names in CSV: {error}") from None
    if not rows:
        return []
    widths = {len(row) for row in rows}
    if widths == {1}:
        has_header = rows[0][0].lower() in _NAME_COLUMNS
        return _from_lines([row[0] for row in rows[has_header:]], path)
    if len(widths) > 1:
        odd = next(row for row in rows if len(row) != len(rows[0]))
        raise ValueError(f"{path}: {delimiter.join(odd)!r} has {len(odd)} columns, others {len(rows[0])}")
    header, body = rows[0], rows[1:] or rows
    indexed = [i for i in range(len(header)) if all(_INDEX.fullmatch(row[i]) for row in body)]
    if not indexed:
        raise ValueError(f"{path}: no column of class indices, as in id,name")
    # The column without a name is the index that pandas writes, which numbers the rows.
    index = min(indexed, key=lambda i: (header[i].lower() not in _INDEX_COLUMNS, not header[i], i))
    if _INDEX.fullmatch(header[index]):
        header, body = [""] * len(header), rows
    known = [i for name in _NAME_COLUMNS for i, cell in enumerate(header) if cell.lower() == name]
    others = [i for i in (*known, *range(len(header))) if i != index]
    return _in_order([(int(float(row[index])), row[others[0]]) for row in body], path)


def _from_json(content: Any, path: Path) -> list[str]:
    if isinstance(content, dict):
        content = next((content[key] for key in _NAME_KEYS if key in content), content)
    if isinstance(content, list):
        if content and all(isinstance(row, dict) for row in content):
            return _in_order([_pair(row, path) for row in content], path)
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a list of class names, or an object of names and indices")
    if all(str(key).isdecimal() for key in content):
        return _in_order([(parse_integer(key), name) for key, name in content.items()], path)
    if all(str(value).isdecimal() for value in content.values()):
        # PyTorchVideo's list of Kinetics has quotes within the names.
        return _in_order(
            [(parse_integer(str(value)), key.strip('"')) for key, value in content.items()], path
        )
    raise ValueError(f"{path}: an object of class names must have indices for keys, or for values")


def _pair(row: Mapping[str, Any], path: Path) -> tuple[int, str]:
    index = next((row[key] for key in ("id", "index", "label_id", "class_id") if key in row), None)
    name = next((row[key] for key in _NAME_COLUMNS if key in row), None)
    if not str(index).isdecimal() or not isinstance(name, str):
        raise ValueError(f'{path}: {row!r} is no class; expected {{"id": 0, "name": "..."}}')
    return parse_integer(str(index)), name


def _in_order(pairs: Sequence[tuple[int, str]], path: Path) -> list[str]:
    """Names by their indices, which must be 0, 1, 2 and so on."""
    names: dict[int, str] = {}
    for number, name in pairs:
        if number in names:
            raise ValueError(f"{path}: {names[number]!r} and {name!r} both have the index {number}")
        names[number] = name
    missing = next((number for number in range(len(names)) if number not in names), None)
    if missing is not None:
        highest = max(names)
        reason = (
            f"its classes are numbered from 1 to {highest}; number them from 0, as lists of videos do"
            if missing == 0 and highest == len(names)
            else f"its indices go up to {highest}, but there is no class {missing}"
        )
        raise ValueError(f"{path}: {reason}; where numbers belong to the names, use a JSON list of names")
    return [names[number] for number in range(len(names))]
