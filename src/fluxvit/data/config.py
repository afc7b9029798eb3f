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
    """Check every video of a data set and write a manifest: a JSON line for each video, readable or broken.

    Training and evaluation read manifests. An interrupted check continues where it stopped. docs/data.md
    describes the formats and their files.

    Args:
        source: The data set: a folder, a list or an annotation file.
        out: Manifest to write, such as data/k400-train.jsonl.
        format: Format of the source, such as folder, csv, kinetics or ssv2 (docs/data.md lists all); ``auto``
            recognises it.
        root: Folder of the videos. By default it is the folder of the source.
        split: The split to read: train, val or test. By default the name of the source tells which one it is.
        like: Manifest, checkpoint folder or text file of class names. The classes get the same names and
            indices as there.
        columns: Columns of a CSV file to read, such as path=video,label=class. By default they are recognised
            by name.
        deep: Decode every frame of each video, and not only the first.
        workers: Number of processes that check files. By default there is one per CPU core.
        time_limit: Time limit for one file in seconds. The default is 60, or 600 with ``deep``.
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

    The videos are copied without change. An interrupted run continues where it stopped. More about shards:
    docs/data.md.

    Args:
        manifest: Manifest of the videos, as fluxvit data check writes it.
        out: Folder for the tar files (shards) and for their manifest, which keeps its name.
        size: Largest size of a shard, such as 500MB or 2GB.
        url: Address from which the shards will be read, such as s3://bucket/k400. By default it is ``out``.
    """

    manifest: str = field(metadata=POSITIONAL)
    out: str = field(metadata=POSITIONAL)
    size: str = "1GB"
    url: str | None = None
