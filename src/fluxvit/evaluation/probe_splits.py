"""The videos that a probe is trained, chosen and tested on, and which of them cannot be used together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from fluxvit.data.classes import name_classes, numbered_like
from fluxvit.data.manifest import Manifest, read_manifest, shared_videos


@dataclass(frozen=True)
class Split:
    """The videos of a role.

    Args:
        manifest: Those that can be read.
        name: The manifest's file.
        digest: Of the whole manifest.
        unreadable: How many cannot be read.
    """

    manifest: Manifest
    name: str
    digest: str
    unreadable: int

    @property
    def labels(self) -> Tensor:
        """int64 ``[N]``, of those that can be read."""
        return torch.tensor([entry.label for entry in self.manifest.entries])

    @property
    def classes(self) -> int:
        """As many as are named or, if that is more, as the largest label asks for."""
        return max(len(self.manifest.labels), 1 + int(self.labels.max()))

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
    if len(splits["train"].labels.unique()) == 1:
        raise ValueError(f"{train}: all videos are of one class; a probe needs two or more to tell apart")
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
    if manifest.multi_label:
        raise ValueError(f"{path}: its videos have several labels each; probes tell one class of a video")
    readable = manifest.readable()
    return Split(readable, path, manifest.digest, len(manifest) - len(readable))


def _numbered(split: Split, train: Split) -> Split:
    """A split whose classes are numbered as those of the training videos, which must show all of them."""
    manifest = numbered_like(split.manifest, train.manifest.labels, train.classes, split.name, train.name)
    split = replace(split, manifest=manifest)
    unknown = sorted(set(split.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        shown = name_classes(unknown, train.manifest.labels)
        raise ValueError(f"{split.name} has classes that {train.name} has no video of: {shown}")
    return split
