"""Finds the columns of a list of videos: its delimiter, and the cells that hold paths and labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fluxvit.data.formats.layout import VIDEO_SUFFIXES, is_video
from fluxvit.data.formats.roots import TRIED, exists
from fluxvit.data.formats.tables import DELIMITERS, SAMPLE, Row, TextTable
from fluxvit.data.formats.text_files import parse_integer, shown

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
ID_COLUMNS = ("name", "videoid", "youtubeid", "ytid", "vidid", "clipid", "vid", "id")
_VIDEO_SUFFIX = "(?i:" + "|".join(map(re.escape, sorted(VIDEO_SUFFIXES, key=len, reverse=True))) + ")"
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
INDEX = re.compile(r"([+-]?\d+)(\.0*)?")
"""The index of a class; other programs may write it as a float."""


def find_columns(table: TextTable, home: Path, columns: Mapping[str, str]) -> Columns:
    """How a list is laid out, by the names in its first row or else by its content.

    Args:
        home: The folder that paths are relative to.
        columns: Columns that are chosen, by role: their names or their numbers from 1.

    Raises:
        ValueError: The columns that are chosen, or those of paths and labels, cannot be found.
    """
    return _by_header(table, columns) or _by_content(table, home, columns)


def has_columns(path: Path, *names: str) -> bool:
    """Whether the first row of a list has all of these names, whatever separates them."""
    row = next(TextTable.read(path).rows(",", most=1))
    return set(map(plain_name, names)) <= set(map(plain_name, re.split(r"[\t,;| ]", row.text)))


def header_of(table: TextTable) -> list[str]:
    """Names of a list's columns, lower case without spaces; empty if its first row does not name them."""
    found = _find_header(table, ())
    return [plain_name(name) for name in found[1]] if found else []


@dataclass(frozen=True)
class Columns:
    """How the rows of a list are cut into cells, and the meaning of the cells.

    Attributes:
        table: The list.
        delimiter: What separates cells.
        rows: The rows that may hold videos.
        roles: The numbers of the columns that are read, by role.
        width: Number of cells of a row; None: two, the path and the text behind the last delimiter.
        header: Names of the columns, if the list has some.
        other_labels: The numbers of further columns that are named like labels.
        behind_suffix: Cut at the delimiter that follows the suffix of a video, not at the last one.
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
        """The path in a row, or an empty text."""
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
        """A sentence that describes the layout."""
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


def _find_header(table: TextTable, required: Collection[str]) -> tuple[str, list[str], int] | None:
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
            named = _roles_by_name(header)
            if required:
                is_header = all(_column(name, header) is not None for name in required)
            elif len(header) < 2 or _names_video(row):
                is_header = False
            else:
                # Or whatever the column of the paths is called, if the last one is of labels.
                is_header = named.keys() >= {"path", "label"} or named.keys() >= {"path", "caption"}
                is_header |= not row.is_comment and named.get("label") == len(header) - 1
            if is_header:
                others = [_fields(other, delimiter) for other in rows[at + 1 :]]
                return delimiter, _with_row_names(header, others), at + 1
    return None


def _by_header(table: TextTable, columns: Mapping[str, str]) -> Columns | None:
    """The layout of a list whose first row names its columns; None if it does not.

    Raises:
        ValueError: The requested columns, or those of paths and labels, cannot be found.
    """
    required = [name for name in columns.values() if not name.isdecimal()]
    found = _find_header(table, required)
    if found:
        return _with_header(table, *found, columns)
    if required:
        first = table.lines[0][1]
        missing = [name for name in required if plain_name(name) not in plain_name(first)] or required
        raise ValueError(f"{table.path}: no column {' and '.join(missing)} in its first row, {shown(first)}")
    return None


def _with_header(
    table: TextTable, delimiter: str, header: list[str], start: int, columns: Mapping[str, str]
) -> Columns:
    """The layout of a list with these names of columns, whose videos begin with row number ``start``."""
    rows = list(table.rows(delimiter))[start:]
    requested = {role: _column(name, header) for role, name in columns.items()}
    missing = [columns[role] for role, at in requested.items() if at is None]
    if missing:
        raise ValueError(f"{table.path}: no column {', '.join(missing)}; there are {_named(header)}")
    chosen = {role: at for role, at in requested.items() if at is not None}
    named = {role: at for role, at in _roles_by_name(header).items() if at not in chosen.values()}
    # Texts beside labels are often names of classes.
    optional = ("caption",) if "label" in {**named, **chosen} and "caption" not in chosen else ()
    if "caption" in chosen:
        optional = ("label",)
    roles = {**{role: at for role, at in named.items() if role not in optional}, **chosen}
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
    others = () if "label" in chosen else [at for at in free if plain_name(header[at]) in _WORDS["label"]]
    return Columns(table, delimiter, rows, roles, len(header), header, other_labels=tuple(others))


def _by_content(table: TextTable, home: Path, columns: Mapping[str, str]) -> Columns:
    """The layout of a list without a header that names its columns.

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


