"""``fluxvit evaluate``: test a checkpoint on labelled videos at several budgets, and record the protocol.

For each budget `run_evaluation` tests *plain* sampling, which takes as many complete frames as the budget
pays for, the *optimised* plan of the checkpoint's plan table, and on that plan's grid other selectors. All
plans of a grid share one pass over the videos. Predictions are kept after each pass (`PredictionStore`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from msgspec import to_builtins
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import SEARCH, Checkpoint, checkpoint_folder
from fluxvit.checkpoints.latency import LatencyTable
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest, shared_videos, to_record
from fluxvit.evaluation.classification import Predictions, number_for_checkpoint, predict_plans
from fluxvit.evaluation.config import EvaluateConfig
from fluxvit.evaluation.metrics import average_precision, mean_of_classes, measure
from fluxvit.evaluation.prediction_store import PredictionStore
from fluxvit.evaluation.report.filmstrips import Filmstrip, best_and_worst, make_filmstrips
from fluxvit.evaluation.report.page import require_report_packages, write_report
from fluxvit.evaluation.tested_plans import EvaluatedPlan, plans_to_test
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.inference import form, resolve_precision
from fluxvit.utils.distributed import ALONE, World, fail_together, lock_run
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.schema import convert, load
from fluxvit.utils.system import environment, log_device
from fluxvit.utils.terminal import printable, table

RESULTS, PREDICTIONS = "results.json", "predictions.npz"
RESIZE = "bilinear with antialiasing, aspect kept, until the grid just fits; one crop: the centre"
# Raise it when the same protocol would give other predictions than before.
_VERSION = 1
_NAMED = 10  # Unreadable videos that are named in print; the results name all.

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation; as a string, for people.

    Args:
        results: The content of ``results.json``.
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
        lines = [
            f"{results['checkpoint']} on {protocol['manifest']}: {protocol['clips']} videos of "
            f"{len(results['classes'])} classes, {protocol['views']} views, {protocol['precision']}",
            *table([head, *map(_row, results["points"])]),
        ]
        unreadable = results["unreadable"]
        if unreadable:
            lines.append(f"{len(unreadable)} videos cannot be read and count as wrong:")
            lines += [f"  {printable(row['path'])}: {printable(row['error'])}" for row in unreadable[:_NAMED]]
            if len(unreadable) > _NAMED:
                lines.append(f"  and {len(unreadable) - _NAMED} more, which {RESULTS} names")
        return "\n".join([*lines, *(f"wrote   {path}" for path in self.wrote)])


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

    An interrupted evaluation continues behind the last finished grid, and so does one with more to test. In a
    world of several processes each video is predicted once, by one of them.

    Args:
        world: The processes of the run and their devices; all of them must call this.
        progress: Show progress bars.

    Returns:
        The results in the main process; None in the others.

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

    The network runs in its inference form, as in a predictor.

    Args:
        config: The options; its ``checkpoint`` and ``data`` are names, for messages and results.
    """
    manifest = number_for_checkpoint(config.data, manifest, config.checkpoint, checkpoint)
    if config.report and checkpoint.multi_label:
        raise ValueError(
            f"--report draws how often one class is right, but {config.checkpoint} predicts several classes "
            "of a video; leave it out, the figures are printed and in results.json"
        )
    digest = checkpoint.digest()
    # One choice for all processes, whose devices may differ.
    precision = world.main_value(resolve_precision(config.precision, checkpoint.device))
    checkpoint = checkpoint.prepared(precision)
    classes = checkpoint.model.num_classes if checkpoint.multi_label else None
    dataset = ClipDataset(manifest, sampling=checkpoint.sampling, classes=classes)
    find = partial(
        plans_to_test,
        checkpoint,
        config.checkpoint,
        config.budgets,
        grid=config.grid,
        plain_size=config.plain_size,
        baselines=config.baselines,
    )
    tested = _in_main(world, find)
    protocol = _protocol(config, manifest, checkpoint, digest)
    facts = {"version": _VERSION, **protocol} | ({"multi_label": True} if checkpoint.multi_label else {})
    store = PredictionStore(
        Path(config.out) / PREDICTIONS,
        json.dumps(facts, sort_keys=True),
        torch.stack([dataset.label(i) for i in range(len(dataset))]),
        [to_record(entry, manifest.root)["path"] for entry in manifest.entries],
    )
    _in_main(world, store.read)
    warning = _warning(config, manifest)
    if world.is_main:
        log_device(world.device)
        if warning:
            _log.warning("%s", warning)
    done = world.main_value(set(store.rows))
    passes: dict[SamplingGrid, dict[str, Plan]] = {}
    for row in tested:
        if _key(row.plan) not in done:
            passes.setdefault(row.plan.grid, {})[_key(row.plan)] = row.plan
    for plans in passes.values():
        rows, unreadable = _predict(config, checkpoint, dataset, list(plans.values()), world, progress)
        _in_main(world, partial(store.add, dict(zip(plans, rows, strict=True)), unreadable))
    finish = partial(_finish, config, checkpoint, manifest, tested, protocol, store, warning)
    evaluation = _in_main(world, finish)
    return evaluation if world.is_main else None


