"""From a folder of videos to the manifests of a training and a validation split, in one go."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fluxvit.data.check import check_videos
from fluxvit.data.formats.layout import NoSuchSplit, SplitNeeded, VideoList
from fluxvit.data.formats.registry import read_source
from fluxvit.data.manifest import Entry, read_manifest, shared_videos

HELD_OUT = 10
"""One video in so many is held out for validation where a data set has no splits of its own."""

_log = logging.getLogger(__name__)


def prepare_manifests(root: str | Path, out: str | Path, *, progress: bool = True) -> tuple[Path, Path]:
    """Check a data set and write ``out/train.jsonl`` and ``out/val.jsonl``, unless they are there.

    What reading the data set left out is logged, and so are videos that both splits list.

    Args:
        root: Whatever ``fluxvit data check`` recognises. If it has no split for validation, a tenth of each
            class of its training videos, at least one where there are two, is held out: always the same ones,
            and all segments of a video together.
        out: Folder of the manifests.

    Raises:
        ValueError: The data set cannot be read, has no training split, or has too few videos to hold some
            out.
    """
    train, val = Path(out) / "train.jsonl", Path(out) / "val.jsonl"
    if not (train.exists() and val.exists()):
        splits = _splits(Path(root))
        for path, videos in zip((train, val), splits, strict=True):
            check_videos(videos, path, progress=progress)
        for note in dict.fromkeys(note for videos in splits for note in videos.notes):
            _log.warning("%s: %s", root, note)
        shared = shared_videos(read_manifest(train, None), read_manifest(val, None))
        if shared:
            _log.warning("%s: %d videos are both in train and val, such as %s", root, len(shared), shared[0])
    return train, val


def _splits(root: Path) -> tuple[VideoList, VideoList]:
    try:
        videos = read_source(root)
    except SplitNeeded:
        videos = read_source(root, split="train")
        with suppress(NoSuchSplit):
            return videos, read_source(root, split="val")
    if videos.split not in ("", "train"):
        raise ValueError(f"{root}: has only the split {videos.split}; there is nothing to train on")
    held_out = _hold_out(videos.entries)
    if not held_out:
        raise ValueError(f"{root}: no class has two videos, so that none can be held out for validation")
    if videos.split:
        note = f"there is no split val; {len(held_out)} videos of train are held out for validation"
        videos = replace(videos, notes=(*videos.notes, note))
    train = tuple(entry for entry in videos.entries if entry.path not in held_out)
    val = tuple(entry for entry in videos.entries if entry.path in held_out)
    return replace(videos, split="train", entries=train), replace(videos, split="val", entries=val)


def _hold_out(entries: Sequence[Entry]) -> set[Path]:
    """The videos to hold out; they follow from how many each class has."""
    by_class: defaultdict[int, dict[Path, None]] = defaultdict(dict)
    for entry in entries:
        by_class[entry.label][entry.path] = None
    chosen: set[Path] = set()
    for label, paths in by_class.items():
        if len(paths) > 1:
            chosen.update(random.Random(label).sample(list(paths), max(1, len(paths) // HELD_OUT)))
    return chosen
