"""What data sets ship, read as lists of videos; `fluxvit.data.probe` then checks the files.

Each reader takes the annotations (a file or a folder), the folder of the videos and the split. Nothing is
opened here but lists: a video that is missing on disk stays in the list, so that its absence is reported.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fluxvit.data.manifest import NO_LABEL, Entry, read_manifest

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
IMAGE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "validate", "valid"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class VideoList:
    """Videos that are yet to be checked.

    Attributes:
        name: What it was read as, such as ``kinetics``.
        split: ``train``, ``val``, ``test`` or a name of the data set's own; empty if it has none.
        root: Absolute folder that holds the videos.
        entries: Their paths are absolute; files need not exist.
        labels: Class names; empty if the data set ships none.
        notes: What the reader passed over, one sentence each.
    """

    name: str
    split: str
    root: Path
    entries: tuple[Entry, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(
    source: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    split: str | None = None,
    labels: str | Path | None = None,
) -> VideoList:
    """Read a data set.

    Args:
        source: A file or folder, as the reader of its format says.
        format: A key of `FORMATS`, or ``auto`` to let `detect` find it.
        root: The folder of the videos; default: see the reader, mostly the folder of the annotations.
        split: ``train``, ``val`` or ``test``; default: what the name of the file says. Formats without splits
            take any name, and record it.
        labels: A text file of class names, one a line, for data sets that ship numbers only.

    Raises:
        ValueError: It is not of that format, lists nothing, or not one of its videos exists.
    """
    source = Path(source).absolute()
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if root is not None and not Path(root).is_dir():
        raise ValueError(f"{root}: no such folder of videos")
    format = detect(source) if format == "auto" else format
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: choose auto, {', '.join(FORMATS)}")
    try:
        videos = FORMATS[format](source, None if root is None else Path(root).absolute(), split)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        # Annotations of another shape than the reader's description.
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{source}: not as {format} ships ({reason}); choose another --format") from error
    if not videos.entries:
        raise ValueError(f"{source}: read as {format}, it lists no videos")
    if not any(entry.path.exists() for entry in videos.entries):
        raise ValueError(
            f"{source}: none of its {len(videos.entries)} videos exists, such as {videos.entries[0].path}; "
            "say with --root where they are"
        )
    if labels is not None:
        if videos.labels:
            raise ValueError(f"{labels}: {source} has class names of its own; leave --labels out")
        videos = replace(videos, labels=tuple(_lines(Path(labels))))
        highest = max(entry.label for entry in videos.entries)
        if highest >= len(videos.labels):
            raise ValueError(f"{labels}: {len(videos.labels)} class names, but class {highest} is used")
    return replace(videos, name=videos.name or format)


def detect(source: Path) -> str:
    """The key in `FORMATS` of a file or folder, by the names and first lines that are typical of each.

    Raises:
        ValueError: It looks like none of them.
    """
    if source.is_dir():
        for pattern, format in _FOLDER_MARKS.items():
            if any(source.glob(pattern)):
                return format
        lists = [path for path in _files(source) if _is_list(path) and _split_in(path.stem)]
        if lists:
            return _detect_list(lists[0])
        if any(child.is_dir() for child in source.iterdir()):
            return "folder"
    elif source.suffix == ".jsonl":
        return "manifest"
    elif source.suffix == ".json":
        return _detect_json(source)
    elif _is_list(source):
        return _detect_list(source)
    raise ValueError(f"{source}: its format is not recognised; choose one with --format")


# --- Lists of paths ----------------------------------------------------------------------------------------


def read_csv(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``path,label`` on each line, as in the FluxViT release: Kinetics, MiT, UCF101, COIN, ActivityNet, ...

    The delimiter is a tab, comma, semicolon or space, whichever fits all lines. A line is cut at its last
    delimiter, so paths may hold some; quotes around a path are taken off. Labels are class indices, or else
    class names, which are numbered in alphabetical order. A first line that ends in ``label`` or the like is
    a header. ``.mp4`` is added to a name without a dot, unless there is a folder of that name (frames).

    ``source`` is the list, or a folder with ``train.csv``, ``val.csv`` and so on. Paths are relative to
    ``root``, by default the folder of the list; of absolute paths the root is what they have in common.
    """
    table = _Table.read(_list_file(source, split), after=1)
    labels, names = table.labels()
    paths, root = _locate([row[0] for row in table.rows], root or table.path.parent)
    entries = (Entry(path, label) for path, label in zip(paths, labels, strict=True))
    return VideoList("", _name_split(split, table.path), root, tuple(entries), names)


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
    table = _Table.read(_list_file(source, split), before=before, after=4)
    labels, names = table.labels(negative=before > 0)
    paths, root = _locate([row[before] for row in table.rows], root or table.path.parent)
    entries = []
    for row, path, label in zip(table.rows, paths, labels, strict=True):
        total, start, end = (_seconds(text, table.path) for text in row[-4:-1])
        entry = Entry(path, label, duration=total)
        if before:
            entry = replace(entry, source=row[0], noflip=row[0] == "ssv2")
        if not start == end == -1:
            entry = replace(entry, start=start, end=end)
        entries.append(entry)
    return VideoList("", _name_split(split, table.path), root, tuple(entries), names)


