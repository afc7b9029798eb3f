"""Which parts of the method pay in training from nothing on a CPU? The paper's tables 2, 3 and 5, small.

Each way trains a nano model from nothing on a MotionWorld, as ``configs/motionworld_nano.yaml`` does, without
one thing:

    all          Flux-Multi with alignment; GLPE and DPN
    no_glpe      plain positions: no affine of the position table, no positions in the values (table 3)
    no_dpn       no norms around the patch embedding (table 3)
    no_align     the smaller budgets are not aligned with the largest (table 5)
    one_budget   trained at the largest budget alone, Flux-Single (table 5)

Every model is tested at all budgets with one, two and four groups of frames in the selector (table 2).

    python benchmarks/ablations.py --train mw/train.jsonl --test mw/test.jsonl --seeds 0,1

Each finished run is kept in ``--out``; an interrupted command goes on where it stopped when it is repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.training.config import ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.logs import LOG
from fluxvit.training.recipes import TaskSettings
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import join_world
from fluxvit.utils.files import read_json_lines, write_json
from plateau import DENSE, leaves_after, short_recipe


@dataclass(frozen=True)
class Way:
    glpe: bool = True
    dpn: bool = True
    align_weight: float = 16.0
    one_budget: bool = False


WAYS = {
    "all": Way(),
    "no_glpe": Way(glpe=False),
    "no_dpn": Way(dpn=False),
    "no_align": Way(align_weight=0.0),
    "one_budget": Way(one_budget=True),
}
GROUPS = {"dynamic": 1, "group_dynamic_2": 2, "group_dynamic": 4}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", required=True, help="manifest")
    add("--test", required=True, help="manifest")
    add("--out", type=Path, default=Path("runs/ablations"))
    add("--ways", default=",".join(WAYS))
    add("--seeds", default="0,1")
    add("--clips", type=int, default=12_000, help="training clips of a run")
    add("--budgets", default="100,50,25", help="tokens that are kept, largest first")
    add("--grid", type=SamplingGrid.parse, default="64x24", help="of the test")
    add("--lr", type=float, default=3e-4)
    add("--batch_size", type=int, default=32)
    add("--precision", default="auto", help="fp32, bf16 or auto")
    args = parser.parse_args()
    results = []
    for seed in map(int, args.seeds.split(",")):
        for way in args.ways.split(","):
            results.append(run(args, way, seed))
            print(json.dumps(results[-1]), flush=True)
    print(table(results))
    print(f"fluxvit {__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train and test one way, unless that is done already."""
    out = args.out / f"{name}-{seed}"
    done = out / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    way = WAYS[name]
    budgets = tuple(map(int, args.budgets.split(",")))
    train, test = read_manifest(args.train), read_manifest(args.test)
    settings = NetworkSettings(
        budgets=budgets[:1] if way.one_budget else budgets,
        dual_patch_norm=way.dpn,
        global_position=way.glpe,
        local_position=way.glpe,
    )
    model = ModelSettings("fluxvit_nano", settings=settings, weights="motion")
    recipe = short_recipe(args, out, len(train), model, DENSE, TrainConfig(lr=args.lr, seed=seed))
    recipe = replace(recipe, task=TaskSettings(align_weight=0.0 if way.one_budget else way.align_weight))
    checkpoint = Checkpoint.load(train_recipe(recipe, join_world(), progress=False))
    plans = [Plan(args.grid, budget, selector=selector) for selector in GROUPS for budget in budgets]
    scores = [result.score for result in predict_plans(checkpoint, ClipDataset(test), plans)]
    rows = [row for row in read_json_lines(out / LOG) if f"accuracy@{budgets[0]}" in row]
    left = leaves_after([row[f"accuracy@{budgets[0]}"] for row in rows], 2 / checkpoint.model.num_classes)
    correct = [score.correct for score in scores]
    result = {
        "way": name,
        "seed": seed,
        "clips": None if left is None else left * args.batch_size,
        "budgets": budgets,
        "correct": {
            selector: correct[i * len(budgets) : (i + 1) * len(budgets)] for i, selector in enumerate(GROUPS)
        },
        "total": len(test),
    }
    write_json(done, result)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Accuracy in percent: the mean over the seeds, and each seed."""
    lines = [
        f"{'way':12}{'groups':>7}{'left after':>16}  "
        + "".join(f"{b} tokens".ljust(22) for b in results[0]["budgets"])
    ]
    for name in dict.fromkeys(result["way"] for result in results):
        same = [result for result in results if result["way"] == name]
        left = " ".join("never" if run["clips"] is None else str(run["clips"]) for run in same)
        for selector in reversed(GROUPS):
            cells = ""
            for i in range(len(same[0]["budgets"])):
                each = [100 * run["correct"][selector][i] / run["total"] for run in same]
                cells += f"{mean(each):.1f} ({' '.join(f'{value:.1f}' for value in each)})".ljust(22)
            lines.append(f"{name:12}{GROUPS[selector]:>7}{left:>16}  {cells}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
