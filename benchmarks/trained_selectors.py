"""Should a model be trained with the selector that it will be used with? Trained with against tested with.

    python benchmarks/trained_selectors.py CHECKPOINT [CHECKPOINT ...] --data DATA --test TEST.jsonl \
      --grid 32x64 --out runs/trained_selectors

Checkpoints are seeds of one Flux-Multi recipe. Each is trained further on DATA/train.jsonl, once with each of
``--selectors``, by the recipe of `headline.py` at a low learning rate that falls to zero, on the same clips
in the same order. Then all are tested with each selector on the clips of ``--test``. Differences are paired
by clip and averaged over the seeds, with their 95 % interval over the clips.

Checkpoints that have a learned selector may have ``learned`` among the ``--selectors``. It stays as it is
while the model is trained; with ``--follow`` it is then trained on the new model, by the recipe of
``configs/overlays/selector.yaml``, and tested once more.

Everything is kept in ``--out``; an interrupted command goes on where it stopped when it is repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.manifest import read_manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import SELECTORS
from fluxvit.training.config import ModelSettings, TrainConfig
from fluxvit.training.recipes import TaskSettings
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import join_world
from fluxvit.utils.system import environment
from fluxvit.utils.terminal import table
from headline import recipe
from selectors_from_file import mark_clips, marks

BEFORE, FOLLOWED = "(before)", "learned, then its selector"


def train(args: argparse.Namespace, selector: str, seed: int) -> str:
    """Train a checkpoint further with a selector, and return the folder of the result."""
    args.init = args.checkpoints[seed]
    budgets = args.trained or Checkpoint.load(args.init).model.config.budgets
    usual, out = recipe(args, "multi", seed, budgets), str(args.out / f"{selector}-{seed}")
    data, task = replace(usual.data, val=""), replace(usual.task, selector=selector)
    # `auto` measures the precisions when a run starts, and might choose differently for each.
    optim = replace(usual.optim, precision="bf16")
    train_recipe(replace(usual, out=out, data=data, task=task, optim=optim), join_world())
    return f"{out}/last"


def follow(args: argparse.Namespace, init: str, seed: int) -> str:
    """Train the learned selector of a checkpoint on its model, and return the folder of the result."""
    usual = recipe(args, "fixed", seed, [Checkpoint.load(init).model.config.pool(args.grid)])
    out = str(args.out / f"followed-{seed}")
    train_recipe(
        replace(
            usual,
            out=out,
            data=replace(usual.data, val=""),
            model=ModelSettings(init=init),
            task=TaskSettings(train="selector", selector="learned"),
            optim=TrainConfig(batch_size=4, lr=6e-3, precision="fp32", seed=seed),
            epochs=args.follow,
            warmup_epochs=args.follow / 16,
        ),
        join_world(),
    )
    return f"{out}/last"


def report(
    result: dict[str, Any], tested: list[int], selectors: list[str], seeds: int, followed: bool = False
) -> Iterable[str]:
    """The lines of a table for each budget; see :func:`mark_clips` for ``result``. With ``followed`` the last
    of its checkpoints are those of :func:`follow`.
    """
    trained = [BEFORE, *selectors, *([FOLLOWED] if followed else [])]
    for budget in tested:
        right = {
            (own, used): marks(result, used, budget, range(row * seeds, (row + 1) * seeds))
            for row, own in enumerate(trained)
            for used in selectors
        }
        yield f"\n{budget} tokens"
        rows = [["trained with", *(f"tested with {used}" for used in selectors)]]
        rows += [[own, *(accuracy(right[own, used]) for used in selectors)] for own in trained]
        yield from table(rows)
        first = selectors[0]
        for other in selectors[1:]:
            for used in selectors:
                same = difference(right[other, used], right[first, used])
                yield f"trained with {other} rather than {first}, tested with {used}: {same}"
            both = difference(right[other, other], right[first, first])
            yield f"trained and tested with {other} rather than {first}: {both}"
        if followed:
            again = difference(right[FOLLOWED, "learned"], right["learned", "learned"])
            yield f"{FOLLOWED}, rather than learned, tested with learned: {again}"


def accuracy(right: Tensor) -> str:
    """Percent of ``[seeds, clips]``, and of each seed."""
    each = " ".join(f"{100 * row.mean().item():.1f}" for row in right)
    return f"{100 * right.mean().item():.1f} % ({each})"


def difference(a: Tensor, b: Tensor) -> str:
    """How many points ``a`` ``[seeds, clips]`` is above ``b``, with the 95 % interval over the clips."""
    clips = 100 * (a - b).mean(0)
    half = 1.959964 * clips.std().item() / len(clips) ** 0.5
    each = " ".join(f"{100 * row.mean().item():+.1f}" for row in a - b)
    return f"{clips.mean().item():+.1f} ± {half:.1f} points (seeds {each})"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="where training starts, one of each seed")
    add("--data", type=Path, required=True, help="folder with the training videos and train.jsonl")
    add("--test", required=True, help="manifest")
    add("--grid", type=SamplingGrid.parse, required=True, help="that is tested, such as 32x64")
    add("--budgets", default="128,64,32", type=_numbers, help="tokens that are tested")
    add("--trained", type=_numbers, help="tokens of training, such as 256,128,64; default: the checkpoints'")
    add("--selectors", default="group_dynamic,moving_pixels", type=lambda text: text.split(","))
    add("--follow", type=float, default=0, metavar="EPOCHS", help="of the learned selector on the new model")
    add("--epochs", type=float, default=4)
    add("--batch_size", type=int, default=32)
    add("--lr", type=float, default=3e-4)
    add("--clips", type=int, help="test the first ones only")
    add("--workers", type=int, default=1, help="processes that decode")
    add("--device", default="cpu", help="of the test")
    add("--out", type=Path, default=Path("runs/trained_selectors"))
    args = parser.parse_args()
    if unknown := set(args.selectors) - set(SELECTORS):
        parser.error(f"--selectors: there is no {', '.join(sorted(unknown))}; see docs/selection.md")
    if args.follow and "learned" not in args.selectors:
        parser.error("--follow: it is for the selector learned, which --selectors does not name")
    starts, file = args.checkpoints, args.out / "marks.json"
    # One seed after the other, so that a run that is cut short has all selectors of the first.
    trained = []
    for seed in range(len(starts)):
        trained.append([train(args, selector, seed) for selector in args.selectors])
        if args.follow:
            trained[-1].append(follow(args, trained[-1][args.selectors.index("learned")], seed))
    args.checkpoints = [*starts, *(path for row in zip(*trained, strict=True) for path in row)]
    args.methods, args.json = args.selectors, file
    setting = {
        "test": read_manifest(args.test).digest,
        "checkpoints": args.checkpoints,
        "grid": str(args.grid),
        "budgets": args.budgets,
        "selectors": args.selectors,
    }
    result = json.loads(file.read_text()) if file.exists() else {"setting": setting, "done": 0, "marks": {}}
    if result["setting"] != setting:
        parser.error(f"--out {args.out}: it holds results of other settings; choose another folder")
    args.data = args.test
    mark_clips(args, result)
    print(f"{result['done']} clips; {json.dumps(environment(args.device))}")
    print(*report(result, args.budgets, args.selectors, len(starts), bool(args.follow)), sep="\n")


if __name__ == "__main__":
    main()
