"""The videos that a probe is trained, chosen and tested on, and which of them cannot be used together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from fluxvit.data.classes import name_classes, numbered_like
from fluxvit.data.manifest import Manifest, read_manifest, shared_videos


@dataclass(frozen=True)
class Split:
    """The videos of a role.

    Args:
        manifest: The videos that can be read.
        name: The manifest's file.
        total: Number of videos, with those that cannot be read.
    """

    manifest: Manifest
    name: str
    total: int

    @property
    def unreadable(self) -> int:
        """How many videos cannot be read."""
        return self.total - len(self.manifest)

    @property
    def labels(self) -> Tensor:
        """Classes of the videos that can be read, int64 ``[N]``."""
        return torch.tensor([entry.label for entry in self.manifest.entries])

    @property
    def classes(self) -> int:
        """Number of classes: the number of names or, if that is more, one above the largest label."""
        return max(len(self.manifest.labels), 1 + max(self.labels.tolist(), default=-1))


def read_splits(train: str, val: str, test: str = "", target: str = "label") -> dict[str, Split]:
    """Read manifests into splits by role: ``train``, ``val`` and, if there is one, ``test``.

    Args:
        target: Key of the class index.

    Raises:
        ValueError: A manifest cannot be read, it uses classes that ``train`` does not have, or two share
            videos.
    """
    splits: dict[str, Split] = {}
    for role, path in (("train", train), ("val", val), ("test", test)):
        if not path:
            continue
        full = read_manifest(path, target)
        if full.multi_label:
            raise ValueError(
                f"{path}: its videos have several labels each, and a probe predicts one class; "
                "train a classifier with: fluxvit train --task.loss bce"
            )
        manifest = full.readable()
        if role != "train":
            first = splits["train"]
            manifest = numbered_like(manifest, first.manifest.labels, first.classes, path, train)
            unknown = sorted({entry.label for entry in manifest.entries} - set(first.labels.tolist()))
            if unknown:
                shown = name_classes(unknown, first.manifest.labels)
                raise ValueError(f"{path} has classes that {train} has no video of: {shown}")
        splits[role] = Split(manifest, path, len(full))
    if len(splits["train"].labels.unique()) < 2:
        raise ValueError(f"{train}: a probe needs videos of two classes or more to tell apart")
    for one, other in combinations(splits.values(), 2):
        shared = shared_videos(one.manifest, other.manifest)
        if shared:
            raise ValueError(
                f"{other.name} and {one.name} share {len(shared)} videos, such as "
                f"{shared[0]}; a score on videos that were seen before means nothing"
            )
    return splits
