"""Options of ``fluxvit label`` and ``fluxvit embed``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fluxvit.deploy.config import PlanOptions
from fluxvit.utils.options import POSITIONAL
from fluxvit.utils.schema import Batch, Count, check


@dataclass(frozen=True)
class BulkOptions(PlanOptions):
    """The options that ``fluxvit label`` and ``fluxvit embed`` share.

    Args:
        inputs: Video files, folders, manifests (.jsonl), patterns such as 'videos/*.mp4', and addresses of
            files, folders and patterns in object stores, such as s3://bucket/videos/, or of single files on
            web servers.
        checkpoint: Checkpoint folder, such as runs/demo/best.
        out: Folder to write: Parquet files of the results in rows/, and of videos that cannot be read in
            damaged/.
        engine: ``local`` uses this machine, ``ray`` a Ray cluster. The results are the same.
        address: Address of the Ray cluster. By default it is the one that RAY_ADDRESS names, or one on this
            machine that lives as long as the command.
        format: With ``lance`` the results are also written as one Lance table, rows.lance, at the end.
        part: Number of videos in a file. A file is written when all of them are done, and an interrupted run
            continues with the files that are missing.
        batch: Number of clips in a pass.
        workers: Number of parts that are decoded at once. By default it is the number of CPU cores, at most
            16; on Ray it is what the CPUs of the cluster allow.
        models: Number of copies of the network, each of which computes on a GPU or in a thread of the CPU. By
            default it is the number of GPUs of the Ray cluster, or half of the CPU cores.
        retry: Do the parts that have unreadable videos again.
    """

    inputs: tuple[str, ...] = field(metadata=POSITIONAL)
    checkpoint: str = "fluxvit_nano_motionworld"
    out: str = "runs/bulk"
    engine: Literal["local", "ray"] = "local"
    address: str = ""
    format: Literal["parquet", "lance"] = "parquet"
    part: Count = 32
    batch: Batch = 8
    workers: Count | None = None
    models: Count | None = None
    retry: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.engine == "local" and self.address:
            raise ValueError("--address is for Ray; add --engine ray")


@dataclass(frozen=True)
class LabelConfig(BulkOptions):
    """Classify many videos, and write a table of their labels.

    Run it again to continue an interrupted run. With a budget for each second of video, such as 64/s, a long
    video is sampled several times, and the mean is the answer.

    Args:
        top: Number of classes to store for each video.
    """

    top: Count = 5


@dataclass(frozen=True)
class EmbedConfig(BulkOptions):
    """Embed many videos, and write a table of their vectors.

    The vectors are the pooled ones of a classifier or a pre-trained network, or the unit vectors of a dual
    encoder. Run it again to continue an interrupted run. With a budget for each second of video, such as
    64/s, a long video is sampled several times, and the vector is their mean.
    """
