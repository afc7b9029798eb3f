"""Data sets as their authors ship them: Kinetics, SSv2, MiT, UCF101, HMDB51, COIN, ActivityNet, HACS.

The readers take the annotations (a file or a folder), the folder of the videos and the split; see
`fluxvit.data.formats.registry`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxvit.data.formats.columns import has_columns
from fluxvit.data.formats.layout import (
    SPLIT_NAMES,
    VideoFinder,
    VideoList,
    data_format,
    files_in,
    first_of,
    is_list,
    list_file,
    name_split,
    requested_split,
    seconds_of,
    split_in,
)
from fluxvit.data.formats.lists import read_csv
from fluxvit.data.formats.text_files import dict_rows, read_annotations, shown, text_lines
from fluxvit.data.manifest import NO_LABEL, Entry


@data_format("kinetics")
def read_kinetics(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Kinetics-400, -600, -700: the official ``label,youtube_id,time_start,time_end,split[,is_cc]``.

    A clip is searched below ``root`` as ``ID_SSSSSS_EEEEEE`` with start and end in seconds, six digits each,
    or as ``ID``, with any suffix in any folder. Classes are numbered in alphabetical order; of a folder of
    lists, over all of them. The lists of the test split may lack labels. A list without ``youtube_id`` is
    read as ``path,label`` (see ``csv``), as the release has them for Kinetics-710, too.
    """
    file = list_file(source, split)
    if not has_columns(file, "youtube_id", "time_start", "time_end"):
        return read_csv(file, root, split)
    lists = [path for path in files_in(source) if is_list(path)] if source.is_dir() else [file]
    names = sorted({row["label"] for path in lists for _, row in dict_rows(path) if row.get("label")})
    numbers = {name: number for number, name in enumerate(names)}
    videos = VideoFinder(root or file.parent)
    entries = []
    for line, row in dict_rows(file):
        missing = [key for key in ("youtube_id", "time_start", "time_end") if not row.get(key)]
        if missing:
            raise ValueError(f"{file}, line {line}: no {' and no '.join(missing)}: {row}")
        start, end = (round(seconds_of(row[key], file)) for key in ("time_start", "time_end"))
        clip = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        path = videos.find(clip, row["youtube_id"])
        entries.append(Entry(path, numbers.get(row.get("label", ""), NO_LABEL)))
    return VideoList(name_split(split, file), videos.root, tuple(entries), tuple(names))


