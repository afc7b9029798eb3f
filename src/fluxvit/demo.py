"""The demo: from nothing to a budget-adaptive video model and a report on it.

It makes a small MotionWorld, trains a nano FluxViT with Flux-Multi, chooses for each budget the best
sampling grid on the validation split, and measures plain and optimised sampling on the test split. Every
stage is kept: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fluxvit import __version__
from fluxvit.checkpoints import IMAGENET_MEAN, IMAGENET_STD, CheckpointInfo, save_checkpoint
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import Augmentation, ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Manifest, read_motionworld
from fluxvit.data.motionworld import MotionWorldConfig, factor_values, make_motionworld
from fluxvit.deploy.explain import dim_dropped, kept_mask, shown_frames
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation.classification import Predictions, Score, predict_dataset
from fluxvit.evaluation.figures import require_matplotlib
from fluxvit.evaluation.report import Strip, write_report
from fluxvit.evaluation.token_optimization import Trial, best_trial, plain_grid, try_grids
from fluxvit.files import write_json
from fluxvit.flux.budget import Plan
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid, legal_grids
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.training.tasks import FluxTuning
from fluxvit.training.trainer import LOG, Stopped, TrainConfig, Trainer, pick_precision

BUDGETS = (96, 48, 24)
FRAMES, SHORT_SIDE = 32, 64  # Of the frame cache: at least what the densest grid samples.
PLAIN_SIZE = 32
GRIDS = legal_grids(range(16, 33, 8), range(32, 41, 8), 192, 400, patch_size=8, tubelet_size=2)
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo.

    Args:
        out: Folder of everything that the demo writes.
        videos: Training videos.
        val: Validation videos, on which the grids are chosen.
        test: Test videos.
        steps: Training steps of the model.
        control_steps: Training steps of each of the two controls.
        seed: Of data, initialisation and order.
        workers: Processes that make and decode videos; None: one per core.
    """

    out: str = "runs/demo"
    videos: int = 2400
    val: int = 240
    test: int = 400
    steps: int = 1000
    control_steps: int = 300
    seed: int = 0
    workers: int | None = None


def run_demo(config: DemoConfig, console: Console | None = None) -> Path:
    """Run the demo, or the rest of it; returns the path of the report.

    Raises:
        Stopped: Interrupted while training; the weights so far are in ``OUT/last``.
        ValueError: ``config.out`` holds a demo of other settings.
    """
    require_matplotlib()  # Now, not after minutes of training.
    console = console or Console()
    out = Path(config.out)
    console.rule("fluxvit demo: data")
    world = MotionWorldConfig(config.videos, config.seed, "demo", val=config.val, test=config.test)
    make_motionworld(out / "data", world, workers=config.workers)
    data = Data(out / "data", workers=config.workers)

    console.rule("training: one model, three budgets")
    model = train_model(out, data.clips("train"), BUDGETS, GRIDS, config.steps, config.seed)
    training_log = _read_log(out)

    console.rule("controls: models that cannot see the order of time")
    controls = [
        _control(config, out, data, "single frame", "single", SamplingGrid(2, 40, 40)),
        _control(config, out, data, "shuffled frames", "shuffled", SamplingGrid(16, 32, 32)),
    ]

    console.rule("evaluation: the best grid for each budget")
    trials = try_grids(model, data.clips("val"), BUDGETS, GRIDS, mean=MEAN, std=STD)
    shape = model.config.patch_size, model.config.tubelet_size
    best = {budget: best_trial(trials[budget], *shape).plan for budget in BUDGETS}
    plain = {budget: Plan(plain_grid(model, budget, PLAIN_SIZE), budget) for budget in BUDGETS}
    plain_scores = {b: test_model(model, data.clips("test"), plan) for b, plan in plain.items()}
    best_scores = {b: test_model(model, data.clips("test"), plan) for b, plan in best.items()}

    info = CheckpointInfo(
        labels=list(data.labels),
        grids=list(GRIDS),
        provenance={"made_by": f"fluxvit {__version__} demo", "settings": asdict(config)},
        plans=list(best.values()),
    )
    folder = save_checkpoint(out / "best", model, info)

    curve: list[dict[str, Any]] = [
        {
            "budget": budget,
            "plain": _point(model, plain[budget], plain_scores[budget].score),
            "optimised": _point(model, best[budget], best_scores[budget].score),
        }
        for budget in BUDGETS
    ]
    results = {
        "title": "fluxvit demo",
        "headline": _headline(curve[-1], len(info.labels)),
        "chance": 1 / len(info.labels),
        "conditions": _conditions(config, model, data),
        "curve": curve,
        "trials": [_trial(model, trial) for rows in trials.values() for trial in rows],
        "controls": controls,
        "factors": {
            "names": list(world.factors),
            "rows": [
                {
                    "budget": budget,
                    "plain": _factor_accuracy(plain_scores[budget], world.factors),
                    "optimised": _factor_accuracy(best_scores[budget], world.factors),
                }
                for budget in BUDGETS
            ],
        },
        "training": training_log,
    }
    write_json(out / "results.json", results)
    write_report(out / "report.html", results, _strips(folder, data.manifest("test"), config.seed))
    console.rule("done")
    for row in curve:
        plain_text, best_text = (
            f"{name} {100 * row[name]['accuracy']:.1f} % ({row[name]['grid']})"
            for name in ("plain", "optimised")
        )
        console.print(f"{row['budget']:>4} tokens: {plain_text}, {best_text}")
    for control in controls:
        console.print(f"{control['name']}: {100 * control['accuracy']:.1f} %")
    console.print(f"report      {out / 'report.html'}\ncheckpoint  {folder}")
    return out / "report.html"


