"""Prepares a trained checkpoint for the package: chooses its plans, tests it and writes its model card.

For each budget the best grid of those it was trained on is chosen on the validation videos. The card has the
accuracy of that plan on the test videos.

    python benchmarks/package_checkpoint.py runs/flux_tuning/multi+align-0/last \
      src/fluxvit/pretrained/fluxvit_nano_motionworld --data data/mw --made_by "..."
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from fluxvit.checkpoints.checkpoint import SEARCH, WEIGHTS, Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.cost import grid_cost
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.optimize import run_optimize
from fluxvit.utils.files import atomic_path
from fluxvit.utils.system import environment

CARD = """# {name}

A FluxViT of {parameters:.1f} million parameters ({megabytes:.1f} MB) that comes with the package, so that
`fluxvit predict clip.mp4` answers without any training. It is an example of the method, not a recogniser of
the world.

**What it tells.** How the object of a MotionWorld clip moves, {classes} classes such as
{examples}.
It has never seen a clip of the real world; there its answer says at most which of these motions the picture
as a whole resembles. It must not be used to decide anything about people.

**Data.** {train} videos that `fluxvit data make motionworld` draws (difficulty `demo`, digest
{train_digest}): pasted pictures in the public domain, nobody's data.

**Training.** {made_by}

**Accuracy** on {test} test videos (digest {test_digest}); each grid was chosen on {val} validation videos.
Chance is {chance:.1f} %.

| tokens | sampling | pool | GMACs | accuracy (95 % interval) |
| --- | --- | --- | --- | --- |
{rows}

Measured on {conditions}.

**Limits.** Frames are small, so that small things are lost, and spread over the whole clip, so that short
events in long videos are missed. Licence: that of the package (MIT).
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="trained by a recipe")
    add("out", type=Path)
    add("--data", type=Path, required=True, help="folder of train.jsonl, val.jsonl and test.jsonl")
    add("--made_by", required=True, help="what trained it, for the card")
    args = parser.parse_args()

    info = Checkpoint.load(args.checkpoint)
    model = info.model
    config = model.config
    train, val, test = (read_manifest(args.data / f"{split}.jsonl") for split in ("train", "val", "test"))
    if train.digest != info.provenance["data"]:
        raise SystemExit(f"{args.checkpoint} was trained on other videos than those of {args.data}")
    info.labels = list(train.labels)
    recipe = info.provenance["recipe"]
    # The card keeps the settings of the recipe without the folders of the machine that ran it.
    recipe["data"] = {key: recipe["data"][key] for key in ("target", "cache_frames", "cache_side")}
    recipe["model"] = {key: recipe["model"][key] for key in ("name", "settings")}
    del recipe["out"]
    folder = info.save(args.out)
    frames, sizes = (
        tuple(sorted({getattr(grid, key) for grid in info.grids})) for key in ("frames", "height")
    )
    with tempfile.TemporaryDirectory() as log:
        search = OptimizeConfig(
            str(folder), str(args.data / "val.jsonl"), frames=frames, sizes=sizes, device="cpu", out=log
        )
        best = run_optimize(search).best
    (folder / SEARCH).unlink()  # The record of the search names folders as well.
    rows = []
    for budget, plan in ((budget, tried.plan) for budget, tried in best.items()):
        (result,) = predict_plans(info, ClipDataset(test), [plan])
        pool = plan.grid.tokens(config.patch_size, config.tubelet_size)
        gmacs = grid_cost(config.size, plan.grid, budget).total / 1e9
        rows.append(f"| {budget} | {plan.grid} | {pool} | {gmacs:.3f} | {result.score} |")
        print(rows[-1])
    card = CARD.format(
        name=args.out.name,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        megabytes=(folder / WEIGHTS).stat().st_size / 1e6,
        classes=len(info.labels),
        examples=" and ".join(f'"{label}"' for label in (info.labels[0], info.labels[-1])),
        train=len(train),
        train_digest=train.digest,
        made_by=args.made_by,
        test=len(test),
        test_digest=test.digest,
        val=len(val),
        chance=100 / len(info.labels),
        rows="\n".join(rows),
        conditions=", ".join(f"{name} {value}" for name, value in environment("cpu").items()),
    )
    with atomic_path(folder / "README.md") as partial:
        partial.write_text(card, encoding="utf-8")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