@data_format("ssv2", "something-something-v2-*.json")
def read_ssv2(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Something-Something v2: ``something-something-v2-{train,validation,test,labels}.json`` in one folder.

    Each video has an ``id``, a ``label`` (the sentence, kept as caption), its ``template`` with
    ``[something]`` in brackets, and ``placeholders``; the class is the template without brackets, numbered by
    the labels file. Test videos have an ``id`` only. Files named ``train.json`` and so on are read, too, and
    so are the release's lists ``path,label``. Videos are ``ID.webm`` (any suffix) in any folder below
    ``root``. They are never to be flipped: left and right are classes.
    """
    if source.is_file() and is_list(source):
        listed = read_csv(source, root, split)
        return replace(listed, entries=tuple(replace(entry, noflip=True) for entry in listed.entries))
    folder = source if source.is_dir() else source.parent
    requested = requested_split(split, source)
    long_name = SPLIT_NAMES[requested][1] if requested == "val" else requested
    file = source if source.is_file() else first_of(folder, _ssv2_names(long_name))
    classes = first_of(folder, _ssv2_names("labels"))
    numbers, names = _numbered(classes, read_annotations(classes).items())
    videos = VideoFinder(root or folder)
    entries = []
    for video in read_annotations(file):
        template = video.get("template")
        name = template and template.replace("[", "").replace("]", "")
        if name and name not in numbers:
            raise ValueError(f"{file}: video {video['id']} has the template {template!r}, which is no class")
        extra = {key: video[key] for key in ("template", "placeholders") if key in video}
        captions = (video["label"],) if "label" in video else ()
        path = videos.find(str(video["id"]), expected=videos.root / f"{video['id']}.webm")
        label = numbers[name] if name else NO_LABEL
        entries.append(Entry(path, label, captions, noflip=True, extra=extra))
    return VideoList(requested, videos.root, tuple(entries), names)


@data_format("mit", "moments_categories.txt")
def read_mit(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Moments in Time: ``trainingSet.csv``, ``validationSet.csv`` beside ``moments_categories.txt``.

    A line of the lists is ``CLASS/FILE,CLASS,positive answers,negative answers``, one of the categories
    ``CLASS,index``. Videos are in ``training`` and ``validation`` below ``root``.
    """
    file = list_file(source, split)
    classes = first_of(file.parent, ["moments_categories.txt"])
    numbers, names = _numbered(classes, (line.rpartition(",")[::2] for line in text_lines(classes)))
    requested = requested_split(split, file)
    root = root or file.parent
    entries = []
    for row in csv.reader(text_lines(file)):
        if len(row) < 2 or row[1] not in numbers:
            raise ValueError(f"{file}: {','.join(row)!r} is not FILE,CLASS,... of a class of the categories")
        entries.append(Entry(root / SPLIT_NAMES[requested][1] / row[0], numbers[row[1]]))
    return VideoList(requested, root, tuple(entries), names)


@data_format("ucf101", "classInd.txt")
def read_ucf101(source: Path, root: Path | None, split: str | None) -> VideoList:
    """UCF101: ``classInd.txt`` and ``trainlist01.txt``, ``testlist01.txt`` of the first of three splits.

    Lines are ``1 ApplyEyeMakeup`` and ``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1``; test lists have no
    number. ``source`` is a list, or their folder with split ``train`` or ``test``, of the second split
    ``train2`` or ``test2``. ``root`` holds the folders of the classes.
    """
    part, number = _numbered_split(split, source)
    file = source if source.is_file() else first_of(source, [f"{part}list{number:02d}.txt"])
    classes = first_of(file.parent, ["classInd.txt"])
    numbers, names = _numbered(classes, (line.split(" ")[::-1] for line in text_lines(classes)), first=1)
    root = root or file.parent
    entries = []
    for line in text_lines(file):
        path = root / line.split()[0]
        if path.parent.name not in numbers:
            raise ValueError(f"{file}: {line!r} is in no folder of a class of classInd.txt")
        entries.append(Entry(path, numbers[path.parent.name]))
    return VideoList(f"{part}{number}", root, tuple(entries), names)


@data_format("hmdb51", "*_test_split1.txt")
def read_hmdb51(source: Path, root: Path | None, split: str | None) -> VideoList:
    """HMDB51: a folder with ``CLASS_test_split1.txt`` for each class and each of three splits.

    Lines are ``FILE.avi 1`` for training, 2 for testing and 0 for neither. Classes are numbered in
    alphabetical order. The split is ``train`` or ``test``, of the second split ``train2`` or ``test2``.
    ``root`` holds the folders of the classes.
    """
    part, number = _numbered_split(split, source)
    ending = f"_test_split{number}.txt"
    files = [path for path in files_in(source) if path.name.endswith(ending)]
    if not files:
        raise ValueError(f"{source}: no files *{ending}")
    names = [path.name.removesuffix(ending) for path in files]
    root, mark = root or source, {"train": "1", "test": "2"}[part]
    entries = []
    for label, (name, file) in enumerate(zip(names, files, strict=True)):
        for line in text_lines(file):
            video, _, use = line.rpartition(" ")
            if use == mark:
                entries.append(Entry(root / name / video.strip(), label))
    return VideoList(f"{part}{number}", root, tuple(entries), tuple(names))


@data_format("coin", "COIN.json")
def read_coin(source: Path, root: Path | None, split: str | None) -> VideoList:
    """COIN: ``COIN.json`` with ``database`` -> YouTube id -> task, subset, steps.

    A video is one entry of its whole length (as in the release), labelled with its task (``recipe_type``,
    named by ``class``); its steps are kept. Subsets are ``training`` and ``testing``; the latter is what is
    evaluated. Tasks whose numbers do not start at 0 or have gaps are renumbered in order. Videos are
    ``ID`` with any suffix in any folder below ``root``.
    """
    file = first_of(source, ["COIN.json"]) if source.is_dir() else source
    database = _database(file)
    annotated, requested = _subset(database, file, split)
    tasks = dict(sorted({video["recipe_type"]: video["class"] for video in database.values()}.items()))
    numbers = {task: number for number, task in enumerate(tasks)}
    videos = VideoFinder(root or file.parent)
    entries = []
    for key, video in annotated.items():
        steps = [
            {"id": step["id"], "label": step["label"], "start": step["segment"][0], "end": step["segment"][1]}
            for step in video.get("annotation", ())
        ]
        entries.append(Entry(videos.find(key), numbers[video["recipe_type"]], extra={"steps": steps}))
    return VideoList(requested, videos.root, tuple(entries), tuple(tasks.values()))


@data_format("activitynet", "activity_net*.json")
def read_activitynet(source: Path, root: Path | None, split: str | None) -> VideoList:
    """ActivityNet (``activity_net.v1-3.min.json``): every annotated segment is an entry.

    ``database`` -> YouTube id -> ``subset`` (training, validation, testing) and ``annotations``, each with a
    ``label`` and a ``segment`` of two seconds. A video without annotations (testing) is one entry without
    label. Classes are numbered in alphabetical order. Videos are ``v_ID`` or ``ID`` with any suffix in any
    folder below ``root``.
    """
    return _read_annotated(source, ["activity_net.v1-3.min.json", "activity_net.v1-2.min.json"], root, split)


@data_format("hacs", "HACS_segments*.json")
def read_hacs(source: Path, root: Path | None, split: str | None) -> VideoList:
    """HACS Segments (``HACS_segments_v1.1.1.json``), in the format of ActivityNet."""
    return _read_annotated(source, ["HACS_segments_v1.1.1.json", "HACS_segments_v1.1.json"], root, split)


def _read_annotated(source: Path, names: Sequence[str], root: Path | None, split: str | None) -> VideoList:
    file = first_of(source, names) if source.is_dir() else source
    database = _database(file)
    annotated, requested = _subset(database, file, split)
    labels = sorted({part["label"] for video in database.values() for part in video.get("annotations", ())})
    numbers = {name: number for number, name in enumerate(labels)}
    videos = VideoFinder(root or file.parent)
    entries = []
    for key, video in annotated.items():
        path = videos.find(f"v_{key}", key)
        parts = video.get("annotations", ())
        for part in parts:
            try:
                start, end = map(float, part["segment"])
            except ValueError:
                reason = f"the segment {shown(part['segment'])}, not two numbers of seconds"
                raise ValueError(f"{file}: video {shown(key)} has {reason}") from None
            entries.append(Entry(path, numbers[part["label"]], start=start, end=end))
        if not parts:
            entries.append(Entry(path))
    return VideoList(requested, videos.root, tuple(entries), tuple(labels))


def _ssv2_names(name: str) -> list[str]:
    return [f"something-something-v2-{name}.json", f"{name}.json"]


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


def _database(path: Path) -> dict[str, Any]:
    content = read_annotations(path)
    if not isinstance(content, dict) or not isinstance(content.get("database"), dict):
        raise ValueError(f'{path}: no object "database" of videos')
    return content["database"]


def _numbered_split(split: str | None, source: Path) -> tuple[str, int]:
    """``train`` or ``test``, and which of three such pairs."""
    match = re.fullmatch(r"(train|test)(?:list)?0?([123])?", split or source.stem)
    if not match:
        raise ValueError(
            f"{source}: choose --split train or test (the first of three; or train2, test3, ...)"
        )
    return match[1], int(match[2] or 1)


def _subset(database: dict[str, Any], file: Path, split: str | None) -> tuple[dict[str, Any], str]:
    """The videos of a ``database`` that belong to a split, and its name."""
    of = {key: split_in(video["subset"]) for key, video in database.items()}
    requested = requested_split(split, file, found=sorted({name for name in of.values() if name}))
    return {key: video for key, video in database.items() if of[key] == requested}, requested
