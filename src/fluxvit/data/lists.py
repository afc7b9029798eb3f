"""Lists of paths with labels, a video on each line, as csv, tsv or text files.

The readers take the list (or its folder), the folder of the videos and the split; see `fluxvit.data.sources`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fluxvit.data.layout import VideoList, list_file, name_split, seconds_of, text_lines
from fluxvit.data.manifest import NO_LABEL, Entry

_DELIMITERS = ("\t", ",", ";", " ")
SAMPLE = 200  # Lines that decide on the delimiter and the format.
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_HEADER_WORDS = ("label", "labels", "label_id", "class", "class_id", "category", "target")


def read_csv(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``path,label`` on each line, as in the FluxViT release: Kinetics, MiT, UCF101, COIN, ActivityNet, ...

    The delimiter is a tab, comma, semicolon or space, whichever fits all lines. A line is cut at its last
    delimiter, so paths may hold some; quotes around a path are taken off. Labels are class indices, or else
    class names, which are numbered in alphabetical order. A first line that ends in ``label`` or the like is
    a header. ``.mp4`` is added to a name without a dot, unless there is a folder of that name (frames).

    ``source`` is the list, or a folder with ``train.csv``, ``val.csv`` and so on. Paths are relative to
    ``root``, by default the folder of the list; of absolute paths the root is what they have in common.
    """
    table = _Table.read(list_file(source, split), after=1)
    labels, names = table.labels()
    paths, root = _locate([row[0] for row in table.rows], root or table.path.parent)
    entries = (Entry(path, label) for path, label in zip(paths, labels, strict=True))
    return VideoList("", name_split(split, table.path), root, tuple(entries), names)


def read_intervals(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``path,total_time,start,end,label`` on each line: the release's lists of segments (ActivityNet, HACS).

    Times are seconds; ``start = end = -1`` means the whole video. Otherwise like ``csv``.
    """
    return _read_segments(source, root, split, before=0)


def read_mixture(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``source,path,total_time,start,end,label`` on each line: the release's mixtures for pre-training.

    Videos of the source ``ssv2`` are never flipped. A negative label is taken to mean that there is none.
    Otherwise like ``intervals``.
    """
    return _read_segments(source, root, split, before=1)


def _read_segments(source: Path, root: Path | None, split: str | None, before: int) -> VideoList:
    table = _Table.read(list_file(source, split), before=before, after=4)
    labels, names = table.labels(negative=before > 0)
    paths, root = _locate([row[before] for row in table.rows], root or table.path.parent)
    entries = []
    for row, path, label in zip(table.rows, paths, labels, strict=True):
        total, start, end = (seconds_of(text, table.path) for text in row[-4:-1])
        entry = Entry(path, label, duration=total)
        if before:
            entry = replace(entry, source=row[0], noflip=row[0] == "ssv2")
        if not start == end == -1:
            entry = replace(entry, start=start, end=end)
        entries.append(entry)
    return VideoList("", name_split(split, table.path), root, tuple(entries), names)


def read_rawframes(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``frame_dir total_frames label`` on each line: folders of images, one a frame (SSv2, HMDB51).

    The images of a folder are taken in natural order of their names, whatever those are. Otherwise like
    ``csv``.
    """
    table = _Table.read(list_file(source, split), after=2)
    labels, names = table.labels()
    root = root or table.path.parent
    entries = []
    for row, label in zip(table.rows, labels, strict=True):
        if not row[1].isdigit():
            raise ValueError(f"{table.path}: {row[0]} has {row[1]!r} frames; expected FOLDER FRAMES LABEL")
        entries.append(Entry(root / row[0], label, frames=int(row[1])))
    return VideoList("", name_split(split, table.path), root, tuple(entries), names)


@dataclass(frozen=True)
class _Table:
    """The lines of a list: ``before`` fields, a path that may hold delimiters, ``after`` fields."""

    path: Path
    rows: list[list[str]]

    @classmethod
    def read(cls, path: Path, before: int = 0, after: int = 1) -> _Table:
        """Cut the lines at the first delimiter that leaves numbers behind all paths, or else texts.

        Raises:
            ValueError: No delimiter cuts the first lines, or it does not cut another; the message names it.
        """
        lines = list(text_lines(path))
        first = lines[:SAMPLE]
        delimiter = find_delimiter(first, before, after, True) or find_delimiter(first, before, after, False)
        if delimiter is None:
            raise ValueError(
                f"{path}: no tab, comma, semicolon or space cuts its lines into {before + 1 + after} fields"
            )
        rows = [cut_line(line, delimiter, before, after) for line in lines]
        if _is_header(rows[0]):
            del rows[0]
        for row in rows:
            if len(row) != before + 1 + after or not all(row):
                raise ValueError(f"{path}: {delimiter.join(row)!r} has not {before + 1 + after} fields")
        return cls(path, rows)

    def labels(self, negative: bool = False) -> tuple[list[int], tuple[str, ...]]:
        """The class index of each row, and the class names if the list has names instead of indices.

        Args:
            negative: Take a negative index for "no label".
        """
        texts = [row[-1] for row in self.rows]
        whole = [text.removeprefix("-").isdecimal() for text in texts]
        if not any(whole):
            names = sorted(set(texts))
            numbers = {name: number for number, name in enumerate(names)}
            return [numbers[text] for text in texts], tuple(names)
        if not all(whole):
            odd = self.rows[whole.index(False)]
            raise ValueError(f"{self.path}: the label of {odd[-2]} is {odd[-1]!r}, but others are numbers")
        labels = [int(text) for text in texts]
        if min(labels) < 0 and not negative:
            odd = self.rows[labels.index(min(labels))]
            raise ValueError(f"{self.path}: the label of {odd[-2]} is {odd[-1]}; classes count from 0")
        return [max(label, NO_LABEL) for label in labels], ()


def find_delimiter(lines: Sequence[str], before: int, after: int, numeric: bool) -> str | None:
    """The first delimiter that cuts all lines, with ``numeric`` into numbers behind the path."""
    for delimiter in _DELIMITERS:
        rows = [cut_line(line, delimiter, before, after) for line in lines]
        rows = rows[1:] if rows and _is_header(rows[0]) else rows
        whole = all(len(row) == before + 1 + after and all(row) for row in rows)
        if (
            rows
            and whole
            and (not numeric or all(_NUMBER.fullmatch(t) for row in rows for t in row[-after:]))
        ):
            return delimiter
    return None


def _is_header(row: Sequence[str]) -> bool:
    return row[-1].lower() in _HEADER_WORDS


def cut_line(line: str, delimiter: str, before: int, after: int) -> list[str]:
    """The fields of a line: ``before`` from the left, ``after`` from the right, a path between them."""
    first = line.split(delimiter, before)
    fields = [*first[:-1], *first[-1].rsplit(delimiter, after)]
    return [_unquoted(text.strip()) for text in fields]


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
    return text[1:-1].replace('""', '"') if is_quoted else text


def _locate(names: Sequence[str], root: Path) -> tuple[list[Path], Path]:
    """Where videos are, and the folder that holds them."""
    paths = []
    for name in names:
        path = root / name
        if "." not in os.path.basename(name) and not path.is_dir():
            path = path.with_name(path.name + ".mp4")
        paths.append(path)
    if all(map(os.path.isabs, names)):
        root = Path(os.path.commonpath([path.parent for path in paths]))
    return paths, root
