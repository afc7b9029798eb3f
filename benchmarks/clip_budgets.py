"""Does a look at a clip tell how many tokens it needs? A budget for each clip, chosen in one pass.

    python benchmarks/clip_budgets.py CHECKPOINT [CHECKPOINT ...] --tune VAL.jsonl --test TEST.jsonl \
      --grid 32x64 --budgets 512,256,128,64,32 --selector learned --out runs/clip_budgets

Checkpoints are seeds of one recipe. Without --grid their plan tables count, which `fluxvit optimize` writes.
Rules see the scores of the selectors at the grid of the cheapest plan, and choose a plan for each clip before
anything is encoded:

    share, learned    the smallest budget that pays for the tokens which hold a share of the learned scores,
                      under a cap; the share, the cap and the smallest budget are tuned
    share, moving     the same for the scores of moving_pixels
    movement          one plan or another, by whether the clip moves more than a threshold
    fit               ridge regression of what each plan has right on all of these; a clip takes the plan with
                      the best prediction, less its cost times a price

Each is tuned on one set of videos for several mean costs, and tested on another against single plans at the
mean cost that it has there, as cascades are (see `spending.py`). Costs are GMACs, in which everything counts.
Intervals: 95 %, a bootstrap over the clips of the mean of all checkpoints. All logits are kept in --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.cascade import chain_gmacs
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.flux.selection import SELECTORS, get_selector
from fluxvit.optimization.cascade import choose_cascades
from fluxvit.utils.files import atomic_path
from fluxvit.utils.system import environment
from fluxvit.utils.terminal import table
from spending import at_cost, bootstrap, compared, upper_hull

Answers = dict[str, Any]
"""``logits`` ``[P, N, classes]`` of P plans and N clips, ``labels`` ``[N]``, and the ``scores``
``[N, tokens]`` of each selector at the grid of the cheapest plan."""
Choices = tuple[Tensor, Tensor]
"""Plans by their numbers, for the clips of both sets, int64 ``[N]`` each."""


def answers(checkpoint: Checkpoint, plans: list[Plan], manifest: Manifest, out: Path) -> Answers:
    """The answers of a checkpoint to all clips, from the file of a former run if there is one."""
    key = repr((checkpoint.digest(), manifest.digest, [replace(plan, measured=None) for plan in plans]))
    file = out / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        dataset = ClipDataset(manifest, sampling=checkpoint.sampling)
        results = predict_plans(checkpoint.prepared(), dataset, plans, progress="Predicting")
        found = {
            "logits": torch.stack([result.logits for result in results]),
            "labels": results[0].labels,
            "scores": scores(checkpoint, dataset, plans[0].grid),
        }
        with atomic_path(file) as partial_file:
            torch.save(found, partial_file)
    answers: Answers = torch.load(file)
    return answers


@torch.inference_mode()
def scores(checkpoint: Checkpoint, dataset: ClipDataset, grid: SamplingGrid) -> dict[str, Tensor]:
    """The scores of all tokens by ``moving_pixels``, and by the learned selector if there is one; those of a
    clip by the learned one sum to 1.
    """
    model, found = checkpoint.model.eval(), dict[str, list[Tensor]]()
    for clip in loader(dataset, epoch_batches(len(dataset), grid, 32), 0):
        video = checkpoint.normalize(clip.video)
        patches, _ = model.patch_embed.patchify(video)
        moving = get_selector("moving_pixels").scores(patches.unflatten(-1, (model.config.tubelet_size, -1)))
        found.setdefault("moving", []).append(moving.flatten(1))
        if model.token_scorer is not None:
            learned = model.token_scorer(model.thumbnails(video)).flatten(1).softmax(1)
            found.setdefault("learned", []).append(learned)
    return {name: torch.cat(rows).double() for name, rows in found.items()}


# Rules: each yields the choices of all its settings --------------------------------------------------------


def holding(weights: Tensor, share: float) -> Tensor:
    """How many tokens hold a share of the sum of all scores ``[N, tokens]``, int64 ``[N]``."""
    sums = weights.sort(1, descending=True).values.cumsum(1)
    return 1 + (sums < share * sums[:, -1:]).sum(1)


def share(name: str, plans: list[Plan], tune: Answers, test: Answers) -> Iterator[Choices]:
    """See the top of the file; ``plans`` rise in cost."""
    budgets = torch.tensor([plan.keep for plan in plans[:-1]]).cummax(0).values
    for part in torch.linspace(0.05, 0.99, 60).tolist():
        mine, theirs = (
            torch.bucketize(holding(each["scores"][name], part), budgets) for each in (tune, test)
        )
        for least in range(len(plans)):
            for cap in range(least, len(plans)):
                yield mine.clamp(least, cap), theirs.clamp(least, cap)


def movement(plans: list[Plan], tune: Answers, test: Answers) -> Iterator[Choices]:
    """See the top of the file."""
    levels = [each["scores"]["moving"].mean(1) for each in (tune, test)]
    for a, b in permutations(range(len(plans)), 2):
        for threshold in levels[0].quantile(torch.linspace(0, 1, 60, dtype=torch.float64)):
            mine, theirs = (torch.where(level > threshold, a, b) for level in levels)
            yield mine, theirs


def fit(prices: Tensor, tune: Answers, test: Answers) -> Iterator[Choices]:
    """See the top of the file."""
    rows = [features(each["scores"]) for each in (tune, test)]
    mean, spread = rows[0].mean(0), rows[0].std(0)
    rows = [(each - mean) / spread for each in rows]
    rows = [torch.cat([each, each.square(), torch.ones_like(each[:, :1])], 1) for each in rows]
    square = rows[0].T @ rows[0] + 0.1 * len(rows[0]) * torch.eye(rows[0].shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, rows[0].T @ right(tune).T)
    for price in [0.0, *torch.logspace(-3, 2, 100).tolist()]:
        mine, theirs = ((each @ weights - price * prices).argmax(1) for each in rows)
        yield mine, theirs


def features(found: dict[str, Tensor]) -> Tensor:
    """What rules can see of clips, float64 ``[N, F]``."""
    moving = found["moving"]
    columns = [moving.mean(1), moving.max(1).values]
    columns += [holding(each, part).double() for each in found.values() for part in (0.5, 0.7, 0.9)]
    return torch.stack(columns, 1).log()


def right(each: Answers) -> Tensor:
    """What each plan has right, float64 ``[P, N]``."""
    return (each["logits"].argmax(-1) == each["labels"]).double()


# Comparison ------------------------------------------------------------------------------------------------


def compare(checkpoint: Checkpoint, plans: list[Plan], tune: Answers, test: Answers) -> dict[str, list[Any]]:
    """For each rule and each mean cost in tuning, the mean cost in the test and what is right there by clip,
    of the rule and of single plans at the same mean cost; None where all settings cost more.
    """
    costs = partial(chain_gmacs, checkpoint.model.config.size)
    prices = torch.tensor([costs([plan])[0] for plan in plans], dtype=torch.float64)
    hull = upper_hull([(price, i, right(tune)[i]) for i, price in enumerate(prices.tolist())])
    rules: dict[str, Callable[..., Iterator[Choices]]] = {
        **{f"share, {name}": partial(share, name, plans) for name in reversed(tune["scores"])},
        "movement": partial(movement, plans),
        "fit": partial(fit, prices),
    }
    tested = list(test["logits"]), test["labels"]
    found: dict[str, list[Any]] = {}
    for name, rule in rules.items():
        mine, theirs = map(torch.stack, zip(*rule(tune, test), strict=True))
        spent, accuracy = prices[mine].mean(1), right(tune).gather(0, mine).mean(1)
        for target in targets(prices):
            fits = torch.where(spent <= target, accuracy - 1e-9 * spent, -1.0)
            chosen = theirs[fits.argmax()]
            mean = prices[chosen].mean().item()
            row = mean, right(test).gather(0, chosen[None])[0], at_cost(hull, tested, mean)
            found.setdefault(name, []).append(row if fits.max() >= 0 else None)
    for cascade in choose_cascades(plans, list(tune["logits"]), tune["labels"], costs, targets(prices)):
        found.setdefault("cascade", []).append(
            compared(cascade, plans, tested, costs(cascade.stages), hull)[1:]
        )
    return found


def targets(prices: Tensor) -> list[float]:
    """The mean costs for which rules are tuned: those of plans but the first and the last, and between."""
    rising = prices.sort().values.tolist()
    return sorted(rising[1:-1] + [math.sqrt(a * b) for a, b in pairwise(rising)])


def room(plans: list[Plan], prices: Tensor, test: Answers) -> str:
    """What an oracle would reach, and how well scores tell which clips need more than the cheapest plan."""
    marks = right(test)
    first = torch.where(marks.any(0), marks.argmax(0), 0)
    need = (marks[0] == 0) & (marks[1:].mean(0) > 0.5)
    signs = {
        **{f"tokens that hold half, {name}": holding(each, 0.5) for name, each in test["scores"].items()},
        "movement": test["scores"]["moving"].mean(1),
        "doubt of the cheapest plan's answer": -test["logits"][0].softmax(-1).max(-1).values,
    }
    told = ", ".join(f"{name} {_auc(sign.double(), need):.2f}" for name, sign in signs.items())
    oracle = f"{100 * marks.max(0).values.mean():.1f} % for {prices[first].mean():.3f} GMACs"
    return (
        f"by the cheapest plan that is right: {oracle}\n"
        f"wrong by the cheapest plan, right by most others: {100 * need.double().mean():.1f} % of clips\n"
        f"area under the curve of finding these: {told}"
    )


def _auc(sign: Tensor, positive: Tensor) -> float:
    above = sign[positive][:, None] - sign[~positive]
    return ((above > 0).double() + 0.5 * (above == 0).double()).mean().item()


def report(found: list[dict[str, list[Any]]]) -> Iterator[str]:
    """The table of all rules; ``found`` has one result of :func:`compare` for each checkpoint."""
    rows = [["rule", "mean GMACs", "single", "rule", "difference (95 %)"]]
    for name in found[0]:
        for each in zip(*(one[name] for one in found), strict=True):
            if None in each:
                continue
            gaps = torch.stack([mine - single for _, mine, single in each]).mean(0)
            low, high = bootstrap(gaps, 1000)
            means = [sum(float(torch.as_tensor(row[i]).mean()) for row in each) / len(each) for i in range(3)]
            accuracies = f"{100 * means[2]:.1f} %", f"{100 * means[1]:.1f} %"
            gap = f"{100 * gaps.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            row = [name, f"{means[0]:.3f}", *accuracies, gap]
            if row != rows[-1]:  # The best setting within one cost may be the best within the next, too.
                rows.append(row)
    yield from table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT")
    add("--tune", required=True, help="manifest")
    add("--test", required=True, help="manifest of other videos")
    add("--grid", type=SamplingGrid.parse, help="such as 32x64; default: the plan tables")
    add("--budgets", default="512,256,128,64,32", help="tokens of the grid")
    add("--selector", default="moving_pixels", choices=sorted(SELECTORS), help="that keeps them")
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("runs/clip_budgets"))
    args = parser.parse_args()
    found = []
    for path in args.checkpoints:
        checkpoint = Checkpoint.load(path, args.device)
        costs = partial(chain_gmacs, checkpoint.model.config.size)
        plans = list(dict.fromkeys(checkpoint.plans))
        if args.grid:
            plans = [Plan(args.grid, int(k), selector=args.selector) for k in args.budgets.split(",")]
        if len(plans) < 2:
            parser.error(f"{path}: fewer than two plans; set --grid and --budgets, or optimise it first")
        plans.sort(key=lambda plan: costs([plan])[0])
        sets = [answers(checkpoint, plans, read_manifest(each), args.out) for each in (args.tune, args.test)]
        marks, prices = right(sets[1]), torch.tensor([costs([plan])[0] for plan in plans])
        counts = " and ".join(str(len(each["labels"])) for each in sets)
        print(f"\n{'/'.join(Path(path).parts[-2:])}: {counts} clips")
        rows = [["plan", "GMACs", "test"]]
        for plan, price, row in zip(plans, prices.tolist(), marks, strict=True):
            rows.append(
                [f"{plan.grid}:{plan.keep} {plan.selector}", f"{price:.3f}", f"{100 * row.mean():.1f} %"]
            )
        print(*table(rows), room(plans, prices, sets[1]), sep="\n", flush=True)
        found.append(compare(checkpoint, plans, *sets))
    print("", *report(found), json.dumps(environment(args.device)), sep="\n")


if __name__ == "__main__":
    main()
