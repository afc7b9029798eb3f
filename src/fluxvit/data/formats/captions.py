"""Captioned data sets as their authors ship them: MSRVTT, DiDeMo, ActivityNet Captions, LSMDC, MSVD, and the
pair lists of UMT and InternVideo2.

The readers take the annotations (a file or a folder), the folder of the videos and the split; see
`fluxvit.data.formats.registry`. The videos have no classes. For DiDeMo and ActivityNet all sentences about a
video are joined to one caption, a *paragraph*, because retrieval is reported so.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

from fluxvit.data.formats.layout import (
    VideoFinder,
    VideoList,
    data_format,
    first_of,
    name_split,
    requested_split,
)
from fluxvit.data.formats.lists import read_csv
from fluxvit.data.formats.rows import (
    OddRowError,
    as_object,
    described,
    text_of,
    texts_of,
    usable_rows,
    value_of,
    video_of,
)
from fluxvit.data.formats.tables import first_names, named_rows
from fluxvit.data.formats.text_files import read_annotations, shown, text_lines
from fluxvit.data.manifest import Entry

DIDEMO_SECONDS = 30.0
"""Length of the part of a DiDeMo video that its sentences are about."""


@data_format("msrvtt", "MSRVTT*")
def read_msrvtt(source: Path, root: Path | None, split: str | None) -> VideoList:
    """MSRVTT 1k-A: ``MSRVTT_JSFUSION_test.csv`` with ``key,vid_key,video_id,sentence``, one caption a video.

    For training ``MSRVTT_train.9k.csv`` (or ``7k``) lists ``video_id``, and ``MSRVTT_data.json`` beside it
    has the captions, twenty a video, as ``sentences`` with ``video_id`` and ``caption``. ``source`` is one of
    the lists, or their folder. Videos are ``ID`` with any suffix in any folder below ``root``.
    """
    requested = requested_split(split, source, found=("train", "test"))
    names = {"train": ["MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv"], "test": ["MSRVTT_JSFUSION_test.csv"]}
    file = first_of(source, names[requested]) if source.is_dir() else source
    if "sentence" in first_names(file):
        return read_csv(file, root, requested)
    captions: dict[str, list[str]] = {row["videoid"]: [] for _, row in named_rows(file, "videoid")}
    data = first_of(file.parent, ["MSRVTT_data.json"])
    sentences = enumerate(read_annotations(data)["sentences"], start=1)
    rows = ((f"sentence {number}", row) for number, row in sentences)
    pairs, notes = usable_rows(data, lambda row: _pair(row, "video_id", "caption"), rows)
    for _, (name, text) in pairs:
        if name in captions:
            captions[name].append(text)
    return _by_name(captions, file, root, requested, notes)


@data_format("didemo", row_keys=frozenset({"description", "times"}))
def read_didemo(source: Path, root: Path | None, split: str | None) -> VideoList:
    """DiDeMo: ``train_data.json``, ``val_data.json``, ``test_data.json``, each sentence with its ``video``.

    The sentences of a video become a paragraph, in the order of the file; the video is cut after 30 seconds,
    which the sentences are about. Videos are found below ``root`` by their names, with or without suffix.
    """
    requested = requested_split(split, source)
    file = first_of(source, [f"{requested}_data.json", f"{requested}.json"]) if source.is_dir() else source
    sentences: dict[str, list[str]] = defaultdict(list)
    pairs, notes = usable_rows(file, lambda row: _pair(row, "video", "description"))
    for _, (name, text) in pairs:
        sentences[name].append(text)
    videos = VideoFinder(root or file.parent)
    entries = []
    for name, texts in sentences.items():
        # Some are downloaded with a suffix behind their own, such as ``.mov.mp4``.
        path = videos.find(name, Path(name).stem, expected=videos.root / name)
        entries.append(Entry(path, captions=(" ".join(texts),), end=DIDEMO_SECONDS))
    return VideoList(requested, videos.root, tuple(entries), notes=notes)


@data_format("activitynet_captions")
def read_activitynet_captions(source: Path, root: Path | None, split: str | None) -> VideoList:
    """ActivityNet Captions: ``train.json``, ``val_1.json``, ``val_2.json``; of each video ``duration``,
    ``timestamps`` and ``sentences``.

    The sentences become a paragraph, in the order of their times. What is reported is ``val_1.json``; of a
    folder split ``val`` takes it. Videos are ``v_ID`` or ``ID`` with any suffix in any folder below ``root``.
    """
    requested = requested_split(split, source, found=("train", "val"))
    names = {"train": ["train.json"], "val": ["val_1.json", "val.json"]}
    file = first_of(source, names[requested]) if source.is_dir() else source
    videos = VideoFinder(root or file.parent)
    entries = []
    content = read_annotations(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: an object of videos is expected, not {described(content)}")
    rows, notes = usable_rows(file, _timed_sentences, content.items())
    for name, sentences in rows:
        key = name.removeprefix("v_")
        path = videos.find(f"v_{key}", key)
        entries.append(Entry(path, captions=(" ".join(sentences),)))
    return VideoList(requested, videos.root, tuple(entries), notes=notes)


@data_format("lsmdc")
def read_lsmdc(source: Path, root: Path | None, split: str | None) -> VideoList:
    """LSMDC: ``LSMDC16_challenge_1000_publictect.csv`` (the 1000 clips that are reported),
    ``LSMDC16_annos_training.csv``, ``..._val.csv``: six columns with tabs between them, the clip's name first
    and the sentence last.

    ``source`` is one of these. Videos are ``NAME`` with any suffix in any folder below ``root``.
    """
    captions: dict[str, list[str]] = defaultdict(list)
    lines = ((f"line {number}", line) for number, line in enumerate(text_lines(source), start=1))
    clips, notes = usable_rows(source, _lsmdc_clip, lines)
    for _, (name, sentence) in clips:
        captions[name].append(sentence)
    named = "test" if "challenge" in source.name else ""
    return _by_name(captions, source, root, split or named or name_split(None, source), notes)


@data_format("msvd", "raw-captions.pkl")
def read_msvd(source: Path, root: Path | None, split: str | None) -> VideoList:
    """MSVD: a folder with ``train_list.txt``, ``val_list.txt``, ``test_list.txt`` of names, and the captions,
    some forty a video, in ``raw-captions.pkl`` (lists of words).

    Videos are ``NAME`` (``ID_START_END``) with any suffix in any folder below ``root``.
    """
    folder = source if source.is_dir() else source.parent
    requested = requested_split(split, source)
    file = source if source.is_file() else first_of(folder, [f"{requested}_list.txt"])
    captions: dict[str, list[str]] = {name: [] for name in text_lines(file)}
    for name, texts in _unpickle(first_of(folder, ["raw-captions.pkl"])).items():
        if name in captions:
            captions[name] = [" ".join(words) for words in texts]
    return _by_name(captions, file, root, requested, ())


@data_format("pairs")
def read_pairs(source: Path, root: Path | None, split: str | None) -> VideoList:
    """A JSON list of ``{"image" or "video": PATH, "caption": TEXT or [TEXT, ...]}``, as UMT and InternVideo2
    have their corpora and test sets; several captions of a file stay several.

    Paths are relative to ``root``, by default the folder of the list. InternVideo2's test sets say ``image``
    of videos, too.
    """
    root = root or source.parent

    def parse(row: Any) -> tuple[str, list[str]]:
        return video_of(as_object(row)), texts_of(row, "caption", "captions")

    rows, notes = usable_rows(source, parse)
    entries = [Entry(root / name, captions=tuple(texts)) for _, (name, texts) in rows]
    return VideoList(name_split(split, source), root, tuple(entries), notes=notes)


def _pair(row: Any, video: str, caption: str) -> tuple[str, str]:
    """The texts under two keys of a row."""
    return text_of(as_object(row), video), text_of(row, caption)


def _timed_sentences(video: Any) -> list[str]:
    """The sentences about a video, in the order of their times."""
    times = value_of(as_object(video), "timestamps")
    sentences = texts_of(video, "sentences")
    if not isinstance(times, list) or len(times) != len(sentences):
        raise OddRowError(f"timestamps are {described(times)}, where it has {len(sentences)} sentences")
    try:
        starts = [float(start) for start, _ in times]
    except (TypeError, ValueError):
        raise OddRowError("its timestamps are not pairs of seconds") from None
    return [text for _, text in sorted(zip(starts, sentences, strict=True), key=lambda pair: pair[0])]


def _lsmdc_clip(line: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in line.split("\t")]
    if len(cells) < 6 or not cells[0] or not cells[-1]:
        raise OddRowError(f"{shown(line)} does not have six columns with tabs between them")
    return cells[0], cells[-1]


def _by_name(
    captions: dict[str, list[str]], file: Path, root: Path | None, split: str, notes: tuple[str, ...]
) -> VideoList:
    """Videos by their names; those without a caption are counted and left out."""
    videos = VideoFinder(root or file.parent)
    entries = [Entry(videos.find(name), captions=tuple(texts)) for name, texts in captions.items() if texts]
    bare = len(captions) - len(entries)
    notes += (f"left out {bare} videos without a caption",) if bare else ()
    return VideoList(split, videos.root, tuple(entries), notes=notes)


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, texts and numbers, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a pickle of plain lists ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a pickle of captions by video")
    return content
