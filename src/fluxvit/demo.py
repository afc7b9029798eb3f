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
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from fluxvit import __version__
from fluxvit.checkpoints.folder import CheckpointInfo, save_checkpoint
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import Augmentation, ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Manifest, read_motionworld
from fluxvit.demo_config import BATCH, DemoConfig
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation.classification import Predictions, Score, predict_dataset
from fluxvit.evaluation.report.figures import gains_figure, training_figure
from fluxvit.evaluation.report.filmstrips import Filmstrip, make_filmstrips
from fluxvit.evaluation.report.page import Section, require_report_packages, write_report
from fluxvit.evaluation.token_optimization import Trial, best_trial, plain_grid, try_grids
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid, legal_grids
from fluxvit.flux.plan import Plan
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig, factor_values
from fluxvit.training.config import TrainConfig
from fluxvit.training.logs import LOG
from fluxvit.training.state import find_state
from fluxvit.training.tasks.classify import FluxTuning
from fluxvit.training.trainer import Trainer
from fluxvit.utils.files import lock_folder, write_json
from fluxvit.utils.schema import NotNegative, read
from fluxvit.utils.system import Stopped, usable_cores
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD

BUDGETS = (100, 50, 25)
CACHED_FRAMES, CACHED_SIDE = 32, 56  # Enough for the densest grid, and for cropping before it.
CONTROL = Plan(SamplingGrid(32, 40, 40), 50)
STILL = Plan(SamplingGrid(2, 40, 40), 25)
PLAIN_SIZE = 40  # Eight, four and two such frames are the three budgets.
GRIDS = legal_grids(range(16, 33, 8), range(32, 41, 8), 192, 400, patch_size=8, tubelet_size=2)
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
PACE = "pace.json"
# What is trained to measure the rate; the first steps start processes and warm up.
_TRIED_STEPS, _WARM_UP, _TRIED_CLIPS = 14, 4, 32
_TRIED_SECONDS = 30.0
# Part of the time left that is planned, for rates vary; the seconds that the report takes; and the least part
# of the steps that is taken, since a model that has hardly learned shows nothing.
_PLANNED, _REPORT_SECONDS, _LEAST = 0.92, 20.0, 0.3


def run_demo(config: DemoConfig, console: Console | None = None) -> Path:
    """Run the demo, or the rest of it; returns the path of the report.

    Raises:
        Stopped: Interrupted while training; the message says where the weights so far are.
        ValueError: ``config.out`` holds a demo of other settings, or another run is writing into it.
    """
    with lock_folder(config.out):
        return _run_demo(config, console)


def _run_demo(config: DemoConfig, console: Console | None) -> Path:
    started = time.monotonic() - _setup_seconds()
    require_report_packages()  # Now, not after minutes of training.
    console = console or Console()
    out = Path(config.out)
    console.rule("fluxvit demo: data")
    world = MotionWorldConfig(config.videos, config.seed, "demo", val=config.val, test=config.test)
    make_dataset(out / "data", world, workers=config.workers)
    data = Data(out / "data", workers=config.workers)

    pace = _fit(config, out, data, started)
    full, config = config, replace(config, steps=pace.steps, control_steps=pace.control_steps)
    console.print(pace.told(full))

    console.rule("training: one model, three budgets")
    trained = train_model(out, data.clips("train"), BUDGETS, GRIDS, config.steps, config.seed)
    model = trained.model
    training_log = _read_log(out)
    info = CheckpointInfo(
        labels=list(data.labels),
        grids=list(GRIDS),
        provenance={"made_by": f"fluxvit {__version__} demo", "settings": asdict(config)},
    )
    # Of use from here on, whatever happens next; the plans follow.
    folder = save_checkpoint(out / "best", model, info)
    # What a stop on the way left half-trained would look like a result.
    shutil.rmtree(out / "last", ignore_errors=True)

    console.rule("controls: what can be told without the order of time")
    controls = [
        _control(config, out, data, "frames in order", "normal", CONTROL),
        _control(config, out, data, "shuffled frames", "shuffled", CONTROL),
        _control(config, out, data, "a single frame", "single", STILL),
    ]

    console.rule("evaluation: the best grid for each budget")
    plain = {budget: Plan(plain_grid(model, budget, PLAIN_SIZE), budget) for budget in BUDGETS}
    # The plain grids are candidates too: if they were best, the search should say so.
    candidates = sorted({*GRIDS, *(plan.grid for plan in plain.values())})
    trials = try_grids(model, data.clips("val"), BUDGETS, candidates, mean=MEAN, std=STD, workers=1)
    shape = model.config.patch_size, model.config.tubelet_size
    best = {budget: best_trial(trials[budget], *shape).plan for budget in BUDGETS}
    test = data.clips("test")
    plain_scores = {budget: test_model(model, test, plan) for budget, plan in plain.items()}
    best_scores = {budget: test_model(model, test, plan) for budget, plan in best.items()}
    info.plans = list(best.values())
    save_checkpoint(folder, model, info)

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
        "conditions": {**_conditions(config, trained, data), "Work": pace.told(full)},
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
    report = _report(out / "report", results, _filmstrips(folder, data.manifest("test"), config.seed))
    console.rule("done")
    for row in curve:
        plain_text, best_text = (
            f"{name} {100 * row[name]['accuracy']:.1f} % ({row[name]['grid']})"
            for name in ("plain", "optimised")
        )
        console.print(f"{row['budget']:>4} tokens: {plain_text}, {best_text}")
    for control in controls:
        console.print(f"{control['name']}: {100 * control['accuracy']:.1f} %")
    console.print(f"report      {report}\ncheckpoint  {folder}", markup=False)
    return report


