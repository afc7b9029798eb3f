"""The search for the plans of a dual encoder, which is given all captions and then is a classifier."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fluxvit.checkpoints.dual_encoder import VIDEO, is_dual, load_dual
from fluxvit.checkpoints.folder import SEARCH, load_checkpoint, save_checkpoint, save_plans
from fluxvit.data.manifest import Manifest, content_digest, read_manifest, write_manifest
from fluxvit.data.texts import embed_texts, plain_caption
from fluxvit.evaluation.zero_shot import text_classifier
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.optimize import OptimizeResult, run_optimize
from fluxvit.utils.files import atomic_path, lock_folder
from fluxvit.utils.system import usable_device


def optimize(config: OptimizeConfig) -> OptimizeResult:
    """Search the plans of a checkpoint, or those of the video side of a dual encoder."""
    return optimize_dual(config) if is_dual(config.checkpoint) else run_optimize(config)


def optimize_dual(config: OptimizeConfig, *, progress: bool = True) -> OptimizeResult:
    """Search the best sampling for each budget of a dual encoder, and write the plans beside its video side.

    A video counts as right if its own caption, the first if it has several, is nearest among all captions of
    ``config.data``; equal captions of several videos are one. What the search itself keeps is in
    ``config.out``: a classifier of these captions, and the videos with their numbers.

    Raises:
        ValueError: As :func:`run_optimize`; or a video has no caption, or ``to`` is given.
    """
    if config.to:
        raise ValueError(
            "--to: of a dual encoder the plans are written to its own video side; copy the folder"
        )
    with lock_folder(config.out):
        return _optimize_dual(config, progress)


def _optimize_dual(config: OptimizeConfig, progress: bool) -> OptimizeResult:
    device = usable_device(config.device)
    encoder, info = load_dual(config.checkpoint, device)
    out = Path(config.out)
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
    labelled = Manifest(entries, tuple(captions), content_digest(entries, manifest.root), root=manifest.root)
    write_manifest(out / "captions.jsonl", labelled)
    classifier = text_classifier(encoder, embed_texts(encoder, info.texts, captions))
    folder = out / "classifier"
    save_checkpoint(folder, classifier, replace(info.video, labels=captions))
    searched = replace(config, checkpoint=str(folder), data=str(out / "captions.jsonl"), target="label")
    result = run_optimize(searched, progress=progress)
    _, found = load_checkpoint(folder)
    video = Path(config.checkpoint) / VIDEO
    save_plans(video, found)
    with atomic_path(video / SEARCH) as partial:
        shutil.copyfile(folder / SEARCH, partial)
    return replace(result, folder=video)
