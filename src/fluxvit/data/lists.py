"""Lists of paths with labels, a video on each line, as csv, tsv or text files.

The readers take the list (or its folder), the folder of the videos and the split; see `fluxvit.data.sources`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluxvit.data.layout import (
    SPLIT_NAMES,
    VIDEO_SUFFIXES,
    VideoFinder,
    VideoList,
    data_format,
    list_file,
    name_split,
    seconds_in,
    split_in,
    wanted_split,
)
from fluxvit.data.manifest import MOST_CLASSES, NO_LABEL, Entry
from fluxvit.data.roots import TRIED, exists, locate
from fluxvit.data.tables import DELIMITERS, SAMPLE, Row, TextTable
from fluxvit.data.text_files import shown, whole

ROLES = ("path", "label", "caption", "start", "end", "split")
"""What a column of a list may be: the keys of ``columns``."""

# Names of columns without spaces, hyphens and underscores. Of several that fit, the first here is taken.
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
# What columns of these names hold says nothing about the folder and the suffix of a video.
_IDS = ("name", "videoid", "youtubeid", "ytid", "vidid", "clipid", "vid", "id")
_VIDEO_SUFFIX = "(?i:" + "|".join(map(re.escape, sorted(VIDEO_SUFFIXES, key=len, reverse=True))) + ")"
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_INDEX = re.compile(r"([+-]?\d+)(\.0*)?")


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
    layout = _by_header(table, columns or {}) or _by_content(table, home, columns or {})
    rows = list(layout.records(home))
    notes = [layout.note()]
    names: tuple[str, ...] = ()
    labels = [NO_LABEL] * len(rows)
    if "label" in layout.roles:
        labels, names, told = _labels_and_names(layout, rows)
        notes += told
    split = name_split(split, table.path)
    if "split" in layout.roles:
        kept, split, told = _of_split(layout, rows, split, table.path)
        rows, labels = [rows[at] for at in kept], [labels[at] for at in kept]
        notes += told
    paths, base, told = locate([cells["path"] for _, cells in rows], root, table.path.parent)
    if layout.header and _plain(layout.header[layout.roles["path"]]) in _IDS:
        paths = _look_up(paths, base)
    entries = [
        Entry(path, label, **_facts(table, row, cells))
        for path, label, (row, cells) in zip(paths, labels, rows, strict=True)
    ]
    if "caption" in layout.roles:
        entries = _join_captions(entries)
    return VideoList("", split, base, tuple(entries), names, (*notes, *told))


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
    rows = _fixed(table, before, after=4)
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
    return VideoList("", name_split(split, table.path), root, tuple(entries), names, notes)


@data_format("rawframes")
def read_rawframes(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``frame_dir total_frames label`` on each line: folders of images, one a frame (SSv2, HMDB51).

    The images of a folder are taken in natural order of their names. If it holds several kinds of images,
    those are taken of which there are ``total_frames``; if that fits several kinds, the list must name the
    images: ``frame_dir/img_%05d.jpg total_frames label``.
    Otherwise like ``intervals``.
    """
    table = TextTable.read(list_file(source, split))
    rows = _fixed(table, before=0, after=2)
    labels, names = _labels(table, [row for row, _ in rows], [cells[-1] for _, cells in rows])
    root = root or table.path.parent
    entries = []
    for (row, cells), label in zip(rows, labels, strict=True):
        if not cells[1].isdecimal():
            raise table.error(row, f"{cells[0]} has {cells[1]!r} frames; expected FOLDER FRAMES LABEL")
        entries.append(Entry(root / cells[0], label, frames=whole(cells[1])))
    return VideoList("", name_split(split, table.path), root, tuple(entries), names)


def has_columns(path: Path, *names: str) -> bool:
    """Whether the first row of a list has all of these names, whatever separates them."""
    row = next(TextTable.read(path).rows(",", most=1))
    return {_plain(name) for name in names} <= {_plain(word) for word in re.split(r"[\t,;| ]", row.text)}


def header_of(table: TextTable) -> list[str]:
    """Names of a list's columns, lower case without spaces; empty if its first row does not name them."""
    found = _find_header(table, ())
    return [_plain(name) for name in found[1]] if found else []