# The time that it takes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How many steps fit into the time, as it was decided when the demo began; kept in ``pace.json``.

    Args:
        minutes, asked_steps, asked_control_steps: The settings that it was decided for.
        steps, control_steps: What is taken.
        step_seconds, control_seconds, clip_seconds: What a training step, a step of a control, and a clip of
            the evaluation took; 0 where nothing was measured.
    """

    minutes: NotNegative
    asked_steps: int
    asked_control_steps: int
    steps: int
    control_steps: int
    step_seconds: NotNegative = 0.0
    control_seconds: NotNegative = 0.0
    clip_seconds: NotNegative = 0.0

    def told(self, asked: DemoConfig) -> str:
        """What was decided, in a sentence."""
        if not self.step_seconds:
            return f"All {self.steps} training steps are taken, without regard to the time."
        rate = f"a training step took {self.step_seconds:.2f} s when it was measured before the training"
        if self.steps == asked.steps:
            return f"All {self.steps} training steps fit into {self.minutes:g} minutes: {rate}."
        return (
            f"{self.steps} of {asked.steps} training steps, and {self.control_steps} of "
            f"{asked.control_steps} of each control, to stay within {self.minutes:g} minutes: {rate}."
        )


def _setup_seconds() -> float:
    """Seconds that the set-up took before the demo, as ``bash run demo`` tells."""
    text = os.environ.get("FLUXVIT_SETUP_SECONDS", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0


def _fit(config: DemoConfig, out: Path, data: Data, started: float) -> Pace:
    """The steps to take: what an earlier call decided, so that a demo goes on as it began; else by the time.

    Raises:
        ValueError: An earlier call decided for other settings.
    """
    asked = config.minutes, config.steps, config.control_steps
    if (out / PACE).exists():
        pace = read(out / PACE, Pace)
        before = pace.minutes, pace.asked_steps, pace.asked_control_steps
        if before != asked:
            raise ValueError(
                f"{out} holds a demo with minutes, steps and control_steps {list(before)}, not "
                f"{list(asked)}; choose another folder or remove it"
            )
        return pace
    work = config.steps + 3 * config.control_steps
    if not config.minutes or work < 10 * _TRIED_STEPS or find_state(out) is not None:
        pace = Pace(*asked, config.steps, config.control_steps)
    else:
        rates = _rates(config, data)
        left = 60 * config.minutes - (time.monotonic() - started)
        pace = _fitted(config, rates, left)
    write_json(out / PACE, asdict(pace))
    return pace


class _Rates(NamedTuple):
    step: float
    control: float
    clip: float


def _fitted(config: DemoConfig, rates: _Rates, left: float) -> Pace:
    """The steps that fit into ``left`` seconds, as multiples of 5 %, so that noise changes nothing."""
    # Each grid on the validation videos; on the test videos, both plans of each budget and the controls.
    clips = (len(GRIDS) + len(BUDGETS)) * config.val + (2 * len(BUDGETS) + 3) * config.test
    free = _PLANNED * left - clips * rates.clip - _REPORT_SECONDS
    needed = config.steps * rates.step + 3 * config.control_steps * rates.control
    share = min(1.0, max(_LEAST, int(20 * free / needed) / 20))
    steps, control_steps = (max(1, round(share * n)) for n in (config.steps, config.control_steps))
    return Pace(
        config.minutes,
        config.steps,
        config.control_steps,
        steps,
        control_steps,
        *(round(seconds, 4) for seconds in rates),
    )


def _rates(config: DemoConfig, data: Data) -> _Rates:
    """Seconds of a step of the training, of one of a control, and of a clip of the evaluation.

    They are those of networks that are thrown away, so that the training is the same as without.
    """
    clips = data.clips("train")
    step = _step_seconds(clips, BUDGETS, GRIDS, config.seed)
    control = _step_seconds(clips, [CONTROL.keep], [CONTROL.grid], config.seed)
    model = create_model("fluxvit_nano", num_classes=len(data.labels), budgets=BUDGETS)
    held_out = data.clips("val")
    indices = range(min(_TRIED_CLIPS, config.val))
    start = time.perf_counter()
    predict_dataset(model, held_out, CONTROL.grid, BUDGETS, mean=MEAN, std=STD, workers=1, indices=indices)
    return _Rates(step, control, (time.perf_counter() - start) / len(indices))


def _step_seconds(
    clips: ClipDataset, budgets: Sequence[int], grids: Sequence[SamplingGrid], seed: int
) -> float:
    """Seconds of a training step: of 10 steps after the warm-up, or of as many as half a minute allows."""
    times: list[float] = []

    def note(taken: int) -> None:
        times.append(time.perf_counter())
        if len(times) > _WARM_UP + 2 and times[-1] - times[0] > _TRIED_SECONDS:
            raise _MeasuredError

    with tempfile.TemporaryDirectory() as folder:
        try:
            title = "Measuring the speed"
            train_model(Path(folder), clips, budgets, grids, _TRIED_STEPS, seed, title, after_step=note)
        except _MeasuredError:
            pass
        except Stopped:
            raise Stopped("stopped while measuring the speed; the same command goes on") from None
    return (times[-1] - times[_WARM_UP]) / (len(times) - 1 - _WARM_UP)


class _MeasuredError(Exception):
    """Enough steps have been timed."""


# Data and training ---------------------------------------------------------------------------------------


class Data:
    """The splits of a MotionWorld.

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
        """The clips of a split; ``order`` as in :class:`ClipDataset`.

        Those of ``train`` come from a cache, the others from the files, as they will when the model is used.
        """
        manifest = self.manifest(split)
        if split != "train":
            return ClipDataset(manifest, order=order)
        cache = FrameCache(self._folder / "cache", manifest, CACHED_FRAMES, CACHED_SIDE)
        # Little cropping: an object that leaves the frame is part of what happens.
        crops = Augmentation(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1.18))
        return ClipDataset(manifest, cache.build(workers=self._workers), crops, order)