def _in_main(world: World, work: Callable[[], T]) -> T:
    """Run ``work`` in the main process; all processes get its result, or its exception."""
    result, trouble = None, None
    if world.is_main:
        try:
            result = work()
        except Exception as error:  # Whatever it is, the others must hear of it, or they wait for ever.
            trouble = error
    fail_together(trouble, world, "evaluation")
    return world.main_value(result)  # type: ignore[return-value]


def _key(plan: Plan) -> str:
    head = "nearest head" if plan.head is None else f"head {plan.head}"
    return f"{plan.grid}, {plan.keep} tokens, {plan.selector}, {head}"


def _protocol(
    config: EvaluateConfig, manifest: Manifest, checkpoint: Checkpoint, digest: str
) -> dict[str, Any]:
    """Everything that predictions depend on, except the plans; ``digest`` is that of the weights."""
    resize = RESIZE
    if config.views.crops > 1:
        resize = f"{resize.partition(';')[0]}; {config.views.crops} crops spread along the longer side"
    return {
        "data_digest": manifest.digest,
        "clips": len(manifest),
        "views": str(config.views),
        "sampling": str(checkpoint.sampling),
        "resize": resize,
        "weights_digest": digest,
        "precision": form(checkpoint.model),
        **environment(checkpoint.device),
    }


