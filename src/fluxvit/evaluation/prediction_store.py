"""The predictions for every video, kept on disk, so that an evaluation continues where it was."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fluxvit.utils.files import atomic_path


@dataclass
class PredictionStore:
    """Log-probabilities of every video at each plan, kept in a file that an evaluation continues from.

    Args:
        path: The ``.npz`` file.
        facts: What the predictions depend on; a file with other facts is ignored.
        labels: Class indices int64 ``[N]``, or multi-hot ``[N, C]``.
        names: ``[N]`` paths.
        rows: By the plan's key, fp32 ``[N, C]``; NaN where a video could not be read.
        unreadable: Reasons by the video's number.
    """

    path: Path
    facts: str
    labels: Tensor
    names: list[str]
    rows: dict[str, Tensor] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)

    def read(self) -> None:
        """Read the file, if it is of the same facts."""
        try:
            with np.load(self.path) as file:
                if str(file["facts"]) != self.facts:
                    return
                rows = torch.from_numpy(file["log_probabilities"])
                self.rows = dict(zip(map(str, file["requests"]), rows, strict=True))
                self.unreadable = {int(i): text for i, text in json.loads(str(file["unreadable"])).items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile):
            # There is none, or it is another program's or damaged: everything is computed.
            self.rows, self.unreadable = {}, {}

    def add(self, rows: Mapping[str, Tensor], unreadable: Mapping[int, str]) -> None:
        """Add the predictions of more plans, and write the file anew."""
        self.rows |= rows
        self.unreadable |= unreadable
        with atomic_path(self.path) as partial, partial.open("wb") as out:
            np.savez(
                out,
                facts=np.array(self.facts),
                requests=np.array(list(self.rows)),
                log_probabilities=torch.stack(list(self.rows.values())).numpy(),
                labels=self.labels.numpy(),
                paths=np.array(self.names),
                unreadable=np.array(json.dumps(dict(sorted(self.unreadable.items())))),
            )
