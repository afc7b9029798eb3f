"""The demo: from nothing to a budget-adaptive video model and a report on it, through the public API.

It makes a small MotionWorld, trains a nano FluxViT at three token budgets, chooses the best sampling grid of
each budget on the validation videos, and evaluates on the test videos. For comparison it trains a second
model in the same way on a single grid. Every stage resumes: a second call continues where the first stopped.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fluxvit import Checkpoint, SamplingGrid
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.demo_config import BATCH, DemoConfig
from fluxvit.demo_pace import Pace, choose_pace
from fluxvit.evaluation.classification import predict_plans
from fluxvit.evaluation.config import EvaluateConfig
from fluxvit.evaluation.evaluate import RESULTS, Evaluation, run_evaluation
from fluxvit.evaluation.metrics import Score
from fluxvit.evaluation.report.filmstrips import make_filmstrips
from fluxvit.evaluation.report.page import Section, require_report_packages, write_report
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.optimize import run_optimize
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.config import GridSettings, ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.logs import LOG
from fluxvit.training.recipes import DataSettings, Recipe
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import World, join_world
from fluxvit.utils.files import lock_folder, read_json_lines, write_json
from fluxvit.video.augment_settings import AugmentSettings

BUDGETS = (100, 50, 25)
ONE_GRID = SamplingGrid(32, 32, 32)
GRIDS = {
    "flexible": GridSettings((16, 33, 8), (32, 41, 8), min_tokens=192, max_tokens=400),
    "fixed": GridSettings((32, 33, 8), (32, 33, 8), min_tokens=192, max_tokens=400),
}
"""The training grids of the model, and of the second one, which is trained on ``ONE_GRID`` alone."""


def run_demo(config: DemoConfig) -> Evaluation:
    """Run the demo, or the rest of it, and write the report.

    Raises:
        Stopped: Interrupted while training; the message names the weights so far.
        ValueError: ``config.out`` holds a demo of other settings, or another run is writing into it.
    """
    started = time.monotonic() - float(os.environ.get("FLUXVIT_SETUP_SECONDS", 0))
    require_report_packages()  # A missing package is reported now, not after minutes of training.
    out, world, console = Path(config.out), join_world(config.device), Console()
    val, test = (str(out / "data" / f"{split}.jsonl") for split in ("val", "test"))
    with lock_folder(out):
        console.rule("data")
        videos = MotionWorldConfig(config.videos, config.seed, "demo", val=config.val, test=config.test)
        make_dataset(out / "data", videos, workers=config.workers)
        pace = choose_pace(config, started, lambda: _clips_per_second(config, world))
        console.print(pace.note)

        console.rule("training: one model, three budgets, several grids")
        flexible = train_recipe(_recipe(config, "flexible", pace.epochs), world)
        console.rule("training: the same on one grid, for comparison")
        fixed = train_recipe(_recipe(config, "fixed", pace.epochs), world)

        console.rule("optimization: the best grid for each budget")
        search = OptimizeConfig(str(flexible), val, frames=(16, 24, 32), sizes=(32, 40), test=test, workers=1)
        search = replace(search, out=str(out / "search"), to=str(out / "best"), device=config.device)
        best = run_optimize(search).folder

        console.rule("evaluation")
        options = EvaluateConfig(str(best), test, latency=False, workers=1, device=config.device)
        tested = run_evaluation(replace(options, baselines=("random",), out=str(out / "test")), world)
        options = replace(options, checkpoint=str(fixed), grid=ONE_GRID, out=str(out / "test_fixed"))
        compared = run_evaluation(options, world)
        assert tested is not None
        assert compared is not None
        results = _joined(tested.results, compared.results, pace)
        write_json(out / RESULTS, results)
        return replace(tested, results=results, wrote=[_report(config, results, world), best])


def _recipe(config: DemoConfig, name: str, epochs: float) -> Recipe:
    data = Path(config.out, "data")
    return Recipe(
        DataSettings(str(data / "train.jsonl"), workers=1, cache=str(data / "cache"), cache_side=56),
        out=str(Path(config.out, name)),
        model=ModelSettings("fluxvit_nano", settings=NetworkSettings(budgets=BUDGETS)),
        grids=GRIDS[name],
        optim=TrainConfig(batch_size=BATCH, seed=config.seed),
        epochs=epochs,
        warmup_epochs=epochs / 10,
        # Crops are large, because an object that leaves the frame is part of the motion.
        augment=AugmentSettings(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1.18)),
        device=config.device,
    )


def _clips_per_second(config: DemoConfig, world: World) -> float:
    """The speed of training after the first steps, measured with a model that is deleted afterwards."""
    folder = Path(config.out, "speed")
    recipe = replace(_recipe(config, "flexible", 21 * BATCH / config.videos), out=str(folder))
    train_recipe(recipe, world, progress=False)
    rate = float(read_json_lines(folder / LOG)[-1]["clips_per_s"])
    shutil.rmtree(folder)
    return rate


def _joined(tested: dict[str, Any], compared: dict[str, Any], pace: Pace) -> dict[str, Any]:
    """The results of the model together with the points of the second model."""
    others = [{**point, "kind": "one grid"} for point in compared["points"] if point["kind"] != "plain"]
    points = sorted([*tested["points"], *others], key=lambda point: -point["budget"])
    least = BUDGETS[-1]
    top1 = {point["kind"]: f"{100 * point['top1']:.1f} %" for point in points if point["budget"] == least}
    return {
        **tested,
        "title": "fluxvit demo",
        "headline": f"With {least} tokens a clip, one model for all budgets is right in {top1['optimised']} "
        f"of the test clips, and in {top1['random']} with random tokens of the same grid. A model trained on "
        f"{ONE_GRID} alone is right in {top1['one grid']}. Chance is {100 * tested['chance']:.1f} %.",
        "points": points,
        "kinds": {
            "one grid": f"a second model, trained in the same way for as many steps, but on {ONE_GRID} "
            "alone, and tested on it. (Plain grids are smaller than all training grids, so that plain "
            "sampling shows the model what it was not trained for.)"
        },
        "conditions": {**tested["conditions"], "Training": pace.note},
    }


def _report(config: DemoConfig, results: dict[str, Any], world: World) -> Path:
    """The report of an evaluation, with a section on the order of frames."""
    out = Path(config.out)
    checkpoint = Checkpoint.load(out / "best", world.device).prepared()
    manifest, plan = read_manifest(out / "data" / "test.jsonl"), checkpoint.plans[0]
    (usual,) = (p for p in results["points"] if p["kind"] == "optimised" and p["budget"] == plan.keep)
    rows = [("in order", Score(usual["correct"], usual["total"]))]
    for order, name in (("shuffled", "in random order"), ("single", "one frame, repeated")):
        clips = ClipDataset(manifest, order=order)
        tested = [replace(plan, head=None)]
        (result,) = predict_plans(checkpoint, clips, tested, workers=1, progress=f"Testing {name}")
        rows.append((name, result.score))
    section = Section(
        "Does the model see motion?",
        f"The same model and clips, {plan.keep} tokens of {plan.grid}, with frames in another order. "
        "Classes differ in the order of events alone: without it, guessing is the best that any model "
        f"can do ({100 * results['chance']:.1f} %).",
        columns=("Frames", "Top-1 (95 %)"),
        rows=rows,
    )
    chosen = random.Random(config.seed).sample(manifest.entries, min(3, len(manifest)))
    titled = [(entry.path.stem, entry) for entry in chosen]
    filmstrips = make_filmstrips(checkpoint, BUDGETS, plan.grid, titled, manifest.labels)
    return write_report(out / "report", results, filmstrips, [section])
