"""Does a quarter of the tokens do what all tokens of a fixed-grid model do? The paper's headline, end to end.

    python benchmarks/headline.py --out runs/headline

It makes MotionWorld (``--data`` may name a folder that has train.jsonl, val.jsonl and test.jsonl of any other
data set, such as Metaworld), and trains two kinds of models for the same number of steps from one start:

    fixed    all tokens of one grid, as video transformers are usually trained
    multi    Flux-Multi: grids of one to three full budgets; full, half and quarter budget in each step

``--fixed A B --multi C D`` takes trained checkpoints instead, one of each seed. `fluxvit optimize` searches
the plans of every checkpoint on the validation videos. The test videos are then classified at each budget by

    plain        as many whole frames of the grid's size as the budget pays for
    cut          the grid of the fixed models, selected down
    optimised    what the search found

Differences are paired by clip and averaged over the seeds, with their 95 % interval over the clips. Costs
are GMACs, in which everything counts, and milliseconds from the video file to the logits, medians of one clip
at a time, with all plans in turns. A stop rule is tested, too: cascades of the budgets, tuned on the
validation videos, against single budgets at equal mean cost.

Each finished step is kept in ``--out``: videos, trainings, batches of the search, rows of logits, and times.
An interrupted command goes on where it stopped when it is repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.deploy.cascade import measure_chains
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation.classification import number_for_checkpoint, predict_plans
from fluxvit.evaluation.tested_plans import plain_grid
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.inference import form
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.optimize import run_optimize
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld.dataset import MotionWorldConfig
from fluxvit.training.config import EvalSettings, GridSettings, ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.recipes import DataSettings, Recipe, TaskSettings
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import join_world
from fluxvit.utils.drawing import svg
from fluxvit.utils.files import atomic_path, write_json
from fluxvit.utils.system import environment, usable_device
from fluxvit.video.augment_settings import AugmentSettings
from headline_report import Row, figure, report
from headline_stops import Stops, stop_chains, stop_plans, stop_report, stop_rule

QUICK = {
    **{
        "videos": 16,
        "val": 16,
        "test": 16,
        "difficulty": "demo",
        "seeds": "0",
        "epochs": 1.0,
        "batch_size": 8,
    },
    **{
        "grid": "16x16",
        "budgets": "16,8,4,2,1",
        "frames": "16,20",
        "sizes": "16,24",
        "workers": 0,
        "runs": 2,
    },
}
"""A run of seconds that tests the steps; its figures mean nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/headline"))
    add("--data", type=Path, help="folder of the data set; default: OUT/data")
    add("--fixed", nargs="+", metavar="CHECKPOINT", help="trained on one grid")
    add("--multi", nargs="+", metavar="CHECKPOINT", help="trained on many, in the same order of seeds")
    add("--grid", type=SamplingGrid.parse, default="32x64", help="of the fixed models")
    add("--budgets", default="512,256,128,64,32", help="tokens; the first is the full budget")
    add("--selectors", default="group_dynamic,moving_pixels", help="from which the search may choose")
    add(
        "--frames",
        default="",
        help="of the grids of the search, such as 32,48; default: around those of training",
    )
    add("--sizes", default="", help="likewise")
    add("--search_videos", type=int, help="videos of the search; default: all of the validation")
    add("--skip", default="", help="rows to leave out, such as fixed-optimised,multi-plain")
    add("--videos", type=int, default=12000, help="training videos to make")
    add("--val", type=int, default=600, help="validation videos to make")
    add("--test", type=int, default=1000, help="test videos to make")
    add("--difficulty", default="medium", help="of the videos that are made")
    add("--data_seed", type=int, default=11)
    add("--seeds", default="0,1", help="of the models that are trained")
    add("--init", default=DEFAULT_CHECKPOINT, help="start of both kinds")
    add("--epochs", type=float, default=24)
    add("--batch_size", type=int, default=64)
    add("--lr", type=float, default=1e-3)
    add("--workers", type=int, default=2, help="processes that decode")
    add("--runs", type=int, default=40, help="test videos that are timed")
    add("--device", default="auto")
    add("--quick", action="store_true", help="a tiny run that tests the steps")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args()
    args.data = args.data or args.out / "data"
    if len(args.fixed or ()) != len(args.multi or ()):
        parser.error("--fixed and --multi: give one checkpoint of each kind for every seed, or none")

    budgets = _numbers(args.budgets)
    print("python benchmarks/headline.py", *sys.argv[1:])
    make_videos(args)
    subjects = {
        way: [Subject(args, way, seed, path) for seed, path in enumerate(checkpoints(args, way, budgets))]
        for way in ("fixed", "multi")
    }
    first = subjects["multi"][0]
    conditions = {
        **environment(first.prepared.device),
        "form": form(first.prepared.model),
        "threads": str(torch.get_num_threads()),
        "videos": {name: f"{len(each)} of digest {each.digest}" for name, each in first.manifests.items()},
    }
    print(json.dumps(conditions), flush=True)
    rows = [row for each in subjects.values() for one in each for row in one.rows(budgets)]
    plans = stop_plans(rows)
    for each in plans.values():
        for one, own in zip(subjects["multi"], each, strict=True):
            one.logits("val", own)  # What takes long comes before the times, which need a quiet machine.
    times = Times(args.out / "times.json", first, rows, plans, args.runs)
    for row in rows:
        row.read_ms, row.ms = times.of(row.plan)
    print(*report(rows, budgets), sep="\n")
    stops = [stop for kind in plans for stop in stop_rule(kind, plans[kind], subjects["multi"], times)]
    print(*stop_report(stops), sep="\n")
    records = [row.record for row in rows]
    with atomic_path(args.out / "headline.csv") as partial_file, partial_file.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    write_json(
        args.out / "headline.json",
        {"conditions": conditions, "timing": times.conditions, "rows": records, "stop_rules": stops},
    )
    with atomic_path(args.out / "headline.svg") as partial_file:
        partial_file.write_text(svg(figure(rows), facecolor="white"), encoding="utf-8")
    print(f"wrote {args.out}: headline.csv, headline.json, headline.svg")


