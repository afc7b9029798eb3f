"""The stop rules of ``headline.py``: cascades of budgets, tuned on the validation videos."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxvit.flux.cascade import chain_gmacs
from fluxvit.flux.plan import Plan
from fluxvit.optimization.cascade import choose_cascades
from fluxvit.utils.terminal import table
from headline_report import Row
from spending import bootstrap, compared, upper_hull

if TYPE_CHECKING:
    from headline import Subject, Times

STAGES = {"one grid": 5, "optimised": 3}
"""Most stages of a cascade: of the budgets of one grid, which share its embedding, and of the plans found."""
Stops = dict[str, list[list[Plan]]]
"""For each kind of :data:`STAGES` the plans of each seed."""


def stop_plans(rows: Sequence[Row]) -> Stops:
    """The plans between which the stop rules choose."""
    seeds = sorted({row.seed for row in rows if row.way == "multi"})

    def plans(sampling: str, seed: int) -> list[Plan]:
        own = [row for row in rows if (row.way, row.sampling, row.seed) == ("multi", sampling, seed)]
        return list(dict.fromkeys(row.plan for row in own))

    kinds = {"one grid": "cut", "optimised": "optimised"}
    found = {kind: [plans(sampling, seed) for seed in seeds] for kind, sampling in kinds.items()}
    return {kind: each for kind, each in found.items() if all(each)}


def stop_chains(found: Stops) -> list[tuple[Plan, ...]]:
    """All cascades between which the stop rules choose, and single plans."""
    return [
        chain
        for kind, seeds in found.items()
        for plans in seeds
        for count in range(1, STAGES[kind] + 1)
        for chain in combinations(plans, count)
    ]


def stop_rule(
    kind: str, plans_of: Sequence[list[Plan]], subjects: Sequence[Subject], times: Times
) -> list[dict[str, Any]]:
    """Stop rules for several mean costs, in both units, with their answers to the test videos."""
    found: list[dict[str, Any]] = []
    for unit in ("gmacs", "ms"):
        seeds = [
            _stop_rules(
                STAGES[kind],
                plans,
                subject,
                times.stages if unit == "ms" else partial(chain_gmacs, subject.size),
            )
            for plans, subject in zip(plans_of, subjects, strict=True)
        ]
        # From the highest cost on, because the cheapest may be too low for some seed's cascades.
        for each in zip(*map(reversed, seeds), strict=False):
            gaps = torch.stack([right - fixed for _, _, right, fixed in each]).mean(0)
            found.append(
                {
                    "plans": kind,
                    "unit": unit,
                    "stages": [text for text, _, _, _ in each],
                    "mean": statistics.mean(mean for _, mean, _, _ in each),
                    "stop_rule": statistics.mean(right.mean().item() for _, _, right, _ in each),
                    "fixed": statistics.mean(fixed.mean().item() for _, _, _, fixed in each),
                    "difference": gaps.mean().item(),
                    "interval": bootstrap(gaps, 2000),
                }
            )
    return found


def _stop_rules(
    most: int, plans: list[Plan], subject: Subject, costs: Callable[[Sequence[Plan]], list[float]]
) -> list[tuple[str, float, Tensor, Tensor]]:
    """For each mean cost a description, the mean cost in the test, and what was right by clip, ``[N]``, of
    the stop rule and of single plans at the same mean cost.
    """
    sets = {split: (subject.logits(split, plans), subject.labels(split)) for split in ("val", "test")}
    single = [costs([plan])[0] for plan in plans]
    prices = sorted(single)
    targets = sorted(prices[1:] + [math.sqrt(a * b) for a, b in pairwise(prices)])
    # A first stage costs more than its plan alone, if the frames of a further stage are read with its own.
    ordered = sorted(plans, key=lambda plan: costs([plan])[0])
    least = min(costs(pair)[0] for pair in combinations(ordered, 2))
    targets = [target for target in targets if target >= least]
    hull = upper_hull(
        [
            (price, i, (sets["val"][0][i].argmax(-1) == sets["val"][1]).double())
            for i, price in enumerate(single)
        ]
    )
    rules = []
    for cascade in choose_cascades(plans, *sets["val"], costs, targets, min(most, len(plans))):
        _, mean, right, fixed = compared(cascade, plans, sets["test"], costs(cascade.stages), hull)
        stages = " > ".join(f"{plan.grid}:{plan.keep}" for plan in cascade.stages)
        averaged = ", averaged" if cascade.average else ""
        rules.append((f"{stages} at {cascade.threshold:.3f}{averaged}", mean, right, fixed))
    return rules


def stop_report(stops: Sequence[dict[str, Any]]) -> list[str]:
    """The table of the stop rules."""
    rows = [["plans", "mean cost", "single", "stop rule", "difference (95 %)", "stages of each seed"]]
    for stop in stops:
        low, high = stop["interval"]
        rows.append(
            [
                *(stop["plans"], f"{stop['mean']:.4g} {stop['unit']}"),
                *(f"{100 * stop['fixed']:.1f} %", f"{100 * stop['stop_rule']:.1f} %"),
                f"{100 * stop['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                "; ".join(stop["stages"]),
            ]
        )
    return ["", "stop rules against single budgets at equal mean cost (multi)", *table(rows)]