class Trained(NamedTuple):
    """A model, and the precision that it was trained in."""

    model: FluxViT
    precision: str


def train_model(
    folder: Path,
    dataset: ClipDataset,
    budgets: Sequence[int],
    grids: Sequence[SamplingGrid],
    steps: int,
    seed: int,
    title: str = "Training",
    after_step: Callable[[int], None] | None = None,
) -> Trained:
    """Train a nano model from scratch, or what is left to train of it.

    Args:
        after_step: Called with the number of steps taken, at the start and after each.

    Raises:
        Stopped: Interrupted; the weights so far are in ``folder/last``.
        ValueError: ``folder`` holds a run of other settings.
    """
    torch.manual_seed(seed)
    labels = dataset.manifest.labels
    model = create_model("fluxvit_nano", num_classes=len(labels), budgets=tuple(budgets))
    config = TrainConfig(steps=steps, batch_size=BATCH, lr=1e-3, seed=seed)

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
    trainer = Trainer(model, FluxTuning(), config, batches, folder, MEAN, STD, fingerprint)
    trainer.after_step = after_step
    try:
        trainer.run(title)
    except Stopped as stop:
        info = CheckpointInfo(labels=list(labels), grids=list(grids))
        last = save_checkpoint(folder / "last", model, info)
        raise Stopped(f"{stop} ({title}); its weights are in {last}; the same command goes on") from None
    return Trained(model.eval(), trainer.precision)


