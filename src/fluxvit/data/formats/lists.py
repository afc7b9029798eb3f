"""Lists of paths with labels, a video on each line, as csv, tsv or text files.

The readers take the list (or its folder), the folder of the videos and the split; see
`fluxvit.data.formats.registry`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxvit.data.formats.columns import (
    ID_COLUMNS,
    INDEX,
    NUMBER,
    Columns,
    find_columns,
    fixed_rows,
    plain_name,
)
from fluxvit.data.formats.layout import (
    SPLIT_NAMES,
    VideoFinder,
    VideoList,
    data_format,
    list_file,
    name_split,
    requested_split,
    seconds_in,
    split_in,
)
from fluxvit.data.formats.roots import locate
from fluxvit.data.formats.tables import Row, TextTable
from fluxvit.data.formats.text_files import parse_integer, shown
from fluxvit.data.manifest import MOST_CLASSES, NO_LABEL, Entry


@data_format("csv")
def read_csv(
    source: Path, root: Path | None, split: str | None, columns: Mapping[str, str] | None = None
) -> VideoList:
    """A path and a label in each row: CSV of any program, and the lists of the FluxViT release (Kinetics,
    MiT, UCF101, COIN, ActivityNet, ...).

    Cells are separated by tabs, commas, semicolons, bars or spaces; those that hold separators or line ends
    are in double quotes. Columns are found by the names in the first row (``path``, ``video``, ``filename``,
    ``youtube_id``, ...; ``label``, ``class``, ``category``, ``target``, ...; also ``caption``, ``start``,
    ``end``, ``split``), or else by their content: a path ends like a video file, and its label comes next.
    Other columns are ignored. A line without a header may also be cut at its last separator alone, so that
    paths may hold some. Lines that begin with ``#`` are comments, unless there is a file of that name.

    Labels are class indices (``3`` or ``3.0``), or else class names, which are numbered in alphabetical
    order; of a column with indices and one with their names both are taken. Classes are numbered over all
    rows, of which those of one split are taken if there is a column of splits. A table with captions and no
    labels gives captions. ``.mp4`` is added to a name without a dot,
    unless there is a folder of that name (frames); ids are looked up in all folders below ``root``.

    ``source`` is the list, or a folder with ``train.csv``, ``val.csv`` and so on. Paths are relative to
    ``root``, by default the folder of the list; of absolute paths the root is what they have in common.
    Absolute paths that do not exist are looked for below a ``root`` that is given, by their last parts.

    Args:
        columns: Which columns to read, by their names in the first row or their numbers from 1; the keys are
            from `ROLES`.
    """
    table = TextTable.read(list_file(source, split))
    home = root or table.path.parent
    layout = find_columns(table, home, columns or {})
    rows = list(layout.records(home))
    notes = [layout.note()]
    names: tuple[str, ...] = ()
    labels = [NO_LABEL] * len(rows)
    if "label" in layout.roles:
        labels, names, more = _labels_and_names(layout, rows)
        notes += more
    split = name_split(split, table.path)
    if "split" in layout.roles:
        kept, split, more = _of_split(layout, rows, split, table.path)
        rows, labels = [rows[at] for at in kept], [labels[at] for at in kept]
        notes += more
    paths, base, more = locate([cells["path"] for _, cells in rows], root, table.path.parent)
    if layout.header and plain_name(layout.header[layout.roles["path"]]) in ID_COLUMNS:
        paths = _look_up(paths, base)
    entries = [
        Entry(path, label, **_facts(table, row, cells))
        for path, label, (row, cells) in zip(paths, labels, rows, strict=True)
    ]
    if "caption" in layout.roles:
        entries = _join_captions(entries)
    return VideoList(split, base, tuple(entries), names, (*notes, *more))


@data_format("intervals")
def read_intervals(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``path,total_time,start,end,label`` on each line: the release's lists of segments (ActivityNet, HACS).

    Times are seconds; ``start = end = -1`` means the whole video. Otherwise like ``csv`` without columns of
    other names.
    """
    return _read_segments(source, root, split, before=0)


