"""Options of the commands that check and pack data sets. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from fluxvit.utils.options import POSITIONAL
from fluxvit.utils.schema import check

Processes = Annotated[int, Meta(ge=1, le=1024)]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]
"""The system's calls that wait take no more than about twice the largest."""


@dataclass(frozen=True)
class CheckConfig:
    """Check every video of a data set and write a manifest: what is there, what is broken and why.

    An interrupted check goes on where it stopped. Formats and their layout on disk: docs/data.md.

    Args:
        source: What the data set ships: a list, an annotation file, or a folder.
        out: Manifest to write, such as data/k400-train.jsonl.
        format: Format of the source, such as folder, csv, kinetics or ssv2; ``auto`` recognises it.
        root: Folder of the videos. By default it is that of the source.
        split: The split to take: train, val or test. By default the name of the source says it.
        like: Manifest, checkpoint folder or file of class names, one a line or with indices, whose names and
            numbers of classes are taken over.
        columns: Names of the columns of a CSV file, such as path=video,label=class. By default they are
            recognised.
        deep: Decode every frame, not only the first.
        workers: Processes that check files. By default there is one per core.
        time_limit: Seconds that one file may take. The default is 60, and 600 with ``deep``.
    """

    source: str = field(metadata=POSITIONAL)
    out: str
    format: str = "auto"
    root: str | None = None
    split: str | None = None
    like: str | None = None
    columns: tuple[str, ...] = ()
    deep: bool = False
    workers: Processes | None = None
    time_limit: Seconds | None = None

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class ShardConfig:
    """Pack the readable videos of a manifest into tar files, and write the manifest that reads them.

    The videos stay as they are. An interrupted run goes on where it stopped. More: docs/data.md.

    Args:
        manifest: Manifest of the videos, as fluxvit data check writes it.
        out: Folder of the shards and of their manifest, which keeps its name.
        size: Largest size of a shard, such as 500MB or 2GB.
        url: Address that the shards will be read from, such as s3://bucket/k400. By default it is ``out``.
    """

    manifest: str = field(metadata=POSITIONAL)
    out: str = field(metadata=POSITIONAL)
    size: str = "1GB"
    url: str | None = None