def _control(config: DemoConfig, out: Path, data: Data, name: str, order: str, plan: Plan) -> dict[str, Any]:
    run, steps = out / "controls" / order, config.control_steps
    clips = data.clips("train", order)
    model = train_model(run, clips, [plan.keep], [plan.grid], steps, config.seed, name).model
    shutil.rmtree(run / "last", ignore_errors=True)  # Of a stop on the way.
    score = test_model(model, data.clips("test", order), plan).score
    low, high = score.interval
    return {
        "name": name,
        "detail": f"The same network trained {steps} steps at one budget, {plan.keep} tokens of {plan.grid}.",
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
    (result,) = predict_dataset(
        model, dataset, plan.grid, [plan.keep], mean=MEAN, std=STD, workers=1, progress="Testing"
    )
    return result


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


def _report(folder: Path, results: dict[str, Any], filmstrips: Sequence[Filmstrip]) -> Path:
    """The report of an evaluation, with sections of controls, factors and training."""
    chance, factors = results["chance"], results["factors"]
    points = [
        {
            **row[kind],
            "kind": kind,
            "budget": row["budget"],
            "keep": min(row["budget"], row[kind]["pool"]),
            "top1": row[kind]["accuracy"],
        }
        for row in results["curve"]
        for kind in ("plain", "optimised")
    ]
    controls = [
        (
            row["name"],
            row["detail"],
            f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})",
            "better than guessing" if row["low"] > chance else "no better than guessing",
        )
        for row in results["controls"]
    ]
    panels = {
        f"{row['budget']} tokens": list(zip(factors["names"], row["plain"], row["optimised"], strict=True))
        for row in factors["rows"]
    }
    sections = [
        Section(
            "Controls: does the task need time?",
            "The classes are meant to differ only in the order of events, so a model that cannot see order "
            f"should do no better than guess ({100 * chance:.3g} %). If the control of shuffled frames or of "
            "a single frame did better, the data would give the label away by other means.",
            columns=("Control", "What it is", "Accuracy % (95 %)", "Verdict"),
            rows=controls,
        ),
        Section(
            "Accuracy of each factor of the motion",
            figure=gains_figure(panels, "Accuracy of each binary factor of the label"),
            caption="A class is a combination of binary factors. How often each of them is right shows which "
            "motion a small budget loses first. Guessing gets 50 %.",
        ),
        Section(
            "Training",
            figure=training_figure(results["training"]),
            caption="One model is trained at all budgets at once.",
        ),
    ]
    return write_report(folder, {**results, "points": points}, filmstrips, sections)


def _filmstrips(checkpoint: Path, test: Manifest, seed: int, count: int = 3) -> list[Filmstrip]:
    """Filmstrips of a few test clips, all budgets on the grid of the largest."""
    clips = random.Random(seed).sample(test.entries, min(count, len(test)))
    grid = Predictor(checkpoint, BUDGETS[0]).plan.grid
    titled = [(entry.path.stem, entry) for entry in clips]
    return make_filmstrips(checkpoint, BUDGETS, grid, titled, test.labels)


def environment() -> dict[str, str]:
    """What a figure was measured on."""
    return {
        "Date": time.strftime("%Y-%m-%d"),
        "Software": f"fluxvit {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
        "Machine": f"{usable_cores()} CPU cores, {torch.backends.cpu.get_cpu_capability()}",
    }


def _conditions(config: DemoConfig, trained: Trained, data: Data) -> dict[str, str]:
    model = trained.model
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
            f"Flux-Multi with alignment from scratch in {trained.precision}, {config.steps} steps of {BATCH} "
            f"clips, grids {', '.join(map(str, GRIDS))}"
        ),
        "Evaluation": (
            "fp32, one central view a clip, decoded from the files; plain: as many frames as the budget pays "
            "for whole; optimised: the grid that scored best on the validation split; intervals: Wilson, 95 %"
        ),
    }
