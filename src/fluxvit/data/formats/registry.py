"""What data sets ship, read as lists of videos; `fluxvit.data.check` then checks the files.

Each reader takes the annotations (a file or a folder), the folder of the videos and the split. Nothing is
opened here but lists: a video that is missing on disk stays in the list, so that its absence is reported.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import fluxvit.data.formats.annotations  # noqa: F401 - registers its formats
from fluxvit.data.class_names import read_class_names
from fluxvit.data.classes import number_list
from fluxvit.data.formats.captions import detect_caption_set
from fluxvit.data.formats.columns import ROLES, find_delimiter, has_columns, header_of
from fluxvit.data.formats.layout import (
    FOLDER_MARKS,
    FORMATS,
    VideoList,
    data_format,
    files_in,
    folders_in,
    is_list,
    is_video,
    requested_split,
    split_in,
    splits_in,
    videos_below,
)
from fluxvit.data.formats.lists import read_csv
from fluxvit.data.formats.multi_label import CHARADES_COLUMNS, has_label_lists
from fluxvit.data.formats.qa import detect_question_set
from fluxvit.data.formats.roots import suggest_root
from fluxvit.data.formats.rows import RECOGNISED_ROWS, described, first_keys, keys_of
from fluxvit.data.formats.tables import TextTable
from fluxvit.data.formats.text_files import read_annotations
from fluxvit.data.formats.walk import LeftOut
from fluxvit.data.manifest import Entry, read_manifest
from fluxvit.utils.terminal import printable
from fluxvit.video.tar_members import is_url, may_exist


def read_source(
    source: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
    like: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> VideoList:
    """Read a data set.

    Args:
        source: A file or folder, as the reader of its format says.
        format: A key of `FORMATS`, or ``auto`` to let `detect` find it.
        root: The folder of the videos; default: see the reader, mostly the folder of the annotations.
        split: ``train``, ``val`` or ``test``; default: what the name of the file says. Formats without splits
            take any name, and record it.
        labels: A file of class names (see :func:`~fluxvit.data.class_names.read_class_names`). It names the
            classes of lists that have numbers only; where a list has names, they are numbered as in the file.
        like: Instead of ``labels``, a manifest or a checkpoint folder whose classes and numbers are taken.
        columns: For lists read as ``csv``, which columns have the ``path``, the ``label`` and so on: names in
            the first row, or numbers from 1; see `read_csv`. Default: found by their names and content.

    Raises:
        ValueError: It is not of that format, lists nothing, not one of its videos exists, or its classes are
            not among those of ``labels`` or ``like``.
    """
    source = Path(source).absolute()
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"{root}: no such folder of videos")
    if format == "auto":
        format = "csv" if columns else detect(source)
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: choose auto, {', '.join(sorted(FORMATS))}")
    reader = FORMATS[format]
    if columns:
        if format != "csv":
            raise ValueError(f"columns can be chosen for lists read as csv, not as {format}")
        unknown = sorted(columns.keys() - set(ROLES))
        if unknown:
            raise ValueError(f"columns: no {', '.join(unknown)}; choose {', '.join(ROLES)}")
        reader = partial(read_csv, columns=columns)
    try:
        videos = reader(source, None if root is None else Path(root).absolute(), split)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # Annotations of another shape than the reader's description.
        reason = f"no {error}" if isinstance(error, KeyError) else "a value is of another kind than expected"
        raise ValueError(f"{source}: not as {format} ships ({reason}); choose another --format") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{error.filename or source}: cannot be read as {format}: {reason}") from error
    if not videos.entries:
        raise ValueError("; ".join((f"{source}: read as {format}, it lists no videos", *videos.notes)))
    if not any(may_exist(entry.path) for entry in videos.entries):
        first = [entry.path for entry in videos.entries]
        near = suggest_root(first, videos.root, source)
        hint = f"; --root {near} finds them" if near else "; say with --root where they are"
        if first[0].is_relative_to(videos.root) and is_url(first[0].relative_to(videos.root)):
            hint = "; that is a URL, so download the videos and list their files"
        example = printable(first[0])
        raise ValueError(f"{source}: none of its {len(first)} videos exists, such as {example}{hint}")
    if labels is not None and like is not None:
        raise ValueError("give --labels or --like, not both: each names the classes")
    names = labels if like is None else like
    if names is not None:
        videos = number_list(videos, read_class_names(names), str(source), str(names))
    notes = (*videos.notes, *_repeated(videos.entries))
    classes = tuple(map(_unicode, videos.labels))
    return replace(videos, name=videos.name or format, labels=classes, notes=tuple(map(printable, notes)))


def _unicode(name: str) -> str:
    r"""The name of a class, which checkpoints hold as Unicode: bytes of a folder's name that are not UTF-8
    become escapes such as ``\xff``.
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _repeated(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Notes on videos and segments that a list has more than once."""
    labels: dict[tuple[Path, float | None, float | None], tuple[int, ...]] = {}
    same, other = list[Path](), list[Path]()
    for entry in entries:
        if "qa" in entry.extra:  # Each question is an entry.
            continue
        key = (entry.path, entry.start, entry.end)
        if key not in labels:
            labels[key] = entry.classes
        else:
            (same if labels[key] == entry.classes else other).append(entry.path)
    counts = {"more than once": same, "again with another label": other}
    return tuple(
        f"{len(paths)} rows list a video {how}, such as {paths[0]}" for how, paths in counts.items() if paths
    )


def detect(source: Path) -> str:
    """The key in `FORMATS` of a file or folder, by the names and first lines that are typical of each.

    Raises:
        ValueError: It looks like none of them.
    """
    format = detect_question_set(source) or detect_caption_set(source)
    if format:
        return format
    if source.is_dir():
        names = [path.name for path in files_in(source)]
        for pattern, format in FOLDER_MARKS.items():
            if fnmatch.filter(names, pattern):
                return format
        lists = [path for path in files_in(source) if is_list(path) and split_in(path.stem)]
        if lists:
            return _detect_list(lists[0])
        if any(child.is_dir() for child in source.iterdir()):
            return "folder"
    elif source.suffix.lower() == ".jsonl":
        return "manifest"
    elif source.suffix.lower() == ".json":
        return _detect_json(source)
    elif is_list(source):
        return _detect_list(source)
    raise ValueError(f"{source}: its format is not recognised; choose one with --format")


@data_format("folder")
def read_folder(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A folder for each class, which may lie in folders ``train``, ``val`` and ``test`` or the like.

    Videos may lie deeper, and links are followed; a link that leads nowhere is a missing video if it is named
    like one. A folder that holds images and no videos is a video itself. Classes are numbered in alphabetical
    order over all splits. ``root`` is not needed: the videos are where the classes are.
    """
    if root is not None and root != source:
        raise ValueError(f"{root}: of a folder of classes, the folder itself is the source; leave --root out")
    left_out = LeftOut()
    folders = folders_in(source, left_out)
    parts = _splits(folders)
    if parts:
        requested = requested_split(split, source, found=sorted(set(parts.values())))
        classes = {path: folders_in(path, left_out) for path in parts}
        homes = [path for path, part in parts.items() if part == requested]
    else:
        requested, classes, homes = split or "", {source: folders}, [source]
    names = sorted({folder.name for folders in classes.values() for folder in folders})
    numbers = {name: number for number, name in enumerate(names)}
    entries = [
        Entry(path, numbers[folder.name])
        for home in homes
        for folder in classes[home]
        for path in videos_below(folder, left_out, keep_broken=True)
    ]
    others = [path.name for path in folders if parts and path not in parts]
    notes = [f"left out the folders {', '.join(others)}, which are no splits"] if others else []
    lists = [path.name for path in files_in(source) if is_list(path) or path.suffix.lower() == ".json"]
    if lists:
        notes.append(
            f"the folders were read, not {', '.join(lists[:3])} beside them; a list is read as SOURCE"
        )
    return VideoList(requested, source, tuple(entries), tuple(names), (*notes, *left_out.notes))


def _splits(folders: Sequence[Path]) -> dict[Path, str]:
    """The folders that are splits, with their names; none if these are folders of classes.

    Raises:
        ValueError: They may be either.
    """
    splits = {path: split for path in folders if (split := split_in(path.name))}
    if len(splits) == len(folders):
        return splits
    # Beside splits there are often folders of annotations; beside classes, one may be called "test".
    nested = {path for path in splits if any(child.is_dir() for child in path.iterdir())}
    if nested != splits.keys() or len(set(splits.values())) < 2:
        return {}
    rest = {path: names for path in folders if path not in splits and (names := splits_in(path.name))}
    if rest:
        path, names = next(iter(rest.items()))
        raise ValueError(f"{path}: is it {' or '.join(names)}? Give its name one of them, or move it away")
    return splits


@data_format("motionworld", "dataset.json")
def read_motionworld(source: Path, root: Path | None, split: str | None) -> VideoList:
    """What ``fluxvit data make`` has made, such as a MotionWorld: ``dataset.json``, ``<split>.jsonl``."""
    facts = read_annotations(source / "dataset.json")
    requested = requested_split(split, source)
    names = facts.get("motion_classes") or facts.get("classes") or ()
    videos = read_manifest(source / f"{requested}.jsonl", labels=tuple(names), root=root)
    return VideoList(requested, videos.root, videos.entries, videos.labels, name=facts.get("name", ""))


@data_format("manifest")
def read_probed(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A manifest (``.jsonl``), to be checked again; what else it says about the videos is kept."""
    videos = read_manifest(source, target=None, root=root)
    entries = tuple(replace(entry, ok=True, error=None) for entry in videos.entries)
    return VideoList(split or videos.split, videos.root, entries, videos.labels, name=videos.name)


def _detect_json(path: Path) -> str:
    content = read_annotations(path)
    rows = first_keys(content)
    if any("id" in keys and keys <= {"id", "label", "template", "placeholders"} for keys in rows):
        return "ssv2"
    database = content.get("database") if isinstance(content, dict) else None
    for video in list(database.values())[:RECOGNISED_ROWS] if isinstance(database, dict) else ():
        keys = set(video) if isinstance(video, dict) else set()
        if "recipe_type" in keys:
            return "coin"
        if "annotations" in keys:
            return "hacs" if "hacs" in path.name.lower() else "activitynet"
    if rows:
        what = f"its rows have the keys {keys_of(dict.fromkeys(sorted(rows[0])))}"
    else:
        what = f"it is {described(content)}"
    raise ValueError(
        f"{path}: its format is not recognised; choose one with --format. It was searched for rows with a "
        "video or image and a caption, conversations, messages, QA, or question and answer, for rows of SSv2 "
        "(id, template) and DiDeMo (video, description, times), and for the database of ActivityNet, HACS "
        f"and COIN; but {what}"
    )


def _detect_list(path: Path) -> str:
    if has_columns(path, "youtube_id", "time_start", "time_end"):
        return "kinetics"
    if has_columns(path, *CHARADES_COLUMNS):
        return "charades"
    named = has_columns(path, "labels") or "labels" in header_of(TextTable.read(path))
    if named and has_label_lists(path):
        return "multi_label"
    for mark, format in (("classInd.txt", "ucf101"), ("moments_categories.txt", "mit")):
        if (path.parent / mark).exists():
            return format
    table = TextTable.read(path)
    header = header_of(table)
    # Columns in the order of the formats below, or in any other.
    if header and "totaltime" not in header and not any("frames" in name for name in header):
        return "csv"
    for format, before, after in (("mixture", 1, 4), ("intervals", 0, 4), ("rawframes", 0, 2)):
        fixed = find_delimiter(table, before, after)
        if fixed is None:
            continue
        # The first cell of a mixture is a word; what comes before the numbers of the others is a path.
        first = fixed[1][0]
        if {"mixture": first.isidentifier(), "intervals": True, "rawframes": not is_video(first)}[format]:
            return format
    return "csv"