def _predict(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    plans: Sequence[Plan],
    world: World,
    progress: bool,
) -> tuple[list[Tensor], dict[int, str]]:
    """Log-probabilities ``[N, C]`` at each plan of a grid, and why videos could not be read.

    Where videos have several classes, each class has its own log-probability.
    """
    batch = max(1, config.batch_size // config.views.total)
    entries = dataset.manifest.entries
    readable = [i for i, entry in enumerate(entries) if entry.ok]
    # Whole batches are dealt out, so that they are the same for any number of processes.
    shares = [
        [i for position, i in enumerate(readable) if position // batch % world.size == rank]
        for rank in range(world.size)
    ]
    share, part, trouble = shares[world.rank], list[Predictions](), None
    try:
        if share:
            part = predict_plans(
                checkpoint,
                dataset,
                plans,
                views=config.views,
                batch_size=batch,
                workers=config.workers,
                progress="Testing" if progress and world.is_main else None,
                indices=share,
                tolerant=True,
            )
    except Exception as error:  # Whatever it is, the others must hear of it, or they wait for ever.
        trouble = error
    fail_together(trouble, world, "evaluation")
    reasons = {share[row]: text for row, text in part[0].unreadable.items()} if part else {}
    rows = [torch.full((len(entries), checkpoint.model.num_classes), torch.nan) for _ in plans]
    unreadable: dict[int, str] = {}
    normalized = F.logsigmoid if checkpoint.multi_label else partial(F.log_softmax, dim=-1)
    gathered = world.gather(([normalized(result.logits) for result in part], reasons))
    for indices, (parts, why) in zip(shares, gathered, strict=True):
        for full, values in zip(rows, parts, strict=bool(indices)):
            full[indices] = values
        unreadable |= why
    return rows, unreadable


# Results -------------------------------------------------------------------------------------------------


def _finish(
    config: EvaluateConfig,
    checkpoint: Checkpoint,
    manifest: Manifest,
    tested: Sequence[EvaluatedPlan],
    protocol: dict[str, Any],
    store: PredictionStore,
    warning: str,
) -> Evaluation:
    """Measure, write and report; in the main process alone."""
    points = []
    for row in tested:
        point = _point(config, checkpoint.model.config, row)
        predicted = store.rows[_key(row.plan)]
        if checkpoint.multi_label:
            per_class = average_precision(predicted, store.labels)
            point |= {"map": mean_of_classes(per_class), "per_class": per_class}
        else:
            metrics = measure(predicted, store.labels)
            point |= metrics.record
            if row.budget == tested[0].budget:
                point["confusion"] = metrics.confusion.tolist()
        point["latency_ms"] = None
        if config.latency:
            latency = to_builtins(LatencyTable(checkpoint.model).measure(row.plan))
            point["latency_ms"] = {**latency, "device": protocol["device"]}
        points.append(point)
    classes = checkpoint.labels or list(manifest.labels) or checkpoint.class_names
    broken = {
        i: entry.error or "broken, says the manifest"
        for i, entry in enumerate(manifest.entries)
        if not entry.ok
    } | store.unreadable
    columns = ("grid", "pool", "keep", "head", "selector")
    results = {
        "title": f"{Path(config.checkpoint).name} on {Path(config.data).name}",
        "checkpoint": config.checkpoint,
        "headline": _headline(points),
        "multi_label": checkpoint.multi_label,
        "chance": float(store.labels.mean()) if checkpoint.multi_label else 1 / len(classes),
        "conditions": {"Caution": warning} if warning else {},
        "protocol": {
            **protocol,
            "manifest": config.data,
            "date": time.strftime("%Y-%m-%d"),
            **{name: ", ".join(str(point[name]) for point in points) for name in columns},
        },
        "classes": classes,
        "unreadable": [{"path": store.names[i], "error": why} for i, why in sorted(broken.items())],
        "points": points,
        "trials": _search(config).get("trials", []),
    }
    out = Path(config.out)
    write_json(out / RESULTS, results)
    wrote = [out / RESULTS, store.path]
    if config.report:
        filmstrips = _filmstrips(checkpoint, manifest, tested, store, classes)
        with lock_folder(config.report):
            wrote.append(write_report(config.report, results, filmstrips))
    return Evaluation(results, warning, wrote)


def _point(config: EvaluateConfig, model: FluxViTConfig, row: EvaluatedPlan) -> dict[str, Any]:
    """A tested plan and its cost, without scores."""
    plan = row.plan
    return {
        "kind": row.kind,
        "budget": row.budget,
        "grid": str(plan.grid),
        "frames": plan.grid.frames,
        "height": plan.grid.height,
        "width": plan.grid.width,
        "pool": model.pool(plan.grid),
        "keep": plan.keep,
        "head": model.nearest_head(plan.keep) if plan.head is None else plan.head,
        "selector": plan.selector,
        "views": str(config.views),
        "gmacs": grid_cost(model.size, plan.grid, plan.keep, plan.selector).total / 1e9,
    }


def _headline(points: Sequence[Mapping[str, Any]]) -> str:
    """The scores at the smallest budget, where the sampling matters most."""
    least = [point for point in points if point["budget"] == points[-1]["budget"]]
    parts = [f"{_score_of(point)} with {point['kind']} sampling ({point['grid']})" for point in least]
    return f"At {least[0]['budget']} tokens a clip: {', '.join(parts)}."


def _score_of(point: Mapping[str, Any]) -> str:
    return f"{100 * point['map']:.1f} % mAP" if "map" in point else f"{100 * point['top1']:.1f} %"


def _search(config: EvaluateConfig) -> dict[str, Any]:
    """The record of the search that the plan table comes from; empty without one."""
    path = checkpoint_folder(config.checkpoint) / SEARCH
    return convert(load(path), dict[str, Any], str(path)) if path.exists() else {}


def _warning(config: EvaluateConfig, manifest: Manifest) -> str:
    """A warning if any of the tested videos chose the plans."""
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
    checkpoint: Checkpoint,
    manifest: Manifest,
    tested: Sequence[EvaluatedPlan],
    store: PredictionStore,
    classes: Sequence[str],
) -> list[Filmstrip]:
    """Filmstrips of the videos whose true class is most and least likely, all budgets on one grid."""
    first = next((row for row in tested if row.kind != "plain"), tested[0]).plan
    scores = store.rows[_key(first)].gather(1, store.labels[:, None])[:, 0]
    clips = best_and_worst(scores, store.names, manifest.entries)
    budgets = sorted({row.budget for row in tested}, reverse=True)
    return make_filmstrips(checkpoint, budgets, first.grid, clips, classes)