# Data and training ---------------------------------------------------------------------------------------


class Data:
    """The splits of a MotionWorld, with their frames decoded once and kept small.

    Args:
        folder: The MotionWorld.
        target: ``motion`` or ``object``.
        workers: Processes that decode; None: one per core.
    """

    def __init__(self, folder: Path, target: str = "motion", workers: int | None = None) -> None:
        self._folder, self._target, self._workers = folder, target, workers
        self.labels = self.manifest("train").labels

    def manifest(self, split: str) -> Manifest:
        """The videos of a split."""
        return read_motionworld(self._folder, split, self._target)

    def clips(self, split: str, order: str = "normal") -> ClipDataset:
        """The clips of a split; ``order`` as in :class:`ClipDataset`."""
        manifest = self.manifest(split)
        cache = FrameCache(self._folder / "cache", manifest, FRAMES, SHORT_SIDE)
        # Little cropping: an object that leaves the frame is part of what happens.
        crops = Augmentation((0.7, 1.0), (0.85, 1.18))
        return ClipDataset(manifest, cache.build(workers=self._workers), crops, order)


def train_model(
    folder: Path,
    dataset: ClipDataset,
    budgets: Sequence[int],
    grids: Sequence[SamplingGrid],
    steps: int,
    seed: int,
    title: str = "Training",
) -> FluxViT:
    """Train a nano model from scratch, or what is left to train of it.

    Raises:
        Stopped: Interrupted; the weights so far are in ``folder/last``.
        ValueError: ``folder`` holds a run of other settings.
    """
    torch.manual_seed(seed)
    labels = dataset.manifest.labels
    model = create_model("fluxvit_nano", num_classes=len(labels), budgets=tuple(budgets))
    config = TrainConfig(steps=steps, batch_size=32, lr=1e-3, seed=seed)

    def batches(first: int) -> Any:
        requests = TrainingBatches(len(dataset), grids, config.batch_size, steps, seed, first)
        return loader(dataset, requests, workers=1)

    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = {
        "data": dataset.manifest.digest,
        "order": dataset.order,
        "model": json.dumps(model.config.to_dict()),
        "train": json.dumps(asdict(config)),
        "grids": ",".join(map(str, grids)),
    }
    trainer = Trainer(model, FluxTuning(budgets), config, batches, folder, MEAN, STD, fingerprint)
    try:
        trainer.run(title)
    except Stopped as stop:
        info = CheckpointInfo(labels=list(labels), grids=list(grids))
        last = save_checkpoint(folder / "last", model, info)
        raise Stopped(f"{stop}; the weights so far are in {last}, the same command goes on") from None
    return model.eval()


def _control(
    config: DemoConfig, out: Path, data: Data, name: str, order: str, grid: SamplingGrid
) -> dict[str, Any]:
    tokens = grid.tokens(8, 2)
    run, steps = out / "controls" / order, config.control_steps
    model = train_model(run, data.clips("train", order), [tokens], [grid], steps, config.seed, name)
    score = test_model(model, data.clips("test", order), Plan(grid, tokens)).score
    low, high = score.interval
    return {
        "name": name,
        "detail": f"The same network, trained for {steps} steps on {grid}.",
        "accuracy": score.accuracy,
        "low": low,
        "high": high,
        "total": score.total,
    }


def _read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


# Evaluation ----------------------------------------------------------------------------------------------


