"""``fluxvit evaluate``: a checkpoint on labelled videos at several budgets, by a protocol that is kept.

`run_evaluation` is the whole of it. For each budget it tests *plain* sampling, as many whole frames as the
budget pays for, the *optimised* plan of the checkpoint's plan table, and on that plan's grid other selectors.
All that share a grid share one pass over the videos. What was predicted is kept after each pass (`Answers`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import SEARCH, Checkpoint, checkpoint_folder
from fluxvit.checkpoints.latency import LatencyTable
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest, shared_videos, to_record
from fluxvit.evaluation.classification import Predictions, Request, number_for_checkpoint, predict_requests
from fluxvit.evaluation.config import EvaluateConfig, Views
from fluxvit.evaluation.metrics import Metrics, average_precision, mean_of_classes, measure
from fluxvit.evaluation.prediction_store import Answers
from fluxvit.evaluation.protocol import Protocol, head_of
from fluxvit.evaluation.report.filmstrips import Filmstrip, best_and_worst, make_filmstrips
from fluxvit.evaluation.report.page import require_report_packages, write_report
from fluxvit.evaluation.tested_plans import Subject, autocast, find_subjects
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.distributed import ALONE, World, fail_together, lock_run
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.schema import convert, load
from fluxvit.utils.system import device_name, log_device
from fluxvit.utils.terminal import printable
from fluxvit.video.sampling import ClipSampling

RESULTS, PREDICTIONS = "results.json", "predictions.npz"
RESIZE = "bilinear with antialiasing, aspect kept, until the grid just fits; one crop: the centre"
# Raise it when the same protocol would give other predictions than before.
_VERSION = 1
_NAMED = 10  # Unreadable videos that are named in print; the results name all.

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; as a string, for people.

    Args:
        results: What ``results.json`` holds.
        warning: Why the figures may be optimistic; empty if nothing is known.
        wrote: The files.
    """

    results: dict[str, Any]
    warning: str
    wrote: list[Path]

    def __str__(self) -> str:
        results, protocol = self.results, self.results["protocol"]
        scores = ("mAP",) if results["multi_label"] else ("top-1 (95 %)", "top-5", "class mean")
        head = ("budget", "sampling", "grid", "kept", *scores, "GMACs", "ms")
        table = [head, *map(_row, results["points"])]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = [
            f"{results['checkpoint']} on {protocol['manifest']}: {protocol['clips']} videos of "
            f"{len(results['classes'])} classes, {protocol['views']} views, {protocol['precision']}",
            *("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in table),
        ]
        unreadable = results["unreadable"]
        if unreadable:
            lines.append(f"{len(unreadable)} videos cannot be read and count as wrong:")
            lines += [f"  {printable(row['path'])}: {printable(row['error'])}" for row in unreadable[:_NAMED]]
            if len(unreadable) > _NAMED:
                lines.append(f"  and {len(unreadable) - _NAMED} more, which {RESULTS} names")
        lines += [f"wrote   {path}" for path in self.wrote]
        return "\n".join(line.rstrip() for line in lines)


def _row(point: Mapping[str, Any]) -> tuple[str, ...]:
    latency = point["latency_ms"]
    scores: tuple[str, ...]
    if "map" in point:
        scores = (_score_of(point).removesuffix(" mAP"),)
    else:
        interval = f"({100 * point['low']:.1f} to {100 * point['high']:.1f})"
        top5 = "" if point["top5"] is None else f"{100 * point['top5']:.1f} %"
        scores = (f"{_score_of(point)} {interval}", top5, f"{100 * point['mean_class']:.1f} %")
    clips, crops = map(int, point["views"].split("x"))
    return (
        str(point["budget"]),
        point["kind"],
        point["grid"],
        f"{point['keep']} of {point['pool']}",
        *scores,
        f"{point['gmacs']:.3g}" + (f" x{clips * crops}" if clips * crops > 1 else ""),
        "" if latency is None else f"{latency['p50']:.3g}",
    )


def run_evaluation(config: EvaluateConfig, world: World = ALONE, progress: bool = True) -> Evaluation | None:
    """Test a checkpoint and write ``results.json`` and ``predictions.npz`` into ``config.out``.

    An interrupted evaluation goes on behind the last grid that was finished; so does one that is given more
    to test. In a world of several processes each video is predicted once, by one of them.

    Args:
        world: On whose device it runs; all its processes must call this.
        progress: Show bars.

    Returns:
        What was found, in the main process; None in the others.

    Raises:
        ValueError: The checkpoint, the manifest or a plan cannot be used, or another run is writing into
            ``config.out``; the message says why.
    """
    with lock_run(config.out, world):
        if config.report:
            require_report_packages()  # Now, not after all videos.
        manifest = read_manifest(config.data, config.target)
        checkpoint = Checkpoint.load(config.checkpoint, world.device)
        return evaluate(checkpoint, manifest, config, world, progress)


def evaluate(
    checkpoint: Checkpoint,
    manifest: Manifest,
    config: EvaluateConfig,
    world: World = ALONE,
    progress: bool = True,
) -> Evaluation | None:
    """Test a checkpoint on the videos of a manifest, as :func:`run_evaluation` does.

    Args:
        config: The options; its ``checkpoint`` and ``data`` are names, for messages and results.
    """
    manifest = number_for_checkpoint(config.data, manifest, config.checkpoint, checkpoint)
    if config.report and checkpoint.multi_label:
        raise ValueError(
            f"--report draws how often one class is right, but {config.checkpoint} tells several classes of "
            "a video; leave it out, the figures are printed and in results.json"
        )
    checkpoint = replace(checkpoint, sampling=_sampling(config, checkpoint.sampling))
    classes = checkpoint.model.num_classes if checkpoint.multi_label else None
    dataset = ClipDataset(manifest, sampling=checkpoint.sampling, classes=classes)
    subjects = _in_main(world, partial(find_subjects, config, checkpoint))
    protocol = _protocol(config, manifest, checkpoint)
    answers = Answers(
        Path(config.out) / PREDICTIONS,
        json.dumps(_facts(protocol, checkpoint), sort_keys=True),
        torch.stack([dataset.label(i) for i in range(len(dataset))]),
        [to_record(entry, manifest.root)["path"] for entry in manifest.entries],
    )
    _in_main(world, answers.read)
    if world.is_main:
        log_device(world.device)
    warning = _warning(config, manifest)
    if warning and world.is_main:
        _log.warning("%s", warning)
    done = world.main_value(set(answers.rows))
    for grid, requests in _passes(subjects, config.seed).items():
        missing = {key: request for key, request in requests.items() if key not in done}
        if not missing:
            continue
        title = f"Testing {grid}" if progress and world.is_main else None
        rows, unreadable = _predict(config, checkpoint, dataset, grid, list(missing.values()), world, title)
        _in_main(world, partial(answers.add, dict(zip(missing, rows, strict=True)), unreadable))
    finish = partial(_finish, config, checkpoint, manifest, subjects, protocol, answers, warning)
    evaluation = _in_main(world, finish)
    return evaluation if world.is_main else None


def _in_main(world: World, work: Callable[[], T]) -> T:
    """What the main process finds, in all; what it raises, too."""
    found, trouble = None, None
    if world.is_main:
        try:
            found = work()
        except Exception as error:  # Whatever it is: the others must hear of it, or they wait for ever.
            trouble = error
    fail_together(trouble, world, "evaluation")
    return world.main_value(found)  # type: ignore[return-value]


# What is tested ------------------------------------------------------------------------------------------


def _key(plan: Plan) -> str:
    head = "nearest head" if plan.head is None else f"head {plan.head}"
    return f"{plan.grid}, {plan.keep} tokens, {plan.selector}, {head}"


def _passes(subjects: Sequence[Subject], seed: int) -> dict[SamplingGrid, dict[str, Request]]:
    """For each grid what is asked of it; what two subjects ask, once."""
    passes: dict[SamplingGrid, dict[str, Request]] = {}
    for subject in subjects:
        requests = passes.setdefault(subject.plan.grid, {})
        requests[_key(subject.plan)] = Request.of(subject.plan, seed)
    return passes


# How -----------------------------------------------------------------------------------------------------


def _sampling(config: EvaluateConfig, trained: ClipSampling) -> ClipSampling:
    """The sampling of training, or the one that is asked for."""
    base = ClipSampling(config.sampling) if config.sampling else trained
    return replace(base, stride=config.stride or base.stride, fps=config.stride_fps or base.fps)


def _protocol(config: EvaluateConfig, manifest: Manifest, checkpoint: Checkpoint) -> Protocol:
    resize = RESIZE
    if config.views.crops > 1:
        resize = f"{resize.partition(';')[0]}; {config.views.crops} crops spread along the longer side"
    return Protocol(
        data_digest=manifest.digest,
        manifest=config.data,
        clips=len(manifest),
        views=str(config.views),
        sampling=str(checkpoint.sampling),
        resize=resize,
        weights_digest=checkpoint.digest(),
        seed=config.seed,
        precision=config.precision,
        device=device_name(checkpoint.device),
    )


def _facts(protocol: Protocol, checkpoint: Checkpoint) -> dict[str, Any]:
    """What predictions depend on."""
    facts = {"version": _VERSION, **protocol.facts}
    return facts | {"multi_label": True} if checkpoint.multi_label else facts


def _predict(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    grid: SamplingGrid,
    requests: Sequence[Request],
    world: World,
    title: str | None,
) -> tuple[list[Tensor], dict[int, str]]:
    """Log-probabilities ``[N, C]`` for each request, and why videos could not be read; in all processes.

    Where videos have several classes, they are those of each class by itself.
    """
    batch = max(1, config.batch_size // config.views.total)
    entries = dataset.manifest.entries
    readable = [i for i, entry in enumerate(entries) if entry.ok]
    # Whole batches are dealt out, so that they are the same for any number of processes.
    shares = [
        [i for place, i in enumerate(readable) if place // batch % world.size == rank]
        for rank in range(world.size)
    ]
    share, part, trouble = shares[world.rank], list[Predictions](), None
    try:
        if share:
            part = predict_requests(
                checkpoint,
                dataset,
                grid,
                requests,
                views=config.views,
                precision=config.precision,
                batch_size=batch,
                workers=config.workers,
                progress=title,
                indices=share,
                tolerant=True,
            )
    except Exception as error:  # Whatever it is: the others must hear of it, or they wait for ever.
        trouble = error
    fail_together(trouble, world, "evaluation")
    reasons = {share[row]: text for row, text in part[0].unreadable.items()} if part else {}
    rows = [torch.full((len(entries), checkpoint.model.num_classes), torch.nan) for _ in requests]
    unreadable: dict[int, str] = {}
    normalized = F.logsigmoid if checkpoint.multi_label else partial(F.log_softmax, dim=-1)
    gathered = world.gather(([normalized(result.logits) for result in part], reasons))
    for indices, (tables, why) in zip(shares, gathered, strict=True):
        for whole, table in zip(rows, tables, strict=bool(indices)):
            whole[indices] = table
        unreadable |= why
    return rows, unreadable


# What is said of it --------------------------------------------------------------------------------------


def _finish(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    manifest: Manifest,
    subjects: Sequence[Subject],
    protocol: Protocol,
    answers: Answers,
    warning: str,
) -> Evaluation:
    """Measure, write and report; in the main process alone."""
    points, model = [], checkpoint.model
    for subject in subjects:
        point = _point(model, subject, config.views)
        rows = answers.rows[_key(subject.plan)]
        if checkpoint.multi_label:
            per_class = average_precision(rows, answers.labels)
            point |= {"map": mean_of_classes(per_class), "per_class": per_class}
        else:
            metrics = measure(rows, answers.labels)
            point |= _scores(metrics)
            if subject.budget == subjects[0].budget:
                point["confusion"] = metrics.confusion.tolist()
        point["latency_ms"] = _latency(config, model, subject.plan) if config.latency else None
        points.append(point)
    classes = _class_names(checkpoint, manifest)
    results = {
        "title": f"{Path(config.checkpoint).name} on {Path(config.data).name}",
        "checkpoint": config.checkpoint,
        "headline": _headline(points),
        "multi_label": checkpoint.multi_label,
        "chance": float(answers.labels.mean()) if checkpoint.multi_label else 1 / len(classes),
        "conditions": _conditions(config, checkpoint, manifest, answers, subjects, warning),
        "protocol": protocol.flat([subject.plan for subject in subjects], model.config),
        "classes": classes,
        "unreadable": [
            {"path": answers.names[i], "error": reason}
            for i, reason in sorted((_known_broken(manifest) | answers.unreadable).items())
        ],
        "points": points,
        "trials": _search(config).get("trials", []),
    }
    out = Path(config.out)
    write_json(out / RESULTS, results)
    wrote = [out / RESULTS, answers.path]
    if config.report:
        filmstrips = _filmstrips(checkpoint, manifest, subjects, answers)
        with lock_folder(config.report):
            wrote.append(write_report(config.report, results, filmstrips))
    return Evaluation(results, warning, wrote)


def _point(model: FluxViT, subject: Subject, views: Views) -> dict[str, Any]:
    """A tested plan and its cost, without scores."""
    plan, config = subject.plan, model.config
    return {
        "kind": subject.kind,
        "budget": subject.budget,
        "grid": str(plan.grid),
        "frames": plan.grid.frames,
        "height": plan.grid.height,
        "width": plan.grid.width,
        "pool": config.pool(plan.grid),
        "keep": plan.keep,
        "head": head_of(plan, config),
        "selector": plan.selector,
        "views": str(views),
        "gmacs": grid_cost(config.size, plan.grid, plan.keep, plan.selector).total / 1e9,
    }


def _scores(metrics: Metrics) -> dict[str, Any]:
    top1, (low, high) = metrics.top1, metrics.top1.interval
    return {
        "top1": top1.accuracy,
        "low": low,
        "high": high,
        "correct": top1.correct,
        "total": top1.total,
        "top5": None if metrics.top5 is None else metrics.top5.accuracy,
        "mean_class": metrics.mean_class,
        "nll": metrics.nll,
        "ece": metrics.ece,
        "per_class": metrics.per_class,
    }


def _latency(config: EvaluateConfig, model: FluxViT, plan: Plan) -> dict[str, Any]:
    with autocast(config, model):
        latency = LatencyTable(model).measure(plan)
    device = device_name(next(model.parameters()).device)
    return {"p10": latency.p10, "p50": latency.p50, "p90": latency.p90, "device": device}


def _headline(points: Sequence[Mapping[str, Any]]) -> str:
    """The smallest budget, where the sampling matters most."""
    least = [point for point in points if point["budget"] == points[-1]["budget"]]
    parts = [f"{_score_of(point)} with {point['kind']} sampling ({point['grid']})" for point in least]
    return f"At {least[0]['budget']} tokens a clip: {', '.join(parts)}."


def _score_of(point: Mapping[str, Any]) -> str:
    return f"{100 * point['map']:.1f} % mAP" if "map" in point else f"{100 * point['top1']:.1f} %"


def _conditions(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    manifest: Manifest,
    answers: Answers,
    subjects: Sequence[Subject],
    warning: str,
) -> dict[str, str]:
    model = checkpoint.model
    broken = len(_known_broken(manifest) | answers.unreadable)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    size = next(subject.plan.grid for subject in subjects if subject.kind == "plain").height
    conditions = {
        "Data": f"{config.data}, {len(manifest)} videos (digest {manifest.digest})",
        "Model": (
            f"{config.checkpoint}, {parameters:.2f} M parameters, patch {model.config.patch_size}, tubelet "
            f"{model.config.tubelet_size}, trained for {', '.join(map(str, model.config.budgets))} tokens"
        ),
        "Views": f"{config.views}: times x crops, probabilities averaged",
        "Plain sampling": f"as many whole {size}x{size} frames as the budget pays for",
        "Accuracy": (
            ("mean average precision" if checkpoint.multi_label else "top-1 with Wilson's 95 % interval")
            + f"; {broken or 'no'} videos could not be read"
            + ("; they count as wrong" if broken else "")
        ),
    }
    if config.budgets and config.budgets[0].tokens is None:
        conditions["Budget"] = ", ".join(map(str, config.budgets))
    return conditions | ({"Caution": warning} if warning else {})


def _class_names(checkpoint: Checkpoint, manifest: Manifest) -> list[str]:
    return checkpoint.labels or list(manifest.labels) or checkpoint.class_names


def _known_broken(manifest: Manifest) -> dict[int, str]:
    """Reasons by number, of what the manifest says."""
    return {
        i: entry.error or "broken, says the manifest"
        for i, entry in enumerate(manifest.entries)
        if not entry.ok
    }


def _search(config: EvaluateConfig) -> dict[str, Any]:
    """The record of the search that the plan table comes from; empty without one."""
    path = checkpoint_folder(config.checkpoint) / SEARCH
    return convert(load(path), dict[str, Any], str(path)) if path.exists() else {}


def _warning(config: EvaluateConfig, manifest: Manifest) -> str:
    """Said if any of the tested videos chose the plans."""
    data = _search(config).get("data")
    if config.grid is not None or not isinstance(data, dict):
        return ""
    count = len(manifest) if data.get("digest") == manifest.digest else 0
    if not count and Path(str(data.get("manifest"))).is_file():
        count = len(shared_videos(manifest, read_manifest(str(data["manifest"]), None)))
    if not count:
        return ""
    return (
        f"{count} videos of {config.data} were among those that chose the plans of {config.checkpoint}; "
        "its optimised figures are too good"
    )


def _filmstrips(
    checkpoint: Checkpoint, manifest: Manifest, subjects: Sequence[Subject], answers: Answers
) -> list[Filmstrip]:
    """Filmstrips of the videos whose true class is most and least likely, all budgets on one grid."""
    first = next((subject for subject in subjects if subject.kind != "plain"), subjects[0])
    scores = answers.rows[_key(first.plan)].gather(1, answers.labels[:, None])[:, 0]
    clips = best_and_worst(scores, answers.names, manifest.entries)
    labels = _class_names(checkpoint, manifest)
    budgets = sorted({subject.budget for subject in subjects}, reverse=True)
    return make_filmstrips(checkpoint, budgets, first.plan.grid, clips, labels)
