"""Which video belongs to a caption, and which caption to a video, at several budgets.

A dual encoder that is given all captions is a classifier (`zero_shot`): its logits are the similarities. So
plans are tested, and searched, as those of classifiers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.evaluation.classification import Request, predict_requests
from fluxvit.evaluation.config import EvaluateConfig, RetrievalConfig
from fluxvit.evaluation.evaluate import RESIZE
from fluxvit.evaluation.recall import Recall, answers_of, dual_softmax, recall, right_videos
from fluxvit.evaluation.tested_plans import Subject, find_subjects
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.layers import CosineClassifier
from fluxvit.utils.files import write_json
from fluxvit.utils.system import device_name, log_device, usable_device

RESULTS = "retrieval.json"


@dataclass(frozen=True)
class Retrieval:
    """What a test found; as a string, for people.

    Args:
        results: What ``retrieval.json`` holds.
        wrote: Path of the file of results.
    """

    results: dict[str, Any]
    wrote: Path

    def __str__(self) -> str:
        results = self.results
        names = ("R@1", "R@5", "R@10", "MdR", "MnR")
        head = ("budget", "sampling", "grid", "kept", "GMACs", "dual softmax")
        rows = [(*head, *(f"t2v {name}" for name in names), *(f"v2t {name}" for name in names))]
        for row in results["rows"]:
            figures = [row[way][name] for way in ("text_to_video", "video_to_text") for name in _FIGURES]
            rows.append(
                (
                    str(row["budget"]),
                    row["kind"],
                    row["grid"],
                    f"{row['keep']} of {row['pool']}",
                    f"{row['gmacs']:.3g}",
                    "yes" if row["dual_softmax"] else "no",
                    *(f"{value:.1f}" for value in figures),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{results['checkpoint']} on {results['data']}: {results['videos']} videos, "]
        lines[0] += f"{results['captions']} captions; recall in percent, ranks from 1"
        if shared := results["shared_captions"]:
            lines.append(f"{shared} captions are those of several videos, of which each counts as right")
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append("Dual softmax compares with all other queries at once, which nobody has who searches.")
        if results["unreadable"]:
            lines.append(f"{len(results['unreadable'])} videos cannot be read and rank last")
        return "\n".join([*lines, f"wrote   {self.wrote}"])


_FIGURES = ("r1", "r5", "r10", "median_rank", "mean_rank")


def run_retrieve(config: RetrievalConfig, progress: bool = True) -> Retrieval:
    """Test a dual encoder on captioned videos, and write ``retrieval.json`` into ``config.out``.

    Every caption is a query for its video, and every video one for its captions, of which the best counts.
    Equal captions of several videos are right for each of these videos.
    What ties with the right answer ranks before it.

    Raises:
        ValueError: The checkpoint, the manifest or a plan cannot be used; the message says why.
    """
    device = usable_device(config.device)
    dual = DualEncoderCheckpoint.load(config.checkpoint, device)
    manifest = read_manifest(config.data, None)
    sentences = [text for entry in manifest.entries for text in entry.captions]
    for entry in manifest.entries:
        if not entry.captions:
            raise ValueError(f"{config.data}: {entry.path} has no caption")
    belongs = right_videos([entry.captions for entry in manifest.entries])
    checkpoint = dual.classifier(dual.embed_texts(sentences))
    tested = EvaluateConfig(
        config.checkpoint,
        config.data,
        config.budgets,
        grid=config.grid,
        plain_size=config.plain_size,
        precision=config.precision,
        batch_size=config.batch_size,
    )
    subjects = find_subjects(tested, checkpoint)
    log_device(device)
    found, unreadable = cosines(
        checkpoint,
        manifest,
        [subject.plan for subject in subjects],
        precision=config.precision,
        batch_size=config.batch_size,
        workers=config.workers,
        progress=progress,
    )
    rows = []
    for subject, similarity in zip(subjects, found, strict=True):
        for softmax in (False, True):
            figures = _figures(similarity, belongs, softmax)
            rows.append({**_about(subject, checkpoint), "dual_softmax": softmax, **figures})
    results = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "data_digest": manifest.digest,
        "weights_digest": checkpoint.digest(),
        "videos": len(manifest),
        "captions": len(sentences),
        "shared_captions": sum(len(videos) > 1 for videos in belongs),
        "resize": RESIZE,
        "precision": config.precision,
        "device": device_name(device),
        "unreadable": [
            {"path": str(manifest.entries[i].path), "error": why} for i, why in sorted(unreadable.items())
        ],
        "rows": rows,
    }
    path = Path(config.out) / RESULTS
    write_json(path, results)
    return Retrieval(results, path)


def cosines(
    checkpoint: Checkpoint,
    manifest: Manifest,
    plans: Sequence[Plan],
    *,
    precision: str = "fp32",
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
) -> tuple[list[Tensor], dict[int, str]]:
    """Similarities of videos and texts.

    Args:
        checkpoint: A classifier of Q texts.
        plans: Videos that have one grid in common are read once.

    Returns:
        Cosines ``[N, Q]`` at each plan, NaN in rows of videos that cannot be read; and why they cannot.
    """
    head = checkpoint.model.heads[0].fc
    assert isinstance(head, CosineClassifier)
    by_grid: dict[SamplingGrid, list[int]] = {}
    for number, plan in enumerate(plans):
        by_grid.setdefault(plan.grid, []).append(number)
    found: dict[int, Tensor] = {}
    unreadable: dict[int, str] = {}
    for grid, numbers in by_grid.items():
        answers = predict_requests(
            checkpoint,
            ClipDataset(manifest, sampling=checkpoint.sampling),
            grid,
            [Request.of(plans[number]) for number in numbers],
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            progress=f"Testing {grid}" if progress else None,
            tolerant=True,
        )
        for number, answer in zip(numbers, answers, strict=True):
            found[number] = answer.logits / head.scale.item()
            unreadable |= answer.unreadable
    return [found[number] for number in range(len(plans))], unreadable


def _about(subject: Subject, checkpoint: Checkpoint) -> dict[str, Any]:
    plan, config = subject.plan, checkpoint.model.config
    return {
        "budget": subject.budget,
        "kind": subject.kind,
        "grid": str(plan.grid),
        "keep": plan.keep,
        "pool": config.pool(plan.grid),
        "selector": plan.selector,
        # The classifier's cosines are no part of what embedding a clip costs.
        "gmacs": grid_cost(replace(config.size, num_classes=0), plan.grid, plan.keep, plan.selector).total
        / 1e9,
    }


def _figures(similarity: Tensor, belongs: Sequence[Sequence[int]], dual: bool) -> dict[str, Any]:
    """Both directions, of similarities of videos to captions ``[N, Q]``; NaN rows are unreadable videos."""
    lost = similarity.isnan().any(1, keepdim=True)
    similarity = similarity.masked_fill(lost, -1)  # The least that a cosine can be.
    of_texts, of_videos = similarity.t(), similarity
    if dual:
        of_texts, of_videos = dual_softmax(of_texts), dual_softmax(of_videos)
    worst = torch.finfo(similarity.dtype).min
    of_texts = of_texts.masked_fill(lost.t(), worst)
    of_videos = of_videos.masked_fill(lost, worst)
    return {
        "text_to_video": _told(recall(of_texts, belongs)),
        "video_to_text": _told(recall(of_videos, answers_of(belongs, len(similarity)))),
    }


def _told(found: Recall) -> dict[str, float]:
    figures = {f"r{count}": 100 * found.at(count) for count in (1, 5, 10)}
    return {**figures, "median_rank": found.median_rank, "mean_rank": found.mean_rank}