# --- How a list is laid out --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How the rows of a list are cut, and what the cells mean.

    Attributes:
        table: The list.
        delimiter: What separates cells.
        rows: The rows that may hold videos.
        roles: The numbers of the columns that are read, by what they are.
        width: Cells of a row; None: two, the path and what stands behind the last delimiter.
        header: Names of the columns, if the list has some.
        other_labels: The numbers of more columns that are named like labels.
        behind_suffix: Instead of the last delimiter the one that follows the suffix of a video counts.
    """

    table: TextTable
    delimiter: str
    rows: list[Row]
    roles: dict[str, int]
    width: int | None = None
    header: list[str] | None = None
    behind_suffix: bool = False
    other_labels: tuple[int, ...] = ()

    def cells(self, row: Row) -> list[str] | None:
        """The cells of a row; None if it has more or fewer than expected."""
        if self.behind_suffix:
            found = re.fullmatch(rf"(.+?{_VIDEO_SUFFIX}){re.escape(self.delimiter)}+(.+)", row.text.strip())
            return row.clean(found.groups()) if found else None
        if self.width is None:
            cells = row.cut(self.delimiter, 0, 1)
            return cells if len(cells) == 2 else None
        fields = _fields(row, self.delimiter)
        while len(fields) > self.width and not fields[-1].strip():
            fields.pop()
        if len(fields) <= self.width:
            return row.clean(fields) if len(fields) == self.width else None
        # More delimiters than columns: they may be part of the path, if its suffix is at its very end.
        before = self.roles["path"]
        cells = row.cut(self.delimiter, before, self.width - 1 - before)
        extra = len(fields) - self.width
        is_path = is_video(cells[before]) and not any(map(is_video, fields[before : before + extra]))
        return cells if is_path or not any(map(is_video, fields)) else None

    def path(self, row: Row) -> str:
        """The path in a row; empty if there is none."""
        cells = self.cells(row)
        return cells[self.roles["path"]] if cells and all(cells[at] for at in self.roles.values()) else ""

    def records(self, home: Path) -> Iterator[tuple[Row, dict[str, str]]]:
        """Yield the rows that hold videos, with their cells by role.

        Args:
            home: The folder that paths are relative to.

        Raises:
            ValueError: A row has no path or no label, or too few or too many cells; the message names it.
        """
        for row in self.rows:
            if (row.is_comment and not exists(home, self.path(row))) or not any(map(str.strip, row.fields)):
                continue
            cells = self.cells(row)
            if cells is None:
                raise self.table.error(row, self._mismatch(row))
            record = {role: cells[at] for role, at in self.roles.items()}
            if not row.unquoted and record["path"].startswith('"') and not exists(home, record["path"]):
                raise self.table.error(row, "a quotation mark that is never closed")
            for role in ("path", "label", "caption"):
                if not record.get(role, "-"):
                    raise self.table.error(
                        row, f"no {role}, which is expected in column {self.roles[role] + 1}"
                    )
            yield row, record

    def _mismatch(self, row: Row) -> str:
        kind = DELIMITERS[self.delimiter]
        if self.width is None:
            return f"expected a path, a {kind} and a label"
        names = f" ({', '.join(map(repr, self.header))})" if self.header else ""
        count = len(_fields(row, self.delimiter))
        return (
            f"expected {self.width} cells separated by a {kind}{names}, not {count}; a cell that holds a "
            f"{kind} needs double quotes"
        )

    def note(self) -> str:
        """What was decided, in one sentence."""
        table, kind = self.table, DELIMITERS[self.delimiter]
        if self.width is None:
            how = f"each line cut at {'the' if self.behind_suffix else 'its last'} {kind}"
            how += " behind the name of a video" * self.behind_suffix
        else:
            how = f"cells separated by {'spaces' if self.delimiter == ' ' else f'a {kind}'}"
        named = [
            f"{role} from column {at + 1}" + (f" {self.header[at]!r}" if self.header else "")
            for role, at in self.roles.items()
        ]
        head = "the first row names the columns" if self.header else "no header"
        return f"{table.path.name} read as {table.encoding}, {how}, {head}: {', '.join(named)}"


def _fields(row: Row, delimiter: str) -> list[str]:
    return [text for text in row.fields if text] if delimiter == " " else list(row.fields)


def _find_header(table: TextTable, asked: Collection[str]) -> tuple[str, list[str], int] | None:
    """The delimiter, the names of the columns, and the number of the row behind them; None if a list does not
    name its columns.

    Args:
        asked: Names that must be among them; without any, those of a path and a label or caption.
    """
    for delimiter in DELIMITERS:
        rows = list(table.rows(delimiter, SAMPLE))
        first = next((at for at, row in enumerate(rows) if not row.is_comment), 0)
        # The header may itself look like a comment.
        for at, row in enumerate(rows[: first + 1]):
            header = _header(row, delimiter)
            told = _told_roles(header)
            if asked:
                is_header = all(_column(name, header) is not None for name in asked)
            elif len(header) < 2 or _names_video(row):
                is_header = False
            else:
                # Or whatever the column of the paths is called, if the last one is of labels.
                is_header = told.keys() >= {"path", "label"} or told.keys() >= {"path", "caption"}
                is_header |= not row.is_comment and told.get("label") == len(header) - 1
            if is_header:
                others = [_fields(other, delimiter) for other in rows[at + 1 :]]
                return delimiter, _with_row_names(header, others), at + 1
    return None


def _by_header(table: TextTable, columns: Mapping[str, str]) -> _Layout | None:
    """The layout of a list whose first row names its columns; None if it does not.

    Raises:
        ValueError: The columns that are asked for, or those of paths and labels, cannot be found.
    """
    asked = [name for name in columns.values() if not name.isdecimal()]
    found = _find_header(table, asked)
    if found:
        return _with_header(table, *found, columns)
    if asked:
        first = table.lines[0][1]
        missing = [name for name in asked if _plain(name) not in _plain(first)] or asked
        raise ValueError(f"{table.path}: no column {' and '.join(missing)} in its first row, {shown(first)}")
    return None


def _with_header(
    table: TextTable, delimiter: str, header: list[str], start: int, columns: Mapping[str, str]
) -> _Layout:
    """The layout of a list with these names of columns, whose videos begin with row number ``start``."""
    rows = list(table.rows(delimiter))[start:]
    asked = {role: _column(name, header) for role, name in columns.items()}
    missing = [columns[role] for role, at in asked.items() if at is None]
    if missing:
        raise ValueError(f"{table.path}: no column {', '.join(missing)}; there are {_named(header)}")
    chosen = {role: at for role, at in asked.items() if at is not None}
    told = {role: at for role, at in _told_roles(header).items() if at not in chosen.values()}
    # Texts beside labels are often names of classes.
    optional = ("caption",) if "label" in {**told, **chosen} and "caption" not in chosen else ()
    if "caption" in chosen:
        optional = ("label",)
    roles = {**{role: at for role, at in told.items() if role not in optional}, **chosen}
    sample = [_fields(row, delimiter) for row in rows[:SAMPLE] if not row.is_comment]
    sample = [fields for fields in sample if len(fields) == len(header)]
    free = [at for at, name in enumerate(header) if at not in roles.values() and not _is_index(name)]
    if "path" not in roles:
        like_videos = [at for at in free if sample and all(is_video(fields[at]) for fields in sample)]
        candidates = like_videos or free
        if len(candidates) != 1:
            raise _unclear(table, "paths", "path", header)
        roles["path"] = candidates[0]
        free.remove(candidates[0])
    if not roles.keys() & {"label", "caption"}:
        if len(free) != 1:
            raise _unclear(table, "labels", "label", header)
        roles["label"] = free[0]
    roles = {role: roles[role] for role in ROLES if role in roles}
    others = () if "label" in chosen else [at for at in free if _plain(header[at]) in _WORDS["label"]]
    return _Layout(table, delimiter, rows, roles, len(header), header, other_labels=tuple(others))


def _by_content(table: TextTable, home: Path, columns: Mapping[str, str]) -> _Layout:
    """The layout of a list whose first row does not tell it.

    Raises:
        ValueError: No delimiter makes a path and a label of most lines.
    """
    options = list(_layouts(table, columns, skip=0))
    # The first row may be a header of names that are not known here.
    without_first = list(_layouts(table, columns, skip=1))
    best = max(options, key=lambda option: _fitness(option, home), default=None)
    other = max(without_first, key=lambda option: _fitness(option, home), default=None)
    if other is not None and _is_header(other, table, home):
        names = _header(next(table.rows(other.delimiter, 1)), other.delimiter)
        if other.width is not None and not columns:
            return _with_header(table, other.delimiter, names, 1, columns)
        return replace(other, rows=list(table.rows(other.delimiter))[1:], header=names)
    if best is None:
        raise ValueError(
            f"{table.path}: no tab, comma, semicolon, bar or space cuts its lines into a path and a label"
        )
    return replace(best, rows=list(table.rows(best.delimiter)))


def _layouts(table: TextTable, columns: Mapping[str, str], skip: int) -> Iterator[_Layout]:
    """Layouts that make a path and a label of at least half of the first lines."""
    for delimiter in DELIMITERS:
        rows = list(table.rows(delimiter, SAMPLE))[skip:]
        data = [row for row in rows if not row.is_comment] or rows
        if not data:
            continue
        widths = Counter(len(_trimmed(_fields(row, delimiter))) for row in data)
        width = widths.most_common(1)[0][0]
        layouts = []
        if columns:
            roles = {role: whole(number) - 1 for role, number in columns.items()}
            if "path" in roles and max(roles.values()) < width:
                layouts.append(_Layout(table, delimiter, data, roles, width))
        else:
            layouts.append(_Layout(table, delimiter, data, {"path": 0, "label": 1}))
            if width > 1:
                layouts += _columns(table, delimiter, data, width)
            layouts.append(_Layout(table, delimiter, data, {"path": 0, "label": 1}, behind_suffix=True))
        for layout in layouts:
            if 2 * sum(bool(layout.path(row)) for row in data) >= len(data):
                yield layout


def _columns(table: TextTable, delimiter: str, rows: list[Row], width: int) -> Iterator[_Layout]:
    """Layouts by columns of equal number: a path and what follows it, or else precedes it."""
    cells = [fields for row in rows if len(fields := _trimmed(_fields(row, delimiter))) == width]
    like_videos = [at for at in range(width) if all(is_video(fields[at]) for fields in cells)]
    for path in like_videos[:1] or [0]:
        label = path + 1 if path + 1 < width else path - 1
        # Names of classes may hold spaces, so that only numbers tell where a label ends.
        if delimiter != " " or all(_INDEX.fullmatch(fields[label].strip()) for fields in cells):
            yield _Layout(table, delimiter, rows, {"path": path, "label": label}, width)


def _fitness(layout: _Layout, home: Path) -> tuple[bool, float, bool, float, bool]:
    """How well a layout fits the first lines; the best one is meant. Of equal ones the first is."""
    rows = [row for row in layout.rows if layout.path(row)]
    paths = [layout.path(row) for row in rows]
    label = layout.roles.get("label", layout.roles["path"])
    return (
        any(exists(home, path) for path in paths[:TRIED]),
        round(sum(map(is_video, paths)) / len(layout.rows), 1),
        len(rows) == len(layout.rows),
        len(rows) / len(layout.rows),
        all(_NUMBER.fullmatch((layout.cells(row) or [])[label]) for row in rows),
    )


def _is_header(layout: _Layout, table: TextTable, home: Path) -> bool:
    """Whether the first row of a list has names of columns where the others have paths and labels."""
    first = next(table.rows(layout.delimiter, 1))
    names = _header(first, layout.delimiter)
    cells = layout.cells(first) or names
    if first.is_comment or len(names) <= max(layout.roles.values()) or _names_video(first):
        return False
    _, videos, *_, numbers = _fitness(layout, home)
    is_odd = videos == 1 or (numbers and not _NUMBER.fullmatch(cells[layout.roles.get("label", 0)]))
    return is_odd and not exists(home, cells[layout.roles["path"]])


def _names_video(row: Row) -> bool:
    """Whether there is the name of a video anywhere in a row, however that is cut."""
    return re.search(rf"{_VIDEO_SUFFIX}(?!\w)", row.text) is not None


def _header(row: Row, delimiter: str) -> list[str]:
    """A row as names of columns."""
    header = row.clean(_fields(row, delimiter))
    return _trimmed([header[0].lstrip("# "), *header[1:]]) if header else []


def _with_row_names(header: list[str], rows: list[list[str]]) -> list[str]:
    """The header of a table whose rows have a name or number in front that the header leaves out (R)."""
    is_named = rows and all(len(fields) == len(header) + 1 for fields in rows)
    return ["", *header] if is_named and all(fields[0].strip().isdecimal() for fields in rows) else header


def _told_roles(header: Sequence[str]) -> dict[str, int]:
    """Columns by what their names say they are."""
    plain = [_plain(name) for name in header]
    found = {
        role: next((plain.index(word) for word in words if word in plain), -1)
        for role, words in _WORDS.items()
    }
    return {role: at for role, at in found.items() if at >= 0}


def _column(name: str, header: Sequence[str]) -> int | None:
    """The number of a column from its name, or its number from 1."""
    if name in header:
        return header.index(name)
    plain = [_plain(other) for other in header]
    if _plain(name) in plain:
        return plain.index(_plain(name))
    return whole(name) - 1 if name.isdecimal() and 0 < whole(name) <= len(header) else None


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _is_index(name: str) -> bool:
    """Whether a column is the index that pandas writes."""
    return not name or name.startswith("Unnamed: ") or name == "index"


def _trimmed(fields: list[str]) -> list[str]:
    """Fields without empty ones at the end."""
    width = next((at for at in range(len(fields), 0, -1) if fields[at - 1].strip()), 0)
    return fields[:width]


def _named(header: Sequence[str]) -> str:
    return ", ".join(map(repr, filter(None, header)))


def _unclear(table: TextTable, what: str, role: str, header: Sequence[str]) -> ValueError:
    return ValueError(
        f"{table.path}: which of the columns {_named(header)} has the {what}? "
        f"Say it with --columns {role}=NAME"
    )


# --- Lists with columns in a fixed order -------------------------------------------------------------------


def find_delimiter(table: TextTable, before: int, after: int) -> tuple[str, list[str]] | None:
    """The first delimiter that cuts the first lines into ``before`` cells, a path and ``after`` numbers, and
    the cells of the last of these lines; None if there is none.
    """
    for delimiter in DELIMITERS:
        rows = [row for row in table.rows(delimiter, SAMPLE) if not row.is_comment]
        cells = [row.cut(delimiter, before, after) for row in rows]
        if cells and _plain(cells[0][-1]) in _WORDS["label"]:
            del cells[0]
        if cells and all(_is_fixed(row, before, after) for row in cells):
            return delimiter, cells[-1]
    return None


def _is_fixed(cells: Sequence[str], before: int, after: int) -> bool:
    return (
        len(cells) == before + 1 + after
        and all(cells)
        and all(_NUMBER.fullmatch(text) for text in cells[len(cells) - after :])
    )


def _fixed(table: TextTable, before: int, after: int) -> list[tuple[Row, list[str]]]:
    """The rows of a list with ``before`` cells, a path that may hold delimiters, and ``after`` cells in each.

    Raises:
        ValueError: No delimiter cuts half of the lines so, or another line is odd; the message names it.
    """
    width = before + 1 + after
    best: tuple[float, str, list[tuple[Row, list[str]]]] = (0.0, "", [])
    for delimiter in DELIMITERS:
        rows = [row for row in table.rows(delimiter) if not row.is_comment]
        cut = [(row, row.cut(delimiter, before, after)) for row in rows]
        if cut and _plain(cut[0][1][-1]) in _WORDS["label"]:
            del cut[0]
        fit = sum(_is_fixed(cells, before, after) for _, cells in cut) / max(1, len(cut))
        if not fit:  # Labels may be names.
            fit = 0.5 * sum(len(cells) == width and all(cells) for _, cells in cut) / max(1, len(cut))
        if fit > best[0]:
            best = fit, delimiter, cut
    _, delimiter, cut = best
    if not delimiter:
        raise ValueError(
            f"{table.path}: no tab, comma, semicolon, bar or space cuts its lines into {width} fields"
        )
    for row, cells in cut:
        if len(cells) != width or not all(cells):
            raise table.error(row, f"expected {width} fields separated by a {DELIMITERS[delimiter]}")
    return cut


# --- Cells -------------------------------------------------------------------------------------------------


def is_video(name: str) -> bool:
    """Whether a text ends like the name of a video file."""
    return name.strip().lower().endswith(tuple(VIDEO_SUFFIXES))


def _labels(
    table: TextTable, rows: Sequence[Row], texts: Sequence[str], negative: bool = False
) -> tuple[list[int], tuple[str, ...]]:
    """The class index of each row, and the class names if the list has names instead of indices.

    Args:
        negative: Take a negative index for "no label".
    """
    found = [_INDEX.fullmatch(text) for text in texts]
    if not any(found):
        odd = next((at for at, text in enumerate(texts) if _NUMBER.fullmatch(text)), None)
        if odd is not None:
            raise table.error(rows[odd], f"the label is {texts[odd]}, neither a class index nor a name")
        names = sorted(set(texts))
        numbers = {name: number for number, name in enumerate(names)}
        return [numbers[text] for text in texts], tuple(names)
    labels = []
    for row, text, match in zip(rows, texts, found, strict=True):
        if match is None:
            raise table.error(row, f"the label is {text!r}, but others are numbers")
        labels.append(whole(match[1]))
        if labels[-1] >= MOST_CLASSES:
            reason = f"the label is {shown(text)}; the largest index of a class is {MOST_CLASSES - 1}"
            raise table.error(row, reason)
        if labels[-1] < 0 and not negative:
            raise table.error(row, f"the label is {text}; classes count from 0")
    return [max(label, NO_LABEL) for label in labels], ()


def _facts(table: TextTable, row: Row, cells: Mapping[str, str]) -> dict[str, Any]:
    """What the cells of a row say besides path and label."""
    facts: dict[str, Any] = {"captions": (cells["caption"],)} if "caption" in cells else {}
    times = {role: _seconds(table, row, cells[role]) for role in ("start", "end") if cells.get(role)}
    # -1 means the whole video, as in lists of segments.
    return facts if set(times.values()) == {-1} else {**facts, **times}


def _labels_and_names(
    layout: _Layout, rows: Sequence[tuple[Row, dict[str, str]]]
) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """The class indices of rows, the names of the classes, and a note if these are in two columns."""
    texts = [cells["label"] for _, cells in rows]
    for at in layout.other_labels:
        columns = {layout.roles["label"]: texts, at: [(layout.cells(row) or [])[at] for row, _ in rows]}
        index, name = sorted(columns, key=lambda column: not all(map(_INDEX.fullmatch, columns[column])))
        both = {*zip(columns[index], columns[name], strict=True)}
        pairs = {whole(match[1]): text for one, text in both if (match := _INDEX.fullmatch(one))}
        # Every number has its own name, none is left out, and the names are no numbers.
        if (
            sorted(pairs) == list(range(len(set(columns[index]))))
            and len(both) == len(set(columns[name])) == len(pairs)
            and not any(map(_INDEX.fullmatch, columns[name]))
        ):
            header = layout.header or []
            note = f"classes have their numbers from {header[index]!r} and their names from {header[name]!r}"
            labels, _ = _labels(layout.table, [row for row, _ in rows], columns[index])
            return labels, tuple(pairs[number] for number in sorted(pairs)), (note,)
    return *_labels(layout.table, [row for row, _ in rows], texts), ()


def _of_split(
    layout: _Layout, rows: Sequence[tuple[Row, dict[str, str]]], split: str, file: Path
) -> tuple[list[int], str, tuple[str, ...]]:
    """The numbers of the rows of a split by a column of splits, its name, and a note if there are others."""
    told = [split_in(cells["split"]) or cells["split"].casefold() for _, cells in rows]
    if not any(name in SPLIT_NAMES for name in told):
        return list(range(len(rows))), split, ()
    found = [name for name in dict.fromkeys(told) if name]
    wanted = wanted_split(split or None, file, found)
    kept = [at for at, name in enumerate(told) if name == wanted]
    note = f"took the {len(kept)} of {len(rows)} rows that are of split {wanted}"
    return kept, wanted, (note,) if len(kept) < len(rows) else ()


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