def read_rawframes(source: Path, root: Path | None, split: str | None) -> VideoList:
    """``frame_dir total_frames label`` on each line: folders of images, one a frame (SSv2, HMDB51).

    The images of a folder are taken in natural order of their names, whatever those are. Otherwise like
    ``csv``.
    """
    table = _Table.read(_list_file(source, split), after=2)
    labels, names = table.labels()
    root = root or table.path.parent
    entries = []
    for row, label in zip(table.rows, labels, strict=True):
        if not row[1].isdigit():
            raise ValueError(f"{table.path}: {row[0]} has {row[1]!r} frames; expected FOLDER FRAMES LABEL")
        entries.append(Entry(root / row[0], label, frames=int(row[1])))
    return VideoList("", _name_split(split, table.path), root, tuple(entries), names)


# --- Folders -----------------------------------------------------------------------------------------------


def read_folder(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A folder for each class, which may lie in folders ``train``, ``val`` and ``test`` or the like.

    Videos may lie deeper; a folder that holds images and no videos is a video itself. Classes are numbered in
    alphabetical order over all splits. ``root`` is not needed: the videos are where the classes are.
    """
    if root is not None and root != source:
        raise ValueError(f"{root}: of a folder of classes, the folder itself is the source; leave --root out")
    parts = {path: _split_in(path.name) for path in _folders(source)}
    if parts and all(parts.values()):
        wanted = _wanted(split, source, found=sorted(set(filter(None, parts.values()))))
        homes = [path for path, part in parts.items() if part == wanted]
    else:
        wanted, parts, homes = split or "", {source: None}, [source]
    names = sorted({folder.name for part in parts for folder in _folders(part)})
    numbers = {name: number for number, name in enumerate(names)}
    entries, others = [], 0
    for home in homes:
        for folder in _folders(home):
            videos, passed = _videos_below(folder)
            entries += [Entry(path, numbers[folder.name]) for path in videos]
            others += passed
    notes = (f"{others} files that are not named like videos were passed over",) if others else ()
    return VideoList("", wanted, source, tuple(entries), tuple(names), notes)


def read_motionworld(source: Path, root: Path | None, split: str | None) -> VideoList:
    """What ``fluxvit data make`` has made, such as a MotionWorld: ``dataset.json``, ``<split>.jsonl``."""
    facts = _json(source / "dataset.json")
    wanted = _wanted(split, source)
    names = facts.get("motion_classes") or facts.get("classes") or ()
    videos = read_manifest(source / f"{wanted}.jsonl", labels=tuple(names), root=root)
    return VideoList(facts.get("name", ""), wanted, videos.root, videos.entries, videos.labels)


def read_probed(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A manifest (``.jsonl``), to be checked again; what else it says about the videos is kept."""
    videos = read_manifest(source, target=None, root=root)
    entries = tuple(replace(entry, ok=True, error=None) for entry in videos.entries)
    return VideoList(videos.name, split or videos.split, videos.root, entries, videos.labels)


# --- Data sets as they ship --------------------------------------------------------------------------------


def read_kinetics(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Kinetics-400, -600, -700: the official ``label,youtube_id,time_start,time_end,split[,is_cc]``.

    A clip is searched below ``root`` as ``ID_SSSSSS_EEEEEE`` with start and end in seconds, six digits each,
    or as ``ID``, with any suffix in any folder. Classes are numbered in alphabetical order; of a folder of
    lists, over all of them. The lists of the test split may lack labels. A list without ``youtube_id`` is
    read as ``path,label`` (see ``csv``), as the release has them for Kinetics-710, too.
    """
    file = _list_file(source, split)
    if "youtube_id" not in _first_line(file):
        return read_csv(file, root, split)
    lists = [path for path in _files(source) if _is_list(path)] if source.is_dir() else [file]
    names = sorted({row["label"] for path in lists for row in _dict_rows(path) if row.get("label")})
    numbers = {name: number for number, name in enumerate(names)}
    root = root or file.parent
    index = _index(root)
    entries = []
    for row in _dict_rows(file):
        if None in (row.get("youtube_id"), row.get("time_start"), row.get("time_end")):
            raise ValueError(f"{file}: a line lacks youtube_id, time_start or time_end: {row}")
        start, end = (round(_seconds(row[key], file)) for key in ("time_start", "time_end"))
        clip = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        path = _find(index, [clip, row["youtube_id"]], root / f"{clip}.mp4")
        entries.append(Entry(path, numbers.get(row.get("label", ""), NO_LABEL)))
    return VideoList("", _name_split(split, file), root, tuple(entries), tuple(names))


def read_ssv2(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Something-Something v2: ``something-something-v2-{train,validation,test,labels}.json`` in one folder.

    Each video has an ``id``, a ``label`` (the sentence, kept as caption), its ``template`` with
    ``[something]`` in brackets, and ``placeholders``; the class is the template without brackets, numbered by
    the labels file. Test videos have an ``id`` only. Files named ``train.json`` and so on are read, too, and
    so are the release's lists ``path,label``. Videos are ``ID.webm`` (any suffix) in any folder below
    ``root``. They are never to be flipped: left and right are classes.
    """
    if source.is_file() and _is_list(source):
        videos = read_csv(source, root, split)
        return replace(videos, entries=tuple(replace(entry, noflip=True) for entry in videos.entries))
    folder = source if source.is_dir() else source.parent
    wanted = _wanted(split, source)
    long_name = _SPLIT_NAMES[wanted][1] if wanted == "val" else wanted
    file = source if source.is_file() else _first_of(folder, _ssv2_names(long_name))
    classes = _first_of(folder, _ssv2_names("labels"))
    numbers, names = _numbered(classes, _json(classes).items())
    root = root or folder
    index = _index(root)
    entries = []
    for video in _json(file):
        template = video.get("template")
        name = template and template.replace("[", "").replace("]", "")
        if name and name not in numbers:
            raise ValueError(f"{file}: video {video['id']} has the template {template!r}, which is no class")
        extra = {key: video[key] for key in ("template", "placeholders") if key in video}
        captions = (video["label"],) if "label" in video else ()
        path = _find(index, [video["id"]], root / f"{video['id']}.webm")
        label = numbers[name] if name else NO_LABEL
        entries.append(Entry(path, label, captions, noflip=True, extra=extra))
    return VideoList("", wanted, root, tuple(entries), names)


def read_mit(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Moments in Time: ``trainingSet.csv``, ``validationSet.csv`` beside ``moments_categories.txt``.

    A line of the lists is ``CLASS/FILE,CLASS,positive answers,negative answers``, one of the categories
    ``CLASS,index``. Videos are in ``training`` and ``validation`` below ``root``.
    """
    file = _list_file(source, split)
    classes = _first_of(file.parent, ["moments_categories.txt"])
    numbers, names = _numbered(classes, (line.rpartition(",")[::2] for line in _lines(classes)))
    wanted = _wanted(split, file)
    root = root or file.parent
    entries = []
    for row in csv.reader(_lines(file)):
        if len(row) < 2 or row[1] not in numbers:
            raise ValueError(f"{file}: {','.join(row)!r} is not FILE,CLASS,... of a class of the categories")
        entries.append(Entry(root / _SPLIT_NAMES[wanted][1] / row[0], numbers[row[1]]))
    return VideoList("", wanted, root, tuple(entries), names)


def read_ucf101(source: Path, root: Path | None, split: str | None) -> VideoList:
    """UCF101: ``classInd.txt`` and ``trainlist01.txt``, ``testlist01.txt`` of the first of three splits.

    Lines are ``1 ApplyEyeMakeup`` and ``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1``; test lists have no
    number. ``source`` is a list, or their folder with split ``train`` or ``test``, of the second split
    ``train2`` or ``test2``. ``root`` holds the folders of the classes.
    """
    part, number = _numbered_split(split, source)
    file = source if source.is_file() else _first_of(source, [f"{part}list{number:02d}.txt"])
    classes = _first_of(file.parent, ["classInd.txt"])
    numbers, names = _numbered(classes, (line.split(" ")[::-1] for line in _lines(classes)), first=1)
    root = root or file.parent
    entries = []
    for line in _lines(file):
        path = root / line.split()[0]
        if path.parent.name not in numbers:
            raise ValueError(f"{file}: {line!r} is in no folder of a class of classInd.txt")
        entries.append(Entry(path, numbers[path.parent.name]))
    return VideoList("", f"{part}{number}", root, tuple(entries), names)


def read_hmdb51(source: Path, root: Path | None, split: str | None) -> VideoList:
    """HMDB51: a folder with ``CLASS_test_split1.txt`` for each class and each of three splits.

    Lines are ``FILE.avi 1`` for training, 2 for testing and 0 for neither. Classes are numbered in
    alphabetical order. The split is ``train`` or ``test``, of the second split ``train2`` or ``test2``.
    ``root`` holds the folders of the classes.
    """
    part, number = _numbered_split(split, source)
    ending = f"_test_split{number}.txt"
    files = [path for path in _files(source) if path.name.endswith(ending)]
    if not files:
        raise ValueError(f"{source}: no files *{ending}")
    names = [path.name.removesuffix(ending) for path in files]
    root, mark = root or source, {"train": "1", "test": "2"}[part]
    entries = []
    for label, (name, file) in enumerate(zip(names, files, strict=True)):
        for line in _lines(file):
            video, _, use = line.rpartition(" ")
            if use == mark:
                entries.append(Entry(root / name / video.strip(), label))
    return VideoList("", f"{part}{number}", root, tuple(entries), tuple(names))


def read_coin(source: Path, root: Path | None, split: str | None) -> VideoList:
    """COIN: ``COIN.json`` with ``database`` -> YouTube id -> task, subset, steps.

    A video is one entry of its whole length (as in the release), labelled with its task (``recipe_type``,
    named by ``class``); its steps are kept. Subsets are ``training`` and ``testing``; the latter is what is
    evaluated. Tasks that do not number from 0 on without a gap are numbered anew in their order. Videos are
    ``ID`` with any suffix in any folder below ``root``.
    """
    file = _first_of(source, ["COIN.json"]) if source.is_dir() else source
    database = _database(file)
    videos, wanted = _subset(database, file, split)
    tasks = dict(sorted({video["recipe_type"]: video["class"] for video in database.values()}.items()))
    numbers = {task: number for number, task in enumerate(tasks)}
    root = root or file.parent
    index = _index(root)
    entries = []
    for key, video in videos.items():
        steps = [
            {"id": step["id"], "label": step["label"], "start": step["segment"][0], "end": step["segment"][1]}
            for step in video.get("annotation", ())
        ]
        path = _find(index, [key], root / f"{key}.mp4")
        entries.append(Entry(path, numbers[video["recipe_type"]], extra={"steps": steps}))
    return VideoList("", wanted, root, tuple(entries), tuple(tasks.values()))


def read_activitynet(source: Path, root: Path | None, split: str | None) -> VideoList:
    """ActivityNet (``activity_net.v1-3.min.json``): every annotated segment is an entry.

    ``database`` -> YouTube id -> ``subset`` (training, validation, testing) and ``annotations``, each with a
    ``label`` and a ``segment`` of two seconds. A video without annotations (testing) is one entry without
    label. Classes are numbered in alphabetical order. Videos are ``v_ID`` or ``ID`` with any suffix in any
    folder below ``root``.
    """
    return _read_annotated(source, ["activity_net.v1-3.min.json", "activity_net.v1-2.min.json"], root, split)


def read_hacs(source: Path, root: Path | None, split: str | None) -> VideoList:
    """HACS Segments (``HACS_segments_v1.1.1.json``), in the format of ActivityNet."""
    return _read_annotated(source, ["HACS_segments_v1.1.1.json", "HACS_segments_v1.1.json"], root, split)


def _read_annotated(source: Path, names: Sequence[str], root: Path | None, split: str | None) -> VideoList:
    file = _first_of(source, names) if source.is_dir() else source
    database = _database(file)
    videos, wanted = _subset(database, file, split)
    labels = sorted({part["label"] for video in database.values() for part in video.get("annotations", ())})
    numbers = {name: number for number, name in enumerate(labels)}
    root = root or file.parent
    index = _index(root)
    entries = []
    for key, video in videos.items():
        path = _find(index, [f"v_{key}", key], root / f"v_{key}.mp4")
        parts = video.get("annotations", ())
        for part in parts:
            start, end = map(float, part["segment"])
            entries.append(Entry(path, numbers[part["label"]], start=start, end=end))
        if not parts:
            entries.append(Entry(path))
    return VideoList("", wanted, root, tuple(entries), tuple(labels))


Reader = Callable[[Path, Path | None, str | None], VideoList]

FORMATS: dict[str, Reader] = {
    "folder": read_folder,
    "csv": read_csv,
    "intervals": read_intervals,
    "mixture": read_mixture,
    "rawframes": read_rawframes,
    "kinetics": read_kinetics,
    "ssv2": read_ssv2,
    "mit": read_mit,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "coin": read_coin,
    "activitynet": read_activitynet,
    "hacs": read_hacs,
    "motionworld": read_motionworld,
    "manifest": read_probed,
}

_FOLDER_MARKS = {
    "dataset.json": "motionworld",
    "something-something-v2-*.json": "ssv2",
    "COIN.json": "coin",
    "HACS_segments*.json": "hacs",
    "activity_net*.json": "activitynet",
    "classInd.txt": "ucf101",
    "*_test_split1.txt": "hmdb51",
    "moments_categories.txt": "mit",
}


# --- Recognising formats -----------------------------------------------------------------------------------


def _detect_json(path: Path) -> str:
    content = _json(path)
    if isinstance(content, list):
        return "ssv2"
    database = content.get("database") if isinstance(content, dict) else None
    first: Any = next(iter(database.values()), {}) if isinstance(database, dict) else {}
    if "recipe_type" in first:
        return "coin"
    if "annotations" in first:
        return "hacs" if "hacs" in path.name.lower() else "activitynet"
    raise ValueError(f"{path}: its format is not recognised; choose one with --format")


def _detect_list(path: Path) -> str:
    if "youtube_id" in _first_line(path):
        return "kinetics"
    for mark, format in (("classInd.txt", "ucf101"), ("moments_categories.txt", "mit")):
        if (path.parent / mark).exists():
            return format
    lines = list(islice(_lines(path), _SAMPLE))
    for format, before, after in (("mixture", 1, 4), ("intervals", 0, 4), ("rawframes", 0, 2)):
        delimiter = _delimiter(lines, before, after, numeric=True)
        if delimiter is None:
            continue
        # The first field of a mixture is a word; what comes before the numbers of the others is a path.
        first = _cut(lines[-1], delimiter, before, after)[0]
        is_video = Path(first).suffix.lower() in VIDEO_SUFFIXES
        if {"mixture": first.isidentifier(), "intervals": True, "rawframes": not is_video}[format]:
            return format
    return "csv"


# --- Lists -------------------------------------------------------------------------------------------------

_DELIMITERS = ("\t", ",", ";", " ")
_SAMPLE = 200  # Lines that decide on the delimiter and the format.
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_HEADER_WORDS = ("label", "labels", "label_id", "class", "class_id", "category", "target")


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
        lines = list(_lines(path))
        first = lines[:_SAMPLE]
        delimiter = _delimiter(first, before, after, True) or _delimiter(first, before, after, False)
        if delimiter is None:
            raise ValueError(
                f"{path}: no tab, comma, semicolon or space cuts its lines into {before + 1 + after} fields"
            )
        rows = [_cut(line, delimiter, before, after) for line in lines]
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


def _delimiter(lines: Sequence[str], before: int, after: int, numeric: bool) -> str | None:
    """The first delimiter that cuts all lines, with ``numeric`` into numbers behind the path."""
    for delimiter in _DELIMITERS:
        rows = [_cut(line, delimiter, before, after) for line in lines]
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


def _cut(line: str, delimiter: str, before: int, after: int) -> list[str]:
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


# --- Splits ------------------------------------------------------------------------------------------------


def _split_in(name: str) -> str | None:
    """The split that the name of a file or folder tells: ``val`` for ``validationSet``."""
    found = re.search(r"(?<![a-z])(train|val|test)", name.lower())
    return found[1] if found else None


def _wanted(split: str | None, source: Path, found: Sequence[str] = tuple(_SPLIT_NAMES)) -> str:
    """The split that is asked for, or that the name of the source tells."""
    told = _split_in(source.stem) if source.is_file() else None
    for name, others in _SPLIT_NAMES.items():
        if name in found and (split in others or (split is None and told == name)):
            return name
    if split is None:
        raise ValueError(f"{source}: which of its splits? Choose with --split {' or '.join(found)}")
    raise ValueError(f"{source}: no split {split!r}; choose {' or '.join(found)}")


def _name_split(split: str | None, file: Path) -> str:
    return split or _split_in(file.stem) or ""


def _numbered_split(split: str | None, source: Path) -> tuple[str, int]:
    """``train`` or ``test``, and which of three such pairs."""
    told = re.fullmatch(r"(train|test)(?:list)?0?([123])?", split or source.stem)
    if not told:
        raise ValueError(
            f"{source}: choose --split train or test (the first of three; or train2, test3, ...)"
        )
    return told[1], int(told[2] or 1)


def _subset(database: dict[str, Any], file: Path, split: str | None) -> tuple[dict[str, Any], str]:
    """The videos of a ``database`` that belong to a split, and its name."""
    of = {key: _split_in(video["subset"]) for key, video in database.items()}
    wanted = _wanted(split, file, found=sorted({name for name in of.values() if name}))
    return {key: video for key, video in database.items() if of[key] == wanted}, wanted


# --- Files -------------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_list(path: Path) -> bool:
    return path.suffix in (".csv", ".tsv", ".txt")


def _list_file(source: Path, split: str | None) -> Path:
    """The list of a split: ``source`` itself, or the file of it in that folder."""
    if source.is_file():
        return source
    lists = [path for path in _files(source) if _is_list(path)]
    told = [_split_in(path.stem) for path in lists]
    wanted = _wanted(split, source, found=[name for name in _SPLIT_NAMES if name in told])
    chosen = [path for path, name in zip(lists, told, strict=True) if name == wanted]
    if len(chosen) > 1:
        names = ", ".join(path.name for path in chosen)
        raise ValueError(f"{source}: several lists of the split {wanted} ({names}); give one of them")
    return chosen[0]


def _ssv2_names(name: str) -> list[str]:
    return [f"something-something-v2-{name}.json", f"{name}.json"]


def _first_of(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder}: no file {' or '.join(names)}")


def _numbered(
    file: Path, pairs: Iterable[Sequence[str]], first: int = 0
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class indices by name, and the names in order, from pairs of a name and its number in ``file``."""
    try:
        numbers = {name: int(number) - first for name, number in pairs}
    except ValueError:
        raise ValueError(f"{file}: a class without a number") from None
    names = tuple(sorted(numbers, key=lambda name: numbers[name]))
    if [numbers[name] for name in names] != list(range(len(names))):
        raise ValueError(f"{file}: its classes are not numbered from {first} on without a gap")
    return numbers, names


def _lines(path: Path) -> Iterator[str]:
    """Lines that are not empty, without the white space around them."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from filter(None, map(str.strip, lines))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a UTF-8 text file") from None


def _first_line(path: Path) -> str:
    return next(_lines(path), "")


def _dict_rows(path: Path) -> Iterator[dict[str, str]]:
    return csv.DictReader(_lines(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def _database(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        raise ValueError(f'{path}: no object "database" of videos')
    return content["database"]


def _seconds(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: {text!r} is not a number of seconds") from None


def _index(root: Path) -> dict[str, Path]:
    """All videos below ``root`` by their names without suffix; of several of one name, the first."""
    index: dict[str, Path] = {}
    for path in _videos_below(root)[0]:
        index.setdefault(path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name, path)
    return index


def _find(index: dict[str, Path], names: Sequence[str], expected: Path) -> Path:
    return next((index[name] for name in names if name in index), expected)


def _videos_below(folder: Path) -> tuple[list[Path], int]:
    """Video files and folders of frames below a folder, sorted, and how many other files there are."""
    videos, others = [], 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        suffixes = [os.path.splitext(name)[1].lower() for name in files]
        found = [name for name, suffix in zip(files, suffixes, strict=True) if suffix in VIDEO_SUFFIXES]
        videos += [Path(parent, name) for name in found]
        if not found and IMAGE_SUFFIXES.intersection(suffixes):
            videos.append(Path(parent))
            folders.clear()
        else:
            others += len(files) - len(found)
    return sorted(videos), others
