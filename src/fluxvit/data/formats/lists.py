"""Lists of videos with labels or captions, as tables of any program and as lines of a path and a label.

The readers take the list (or its folder), the folder of the videos and the split; see
`fluxvit.data.formats.registry`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxvit.data.formats.layout import (
    SPLITS,
    VIDEO_SUFFIXES,
    VideoFinder,
    VideoList,
    data_format,
    list_file,
    name_split,
    requested_split,
    seconds_of,
    split_in,
)
from fluxvit.data.formats.tables import DELIMITERS, plain_name, read_rows, read_table
from fluxvit.data.formats.text_files import read_text, shown
from fluxvit.data.manifest import MOST_CLASSES, NO_LABEL, Entry

# Names of columns as `Table` has them. Of several that a table has, the first here is taken.
_PATHS = """
    path paths filepath videopath file filename videofile videofilename clippath relativepath relpath
    absolutepath abspath fullpath framedir videoname video videos clipname clip imagepath image name
    videoid youtubeid ytid vidid clipid vid id
"""
_LABELS = """
    label labels labelid labelidx labelindex class classid classidx classindex category categoryid target
    targets labelname classname classlabel categoryname action actionid actionlabel actionclass activity
    groundtruth gt y
"""
_WORDS = {
    "path": _PATHS.split(),
    "label": _LABELS.split(),
    "caption": ["caption", "captions", "title", "sentence", "text", "description"],
    "split": ["split", "subset", "partition", "phase"],
    "start": ["start", "starttime", "timestart", "startsec", "startsecond", "startseconds", "begin"],
    "end": ["end", "endtime", "timeend", "endsec", "endsecond", "endseconds"],
}

ROLES = tuple(_WORDS)
"""What a column of a list may be: the keys of ``columns``."""

_SUFFIX = rf"(?i:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES, key=len, reverse=True)))})"
# A path that ends like a video, or a path and an index.
_LINES = (
    re.compile(rf'"?(?P<path>[^"]+?{_SUFFIX})"?(?P<mark>[\t,;| ])\s*(?P<label>\S.*)'),
    re.compile(r'"?(?P<path>[^"]+?)"?(?P<mark>[\t,;| ])\s*(?P<label>\d+(\.0*)?)'),
)
_MIXTURE = ("source", "path", "total_time", "start", "end", "label")
_INDEX = re.compile(r"([+-]?\d{1,9})(\.0*)?")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


@data_format("csv")
def read_csv(
    source: Path, root: Path | None, split: str | None, columns: Mapping[str, str] | None = None
) -> VideoList:
    """A path and a label in each row: tables of any program, and the lists of the FluxViT release.

    The first row of a table names its columns (``path``, ``video``, ``filename``, ``youtube_id``, ...;
    ``label``, ``class``, ``category``, ``target``, ...; also ``caption``, ``start``, ``end``, ``split``);
    other columns are ignored. Cells are separated by tabs, commas, semicolons, bars or spaces; those that
    hold separators or line ends are in double quotes. In a list without names, each line is a path and its
    label; the path may hold separators. Lines that begin with ``#`` are comments.

    Labels are class indices (``3`` or ``3.0``), or else class names, which are numbered in alphabetical
    order over all rows, of which those of one split are taken if there is a column of splits. A table with
    captions and no labels gives captions. A path whose name has no dot is a folder of frames, or an id that
    is looked up in all folders below ``root``.

    ``source`` is the list, or a folder with ``train.csv``, ``val.csv`` and so on. Paths are relative to
    ``root``, by default the folder of the list; of absolute paths the root is what they have in common.

    Args:
        columns: Which columns to read, by their names in the first row; the keys are from `ROLES`.
    """
    file = list_file(source, split)
    rows = _named_rows(file, columns or {})
    rows = _lines(file) if rows is None else rows
    split = name_split(split, file)
    names: tuple[str, ...] = ()
    labels = [NO_LABEL] * len(rows)
    if rows and "label" in rows[0][1]:
        labels, names = _labels(file, [(line, cells["label"]) for line, cells in rows])
    kept: Sequence[int] = range(len(rows))
    notes: tuple[str, ...] = ()
    if rows and "split" in rows[0][1]:
        kept, split, notes = _of_split([cells["split"] for _, cells in rows], split, file)
    paths, root = _paths([rows[at][1]["path"] for at in kept], root or file.parent)
    entries = [
        Entry(path, labels[at], **_facts(rows[at][1], f"{file}, line {rows[at][0]}"))
        for at, path in zip(kept, paths, strict=True)
    ]
    return VideoList(split, root, tuple(_join_captions(entries)), names, notes)


@data_format("mixture")
def read_mixture(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``source,path,total_time,start,end,label`` on each line: the release's mixtures for pre-training.

    Videos of the source ``ssv2`` are never flipped. Times are seconds; ``start = end = -1`` means the whole
    video. A negative label means that there is none. Otherwise like ``csv``.
    """
    file = list_file(source, split)
    for delimiter in DELIMITERS:
        table = list(read_rows(file, delimiter))
        if len(table[0][1]) == len(_MIXTURE):
            break
    rows = []
    for line, cells in table:
        if len(cells) != len(_MIXTURE):
            expected = f"expected {len(_MIXTURE)} cells: {', '.join(_MIXTURE)}"
            raise ValueError(f"{file}, line {line}: {expected}, not {shown(' '.join(cells))}")
        rows.append((line, dict(zip(_MIXTURE, cells, strict=True))))
    labels, names = _labels(file, [(line, cells["label"]) for line, cells in rows], negative=True)
    paths, root = _paths([cells["path"] for _, cells in rows], root or file.parent)
    entries = [
        Entry(
            path,
            label,
            **_facts(cells, where := f"{file}, line {line}"),
            duration=seconds_of(cells["total_time"], where),
            source=cells["source"],
            noflip=cells["source"] == "ssv2",
        )
        for path, label, (line, cells) in zip(paths, labels, rows, strict=True)
    ]
    return VideoList(name_split(split, file), root, tuple(entries), names)