# Data and models -------------------------------------------------------------------------------------------


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def make_videos(args: argparse.Namespace) -> None:
    """Make MotionWorld, unless the folder has videos; training videos only if models are to be trained."""
    splits = ("val", "test") if args.fixed else ("train", "val", "test")
    if not all((args.data / f"{split}.jsonl").exists() for split in splits):
        config = MotionWorldConfig(
            1 if args.fixed else args.videos,
            args.data_seed,
            val=args.val,
            test=args.test,
            difficulty=args.difficulty,
        )
        make_dataset(args.data, config)


def checkpoints(args: argparse.Namespace, way: str, budgets: Sequence[int]) -> list[str]:
    """The checkpoints of a kind, trained if none are given."""
    given: list[str] = getattr(args, way)
    if given:
        return given
    folders = []
    for seed in map(int, args.seeds.split(",")):
        train_recipe(recipe(args, way, seed, budgets), join_world())
        folders.append(str(args.out / f"{way}-{seed}" / "last"))
    return folders


def recipe(args: argparse.Namespace, way: str, seed: int, budgets: Sequence[int]) -> Recipe:
    """How a model of a kind is trained; both kinds have the same videos, steps and start."""
    grid, full, multi = args.grid, budgets[0], way == "multi"
    config = Checkpoint.load(args.init).model.config
    step, most = config.patch_size, 3 * grid.frames // 2
    frames = (grid.frames // 2, most + 1) if multi else (grid.frames, grid.frames + 1)
    sizes = (max(step, grid.height - 2 * step), grid.height + step + 1) if multi else (grid.height,) * 2
    return Recipe(
        data=DataSettings(
            str(args.data / "train.jsonl"),
            val=str(args.data / "val.jsonl"),
            workers=args.workers,
            cache=str(args.out / "cache"),
            cache_frames=most,
            cache_side=grid.height + 2 * step,
        ),
        out=str(args.out / f"{way}-{seed}"),
        model=ModelSettings(
            init=args.init, settings=NetworkSettings(budgets=tuple(budgets[: 3 if multi else 1]))
        ),
        grids=GridSettings(
            (*frames, config.tubelet_size),
            (sizes[0], max(sizes[1], sizes[0] + 1), step),
            full,
            3 * full if multi else full,
        ),
        task=TaskSettings(align_weight=128.0 if multi else 0.0),
        optim=TrainConfig(batch_size=args.batch_size, lr=args.lr, seed=seed),
        epochs=args.epochs,
        warmup_epochs=min(1.0, args.epochs / 8),
        augment=AugmentSettings(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1.18)),
        evaluation=EvalSettings(grid=str(grid), every_epochs=max(1.0, args.epochs / 4)),
    )


