"""The search for the plans of a dual encoder, which becomes a classifier whose classes are the captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.checkpoints.folder import VIDEO
from fluxvit.data.manifest import Manifest, content_digest, read_manifest
from fluxvit.data.texts import plain_caption
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.optimize import OptimizeResult, optimize, run_optimize
from fluxvit.utils.files import lock_folder
from fluxvit.utils.system import usable_device


def optimize_folder(config: OptimizeConfig) -> OptimizeResult:
    """Search the plans of a checkpoint folder, which may be that of a dual encoder."""
    return optimize_dual(config) if DualEncoderCheckpoint.is_in(config.checkpoint) else run_optimize(config)


def optimize_dual(config: OptimizeConfig, *, progress: bool = True) -> OptimizeResult:
    """Search the best sampling for each budget of a dual encoder, and store it with its video tower.

    A video counts as right if its own caption (its first one) is nearest among all captions of
    ``config.data``. Equal captions of several videos count as one.

    Raises:
        ValueError: See :func:`run_optimize`. Also if a video has no caption, or ``to`` is given.
    """
    if config.to:
        raise ValueError(
            "--to: the plans of a dual encoder are written into its own folder; copy the folder first"
        )
    with lock_folder(config.out):
        dual = DualEncoderCheckpoint.load(config.checkpoint, usable_device(config.device))
        manifest = _numbered(config)
        checkpoint = dual.classifier(dual.embed_texts(manifest.labels), manifest.labels)
        return optimize(checkpoint, manifest, config, Path(config.checkpoint) / VIDEO, progress=progress)


def _numbered(config: OptimizeConfig) -> Manifest:
    """The videos, with their captions as classes."""
    manifest = read_manifest(config.data, None)
    firsts = {
        plain_caption(text): text for entry in reversed(manifest.entries) for text in entry.captions[:1]
    }
    captions = list(firsts.values())[::-1]
    numbers = {plain_caption(caption): number for number, caption in enumerate(captions)}
    for entry in manifest.entries:
        if not entry.captions:
            raise ValueError(f"{config.data}: {entry.path} has no caption")
    entries = tuple(
        replace(entry, label=numbers[plain_caption(entry.captions[0])]) for entry in manifest.entries
    )
    return Manifest(entries, tuple(captions), content_digest(entries, manifest.root), root=manifest.root)
