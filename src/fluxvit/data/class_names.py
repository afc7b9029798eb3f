"""Reads class names from lists of names, tables of indices and names, manifests and checkpoint folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fluxvit.data.formats.tables import read_table
from fluxvit.data.formats.text_files import read_text
from fluxvit.data.manifest import read_manifest
from fluxvit.utils.schema import load

_INDEXED = re.compile(r'(\d{1,9})\s*[\s,:;]\s*"?([^\s"].*?)"?')
_INDEX_COLUMNS = ("id", "index", "idx", "classid", "labelid", "classindex", "labelindex", "number")
_NAME_COLUMNS = ("name", "classname", "displayname", "class", "label", "category")
_NAME_KEYS = ("id2label", "labels", "classes", "class_names")


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The class names that something lists, in the order of their indices.

    Args:
        path: One of

            * a text file with a name on each line, or with ``INDEX NAME`` on each;
            * a ``.csv`` or ``.tsv`` file with columns such as ``id`` and ``name``;
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
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        raise ValueError(
            f"{path}: class names are not read from YAML; write them one a line into a text file"
        )
    if suffix == ".jsonl":
        names: Sequence[Any] = read_manifest(path, None).labels
        if not names:
            raise ValueError(f"{path}: this manifest does not name its classes; give a text file of names")
    elif suffix == ".json":
        names = _from_json(load(path), path)
    else:
        names = (_from_table(path) if suffix in (".csv", ".tsv") else None) or _from_lines(path)
    if not names:
        raise ValueError(f"{path}: it names no classes")
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: the name of class {number} is {name!r}, not a text")
        if first.setdefault(name.strip(), number) != number:
            raise ValueError(f"{path}: classes {first[name.strip()]} and {number} are both {name.strip()!r}")
    return tuple(first)


def _from_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    indexed = [_INDEXED.fullmatch(line) for line in lines if line]
    if any(lines) and all(indexed):
        return _in_order(((int(match[1]), match[2]) for match in indexed if match), path)
    if path.suffix.lower() in (".csv", ".tsv") and any(lines):
        raise ValueError(f"{path}: no columns of indices and names, as in id,name")
    return lines if any(lines) else []


def _from_table(path: Path) -> list[str] | None:
    columns = (_INDEX_COLUMNS, _NAME_COLUMNS)
    table = read_table(path, lambda names: all(set(names) & set(known) for known in columns))
    if table is None:
        return None
    index, name = (next(column for column in known if column in table.names) for known in columns)
    return _in_order(((row[index], row[name]) for _, row in table.rows), path)


def _from_json(content: Any, path: Path) -> list[Any]:
    if isinstance(content, dict):
        content = next((content[key] for key in _NAME_KEYS if key in content), content)
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a list of class names, or an object of names and indices")
    if all(key.isdecimal() for key in content):
        return _in_order(content.items(), path)
    # PyTorchVideo's list of Kinetics has quotes within the names.
    return _in_order(((index, name.strip('"')) for name, index in content.items()), path)


def _in_order(pairs: Iterable[tuple[Any, Any]], path: Path) -> list[Any]:
    """Names by their indices, which must be 0, 1, 2 and so on."""
    names: dict[int, Any] = {}
    for index, name in pairs:
        if not re.fullmatch(r"\d{1,9}(\.0*)?", str(index)):
            raise ValueError(f"{path}: the index of {name!r} is {str(index)[:40]!r}, not a number of a class")
        number = int(float(index))
        if number in names:
            raise ValueError(f"{path}: {names[number]!r} and {name!r} both have the index {number}")
        names[number] = name
    missing = next((number for number in range(len(names)) if number not in names), None)
    if missing is not None:
        raise ValueError(
            f"{path}: its indices go up to {max(names)}, but there is no class {missing}; classes are "
            "numbered from 0 without a gap, and where numbers belong to the names, use a JSON list of names"
        )
    return [names[number] for number in range(len(names))]
