"""When does training from nothing leave chance? Several seeds of a small model, before and after.

    python benchmarks/plateau.py --train DATA/train.jsonl --val DATA/val.jsonl --out runs/plateau

Ways:

    before         small initial weights, grids of 16 to 32 frames of 32 or 40 pixels, peak learning rate 1e-3
    decay          initial weights for motion, 40 to 64 frames of 24 or 32 pixels, 1e-3 for the heads and less
                   for each lower layer, by --layer_decay
    warm           as `decay`, but all layers have 1e-3, with a warm-up over the first half of the run
    after          as `decay`, but all layers have 3e-4
    after_but_...  as `after`, with the small weights, the former grids or 1e-3

All ways have patches of 8x8 pixels and two frames, pools of 192 to 400 tokens, and keep equally many. A run
has left chance when the running mean of its training accuracy (2 % of each step's) is twice that of guessing;
the table has the number of clips by then. Every run resumes, so the command can be interrupted and repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.training.config import GridSettings, ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.logs import LOG
from fluxvit.training.recipes import DataSettings, Recipe
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import join_world
from fluxvit.utils.files import read_json_lines, write_json
from fluxvit.video.augment_settings import AugmentSettings

USUAL = GridSettings((16, 33, 8), (32, 41, 8), min_tokens=192, max_tokens=400)
DENSE = GridSettings((40, 65, 8), (24, 33, 8), min_tokens=192, max_tokens=400)


@dataclass(frozen=True)
class Way:
    weights: Literal["small", "motion"] = "motion"
    grids: GridSettings = DENSE
    lr: float = 1e-3
    warmup: float = 0.1
    decay: bool = False


WAYS = {
    "before": Way("small", USUAL),
    "decay": Way(decay=True),
    "warm": Way(warmup=0.5),
    "after": Way(lr=3e-4),
    "after_but_weights": Way(weights="small", lr=3e-4),
    "after_but_grids": Way(grids=USUAL, lr=3e-4),
    "after_but_rate": Way(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", required=True, help="manifest")
    add("--val", required=True, help="manifest")
    add("--out", type=Path, default=Path("runs/plateau"))
    add("--model", default="fluxvit_nano", help="size of the network: fluxvit_nano or fluxvit_tiny")
    add("--ways", default="before,decay")
    add("--seeds", default="0,1,2,3,4")
    add("--clips", type=int, default=10_000, help="training clips of a run")
    add("--budgets", default="32", help="tokens that are kept, largest first")
    add("--batch_size", type=int, default=32)
    add("--layer_decay", type=float, default=0.5, help="of the way `decay`; 0.75 for fluxvit_tiny")
    add("--precision", default="auto", help="fp32, bf16 or auto")
    args = parser.parse_args()
    results = []
    for seed in args.seeds.split(","):
        for way in args.ways.split(","):
            results.append(_run(args, way, int(seed)))
            print(json.dumps(results[-1]), flush=True)
    print(table(results))
    print(f"fluxvit {__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")


def _run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    out = args.out / f"{name}-{seed}"
    done = out / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    way = WAYS[name]
    budgets = tuple(map(int, args.budgets.split(",")))
    train, val = read_manifest(args.train), read_manifest(args.val)
    settings = NetworkSettings(budgets, patch_size=8, tubelet_size=2)
    model = ModelSettings(args.model, settings=settings, weights=way.weights)
    optim = TrainConfig(lr=way.lr, layer_decay=args.layer_decay if way.decay else 1.0, seed=seed)
    recipe = short_recipe(args, out, len(train), model, way.grids, optim, way.warmup)
    checkpoint = Checkpoint.load(train_recipe(recipe, join_world(), progress=False))
    grid = SamplingGrid(64, 24, 24) if way.grids is DENSE else SamplingGrid(32, 32, 32)
    plans = [Plan(grid, budget) for budget in budgets]
    scores = [result.score for result in predict_plans(checkpoint, ClipDataset(val), plans)]
    rows = [row for row in read_json_lines(out / LOG) if f"accuracy@{budgets[0]}" in row]
    accuracies = [row[f"accuracy@{budgets[0]}"] for row in rows]
    left = leaves_after(accuracies, 2 / checkpoint.model.num_classes)
    result = {
        "way": name,
        "seed": seed,
        "clips": None if left is None else left * args.batch_size,
        "train": round(100 * sum(accuracies[-50:]) / len(accuracies[-50:]), 1),
        "correct": [score.correct for score in scores],
        "total": len(val),
    }
    write_json(done, result)
    return result


def short_recipe(
    args: argparse.Namespace,
    out: Path,
    videos: int,
    model: ModelSettings,
    grids: GridSettings,
    optim: TrainConfig,
    warmup: float = 0.1,
) -> Recipe:
    """A training of ``args.clips`` clips, of which each step is logged; ``warmup`` is a share of them."""
    epochs = args.clips / videos
    return Recipe(
        # One cache of 64 frames for all ways, of which those with fewer frames take a part.
        DataSettings(args.train, workers=0, cache=str(args.out / "cache"), cache_frames=64, cache_side=40),
        out=str(out),
        model=model,
        grids=grids,
        optim=replace(optim, batch_size=args.batch_size, precision=args.precision, log_every=1),
        epochs=epochs,
        warmup_epochs=warmup * epochs,
        augment=AugmentSettings(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1.18)),
    )


def leaves_after(accuracies: list[float], threshold: float) -> int | None:
    """The number of steps until the running mean of the accuracies reaches the threshold; None if it never
    does.
    """
    mean = weight = 0.0
    for step, accuracy in enumerate(accuracies, start=1):
        mean, weight = mean + 0.02 * (accuracy - mean), weight + 0.02 * (1 - weight)
        if step >= 50 and mean / weight >= threshold:  # The mean of a few steps is mostly luck.
            return step
    return None


def table(results: list[dict[str, Any]]) -> str:
    """A line for each run: clips until it left chance, and accuracy in percent at the end."""
    lines = [f"{'way':20}{'seed':>5}{'left after':>12}{'training':>10}  validation, at each budget"]
    for run in sorted(results, key=lambda run: (list(WAYS).index(run["way"]), run["seed"])):
        left = "never" if run["clips"] is None else f"{run['clips']} clips"
        shares = " ".join(f"{100 * correct / run['total']:.1f}" for correct in run["correct"])
        lines.append(f"{run['way']:20}{run['seed']:>5}{left:>12}{run['train']:>10}  {shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
