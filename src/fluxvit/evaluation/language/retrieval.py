"""``fluxvit evaluate-retrieval``: find videos by captions, and captions by videos, at several budgets.

A dual encoder that is given all captions is a classifier (`zero_shot`) whose logits are the similarities. So
plans are tested, and searched, as those of classifiers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.evaluation.config import RetrievalConfig
from fluxvit.evaluation.evaluate import RESIZE
from fluxvit.evaluation.language.recall import answers_of, recall, right_videos
from fluxvit.evaluation.tested_plans import plans_to_test
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Plan
from fluxvit.models.inference import form
from fluxvit.models.layers import CosineClassifier
from fluxvit.utils.files import write_json
from fluxvit.utils.system import device_name, log_device, usable_device
from fluxvit.utils.terminal import table

RESULTS = "retrieval.json"


@dataclass(frozen=True)
class Retrieval:
    """The results of a test; as a string, for people.

    Args:
        results: The content of ``retrieval.json``.
        path: Path of that file.
    """

    results: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        results = self.results
        names = ("R@1", "R@5", "R@10", "MdR", "MnR")
        head = ("budget", "sampling", "grid", "kept", "GMACs")
        rows = [(*head, *(f"t2v {name}" for name in names), *(f"v2t {name}" for name in names))]
        for row in results["rows"]:
            figures = [*row["text_to_video"].values(), *row["video_to_text"].values()]
            rows.append(
                (
                    str(row["budget"]),
                    row["kind"],
                    row["grid"],
                    f"{row['keep']} of {row['pool']}",
                    f"{row['gmacs']:.3g}",
                    *(f"{value:.1f}" for value in figures),
                )
            )
        lines = [
            f"{results['checkpoint']} on {results['data']}: {results['videos']} videos, "
            f"{results['captions']} captions; recall in percent, ranks from 1"
        ]
        if shared := results["shared_captions"]:
            lines.append(f"{shared} captions belong to several videos, each of which counts as right")
        lines += table(rows)
        if results["unreadable"]:
            lines.append(f"{len(results['unreadable'])} videos cannot be read and rank last")
        return "\n".join([*lines, f"wrote   {self.path}"])


def run_retrieval(config: RetrievalConfig, progress: bool = True) -> Retrieval:
    """Test a dual encoder on captioned videos, and write ``retrieval.json`` into ``config.out``.

    Every caption is a query for its video, and every video a query for its captions, of which the best
    counts. Equal captions of several videos are right for each of these videos. Candidates that tie with the
    right one rank before it.

    Raises:
        ValueError: The checkpoint, the manifest or a plan cannot be used; the message says why.
    """
    device = usable_device(config.device)
    encoder = DualEncoderCheckpoint.load(config.checkpoint, device)
    manifest = read_manifest(config.data, None)
    sentences = [text for entry in manifest.entries for text in entry.captions]
    for entry in manifest.entries:
        if not entry.captions:
            raise ValueError(f"{config.data}: {entry.path} has no caption")
    belongs = right_videos([entry.captions for entry in manifest.entries])
    classifier = encoder.classifier(encoder.embed_texts(sentences))
    checkpoint = classifier.prepared(config.precision)
    tested = plans_to_test(
        checkpoint,
        config.checkpoint,
        config.budgets,
        grid=config.grid,
        plain_size=config.plain_size,
    )
    log_device(device)
    plans = [row.plan for row in tested]
    similarities, unreadable = cosines(checkpoint, manifest, plans, config, progress)
    # The classifier's cosines are no part of what embedding a clip costs.
    size = replace(checkpoint.model.config.size, num_classes=0)
    rows = [
        {
            "budget": row.budget,
            "kind": row.kind,
            "grid": str(row.plan.grid),
            "keep": row.plan.keep,
            "pool": checkpoint.pool(row.plan.grid),
            "selector": row.plan.selector,
            "gmacs": grid_cost(size, row.plan.grid, row.plan.keep, row.plan.selector).total / 1e9,
            **both_directions(similarity, belongs),
        }
        for row, similarity in zip(tested, similarities, strict=True)
    ]
    results = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "data_digest": manifest.digest,
        "weights_digest": classifier.digest(),
        "videos": len(manifest),
        "captions": len(sentences),
        "shared_captions": sum(len(videos) > 1 for videos in belongs),
        "resize": RESIZE,
        "precision": form(checkpoint.model),
        "device": device_name(device),
        "unreadable": unreadable_rows(manifest, unreadable),
        "rows": rows,
    }
    path = Path(config.out) / RESULTS
    write_json(path, results)
    return Retrieval(results, path)


def unreadable_rows(manifest: Manifest, unreadable: Mapping[int, str]) -> list[dict[str, str]]:
    """What result files say of the videos that cannot be read, given the reasons by their numbers."""
    return [{"path": str(manifest.entries[i].path), "error": why} for i, why in sorted(unreadable.items())]


def cosines(
    checkpoint: Checkpoint, manifest: Manifest, plans: Sequence[Plan], config: RetrievalConfig, progress: bool
) -> tuple[list[Tensor], dict[int, str]]:
    """Similarities of videos and texts.

    Args:
        checkpoint: A classifier of Q texts.
        config: Batch size and workers.

    Returns:
        Cosines ``[N, Q]`` at each plan, NaN in rows of videos that cannot be read; and why they cannot.
    """
    head = checkpoint.model.heads[0].fc
    assert isinstance(head, CosineClassifier)
    results = predict_plans(
        checkpoint,
        ClipDataset(manifest, sampling=checkpoint.sampling),
        plans,
        batch_size=config.batch_size,
        workers=config.workers,
        progress="Testing" if progress else None,
        tolerant=True,
    )
    unreadable: dict[int, str] = {}
    for result in results:
        unreadable |= result.unreadable
    return [result.logits / head.scale.item() for result in results], unreadable


def both_directions(similarity: Tensor, belongs: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Recall and ranks of both directions; unreadable videos rank last.

    Args:
        similarity: Cosines ``[N, Q]`` of videos and captions; rows of NaN are unreadable videos.
        belongs: The right videos of each caption.
    """
    similarity = similarity.nan_to_num(torch.finfo(similarity.dtype).min)
    return {
        "text_to_video": recall(similarity.t(), belongs).record,
        "video_to_text": recall(similarity, answers_of(belongs, len(similarity))).record,
    }
