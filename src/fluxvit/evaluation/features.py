"""Features of a frozen backbone at one plan: computed once, one row a video, and kept on disk for probes.

What a row holds depends on the kind of the probe that reads it:

* ``linear``: two vectors. ``pooled`` is what the nearest head's own attention pooling gives; ``mean`` is the
  average of all tokens, each layer-normalised first, since a FluxViT has no final norm.
* ``attentive``: all tokens that leave the last block.

Shapes: N videos, B of them in a batch, K kept tokens, C channels, P width of the pooled vector.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.flux.plan import Plan
from fluxvit.utils.files import write_json
from fluxvit.utils.terminal import printable

# What a model uses when nothing is said, as `fluxvit predict` does.
USUAL_SELECTOR = "group_dynamic"
# Raise it when the same backbone and videos would give other features than before.
_VERSION = 1
_CLIPS_AT_ONCE = 32


@dataclass(frozen=True)
class Backbone:
    """A frozen model that turns clips into features at one plan.

    Args:
        checkpoint: The model, in eval mode, and what it must be used with.
        digest: Digest of the checkpoint, on which features depend.
        plan: Grid, kept tokens and the head whose pooling is read.
        kind: Kind of the probe that the features are for.
        selector: Which tokens are kept.
    """

    checkpoint: Checkpoint
    digest: str
    plan: Plan
    kind: str
    selector: str = USUAL_SELECTOR

    @property
    def pool(self) -> int:
        """Tokens of the grid."""
        return self.checkpoint.pool(self.plan.grid)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a video's features: ``[P + C]`` or ``[1 + K, C]``."""
        config = self.checkpoint.model.config
        if self.kind == "linear":
            return (config.pool_dim + config.embed_dim,)
        return (1 + self.plan.keep, config.embed_dim)

    @property
    def dtype(self) -> np.dtype:
        """Vectors are small; tokens are kept in half precision."""
        return np.dtype(np.float32 if self.kind == "linear" else np.float16)

    @property
    def facts(self) -> dict[str, Any]:
        """What features depend on, but for the videos."""
        return {
            "features": _VERSION,
            "weights": self.digest,
            "grid": str(self.plan.grid),
            "keep": self.plan.keep,
            "head": self.plan.head,
            "selector": self.selector,
            "kind": self.kind,
            **self.checkpoint.sampling.facts,
        }

    @torch.inference_mode()
    def __call__(self, video: Tensor) -> Tensor:
        """Features of clips uint8 ``[B, 3, T, H, W]``: for ``linear`` fp32 ``[B, P + C]``, ``pooled`` first;
        for ``attentive`` fp16 ``[B, 1 + K, C]``, class token first.
        """
        model = self.checkpoint.model
        tokens = model.forward_features(self.checkpoint.normalize(video), self.plan.keep, self.selector)
        if self.kind == "attentive":
            return tokens.half()
        pooled = model.forward_head(tokens, self.plan.head, pre_logits=True)
        return torch.cat([pooled, F.layer_norm(tokens, tokens.shape[-1:]).mean(1)], dim=1).float()


def cached_features(
    backbone: Backbone,
    dataset: ClipDataset,
    folder: str | Path,
    *,
    workers: int = 0,
    progress: str | None = None,
) -> np.memmap:
    """Features of every video, one central view each, from disk if they were computed before.

    The file gets its name when it is complete. After an interruption the same call goes on behind the last
    whole row.

    Args:
        folder: Where the features lie, or will lie. File names are digests; the ``.json`` beside each says of
            what.
        workers: Processes that decode clips; 0: this one.
        progress: Title of a progress bar; None for none.

    Returns:
        ``[N, *backbone.row_shape]``, mapped, in the order of the manifest.

    Raises:
        VideoError: A video cannot be read.
        ValueError: The disk is too small, or features are not finite in the type that they are kept in.
    """
    facts = {**backbone.facts, "data": dataset.manifest.digest}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"{key}.features"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        _compute(backbone, dataset, partial, workers, progress)
        write_json(path.with_suffix(".json"), facts)
        if partial.exists():  # Else another run that computed the same was there first.
            os.replace(partial, path)
    return np.memmap(path, backbone.dtype, "r", shape=(len(dataset), *backbone.row_shape))


def _compute(
    backbone: Backbone, dataset: ClipDataset, partial: Path, workers: int, progress: str | None
) -> None:
    """Write the rows that ``partial`` lacks."""
    row_bytes = math.prod(backbone.row_shape) * backbone.dtype.itemsize
    done = partial.stat().st_size // row_bytes if partial.exists() else 0
    needed, free = (len(dataset) - done) * row_bytes, shutil.disk_usage(partial.parent).free
    if needed > free:
        raise ValueError(
            f"features of {len(dataset)} videos need {needed / 1e9:.1f} GB, and {partial.parent} has "
            f"{free / 1e9:.1f} GB left; use a smaller budget, a linear probe or another cache folder"
        )
    batches = epoch_batches(len(dataset), backbone.plan.grid, _CLIPS_AT_ONCE, range(done, len(dataset)))
    clips = loader(dataset, batches, workers)
    console = Console(stderr=True)  # What is printed may go to a file.
    hidden = progress is None
    partial.touch()
    # Neither appended nor emptied: two runs that compute the same write the same to the same places.
    with partial.open("r+b") as out:
        out.seek(done * row_bytes)
        for clip in track(
            clips,
            escape(printable(progress or "")),
            len(batches),
            console=console,
            transient=True,
            disable=hidden,
        ):
            rows = backbone(clip.video).cpu()
            finite = rows.flatten(1).isfinite().all(1)
            if not finite.all():
                video = dataset.manifest.entries[int(clip.item[int(finite.int().argmin())])].path
                raise ValueError(
                    f"{video}: its features are not finite in {backbone.dtype}; the checkpoint is broken "
                    "or its tokens are too large for an attentive probe"
                )
            out.write(rows.numpy().tobytes())
            out.flush()
        os.fsync(out.fileno())
