"""What data sets ship, read as lists of videos; `fluxvit.data.check` then checks the files.

Each reader takes the annotations (a file or a folder), the folder of the videos and the split. Nothing is
opened here but lists: a video that is missing on disk stays in the list, so that its absence is reported.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fluxvit.data.formats.captions  # noqa: F401 - registers its formats
from fluxvit.data.class_names import read_class_names
from fluxvit.data.classes import number_list
from fluxvit.data.formats.annotations import CHARADES_COLUMNS, KINETICS_COLUMNS
from fluxvit.data.formats.conversations import TURN_KEYS
from fluxvit.data.formats.layout import (
    FOLDER_MARKS,
    FORMATS,
    ROW_KEYS,
    VideoList,
    data_format,
    files_in,
    folders_in,
    is_list,
    requested_split,
    split_in,
    videos_below,
)
from fluxvit.data.formats.lists import ROLES, read_csv
from fluxvit.data.formats.qa import MVBENCH
from fluxvit.data.formats.rows import RECOGNISED_ROWS, VIDEO_KEYS, described, keys_of
from fluxvit.data.formats.tables import first_names
from fluxvit.data.formats.text_files import first_line, read_annotations
from fluxvit.data.formats.walk import LeftOut
from fluxvit.data.manifest import Entry, read_manifest
from fluxvit.utils.terminal import printable
from fluxvit.video.tar_members import is_url, may_exist


def read_source(
    source: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    split: str | None = None,
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
        like: A file of class names, a manifest or a checkpoint folder (see
            :func:`~fluxvit.data.class_names.read_class_names`). It names the classes of lists that have
            numbers only; where a list has names, they are numbered as over there.
        columns: For lists read as ``csv``, the names of the columns that have the ``path``, the ``label`` and
            so on; see `read_csv`. Default: columns of the usual names.

    Raises:
        ValueError: It is not of that format, lists nothing, not one of its videos exists, or its classes are
            not among those of ``like``.
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
        first = videos.entries[0].path
        cure = "say with --root where they are"
        if first.is_relative_to(videos.root) and is_url(first.relative_to(videos.root)):
            cure = "that is a URL, so download the videos and list their files"
        count = len(videos.entries)
        raise ValueError(f"{source}: none of its {count} videos exists, such as {printable(first)}; {cure}")
    if like is not None:
        videos = number_list(videos, read_class_names(like), str(source), str(like))
    notes = (*videos.notes, *_repeated(videos.entries))
    classes = tuple(map(_unicode, videos.labels))
    return replace(videos, name=videos.name or format, labels=classes, notes=tuple(map(printable, notes)))


def _unicode(name: str) -> str:
    r"""The name of a class, which checkpoints hold as Unicode: bytes of a folder's name that are not UTF-8
    become escapes such as ``\xff``.
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _repeated(entries: Sequence[Entry]) -> tuple[str, ...]:
    """A note on videos and segments that a list has more than once, except for questions about them."""
    counts = Counter((entry.path, entry.start, entry.end) for entry in entries if "qa" not in entry.extra)
    paths = [path for (path, *_), count in counts.items() if count > 1]
    return (f"{len(paths)} videos are listed more than once, such as {paths[0]}",) if paths else ()


def detect(source: Path) -> str:
    """The key in `FORMATS` of a file or folder, by the names and first rows that are typical of each.

    Raises:
        ValueError: It looks like none of them.
    """
    if source.is_dir():
        files = files_in(source)
        for pattern, format in FOLDER_MARKS.items():
            if fnmatch.filter([path.name for path in files], pattern):
                return format
        if any(
            (source / folder / f"{task.file}.json").is_file() for task in MVBENCH for folder in ("", "json")
        ):
            return "mvbench"
        lists = [path for path in files if is_list(path) and split_in(path.stem)]
        if lists:
            return _detect_list(lists[0])
        if any(child.is_dir() for child in source.iterdir()):
            return "folder"
    elif source.suffix.lower() in (".json", ".jsonl"):
        return _detect_json(source)
    elif is_list(source):
        return _detect_list(source)
    raise ValueError(f"{source}: its format is not recognised; choose one with --format")


def _detect_list(path: Path) -> str:
    if path.name.startswith("LSMDC"):
        return "lsmdc"
    names = first_names(path)
    if names == {"videoid"}:
        return "msrvtt"
    if names >= KINETICS_COLUMNS:
        return "kinetics"
    return "charades" if names >= CHARADES_COLUMNS else "csv"


def _detect_json(path: Path) -> str:
    if path.suffix.lower() == ".jsonl" and not first_line(path).startswith(("{", "[")):
        return "manifest"  # Its reader says what is wrong.
    content = read_annotations(path)
    rows = content[:RECOGNISED_ROWS] if isinstance(content, list) else []
    for row in rows:
        keys = set(row) if isinstance(row, dict) else set()
        if format := _format_of(keys):
            return format
    if path.suffix.lower() == ".jsonl":
        return "manifest"
    if isinstance(content, dict):
        if isinstance(content.get("database"), dict):
            return "coin"
        videos = list(content.values())[:RECOGNISED_ROWS]
        if any(isinstance(video, dict) and {"timestamps", "sentences"} <= set(video) for video in videos):
            return "activitynet_captions"
    what = f"it is {described(content)}"
    if rows and isinstance(rows[0], dict):
        what = f"its rows have the keys {keys_of(rows[0])}"
    raise ValueError(
        f"{path}: its format is not recognised; choose one with --format. It was searched for rows with a "
        "video or image and a caption, conversations, messages, QA, or question and answer, for rows of SSv2 "
        "(id, template) and DiDeMo (video, description, times), for ActivityNet Captions, and for the "
        f"database of COIN; but {what}"
    )


def _format_of(keys: set[Any]) -> str:
    """The format of a row of JSON with these keys; empty if it is of none."""
    for name, row_keys in ROW_KEYS.items():
        if row_keys <= keys:
            return name
    if keys & {*TURN_KEYS, "QA"}:
        return "conversations"
    if keys & set(VIDEO_KEYS):
        if {"question", "answer"} <= keys:
            return "conversations"
        return "pairs" if keys & {"caption", "captions"} else ""
    return "ssv2" if "id" in keys and keys <= {"id", "label", "template", "placeholders"} else ""


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
    """The folders that are splits, with their names; none if these are folders of classes."""
    splits = {path: split for path in folders if (split := split_in(path.name))}
    # Beside splits there are often folders of annotations; beside classes, one may be called "test".
    nested = {path for path in splits if any(child.is_dir() for child in path.iterdir())}
    is_split = len(splits) == len(folders) or (nested == splits.keys() and len(set(splits.values())) > 1)
    return splits if is_split else {}


@data_format("motionworld", "dataset.json")
def read_motionworld(source: Path, root: Path | None, split: str | None) -> VideoList:
    """What ``fluxvit data make`` has made, such as a MotionWorld: ``dataset.json``, ``<split>.jsonl``."""
    requested = requested_split(split, source)
    videos = read_manifest(source / f"{requested}.jsonl", root=root)
    name = read_annotations(source / "dataset.json").get("name", "")
    return VideoList(requested, videos.root, videos.entries, videos.labels, name=name)


@data_format("manifest")
def read_checked(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A manifest (``.jsonl``), to be checked again; what else it says about the videos is kept."""
    videos = read_manifest(source, target=None, root=root)
    entries = tuple(replace(entry, ok=True, error=None) for entry in videos.entries)
    return VideoList(split or videos.split, videos.root, entries, videos.labels, name=videos.name)
