"""The videos that a probe is trained, chosen and tested on, and which of them cannot be used together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from fluxvit.data.classes import multi_hot, name_classes, numbered_like
from fluxvit.data.manifest import Entry, Manifest, read_manifest, shared_videos


@dataclass(frozen=True)
class Split:
    """The videos of a role.

    Args:
        manifest: The videos that can be read.
        name: The manifest's file.
        digest: Digest of the whole manifest.
        missed: The videos that cannot be read.
    """

    manifest: Manifest
    name: str
    digest: str
    missed: tuple[Entry, ...]

    @property
    def multi_label(self) -> bool:
        """Whether videos may show several classes at once."""
        return self.manifest.multi_label

    @property
    def unreadable(self) -> int:
        """How many videos cannot be read."""
        return len(self.missed)

    @property
    def used(self) -> set[int]:
        """The classes of the videos that can be read."""
        return {number for entry in self.manifest.entries for number in entry.classes}

    def labels(self, classes: int) -> Tensor:
        """Those of the videos that can be read: int64 ``[N]``, or multi-hot float32 ``[N, classes]``."""
        if self.multi_label:
            return torch.from_numpy(multi_hot(self.manifest.entries, classes))
        return torch.tensor([entry.label for entry in self.manifest.entries])

    @property
    def classes(self) -> int:
        """Number of classes: the number of names or, if that is more, one above the largest label."""
        return max(len(self.manifest.labels), 1 + max(self.used, default=-1))

    @property
    def total(self) -> int:
        """Videos, with those that cannot be read."""
        return len(self.manifest) + self.unreadable


def read_splits(train: str, val: str, test: str = "", target: str = "label") -> dict[str, Split]:
    """Read manifests into splits by role: ``train``, ``val`` and, if there is one, ``test``.

    Args:
        target: Key of the class index.

    Raises:
        ValueError: A manifest cannot be read, it uses classes that ``train`` does not have, or two share
            videos.
    """
    paths = {"train": train, "val": val} | ({"test": test} if test else {})
    splits = {role: _read(path, target) for role, path in paths.items()}
    if not splits["train"].multi_label and len(splits["train"].used) == 1:
        raise ValueError(f"{train}: all videos are of one class; a probe needs two or more to tell apart")
    if not splits["train"].used:
        raise ValueError(f"{train}: no video shows any class")
    for split in splits.values():
        if split.multi_label != splits["train"].multi_label:
            single, several = (train, split.name) if split.multi_label else (split.name, train)
            raise ValueError(
                f"{several} has several labels a video, and {single} has one; give both the same kind"
            )
    for role in paths:
        if role != "train":
            splits[role] = _numbered(splits[role], splits["train"])
    for one, other in combinations(splits.values(), 2):
        shared = shared_videos(one.manifest, other.manifest)
        if shared:
            raise ValueError(
                f"{other.name} and {one.name} share {len(shared)} videos, such as "
                f"{shared[0]}; a score on videos that were seen before means nothing"
            )
    return splits


def _read(path: str, target: str) -> Split:
    manifest = read_manifest(path, target)
    readable = manifest.readable()
    return Split(readable, path, manifest.digest, tuple(entry for entry in manifest.entries if not entry.ok))


def _numbered(split: Split, train: Split) -> Split:
    """A split whose classes are numbered as those of the training videos, which must show all of them."""
    whole = replace(split.manifest, entries=split.manifest.entries + split.missed)
    whole = numbered_like(whole, train.manifest.labels, train.classes, split.name, train.name)
    count = len(split.manifest)
    manifest = replace(split.manifest, entries=whole.entries[:count], labels=whole.labels)
    split = replace(split, manifest=manifest, missed=whole.entries[count:])
    unknown = sorted(split.used - train.used)
    if unknown:
        shown = name_classes(unknown, train.manifest.labels)
        raise ValueError(f"{split.name} has classes that {train.name} has no video of: {shown}")
    return split