@data_format("mixture")
def read_mixture(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``source,path,total_time,start,end,label`` on each line: the release's mixtures for pre-training.

    Videos of the source ``ssv2`` are never flipped. A negative label is taken to mean that there is none.
    Otherwise like ``intervals``.
    """
    return _read_segments(source, root, split, before=1)


def _read_segments(source: Path, root: Path | None, split: str | None, before: int) -> VideoList:
    table = TextTable.read(list_file(source, split))
    rows = fixed_rows(table, before, after=4)
    labels, names = _labels(table, [row for row, _ in rows], [cells[-1] for _, cells in rows], before > 0)
    paths, root, notes = locate([cells[before] for _, cells in rows], root, table.path.parent)
    entries = []
    for (row, cells), path, label in zip(rows, paths, labels, strict=True):
        total, start, end = (_seconds(table, row, text) for text in cells[-4:-1])
        entry = Entry(path, label, duration=total)
        if before:
            entry = replace(entry, source=cells[0], noflip=cells[0] == "ssv2")
        if not start == end == -1:
            entry = replace(entry, start=start, end=end)
        entries.append(entry)
    return VideoList(name_split(split, table.path), root, tuple(entries), names, notes)


@data_format("rawframes")
def read_rawframes(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``frame_dir total_frames label`` on each line: folders of images, one a frame (SSv2, HMDB51).

    The images of a folder are taken in natural order of their names. If it holds several kinds of images,
    those are taken of which there are ``total_frames``; if that fits several kinds, the list must name the
    images: ``frame_dir/img_%05d.jpg total_frames label``.
    Otherwise like ``intervals``.
    """
    table = TextTable.read(list_file(source, split))
    rows = fixed_rows(table, before=0, after=2)
    labels, names = _labels(table, [row for row, _ in rows], [cells[-1] for _, cells in rows])
    root = root or table.path.parent
    entries = []
    for (row, cells), label in zip(rows, labels, strict=True):
        if not cells[1].isdecimal():
            raise table.error(row, f"{cells[0]} has {cells[1]!r} frames; expected FOLDER FRAMES LABEL")
        entries.append(Entry(root / cells[0], label, frames=parse_integer(cells[1])))
    return VideoList(name_split(split, table.path), root, tuple(entries), names)


# --- Cells -------------------------------------------------------------------------------------------------


def _labels(
    table: TextTable, rows: Sequence[Row], texts: Sequence[str], negative: bool = False
) -> tuple[list[int], tuple[str, ...]]:
    """The class index of each row, and the class names if the list has names instead of indices.

    Args:
        negative: Take a negative index for "no label".
    """
    found = [INDEX.fullmatch(text) for text in texts]
    if not any(found):
        odd = next((at for at, text in enumerate(texts) if NUMBER.fullmatch(text)), None)
        if odd is not None:
            raise table.error(rows[odd], f"the label is {texts[odd]}, neither a class index nor a name")
        names = sorted(set(texts))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[text] for text in texts], tuple(names)
    labels = []
    for row, text, match in zip(rows, texts, found, strict=True):
        if match is None:
            raise table.error(row, f"the label is {text!r}, but others are numbers")
        labels.append(parse_integer(match[1]))
        if labels[-1] >= MOST_CLASSES:
            reason = f"the label is {shown(text)}; the largest index of a class is {MOST_CLASSES - 1}"
            raise table.error(row, reason)
        if labels[-1] < 0 and not negative:
            raise table.error(row, f"the label is {text}; classes count from 0")
    return [max(label, NO_LABEL) for label in labels], ()


def _facts(table: TextTable, row: Row, cells: Mapping[str, str]) -> dict[str, Any]:
    """The caption and the times in the cells of a row."""
    facts: dict[str, Any] = {"captions": (cells["caption"],)} if "caption" in cells else {}
    times = {role: _seconds(table, row, cells[role]) for role in ("start", "end") if cells.get(role)}
    # -1 means the whole video, as in lists of segments.
    return facts if set(times.values()) == {-1} else {**facts, **times}


def _labels_and_names(
    layout: Columns, rows: Sequence[tuple[Row, dict[str, str]]]
) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """The class indices of rows, the names of the classes, and a note if these are in two columns."""
    texts = [cells["label"] for _, cells in rows]
    for at in layout.other_labels:
        columns = {layout.roles["label"]: texts, at: [(layout.cells(row) or [])[at] for row, _ in rows]}
        index, name = sorted(columns, key=lambda column: not all(map(INDEX.fullmatch, columns[column])))
        both = {*zip(columns[index], columns[name], strict=True)}
        pairs = {parse_integer(match[1]): text for one, text in both if (match := INDEX.fullmatch(one))}
        # Every number has its own name, none is left out, and the names are no numbers.
        if (
            sorted(pairs) == list(range(len(set(columns[index]))))
            and len(both) == len(set(columns[name])) == len(pairs)
            and not any(map(INDEX.fullmatch, columns[name]))
        ):
            header = layout.header or []
            note = f"classes have their numbers from {header[index]!r} and their names from {header[name]!r}"
            labels, _ = _labels(layout.table, [row for row, _ in rows], columns[index])
            return labels, tuple(pairs[number] for number in sorted(pairs)), (note,)
    return *_labels(layout.table, [row for row, _ in rows], texts), ()


def _of_split(
    layout: Columns, rows: Sequence[tuple[Row, dict[str, str]]], split: str, file: Path
) -> tuple[list[int], str, tuple[str, ...]]:
    """The numbers of the rows of a split by a column of splits, its name, and a note if there are others."""
    splits = [split_in(cells["split"]) or cells["split"].casefold() for _, cells in rows]
    if not any(name in SPLIT_NAMES for name in splits):
        return list(range(len(rows))), split, ()
    found = [name for name in dict.fromkeys(splits) if name]
    requested = requested_split(split or None, file, found)
    kept = [at for at, name in enumerate(splits) if name == requested]
    note = f"took the {len(kept)} of {len(rows)} rows that are of split {requested}"
    return kept, requested, (note,) if len(kept) < len(rows) else ()


def _seconds(table: TextTable, row: Row, text: str) -> float:
    seconds = seconds_in(text)
    if seconds is None:
        raise table.error(row, f"{text!r} is not a number of seconds")
    return seconds


def _join_captions(entries: Sequence[Entry]) -> list[Entry]:
    """The same with one entry for all captions of a video or segment."""
    joined: dict[tuple[Path, float | None, float | None], Entry] = {}
    for entry in entries:
        key = (entry.path, entry.start, entry.end)
        known = joined.get(key)
        joined[key] = replace(known, captions=known.captions + entry.captions) if known else entry
    return list(joined.values())


def _look_up(paths: Sequence[Path], root: Path) -> list[Path]:
    """Those of a list of ids, found in any folder below ``root`` where they are not in place."""
    if all(map(os.path.exists, paths)):
        return list(paths)
    videos = VideoFinder(root)
    return [path if path.exists() else videos.find(path.stem, path.name, expected=path) for path in paths]
