"""``fluxvit optimize``: finds the best sampling for each token budget and stores it in the checkpoint.

`run_optimize` tries candidates (`candidates`) on held-out clips (`trials`), drops most of them early
(`halving`), measures the rest, and writes the plans.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fluxvit.checkpoints.checkpoint import PRETRAINED, SEARCH, Checkpoint, checkpoint_folder
from fluxvit.checkpoints.latency import measure_latencies
from fluxvit.data.dataset import ClipDataset, VideoSource
from fluxvit.data.manifest import Manifest, read_manifest, shared_videos
from fluxvit.evaluation.classification import number_for_checkpoint
from fluxvit.evaluation.metrics import Score
from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.models.inference import form
from fluxvit.optimization.candidates import aspect_of, find_candidates
from fluxvit.optimization.cascade import tune_cascades
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.halving import Sampling, Table, choose, paired_interval, pass_gmacs
from fluxvit.optimization.trials import Search
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.system import device_name, environment, log_device, usable_device
from fluxvit.utils.terminal import table

LOG = "search.jsonl"
# Increase it whenever the same settings would log other numbers than before.
_VERSION = 1


@dataclass(frozen=True)
class Tried:
    """The results of a sampling with its best head.

    Args:
        plan: The sampling and its head, with their measurements.
        score: Accuracy on the clips that the sampling saw.
        truth: Mean probability of the true class on these clips, by which the search ranks.
    """

    plan: Plan
    score: Score
    truth: float


@dataclass(frozen=True)
class Gain:
    """The gain of a plan over plain sampling at the same budget, which keeps all tokens of a smaller pool.

    Args:
        plain: The best plain sampling.
        gained: Difference in accuracy on the clips that both saw.
        low, high: 95 % interval of the difference.
    """

    plain: Tried
    gained: float
    low: float
    high: float


@dataclass(frozen=True)
class Spent:
    """The cost of a search.

    Args:
        gmacs: Multiply-accumulates of all clips together, in 1e9.
        seconds: Seconds spent on decoding and in the network, over all runs.
        exhaustive_gmacs: The cost of trying every candidate on every clip.
    """

    gmacs: float
    seconds: float
    exhaustive_gmacs: float

    @property
    def share(self) -> float:
        return self.gmacs / self.exhaustive_gmacs


@dataclass(frozen=True)
class OptimizeResult:
    """The results of a search.

    Args:
        best: The best plan for each budget, with all measurements.
        gains: Gain of each best plan over plain sampling; None if there was no plain candidate.
        tried: All samplings of each budget, best first.
        spent: The cost of the search.
        clips: Number of clips that could be read.
        unreadable: Errors of the clips that could not be read.
        cascades: A cascade for each mean budget.
        folder: Checkpoint folder into which the plans were written.
    """

    best: dict[int, Tried]
    gains: dict[int, Gain | None]
    tried: dict[int, list[Tried]]
    spent: Spent
    clips: int
    unreadable: list[str]
    cascades: dict[Budget, Cascade]
    folder: Path

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("budget", "grid", "keep", "head", "selector", "accuracy (95 % interval)", "GMACs", "ms")
        ]
        for budget, tried in self.best.items():
            gain = self.gains[budget]
            rows.append(_row(str(budget), tried))
            if gain is not None and gain.plain.plan != tried.plan:
                rows.append(_row("plain", gain.plain))
        lines = table(rows)
        for budget, gain in self.gains.items():
            if gain is None:
                lines.append(f"{budget} tokens: no candidate grid has a pool of as many, for plain sampling")
            elif gain.plain.plan == self.best[budget].plan:
                lines.append(f"{budget} tokens: plain sampling is the best")
            else:
                points, low, high = (f"{100 * value:+.1f}" for value in (gain.gained, gain.low, gain.high))
                shared = gain.plain.score.total
                lines.append(
                    f"{budget} tokens: {points} points ({low} to {high}) over plain sampling on the {shared} "
                    "clips that both saw"
                )
        lines.append(
            f"cost    {self.spent.gmacs:.4g} GMACs, {100 * self.spent.share:.1f} % of trying all "
            f"{sum(map(len, self.tried.values()))} candidates on all {self.clips} clips; "
            f"{self.spent.seconds:.0f} s"
        )
        lines.append(
            "These clips chose the plans, so that their accuracy is optimistic; "
            "fluxvit evaluate tests them on others."
        )
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} videos cannot be read and were left out")
        lines += [f"{budget} in the mean: {_described(cascade)}" for budget, cascade in self.cascades.items()]
        return "\n".join([*lines, f"checkpoint  {self.folder}"])


def _row(title: str, tried: Tried) -> tuple[str, ...]:
    plan, measured = tried.plan, tried.plan.measured
    assert measured is not None
    return (
        title,
        str(plan.grid),
        str(plan.keep),
        str(plan.head),
        plan.selector,
        f"{tried.score} of {tried.score.total}",
        f"{measured.gmacs:.4g}",
        "" if measured.latency_ms is None else f"{measured.latency_ms:.1f}",
    )


def _described(cascade: Cascade) -> str:
    assert cascade.measured is not None
    assert cascade.measured.accuracy is not None
    stages = ", then ".join(
        f"{plan.keep} of {plan.grid}" + ("" if n == 0 else f" for {100 * share:.0f} % of the clips")
        for n, (plan, share) in enumerate(zip(cascade.stages, cascade.reach, strict=True))
    )
    return f"{100 * cascade.measured.accuracy:.1f} % at {cascade.measured.gmacs:.4g} GMACs with {stages}"


def run_optimize(config: OptimizeConfig, *, progress: bool = True) -> OptimizeResult:
    """Search the best plans, and write them and a record of the search into the checkpoint folder.

    The log is in ``config.out``. After an interruption the same call continues.

    Raises:
        ValueError: The checkpoint cannot be read or written, the data cannot be used, there is no candidate
            for a budget, ``config.out`` holds another search, or another run is writing into it.
    """
    with lock_folder(config.out):
        checkpoint = Checkpoint.load(config.checkpoint, usable_device(config.device))
        folder = _writable_folder(config, checkpoint)
        manifest = read_manifest(config.data, config.target)
        return optimize(checkpoint, manifest, config, folder, progress=progress)


def optimize(
    checkpoint: Checkpoint,
    manifest: Manifest,
    config: OptimizeConfig,
    folder: Path,
    *,
    progress: bool = True,
) -> OptimizeResult:
    """Search the plans of a checkpoint on the videos of a manifest, as :func:`run_optimize` does.

    Args:
        manifest: Held-out videos.
        config: The options. Its ``checkpoint`` and ``data`` are only used in messages and the record.
        folder: Checkpoint folder for the plans and the record of the search.
    """
    if checkpoint.multi_label:
        raise ValueError(
            f"{config.checkpoint} predicts several classes of a video; plans are chosen by how often one "
            "class is right"
        )
    if config.test and (shared := shared_videos(manifest, read_manifest(config.test, None))):
        raise ValueError(
            f"{config.data} and {config.test} share {len(shared)} videos, such as {shared[0]}; "
            "what chose the plans cannot test them"
        )
    manifest = number_for_checkpoint(config.data, manifest, config.checkpoint, checkpoint)
    readable = manifest.readable().entries
    order = np.random.default_rng(config.seed).permutation(len(readable))[: config.videos]
    clips = replace(manifest, entries=tuple(readable[i] for i in order))
    candidates = find_candidates(config, checkpoint, lambda: aspect_of(clips))
    prepared = checkpoint.prepared(config.precision)
    search = Search(prepared, clips, VideoSource(clips), candidates, config.workers)
    log_device(checkpoint.device)
    facts = {
        "search": _VERSION,
        "weights": checkpoint.digest(),
        "precision": form(prepared.model),
        "data": manifest.digest,
        "clips": len(clips),
        "seed": config.seed,
        "exhaustive": config.exhaustive,
        "candidates": _digest(candidates),
        **checkpoint.sampling.facts,
    }
    finalists = search.run(Path(config.out) / LOG, facts, exhaustive=config.exhaustive, progress=progress)
    broken = [
        f"{entry.path}: {entry.error or 'known to be unreadable'}"
        for entry in manifest.entries
        if not entry.ok
    ]
    result = _result(search, finalists, folder, broken)
    if config.cascades:
        # Cascades are made of plans that saw all clips.
        plans = [
            row.plan for rows in result.tried.values() for row in rows if row.score.total == result.clips
        ]
        usable = tuple(clips.entries[i] for i in np.flatnonzero(search.table.usable))
        dataset = ClipDataset(replace(clips, entries=usable), sampling=checkpoint.sampling)
        cascades = tune_cascades(
            prepared, dataset, config.cascades, plans=plans, workers=config.workers, progress=progress
        )
        result = replace(result, cascades=dict(zip(config.cascades, cascades, strict=True)))
    _save(config, checkpoint, manifest, result)
    return result


def _writable_folder(config: OptimizeConfig, checkpoint: Checkpoint) -> Path:
    """The folder that will get the plans."""
    if config.to:
        folder = Path(config.to)
        occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if occupied and Checkpoint.load(folder).digest() != checkpoint.digest():
            raise ValueError(f"{folder} holds another checkpoint; choose another folder for the copy")
        return folder
    folder = checkpoint_folder(config.checkpoint)
    if PRETRAINED in folder.resolve().parents:
        raise ValueError(
            f"{config.checkpoint} comes with the package, which is not written to; "
            "name a folder for a copy that gets the plans: --to runs/optimized"
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to; name a folder for a copy: --to runs/optimized")
    return folder


def _save(config: OptimizeConfig, checkpoint: Checkpoint, manifest: Manifest, result: OptimizeResult) -> None:
    others = [plan for plan in checkpoint.plans if plan.keep not in result.best]
    plans = [*(tried.plan for tried in result.best.values()), *others]
    # Cascades contain their plans, so that earlier cascades keep working.
    cascades = list(result.cascades.values()) or checkpoint.cascades
    plans.sort(key=lambda plan: -plan.keep)
    checkpoint = replace(checkpoint, plans=plans, cascades=cascades)
    if config.to:
        checkpoint.save(result.folder)
    else:
        checkpoint.save_plans(result.folder)
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "to", "workers")}
    settings["cascades"] = [str(budget) for budget in config.cascades]
    write_json(
        result.folder / SEARCH,
        {
            "data": {
                "digest": manifest.digest,
                "manifest": config.data,
                "clips": result.clips,
                "unreadable": len(result.unreadable),
                "seed": config.seed,
            },
            "settings": settings,
            "trials": [_trial(budget, tried) for budget, rows in result.tried.items() for tried in rows],
            "cost": {**asdict(result.spent), "share": result.spent.share},
            "versions": environment(checkpoint.device),
            "date": time.strftime("%Y-%m-%d"),
        },
    )


def _trial(budget: int, tried: Tried) -> dict[str, Any]:
    plan, (low, high) = tried.plan, tried.score.interval
    return {
        "budget": budget,
        "grid": str(plan.grid),
        "frames": plan.grid.frames,
        "height": plan.grid.height,
        "width": plan.grid.width,
        "head": plan.head,
        "selector": plan.selector,
        "accuracy": tried.score.accuracy,
        "low": low,
        "high": high,
        "correct": tried.score.correct,
        "total": tried.score.total,
        "score": tried.truth,
    }


def _result(
    search: Search, finalists: dict[int, list[Sampling]], folder: Path, broken: Sequence[str]
) -> OptimizeResult:
    """The results of a search. The latencies are measured now.

    Args:
        finalists: Samplings of each budget that saw all clips.
        folder: Checkpoint folder for the plans.
        broken: Errors of videos that were known to be unreadable.
    """
    table, pool = search.table, search.checkpoint.pool

    def rank(sampling: Sampling) -> tuple[int, float]:
        # The samplings that saw most clips come first.
        truth = table.truth(sampling, table.best_head(sampling))
        return -len(truth), -float(truth.mean())

    rows: dict[int, list[Tried]] = {}
    for budget, samplings in finalists.items():
        best, head = choose(table, samplings, search.cost)
        others = sorted((other for other in search.candidates[budget] if other != best), key=rank)
        heads = [head]
        for other in others:
            saw_all = other in samplings
            heads.append(table.most_accurate_head(other) if saw_all else table.best_head(other))
        rows[budget] = [_tried(search, *pair) for pair in zip([best, *others], heads, strict=True)]
    # The first row that keeps all tokens of its pool is the best plain sampling.
    plain = {
        budget: next((i for i, row in enumerate(tried) if pool(row.plan.grid) == row.plan.keep), None)
        for budget, tried in rows.items()
    }
    timed = sorted({(b, i) for b in rows for i in (0, plain[b]) if i is not None})
    device = device_name(search.checkpoint.device)
    latencies = measure_latencies(search.model, [rows[budget][i].plan for budget, i in timed])
    for (budget, i), latency in zip(timed, latencies, strict=True):
        row = rows[budget][i]
        measured = replace(row.plan.measured or Measured(), latency_ms=round(latency.p50, 3), device=device)
        rows[budget][i] = replace(row, plan=replace(row.plan, measured=measured))
    clips = int(table.usable.sum())
    every = {sampling for samplings in search.candidates.values() for sampling in samplings}
    exhaustive = clips * pass_gmacs(search.model.config.size, every, search.heads)
    return OptimizeResult(
        best={budget: tried[0] for budget, tried in rows.items()},
        gains={
            budget: None if i is None else _gain(table, rows[budget][0], rows[budget][i])
            for budget, i in plain.items()
        },
        tried=rows,
        spent=Spent(search.gmacs, search.seconds, exhaustive),
        clips=clips,
        unreadable=[*broken, *search.unreadable.values()],
        cascades={},
        folder=folder,
    )


def _tried(search: Search, sampling: Sampling, head: int) -> Tried:
    score = search.table.score(sampling, head)
    measured = Measured(score.correct, score.total, search.cost(sampling))
    plan = Plan(sampling.grid, sampling.keep, head, sampling.selector, measured)
    return Tried(plan, score, float(search.table.truth(sampling, head).mean()))


def _gain(table: Table, best: Tried, plain: Tried) -> Gain:
    one, other = (
        table.right(Sampling(plan.keep, plan.grid, plan.selector), plan.head or 0)
        for plan in (best.plan, plain.plan)
    )
    # All samplings saw the same clips in the same order, but some saw fewer of them.
    one = one[: len(other)]
    low, high = paired_interval(one, other, z=1.959964)
    return Gain(plain, float(one.mean() - other.mean()), max(-1.0, low), min(1.0, high))


def _digest(candidates: dict[int, list[Sampling]]) -> str:
    """Digest of the candidates, 16 hexadecimal digits."""
    rows = [[budget, *astuple(sampling)] for budget, rows in candidates.items() for sampling in rows]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
