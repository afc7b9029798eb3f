"""Labelled data sets as their authors ship them: Kinetics, Something-Something v2, COIN, Charades.

The readers take the annotations (a file or a folder), the folder of the videos and the split; see
`fluxvit.data.formats.registry`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fluxvit.data.formats.layout import (
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
from fluxvit.data.formats.tables import first_names, named_rows
from fluxvit.data.formats.text_files import read_annotations, shown, text_lines
from fluxvit.data.manifest import NO_LABEL, Entry

KINETICS_COLUMNS = {"youtubeid", "timestart", "timeend"}
CHARADES_COLUMNS = {"id", "script", "actions"}
_ACTION = re.compile(r"c(\d{1,4}) ([\d.]+) ([\d.]+)")


@data_format("kinetics")
def read_kinetics(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Kinetics-400, -600, -700: the official ``label,youtube_id,time_start,time_end,split[,is_cc]``.

    A clip is searched below ``root`` as ``ID_SSSSSS_EEEEEE`` with start and end in seconds, six digits each,
    or as ``ID``, with any suffix in any folder. Classes are numbered in alphabetical order; of a folder of
    lists, over all of them. The lists of the test split may lack labels. A list without ``youtube_id`` is
    read as ``path,label`` (see ``csv``), as the release has them for Kinetics-710, too.
    """
    file = list_file(source, split)
    if not first_names(file) >= KINETICS_COLUMNS:
        return read_csv(file, root, split)
    files = {file, *(path for path in files_in(source) if is_list(path))} if source.is_dir() else {file}
    lists = {path: named_rows(path, *KINETICS_COLUMNS) for path in files}
    names = sorted({row["label"] for rows in lists.values() for _, row in rows if row.get("label")})
    numbers = {name: number for number, name in enumerate(names)}
    videos = VideoFinder(root or file.parent)
    entries = []
    for line, row in lists[file]:
        where = f"{file}, line {line}"
        start, end = (round(seconds_of(row[key], where)) for key in ("timestart", "timeend"))
        path = videos.find(f"{row['youtubeid']}_{start:06d}_{end:06d}", row["youtubeid"])
        entries.append(Entry(path, numbers.get(row.get("label", ""), NO_LABEL)))
    return VideoList(name_split(split, file), videos.root, tuple(entries), tuple(names))


@data_format("ssv2", "something-something-v2-*.json")
def read_ssv2(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Something-Something v2: ``something-something-v2-{train,validation,test,labels}.json`` in one folder.

    Each video has an ``id``, a ``label`` (the sentence, kept as caption), its ``template`` with
    ``[something]`` in brackets, and ``placeholders``; the class is the template without brackets, numbered by
    the labels file. Test videos have an ``id`` only. Files named ``train.json`` and so on are read, too, and
    so are the release's lists ``path,label``. Videos are ``ID.webm`` (any suffix) in any folder below
    ``root``. They must never be flipped, because left and right are classes.
    """
    if source.is_file() and is_list(source):
        listed = read_csv(source, root, split)
        return replace(listed, entries=tuple(replace(entry, noflip=True) for entry in listed.entries))
    folder = source if source.is_dir() else source.parent
    requested = requested_split(split, source)
    long_name = "validation" if requested == "val" else requested
    file = source if source.is_file() else first_of(folder, _ssv2_names(long_name))
    classes = first_of(folder, _ssv2_names("labels"))
    numbers = {name: int(number) for name, number in read_annotations(classes).items()}
    names = sorted(numbers, key=numbers.__getitem__)
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise ValueError(f"{classes}: its classes are not numbered from 0 on without a gap")
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
    return VideoList(requested, videos.root, tuple(entries), tuple(names))


def _ssv2_names(name: str) -> list[str]:
    return [f"something-something-v2-{name}.json", f"{name}.json"]


@data_format("coin", "COIN.json")
def read_coin(source: Path, root: Path | None, split: str | None) -> VideoList:
    """COIN: ``COIN.json`` with ``database`` -> YouTube id -> task and subset.

    A video is one entry of its whole length (as in the release), labelled with its task (``recipe_type``,
    named by ``class``). Subsets are ``training`` and ``testing``; the latter is what is
    evaluated. Tasks whose numbers do not start at 0 or have gaps are renumbered in order. Videos are
    ``ID`` with any suffix in any folder below ``root``.
    """
    file = first_of(source, ["COIN.json"]) if source.is_dir() else source
    database = read_annotations(file)["database"]
    splits = {key: split_in(video["subset"]) for key, video in database.items()}
    requested = requested_split(split, file, found=sorted({name for name in splits.values() if name}))
    tasks = dict(sorted({video["recipe_type"]: video["class"] for video in database.values()}.items()))
    numbers = {task: number for number, task in enumerate(tasks)}
    videos = VideoFinder(root or file.parent)
    entries = []
    for key, video in database.items():
        if splits[key] == requested:
            entries.append(Entry(videos.find(key), numbers[video["recipe_type"]]))
    return VideoList(requested, videos.root, tuple(entries), tuple(tasks.values()))


@data_format("charades", "Charades*_classes.txt")
def read_charades(source: Path, root: Path | None, split: str | None) -> VideoList:
    """Charades: ``Charades_v1_train.csv``, ``Charades_v1_test.csv`` and ``Charades_v1_classes.txt``.

    A video is one entry of its whole length, labelled with all of its actions (``c092 11.90 21.20;...``), of
    which there may be none. Its script becomes the caption. The test split is what is evaluated. Videos are
    ``ID`` with any suffix in any folder below ``root``.
    """
    requested = requested_split(split, source, found=("train", "test"))
    file = source if source.is_file() else first_of(source, [f"Charades_v1_{requested}.csv"])
    names = list[str]()
    for line in text_lines(classes := first_of(file.parent, ["Charades_v1_classes.txt"])):
        code, _, name = line.partition(" ")
        if code != f"c{len(names):03d}" or not name:
            raise ValueError(f"{classes}: {shown(line)} is not the class c{len(names):03d} and its name")
        names.append(name)
    videos = VideoFinder(root or file.parent)
    entries = []
    for number, row in named_rows(file, *CHARADES_COLUMNS):
        labels = set[int]()
        for text in filter(None, row["actions"].split(";")):
            action = _ACTION.fullmatch(text.strip())
            if action is None or int(action[1]) >= len(names):
                reason = "is not an action such as c092 11.90 21.20"
                raise ValueError(f"{file}, line {number}: {shown(text)} {reason}")
            labels.add(int(action[1]))
        captions = (row["script"],) if row["script"] else ()
        entries.append(Entry(videos.find(row["id"]), captions=captions, labels=tuple(sorted(labels))))
    return VideoList(requested, videos.root, tuple(entries), tuple(names))
