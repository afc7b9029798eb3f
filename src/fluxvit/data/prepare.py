"""From a folder of videos to the manifests of a training and a validation split, in one go."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fluxvit.data.layout import SplitNeeded, VideoList
from fluxvit.data.manifest import Entry
from fluxvit.data.probe import probe_manifest
from fluxvit.data.sources import read_source

HELD_OUT = 10
"""One video in so many is held out for validation where a data set has no splits of its own."""


def prepare_manifests(root: str | Path, out: str | Path, *, progress: bool = True) -> tuple[Path, Path]:
    """Check a data set and write ``out/train.jsonl`` and ``out/val.jsonl``, unless they are there.

    Args:
        root: Whatever ``fluxvit data probe`` recognises. If it has no splits, a tenth of each class, at least
            one video where there are two, is held out for validation: always the same ones.
        out: Folder of the manifests.

    Raises:
        ValueError: The data set cannot be read, or has too few videos to hold some out.
    """
    train, val = Path(out) / "train.jsonl", Path(out) / "val.jsonl"
    if not (train.exists() and val.exists()):
        for path, videos in zip((train, val), _splits(Path(root)), strict=True):
            probe_manifest(videos, path, progress=progress)
    return train, val


def _splits(root: Path) -> tuple[VideoList, VideoList]:
    try:
        videos = read_source(root)
    except SplitNeeded:
        return read_source(root, split="train"), read_source(root, split="val")
    held_out = _hold_out(videos.entries)
    if not held_out:
        raise ValueError(f"{root}: no class has two videos, so that none can be held out for validation")
    parts = ("train", False), ("val", True)
    train, val = (
        replace(
            videos,
            split=name,
            entries=tuple(e for i, e in enumerate(videos.entries) if (i in held_out) == is_held_out),
        )
        for name, is_held_out in parts
    )
    return train, val


def _hold_out(entries: Sequence[Entry]) -> set[int]:
    """Numbers of the videos to hold out; they follow from how many each class has."""
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for number, entry in enumerate(entries):
        by_class[entry.label].append(number)
    chosen: set[int] = set()
    for label, numbers in by_class.items():
        if len(numbers) > 1:
            chosen.update(random.Random(label).sample(numbers, max(1, len(numbers) // HELD_OUT)))
    return chosen