# Answers ---------------------------------------------------------------------------------------------------


class Subject:
    """A model under test: its plans, and its logits, of which each finished row is kept."""

    def __init__(self, args: argparse.Namespace, way: str, seed: int, path: str) -> None:
        self.args, self.way, self.seed, self.path = args, way, seed, path
        self.checkpoint = Checkpoint.load(path, usable_device(args.device))
        self.prepared = self.checkpoint.prepared()
        self.size = self.checkpoint.model.config.size
        self.digest = self.checkpoint.digest()
        self.manifests = {
            split: self._manifest(str(args.data / f"{split}.jsonl")) for split in ("val", "test")
        }

    def _manifest(self, path: str) -> Manifest:
        return number_for_checkpoint(path, read_manifest(path), self.path, self.checkpoint)

    def labels(self, split: str) -> Tensor:
        """Class indices, int64 ``[N]``."""
        return torch.tensor([entry.label for entry in self.manifests[split].entries])

    def optimised(self, budgets: tuple[int, ...]) -> dict[int, Plan]:
        """The best plan for each budget on the validation videos."""
        folder = self.args.out / f"{self.way}-{self.seed}-{self.digest[:8]}"
        config = OptimizeConfig(
            self.path,
            str(self.args.data / "val.jsonl"),
            budgets,
            frames=_numbers(self.args.frames),
            sizes=_numbers(self.args.sizes),
            selectors=tuple(self.args.selectors.split(",")),
            videos=self.args.search_videos,
            test=str(self.args.data / "test.jsonl"),
            to=str(folder / "model"),
            out=str(folder / "search"),
            workers=self.args.workers,
            device=self.args.device,
        )
        found = run_optimize(config)
        print(f"\n{self.way}, seed {self.seed}\n{found}", flush=True)
        return {budget: replace(tried.plan, measured=None) for budget, tried in found.best.items()}

    def rows(self, budgets: tuple[int, ...]) -> list[Row]:
        """The answers to the test videos, for each sampling and budget."""
        grid, plans = self.args.grid, []
        for budget in budgets:
            plain = plain_grid(self.checkpoint.model, budget, grid.height)
            if self._wanted("plain") and self.checkpoint.pool(plain) == budget:
                plans.append(("plain", budget, Plan(plain, budget)))
            plans.append(("cut", budget, Plan(grid, budget)))
        self.logits("test", [plan for _, _, plan in plans])  # A long search follows.
        if self._wanted("optimised"):
            plans += [("optimised", *each) for each in self.optimised(budgets).items()]
        logits, labels = self.logits("test", [plan for _, _, plan in plans]), self.labels("test")
        rows = []
        for (sampling, budget, plan), each in zip(plans, logits, strict=True):
            cost = grid_cost(self.size, plan.grid, plan.keep, plan.selector)
            right = (each.argmax(-1) == labels).numpy()
            figures = cost.total / 1e9, cost.published / 1e9
            rows.append(Row(self.way, self.seed, sampling, budget, plan, right, *figures))
        return rows

    def _wanted(self, sampling: str) -> bool:
        return f"{self.way}-{sampling}" not in self.args.skip.split(",")

    def logits(self, split: str, plans: Sequence[Plan]) -> list[Tensor]:
        """Logits of each plan, ``[N, classes]``, as far as possible from the files of a former run."""
        manifest = self.manifests[split]
        files = {plan: self._file(plan, manifest) for plan in plans}
        for grid in dict.fromkeys(plan.grid for plan in plans):
            missing = [plan for plan in files if plan.grid == grid and not files[plan].exists()]
            if not missing:
                continue
            dataset = ClipDataset(manifest, sampling=self.checkpoint.sampling)
            title = f"{self.way}-{self.seed}, {split} videos"
            results = predict_plans(
                self.prepared, dataset, missing, workers=self.args.workers, progress=title
            )
            for plan, result in zip(missing, results, strict=True):
                with atomic_path(files[plan]) as partial_file, partial_file.open("wb") as file:
                    np.save(file, result.logits.numpy())
        return [torch.from_numpy(np.load(files[plan])) for plan in plans]

    def _file(self, plan: Plan, manifest: Manifest) -> Path:
        name = f"{manifest.digest[:8]}-{plan.grid}-{plan.keep}-{plan.selector}-{plan.head}.npy"
        return self.args.out / "logits" / self.digest[:8] / name


