"""Data sets whose videos show several classes at once: Charades, and lists with a column of labels.

The readers take the annotations, the folder of the videos and the split; see `fluxvit.data.formats.registry`.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from fluxvit.data.formats.columns import INDEX
from fluxvit.data.formats.layout import (
    VIDEO_SUFFIXES,
    VideoFinder,
    VideoList,
    data_format,
    files_in,
    first_of,
    list_file,
    name_split,
    requested_split,
    seconds_of,
)
from fluxvit.data.formats.text_files import dict_rows, parse_integer, shown, text_lines
from fluxvit.data.manifest import MOST_CLASSES, Entry

CHARADES_COLUMNS = ("id", "script", "actions")
_PATH_COLUMNS = ("path", "video", "video_path", "file", "filename", "id", "video_id", "name")
_ACTION = re.compile(r"c(\d+) ([\d.]+) ([\d.]+)")


@data_format("charades", "Charades*_classes.txt")
def read_charades(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Charades: ``Charades_v1_train.csv``, ``Charades_v1_test.csv`` and ``Charades_v1_classes.txt``.

    A video is one entry of its whole length, labelled with all of its actions (``c092 11.90 21.20;...``), of
    which there may be none; their times are kept. Its script becomes the caption. The test split is what is
    evaluated. Videos are ``ID`` with any suffix in any folder below ``root``. Charades-Ego is read, too.
    """
    if source.is_dir():
        found = [
            path for path in files_in(source) if re.fullmatch(r"Charades\w*_(train|test)\.csv", path.name)
        ]
        requested = requested_split(split, source, found=("train", "test"))
        file = next((path for path in found if path.stem.endswith(requested)), None)
        if file is None:
            raise ValueError(f"{source}: no file Charades_v1_{requested}.csv")
    else:
        file, requested = source, name_split(split, source)
    classes = first_of(file.parent, ["Charades_v1_classes.txt"])
    names = []
    for number, line in enumerate(text_lines(classes)):
        code, _, name = line.partition(" ")
        if code != f"c{number:03d}" or not name:
            raise ValueError(f"{classes}: {shown(line)} is not the class c{number:03d} and its name")
        names.append(name)
    videos = VideoFinder(root or file.parent)
    entries = []
    for line_number, row in dict_rows(file, lower=True):
        missing = [name for name in CHARADES_COLUMNS if name not in row]
        if missing:
            raise ValueError(f"{file}, line {line_number}: no {' and no '.join(missing)}")
        actions, labels = [], set[int]()
        for text in filter(None, row["actions"].split(";")):
            action = _ACTION.fullmatch(text.strip())
            if action is None or parse_integer(action[1]) >= len(names):
                raise ValueError(
                    f"{file}, line {line_number}: {shown(text)} is not an action such as c092 11.90 21.20"
                )
            start, end = (seconds_of(time, file) for time in action.group(2, 3))
            labels.add(int(action[1]))
            actions.append({"label": int(action[1]), "start": start, "end": end})
        captions = (row["script"],) if row["script"] else ()
        path, extra = videos.find(row["id"]), {"actions": actions}
        entries.append(Entry(path, captions=captions, labels=tuple(sorted(labels)), extra=extra))
    return VideoList(requested, videos.root, tuple(entries), tuple(names))


@data_format("multi_label")
def read_multi_label(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A table with a header and a column ``labels`` of any number of labels each: ``run;jump`` or ``3;17``.

    Labels are separated by semicolons or bars, or are a JSON list. They are class indices, or else class
    names, which are numbered in alphabetical order. An empty cell says that a video shows no class.
    The column ``path`` (or ``video``, ``file``, ``id``, ...; else the first) holds the paths, relative to
    ``root``; an id is looked up in all folders below it.
    """
    file = list_file(source, split)
    root = root or file.parent
    rows = [(line, _cells(file, line, row)) for line, row in dict_rows(file, lower=True)]
    used = {label for _, (_, labels) in rows for label in labels}
    indices = {label: parse_integer(found[1]) for label in used if (found := INDEX.fullmatch(label))}
    if indices and len(indices) < len(used):
        words = sorted(used - indices.keys())
        raise ValueError(f"{file}: {shown(words[0])} is a label, but others are numbers")
    for label, index in indices.items():
        if not 0 <= index < MOST_CLASSES:
            raise ValueError(
                f"{file}: the label {shown(label)} is not a class index, which is 0 to {MOST_CLASSES - 1}"
            )
    names = () if indices else tuple(sorted(used))
    numbers = indices or {name: number for number, name in enumerate(names)}
    has_ids = not all(Path(name).suffix.lower() in VIDEO_SUFFIXES for _, (name, _) in rows)
    videos = VideoFinder(root) if has_ids else None
    entries = []
    for _, (name, labels) in rows:
        classes = {numbers[label] for label in labels}
        path = root / name
        if videos and path.suffix.lower() not in VIDEO_SUFFIXES and not path.is_dir():
            path = videos.find(name)
        entries.append(Entry(path, labels=tuple(sorted(classes))))
    return VideoList(name_split(split, file), root, tuple(entries), names)


def has_label_lists(file: Path) -> bool:
    """Whether the column ``labels`` of a table holds more than one label anywhere."""
    return any(re.search(r"[;|\[]", row.get("labels", "")) for _, row in dict_rows(file, lower=True))


def _cells(file: Path, line: int, row: dict[str, str]) -> tuple[str, list[str]]:
    """Path and labels of a row."""
    named = [row[key] for key in _PATH_COLUMNS if key in row]
    path = next((text.strip() for text in [*named, *row.values()] if text is not row.get("labels")), "")
    path = path.removeprefix("file://")
    if "labels" not in row or not path:
        raise ValueError(f"{file}, line {line}: expected a path and a column labels, as in path,labels")
    text = row["labels"].strip()
    if not text.startswith("["):
        return path, [label.strip() for label in re.split(r"[;|]", text) if label.strip()]
    labels = _list_in(text)
    if labels is None:
        raise ValueError(f"{file}, line {line}: {shown(text)} is not a list of labels")
    return path, labels


def _list_in(text: str) -> list[str] | None:
    """The numbers and texts of a list as JSON or Python writes it; None if it is neither."""
    for load in (json.loads, ast.literal_eval):
        try:
            labels = load(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(labels, list) and all(type(label) in (int, str) for label in labels):
            return [str(label).strip() for label in labels]
    return None
