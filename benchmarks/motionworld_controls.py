"""How well can MotionWorld's motion label be told without the order of time?

Trains one and the same network three times, for equally many steps: on ordered frames, on frames in random
order, and on one random frame; and prints the accuracy of each on the test split, with what a network without
motion should score: chance. An object model on single frames shows that the pictures themselves are readable.

    python benchmarks/motionworld_controls.py --out runs/controls --steps 800
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from fluxvit.demo import Data, environment, test_model, train_model
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.utils.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/controls"))
    parser.add_argument("--videos", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--difficulty", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    world = MotionWorldConfig(args.videos, args.seed, args.difficulty, val=0, test=480)
    folder = make_dataset(args.out / "data", world)
    dense, one = Plan(SamplingGrid(32, 40, 40), 96), Plan(SamplingGrid(2, 40, 40), 25)
    rows = []
    for target, order, plan in (
        ("motion", "normal", dense),
        ("motion", "shuffled", dense),
        ("motion", "single", one),
        ("object", "single", one),
    ):
        data = Data(folder, target)
        run = args.out / f"{target}-{order}"
        start = time.monotonic()
        clips = data.clips("train", order)
        model, precision = train_model(run, clips, [plan.keep], [plan.grid], args.steps, args.seed, run.name)
        seconds = time.monotonic() - start
        score = test_model(model, data.clips("test", order), plan).score
        chance = 1 / len(data.labels)
        rows.append(
            {
                "target": target,
                "frames": order,
                "grid": str(plan.grid),
                "tokens": plan.keep,
                "accuracy": round(score.accuracy, 4),
                "interval": [round(x, 4) for x in score.interval],
                "chance": round(chance, 4),
                "train_seconds": round(seconds),
                "precision": precision,
            }
        )
        print(
            f"{target:7} {order:9} {plan.grid}:{plan.keep:<4} {score}  chance {100 * chance:.1f} %",
            flush=True,
        )
    result = {
        "settings": {k: str(v) for k, v in vars(args).items()},
        "environment": environment(),
        "rows": rows,
    }
    write_json(args.out / "controls.json", result)
    print(json.dumps(result["environment"]))


if __name__ == "__main__":
    main()