def _layouts(table: TextTable, columns: Mapping[str, str], skip: int) -> Iterator[Columns]:
    """Layouts that find a path and a label in at least half of the first lines."""
    for delimiter in DELIMITERS:
        rows = list(table.rows(delimiter, SAMPLE))[skip:]
        data = [row for row in rows if not row.is_comment] or rows
        if not data:
            continue
        widths = Counter(len(_trimmed(_fields(row, delimiter))) for row in data)
        width = widths.most_common(1)[0][0]
        layouts = []
        if columns:
            roles = {role: parse_integer(number) - 1 for role, number in columns.items()}
            if "path" in roles and max(roles.values()) < width:
                layouts.append(Columns(table, delimiter, data, roles, width))
        else:
            layouts.append(Columns(table, delimiter, data, {"path": 0, "label": 1}))
            if width > 1:
                layouts += _columns(table, delimiter, data, width)
            layouts.append(Columns(table, delimiter, data, {"path": 0, "label": 1}, behind_suffix=True))
        for layout in layouts:
            if 2 * sum(bool(layout.path(row)) for row in data) >= len(data):
                yield layout


def _columns(table: TextTable, delimiter: str, rows: list[Row], width: int) -> Iterator[Columns]:
    """Layouts by columns: a path, and its label in the next column or else in the one before."""
    cells = [fields for row in rows if len(fields := _trimmed(_fields(row, delimiter))) == width]
    like_videos = [at for at in range(width) if all(is_video(fields[at]) for fields in cells)]
    for path in like_videos[:1] or [0]:
        label = path + 1 if path + 1 < width else path - 1
        # Names of classes may hold spaces, so that only numbers tell where a label ends.
        if delimiter != " " or all(INDEX.fullmatch(fields[label].strip()) for fields in cells):
            yield Columns(table, delimiter, rows, {"path": path, "label": label}, width)


def _fitness(layout: Columns, home: Path) -> tuple[bool, float, bool, float, bool]:
    """A score of how well a layout fits the first lines; the first layout with the highest score is taken."""
    rows = [row for row in layout.rows if layout.path(row)]
    paths = [layout.path(row) for row in rows]
    label = layout.roles.get("label", layout.roles["path"])
    return (
        any(exists(home, path) for path in paths[:TRIED]),
        round(sum(map(is_video, paths)) / len(layout.rows), 1),
        len(rows) == len(layout.rows),
        len(rows) / len(layout.rows),
        all(NUMBER.fullmatch((layout.cells(row) or [])[label]) for row in rows),
    )


def _is_header(layout: Columns, table: TextTable, home: Path) -> bool:
    """Whether the first row of a list has names of columns where the others have paths and labels."""
    first = next(table.rows(layout.delimiter, 1))
    names = _header(first, layout.delimiter)
    cells = layout.cells(first) or names
    if first.is_comment or len(names) <= max(layout.roles.values()) or _names_video(first):
        return False
    _, videos, *_, numbers = _fitness(layout, home)
    is_odd = videos == 1 or (numbers and not NUMBER.fullmatch(cells[layout.roles.get("label", 0)]))
    return is_odd and not exists(home, cells[layout.roles["path"]])


def _names_video(row: Row) -> bool:
    """Whether the name of a video occurs anywhere in a row."""
    return re.search(rf"{_VIDEO_SUFFIX}(?!\w)", row.text) is not None


def _header(row: Row, delimiter: str) -> list[str]:
    """A row as names of columns."""
    header = row.clean(_fields(row, delimiter))
    return _trimmed([header[0].lstrip("# "), *header[1:]]) if header else []


def _with_row_names(header: list[str], rows: list[list[str]]) -> list[str]:
    """The header of a table whose rows have a name or number in front that the header leaves out (R)."""
    is_named = rows and all(len(fields) == len(header) + 1 for fields in rows)
    return ["", *header] if is_named and all(fields[0].strip().isdecimal() for fields in rows) else header


def _roles_by_name(header: Sequence[str]) -> dict[str, int]:
    """The numbers of the columns by role, as their names suggest."""
    plain = [plain_name(name) for name in header]
    found = {
        role: next((plain.index(word) for word in words if word in plain), -1)
        for role, words in _WORDS.items()
    }
    return {role: at for role, at in found.items() if at >= 0}


def _column(name: str, header: Sequence[str]) -> int | None:
    """The number of a column from its name, or its number from 1."""
    if name in header:
        return header.index(name)
    plain = [plain_name(other) for other in header]
    if plain_name(name) in plain:
        return plain.index(plain_name(name))
    return parse_integer(name) - 1 if name.isdecimal() and 0 < parse_integer(name) <= len(header) else None


def plain_name(name: str) -> str:
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
        rows = _cut(table, delimiter, before, after, SAMPLE)
        if rows and all(_is_fixed(cells, before, after) for _, cells in rows):
            return delimiter, rows[-1][1]
    return None


def _cut(
    table: TextTable, delimiter: str, before: int, after: int, most: int | None = None
) -> list[tuple[Row, list[str]]]:
    """Rows with their cells, without comments and header."""
    rows = [row for row in table.rows(delimiter, most) if not row.is_comment]
    cut = [(row, row.cut(delimiter, before, after)) for row in rows]
    return cut[1:] if cut and plain_name(cut[0][1][-1]) in _WORDS["label"] else cut


def _is_fixed(cells: Sequence[str], before: int, after: int) -> bool:
    return (
        len(cells) == before + 1 + after
        and all(cells)
        and all(NUMBER.fullmatch(text) for text in cells[len(cells) - after :])
    )


def fixed_rows(table: TextTable, before: int, after: int) -> list[tuple[Row, list[str]]]:
    """The rows of a list with ``before`` cells, a path that may hold delimiters, and ``after`` cells in each.

    Raises:
        ValueError: No delimiter cuts half of the lines so, or another line is odd; the message names it.
    """
    width = before + 1 + after
    best: tuple[float, str, list[tuple[Row, list[str]]]] = (0.0, "", [])
    for delimiter in DELIMITERS:
        cut = _cut(table, delimiter, before, after)
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