# Times -----------------------------------------------------------------------------------------------------


class Times:
    """Milliseconds of plans and cascades; all networks are of one size, so that one model stands for all.

    They are measured together, or read from the file if it has all of them.
    """

    def __init__(self, path: Path, subject: Subject, rows: Sequence[Row], stops: Stops, runs: int) -> None:
        plans = list(dict.fromkeys(replace(row.plan, head=None) for row in rows))
        chains = list({_name(chain): chain for chain in stop_chains(stops)}.values())
        names = [_name([plan]) for plan in plans], [_name(chain) for chain in chains]
        if path.exists():
            self._facts = json.loads(path.read_text())
            if set(names[0]) <= set(self._facts["plans"]) and set(names[1]) <= set(self._facts["chains"]):
                return
        started = time.time()
        measured = time_plans(subject, plans, runs)
        # Chains are many: a third of the passes each.
        network = measure_chains(subject.prepared.model, chains, max(2, runs // 3))
        self._facts = {
            "conditions": {
                **environment(subject.prepared.device),
                "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
                "videos": runs,
                "seconds": round(time.time() - started),
            },
            "plans": dict(zip(names[0], measured, strict=True)),
            "chains": dict(zip(names[1], network, strict=True)),
        }
        write_json(path, self._facts)

    @property
    def conditions(self) -> dict[str, Any]:
        found: dict[str, Any] = self._facts["conditions"]
        return found

    def of(self, plan: Plan) -> tuple[float, float]:
        """Milliseconds until the frames of a plan are read, and until its logits are there."""
        read, whole = self._facts["plans"][_name([plan])]
        return read, whole

    def stages(self, stages: Sequence[Plan]) -> list[float]:
        """Milliseconds of a clip that stops after the first one, two, ... of the stages.

        The frames of all stages are read in one pass, which takes as long as the slowest of them alone.
        """
        read = max(self.of(plan)[0] for plan in stages)
        return [read + self._facts["chains"][_name(stages[: n + 1])] for n in range(len(stages))]


@torch.inference_mode()
def time_plans(subject: Subject, plans: Sequence[Plan], runs: int) -> list[tuple[float, float]]:
    """Median milliseconds of each plan over test videos, until frames are read and until logits are there."""
    checkpoint = subject.prepared
    files = [entry.path for entry in subject.manifests["test"].entries[:runs]]
    predictors = [Predictor(replace(checkpoint, plans=[plan]), plan.keep) for plan in plans]
    spent: list[list[tuple[float, float]]] = [[] for _ in plans]
    for file in (files[0], *files):  # The first pass warms up.
        for plan, predictor, times in zip(plans, predictors, spent, strict=True):
            start = time.perf_counter()
            frames = predictor.sample(file, [plan.grid]).frames[plan.grid]
            read = time.perf_counter()
            clip = checkpoint.clip(frames, plan.grid)
            predictor.model(clip, plan.keep, predictor.plan.head, plan.selector).logits.cpu()
            times.append((1000 * (read - start), 1000 * (time.perf_counter() - start)))
    return [
        (statistics.median(a for a, _ in times[1:]), statistics.median(b for _, b in times[1:]))
        for times in spent
    ]


def _name(stages: Sequence[Plan]) -> str:
    """The order of the stages does not matter for the time that they take together."""
    ordered = sorted(stages, key=lambda plan: plan.keep)
    return " > ".join(f"{plan.grid} {plan.keep} {plan.selector}" for plan in ordered)


if __name__ == "__main__":
    main()
