"""Features of a frozen backbone at one plan: computed once, one row for each video, and kept on disk.

A row holds two vectors: ``pooled`` is the output of the head's attention pooling, and ``mean`` is the average
of all tokens, each layer-normalised first, because a FluxViT has no final norm.

Shapes: N videos, B of them in a batch, C channels, P width of the pooled vector.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.inference import form
from fluxvit.utils.files import write_json
from fluxvit.utils.progress import tracked

# Raise it when the same backbone and videos would give other features than before.
_VERSION = 1
_CLIPS_AT_ONCE = 32


@dataclass(frozen=True)
class Backbone:
    """A frozen model that turns clips into features at one plan.

    Args:
        checkpoint: The model, in eval mode or its inference form, and what it must be used with.
        digest: Digest of the weights, on which features depend.
        plan: Grid, kept tokens, selector, and the head whose pooling is read.
    """

    checkpoint: Checkpoint
    digest: str
    plan: Plan

    @property
    def widths(self) -> dict[str, int]:
        """The width of each vector, by its name."""
        config = self.checkpoint.model.config
        return {"pooled": config.pool_dim, "mean": config.embed_dim}

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that features depend on, except the videos."""
        return {
            "features": _VERSION,
            "weights": self.digest,
            "precision": form(self.checkpoint.model),
            "grid": str(self.plan.grid),
            "keep": self.plan.keep,
            "head": self.plan.head,
            "selector": self.plan.selector,
            **self.checkpoint.sampling.facts,
        }

    @torch.inference_mode()
    def __call__(self, video: Tensor) -> Tensor:
        """Features of clips uint8 ``[B, 3, T, H, W]``: fp32 ``[B, P + C]``, ``pooled`` first."""
        model, plan = self.checkpoint.model, self.plan
        tokens = model.forward_features(self.checkpoint.normalize(video), plan.keep, plan.selector)
        pooled = model.forward_head(tokens, plan.head, pre_logits=True)
        return torch.cat([pooled, F.layer_norm(tokens, tokens.shape[-1:]).mean(1)], dim=1).float()


def cached_features(
    backbone: Backbone, dataset: ClipDataset, folder: Path, workers: int = 0, progress: str | None = None
) -> dict[str, Tensor]:
    """Features of every video, one central view each, from disk if they were computed before.

    The file gets its name when it is complete. After an interruption the same call continues behind the last
    complete row.

    Args:
        folder: Folder of the features. File names are digests; the ``.json`` file beside each explains it.
        workers: Processes that decode clips; with 0 this process decodes them.
        progress: Title of a progress bar; None shows none.

    Returns:
        ``pooled`` ``[N, P]`` and ``mean`` ``[N, C]``, in the order of the manifest.

    Raises:
        VideoError: A video cannot be read.
        NotFiniteError: Features are not finite.
    """
    facts = {**backbone.facts, "data": dataset.manifest.digest}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path, width = folder / f"{key}.features", sum(backbone.widths.values())
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        row_bytes = width * np.dtype(np.float32).itemsize
        done = partial.stat().st_size // row_bytes if partial.exists() else 0
        partial.touch()
        os.truncate(partial, done * row_bytes)
        batches = epoch_batches(len(dataset), backbone.plan.grid, _CLIPS_AT_ONCE, range(done, len(dataset)))
        with partial.open("ab") as out:
            for clip in tracked(loader(dataset, batches, workers), progress, len(batches)):
                out.write(check_finite(backbone(clip.video), "features").cpu().numpy().tobytes())
                out.flush()
            os.fsync(out.fileno())
        write_json(path.with_suffix(".json"), facts)
        os.replace(partial, path)
    rows = torch.from_numpy(np.fromfile(path, np.float32).reshape(len(dataset), width))
    return dict(zip(backbone.widths, rows.split(list(backbone.widths.values()), dim=1), strict=True))