# --- Rows --------------------------------------------------------------------------------------------------


def _named_rows(file: Path, columns: Mapping[str, str]) -> list[tuple[int, dict[str, str]]] | None:
    """The cells of each row by their roles; None if the first row does not name the columns."""

    def roles(names: Sequence[str]) -> dict[str, str]:
        found = {
            role: next(word for word in words if word in names)
            for role, words in _WORDS.items()
            if any(word in names for word in words)
        }
        if "label" in found and "label" not in columns:
            found.pop("caption", None)  # Texts beside labels are often names of classes.
        if "caption" in columns:
            found.pop("label", None)
        return {**found, **{role: plain_name(name) for role, name in columns.items()}}

    def is_header(names: Sequence[str]) -> bool:
        found = roles(names)
        return (
            "path" in found and bool(found.keys() & {"label", "caption"}) and set(found.values()) <= {*names}
        )

    table = read_table(file, is_header)
    if table is None:
        if columns:
            raise ValueError(f"{file}: its first row does not name the columns {', '.join(columns.values())}")
        return None
    chosen = roles(table.names)
    rows = [(line, {role: cells[name] for role, name in chosen.items()}) for line, cells in table.rows]
    for line, cells in rows:
        for role in ("path", "label", "caption"):
            if not cells.get(role, "-"):
                raise ValueError(f"{file}, line {line}: no {role} in the column {chosen[role]}")
    return rows


def _lines(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The path and the label in each line of a list that does not name its columns."""
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = next(filter(None, (pattern.fullmatch(text) for pattern in _LINES)), None)
        label = match["label"] if match else ""
        is_quoted = len(label) > 1 and label[0] == label[-1] == '"'
        if match is None or (match["mark"] in label and not is_quoted):
            expected = "a path and a label, or names of the columns in the first row, such as path,label"
            raise ValueError(f"{file}, line {number}: expected {expected}, not {shown(text)}")
        rows.append((number, {"path": match["path"], "label": label[1:-1] if is_quoted else label}))
    return rows


def _paths(names: Sequence[str], root: Path) -> tuple[list[Path], Path]:
    """The paths of the videos of a list, and the folder that holds them."""
    names = [name.removeprefix("file://") for name in names]
    if names and all(map(os.path.isabs, names)):
        root = Path(os.path.commonpath([os.path.dirname(name) for name in names]))
    paths = [root / name for name in names]
    ids = [at for at, path in enumerate(paths) if "." not in path.name and not os.path.exists(path)]
    if ids:
        videos = VideoFinder(root)
        for at in ids:
            name = paths[at].name
            paths[at] = videos.find(name, expected=paths[at].with_name(f"{name}.mp4"))
    return paths, root


def _labels(
    file: Path, texts: Sequence[tuple[int, str]], negative: bool = False
) -> tuple[list[int], tuple[str, ...]]:
    """The class index of each row, and the class names if the list has names instead of indices.

    Args:
        texts: Numbers of lines, and labels.
        negative: Take a negative index for "no label".
    """
    if not any(_NUMBER.fullmatch(text) for _, text in texts):
        names = sorted({text for _, text in texts})
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[text] for _, text in texts], tuple(names)
    labels = []
    for line, text in texts:
        match = _INDEX.fullmatch(text)
        label = int(match[1]) if match else MOST_CLASSES
        if label >= MOST_CLASSES or (label < 0 and not negative):
            raise ValueError(
                f"{file}, line {line}: the label is {shown(text)}, but others are numbers; class indices are "
                f"integers from 0 to {MOST_CLASSES - 1}"
            )
        labels.append(max(label, NO_LABEL))
    return labels, ()


def _facts(cells: Mapping[str, str], where: str) -> dict[str, Any]:
    """The caption and the times in the cells of a row."""
    facts: dict[str, Any] = {"captions": (cells["caption"],)} if "caption" in cells else {}
    times = {role: seconds_of(cells[role], where) for role in ("start", "end") if cells.get(role)}
    return facts if set(times.values()) == {-1} else {**facts, **times}


def _of_split(cells: Sequence[str], split: str, file: Path) -> tuple[Sequence[int], str, tuple[str, ...]]:
    """The numbers of the rows of a split by a column of splits, its name, and a note if there are others."""
    splits = [split_in(text) or text.casefold() for text in cells]
    if not any(name in SPLITS for name in splits):
        return range(len(splits)), split, ()
    requested = requested_split(split or None, file, [name for name in dict.fromkeys(splits) if name])
    kept = [at for at, name in enumerate(splits) if name == requested]
    note = f"took the {len(kept)} of {len(splits)} rows that are of split {requested}"
    return kept, requested, (note,) if len(kept) < len(splits) else ()


def _join_captions(entries: Sequence[Entry]) -> list[Entry]:
    """The same with one entry for all captions of a video or segment."""
    joined: dict[object, Entry] = {}
    for number, entry in enumerate(entries):
        key = (entry.path, entry.start, entry.end) if entry.captions else number
        known = joined.get(key)
        joined[key] = replace(known, captions=known.captions + entry.captions) if known else entry
    return list(joined.values())