def test_model(model: FluxViT, dataset: ClipDataset, plan: Plan) -> Predictions:
    """Predictions of a model for a split at a plan."""
    return predict_dataset(model, dataset, plan.grid, [plan.keep], mean=MEAN, std=STD, progress="Testing")[0]


def _headline(smallest: dict[str, Any], classes: int) -> str:
    plain, best = (100 * smallest[name]["accuracy"] for name in ("plain", "optimised"))
    return (
        f"One model, three budgets. With {smallest['budget']} tokens a clip it is right in {plain:.1f} % of "
        f"test clips with plain sampling and in {best:.1f} % with optimised sampling; chance is "
        f"{100 / classes:.1f} %."
    )


def _point(model: FluxViT, plan: Plan, score: Score) -> dict[str, Any]:
    low, high = score.interval
    config = model.config
    return {
        "grid": str(plan.grid),
        "pool": plan.grid.tokens(config.patch_size, config.tubelet_size),
        "accuracy": score.accuracy,
        "low": low,
        "high": high,
        "correct": score.correct,
        "total": score.total,
        "gmacs": grid_cost(config.size, plan.grid, plan.keep).total / 1e9,
    }


def _trial(model: FluxViT, trial: Trial) -> dict[str, Any]:
    grid = trial.plan.grid
    point = _point(model, trial.plan, trial.score)
    return {"budget": trial.plan.keep, "frames": grid.frames, "size": grid.height, **point}


def _factor_accuracy(predictions: Predictions, factors: tuple[str, ...]) -> list[float]:
    """How often each binary factor of the predicted class is right."""
    pairs = list(zip(predictions.logits.argmax(-1).tolist(), predictions.labels.tolist(), strict=True))
    right = [
        [factor_values(factors, p)[f] == factor_values(factors, y)[f] for p, y in pairs] for f in factors
    ]
    return [sum(row) / len(row) for row in right]


def _strips(checkpoint: Path, test: Manifest, seed: int, count: int = 3) -> list[Strip]:
    """Film strips of a few test clips, with what each budget keeps and answers."""
    predictors = [Predictor(checkpoint, budget) for budget in BUDGETS]
    config = predictors[0].model.config
    strips = []
    for entry in random.Random(seed).sample(test.entries, count):
        answers: list[tuple[int, str, float, bool]] = []
        rows: list[tuple[str, np.ndarray]] = []
        for budget, predictor in zip(BUDGETS, predictors, strict=True):
            prediction = predictor(entry.path)
            (label, probability), *_ = prediction.top(1)
            answers.append((budget, label, probability, label == test.labels[entry.label]))
            frames = shown_frames(prediction, min_height=96)
            shape = prediction.plan.grid.token_shape(config.patch_size, config.tubelet_size)
            if not rows:
                rows.append(("sampled", frames))
            mask = kept_mask(prediction.kept, shape, config.tubelet_size)
            rows.append((f"{budget} tokens", dim_dropped(frames, mask)))
        strips.append(Strip(entry.path.stem, test.labels[entry.label], answers, rows))
    return strips


def environment() -> dict[str, str]:
    """What a figure was measured on."""
    return {
        "Date": time.strftime("%Y-%m-%d"),
        "Software": f"fluxvit {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
        "Machine": f"{os.cpu_count()} CPU cores, {torch.backends.cpu.get_cpu_capability()}",
        "Precision": "bf16" if pick_precision("auto", torch.device("cpu")) else "fp32",
    }


def _conditions(config: DemoConfig, model: FluxViT, data: Data) -> dict[str, str]:
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    splits = [(name, data.manifest(name)) for name in ("train", "val", "test")]
    return {
        **environment(),
        "Data": (
            f"MotionWorld, difficulty demo, seed {config.seed}: "
            + ", ".join(f"{len(manifest)} {name} (digest {manifest.digest})" for name, manifest in splits)
        ),
        "Model": (
            f"fluxvit_nano, {parameters:.2f} M parameters, patch {model.config.patch_size}, "
            f"tubelet {model.config.tubelet_size}, budgets {', '.join(map(str, BUDGETS))}"
        ),
        "Training": (
            f"Flux-Multi with alignment from scratch, {config.steps} steps of 32 clips, "
            f"grids {', '.join(map(str, GRIDS))}"
        ),
        "Evaluation": (
            "one central view a clip; plain: a grid whose pool is about the budget; optimised: the grid that "
            "scored best on the validation split; intervals: Wilson, 95 %"
        ),
    }
