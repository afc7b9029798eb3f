"""How well can a network predict MotionWorld's motion label without the order of time?

Trains the same network three times for equally many steps: on ordered frames, on frames in random order, and
on one random frame. Prints the accuracy of each on the test split beside chance, which a network without
motion should score. A model of the object class on single frames shows that the pictures are readable.

    python benchmarks/motionworld_controls.py --out runs/controls --steps 800
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.config import GridSettings, ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.recipes import DataSettings, Recipe
from fluxvit.training.runs import train
from fluxvit.utils.distributed import ALONE
from fluxvit.utils.files import write_json
from fluxvit.utils.system import environment
from fluxvit.video.augment_settings import AugmentSettings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--test", type=int, default=480, help="test videos")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--difficulty", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    world = MotionWorldConfig(args.videos, args.seed, args.difficulty, val=0, test=args.test)
    folder = make_dataset(args.out / "data", world)
    dense, one = Plan(SamplingGrid(32, 40, 40), 96), Plan(SamplingGrid(2, 40, 40), 25)
    rows = []
    for target, order, plan in (
        ("label", "normal", dense),
        ("label", "shuffled", dense),
        ("label", "single", one),
        ("object", "single", one),
    ):
        name = "motion" if target == "label" else target
        run = args.out / f"{name}-{order}"
        start = time.monotonic()
        checkpoint = _train(folder, run, target, order, plan, args)
        seconds = time.monotonic() - start
        info = Checkpoint.load(checkpoint)
        model = info.model
        clips = ClipDataset(read_manifest(folder / "test.jsonl", target), order=order)
        (result,) = predict_plans(info, clips, [Plan(plan.grid, plan.keep)], workers=1)
        score, chance = result.score, 1 / model.num_classes
        rows.append(
            {
                "target": name,
                "frames": order,
                "grid": str(plan.grid),
                "tokens": plan.keep,
                "accuracy": round(score.accuracy, 4),
                "interval": [round(x, 4) for x in score.interval],
                "chance": round(chance, 4),
                "train_seconds": round(seconds),
            }
        )
        print(
            f"{name:7} {order:9} {plan.grid}:{plan.keep:<4} {score}  chance {100 * chance:.1f} %",
            flush=True,
        )
    report = {
        "settings": {k: str(v) for k, v in vars(args).items()},
        "environment": environment("cpu"),
        "rows": rows,
    }
    write_json(args.out / "controls.json", report)
    print(json.dumps(report["environment"]))


def _train(folder: Path, run: Path, target: str, order: str, plan: Plan, args: argparse.Namespace) -> Path:
    frames, side, tokens = plan.grid.frames, plan.grid.height, plan.grid.tokens(8, 2)
    epochs = args.steps / (args.videos // 32)
    recipe = Recipe(
        DataSettings(
            str(folder / "train.jsonl"),
            target=target,
            workers=1,
            cache=str(folder / "cache"),
            cache_side=56,
        ),
        out=str(run),
        model=ModelSettings("fluxvit_nano", settings=NetworkSettings(budgets=(plan.keep,))),
        grids=GridSettings((frames, frames + 1, 2), (side, side + 1, 8), tokens, tokens),
        optim=TrainConfig(seed=args.seed),
        epochs=epochs,
        warmup_epochs=epochs / 10,
        augment=AugmentSettings(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1.18)),
        device="cpu",
    )
    # Recipes have no setting for the order of frames, because only this control uses another one.
    with patch.object(train, "clip_dataset", partial(train.clip_dataset, order=order)):
        return train.train_recipe(recipe, ALONE)


if __name__ == "__main__":
    main()
