"""Tunes cascades on held-out data: which plans run in turn, and at which confidence to stop.

Shapes: N clips, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, product

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import measure_latencies
from fluxvit.data.dataset import ClipDataset
from fluxvit.deploy.cascade import measure_chains, prefixes
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.budget import Budget
from fluxvit.flux.cascade import chain_gmacs, chain_tokens, stage_answer
from fluxvit.flux.cost import NetworkSize
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.utils.system import device_name

# Temperatures lie between 1 / this and this. Without limits there is no best one if every clip is right.
_HOTTEST = 20.0
# Largest number of thresholds to try. They are spread evenly over the confidences that occur.
_MOST_THRESHOLDS = 500


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy and cost of a cascade at a threshold.

    Args:
        threshold: Confidence at which an answer is final.
        cost: Mean cost of a clip.
        correct: Number of correct answers.
        reach: Share of clips that reached each stage.
    """

    threshold: float
    cost: float
    correct: int
    reach: tuple[float, ...]


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the negative log-likelihood under softmax(logits / temperature).

    The loss is convex in 1 / temperature, so bisection of its slope finds the only minimum, in float64.

    Args:
        logits: ``[N, classes]``.
        labels: int64 ``[N]``.

    Returns:
        A number from 0.05 to 20.
    """
    logits = logits.double()
    target = logits.gather(1, labels[:, None]).mean()
    low, high = 1 / _HOTTEST, _HOTTEST  # Limits of 1 / temperature.
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = ((logits * middle).softmax(-1) * logits).sum(-1).mean() - target
        low, high = (low, middle) if slope > 0 else (middle, high)
    return 1 / (low * high) ** 0.5


def cascade_curve(
    logits: Sequence[Tensor],
    labels: Tensor,
    costs: Sequence[float],
    temperatures: Sequence[float],
    average: bool = False,
) -> list[CurvePoint]:
    """Accuracy and mean cost of a cascade for each threshold.

    Args:
        logits: Logits of each stage, ``[N, classes]``.
        labels: int64 ``[N]``.
        costs: Cost of a clip that stops at each stage, including the stages before.
        temperatures: Temperature of each stage.
        average: As in :class:`~fluxvit.flux.plan.Cascade`.

    Returns:
        A point for each threshold, beginning with 0, at which all clips stop at the first stage.
    """
    confidence, answers = _confidences(logits, temperatures, average)
    right = answers == labels
    seen = confidence[:-1].unique()
    between = (seen[1:] + seen[:-1]) / 2
    if len(between) > _MOST_THRESHOLDS:
        between = between[torch.linspace(0, len(between) - 1, _MOST_THRESHOLDS).round().long()]
    thresholds = torch.cat([between.new_tensor([0.0]), between, between.new_tensor([1.0])])
    stop = _stops(confidence, thresholds)
    prices = torch.tensor(costs, dtype=torch.float64)
    means = prices[stop].mean(1).tolist()
    correct = right.gather(0, stop).sum(1).tolist()
    reach = torch.stack([(stop >= n).double().mean(1) for n in range(len(logits))], 1).tolist()
    return [
        CurvePoint(*point)
        for point in zip(thresholds.tolist(), means, correct, map(tuple, reach), strict=True)
    ]


def _confidences(
    logits: Sequence[Tensor], temperatures: Sequence[float], average: bool
) -> tuple[Tensor, Tensor]:
    """Confidence after each stage, float64 ``[S, N]``, and the answers, int64 ``[S, N]``."""
    after = [stage_answer(logits[: n + 1], temperatures, average) for n in range(len(logits))]
    best = [answer.max(-1) for answer in after]
    return torch.stack([b.values for b in best]), torch.stack([b.indices for b in best])


def _stops(confidence: Tensor, thresholds: Tensor) -> Tensor:
    """Stages at which clips stop, int64 ``[thresholds, N]``."""
    last = len(confidence) - 1
    stop = confidence.new_full((len(thresholds), confidence.shape[1]), last, dtype=torch.long)
    for stage in reversed(range(last)):
        stop[confidence[stage] >= thresholds[:, None]] = stage
    return stop


def tune_cascade(
    stages: Sequence[Plan],
    logits: Sequence[Tensor],
    labels: Tensor,
    costs: Sequence[float],
    target: float,
) -> Cascade:
    """Tune a cascade of given stages.

    The temperatures are fitted. Among the thresholds whose mean cost is within the target, the most accurate
    one is used, and the cheapest of equally accurate ones. The answers of stages are averaged if that is more
    accurate.

    Args:
        stages: The plans, cheapest first.
        logits, labels, costs: Held-out data, as in :func:`cascade_curve`.
        target: Highest mean cost, in the unit of ``costs``.

    Raises:
        ValueError: The first stage alone costs more than the target.
    """
    temperatures = [fit_temperature(rows, labels) for rows in logits]
    (found,) = _tune([_Chain(tuple(stages), logits, temperatures, costs)], labels, [target])
    return found


@dataclass(frozen=True)
class _Chain:
    """Stages, and the held-out data and costs of each."""

    stages: tuple[Plan, ...]
    logits: Sequence[Tensor]
    temperatures: Sequence[float]
    costs: Sequence[float]


def _tune(chains: Sequence[_Chain], labels: Tensor, targets: Sequence[float]) -> list[Cascade]:
    """The best cascade within each target. Ties go to the cheapest, and then to the first."""
    best: list[tuple[CurvePoint, _Chain, bool] | None] = [None] * len(targets)
    for chain, average in product(chains, (False, True)):
        curve = cascade_curve(chain.logits, labels, chain.costs, chain.temperatures, average)
        for i, target in enumerate(targets):
            fitting = [point for point in curve if point.cost <= target]
            if not fitting:
                continue
            point, former = max(fitting, key=_rank), best[i]
            if former is None or _rank(point) > _rank(former[0]):
                best[i] = point, chain, average
    cascades = []
    for target, row in zip(targets, best, strict=True):
        if row is None:
            least = min(chain.costs[0] for chain in chains)
            raise ValueError(f"a mean cost of {target:.4g}: the cheapest first stage takes {least:.4g}")
        point, chain, average = row
        cascades.append(
            Cascade(
                chain.stages,
                point.threshold,
                tuple(chain.temperatures),
                Measured(correct=point.correct, total=len(labels)),
                average,
                point.reach,
            )
        )
    return cascades


def _rank(point: CurvePoint) -> tuple[int, float]:
    return point.correct, -point.cost


def choose_cascades(
    plans: Sequence[Plan],
    logits: Sequence[Tensor],
    labels: Tensor,
    costs: Callable[[Sequence[Plan]], Sequence[float]],
    targets: Sequence[float],
    max_stages: int = 3,
) -> list[Cascade]:
    """The best cascade of two to ``max_stages`` plans for each target, tuned as in :func:`tune_cascade`.

    Args:
        plans: Plans from which the stages are chosen, at least two.
        logits: Logits of each plan on held-out data, ``[N, classes]``.
        labels: int64 ``[N]``.
        costs: Returns the costs of the first one, two, ... plans of a sequence.
        targets: Highest mean costs.
        max_stages: Largest number of stages in a cascade.

    Returns:
        A cascade for each target. Its accuracy is the best of many on these data, and therefore optimistic.

    Raises:
        ValueError: There are fewer than two plans or stages, or the cheapest plan alone costs more than a
            target.
    """
    if min(len(plans), max_stages) < 2:
        raise ValueError(
            f"a cascade of {max_stages} of {len(plans)} plans: two of each are needed; optimise for two "
            "budgets or more first"
        )
    temperatures = [fit_temperature(rows, labels) for rows in logits]
    order = sorted(range(len(plans)), key=lambda i: costs([plans[i]])[0])
    chains = []
    for count in range(2, min(max_stages, len(plans)) + 1):
        for chosen in combinations(order, count):
            stages = tuple(plans[i] for i in chosen)
            chains.append(
                _Chain(stages, [logits[i] for i in chosen], [temperatures[i] for i in chosen], costs(stages))
            )
    return _tune(chains, labels, targets)


def tune_cascades(
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    targets: Sequence[Budget],
    *,
    plans: Sequence[Plan] | None = None,
    max_stages: int = 3,
    workers: int = 0,
    progress: bool = True,
) -> list[Cascade]:
    """Tune the best cascade of a checkpoint's plans for each mean budget.

    ``fluxvit predict --cascade`` uses the cascades of the plan table (``checkpoint.cascades``,
    ``checkpoint.save_plans``). Budgets in milliseconds apply to the device of the model. For them a cascade
    is chosen by the sum of the latencies of its plans, and its threshold by the latency of the full cascade.

    Args:
        dataset: Held-out videos. They must not be the test videos.
        targets: Mean budgets of a clip.
        plans: Plans from which the stages are chosen. By default they are those of the plan table.
        max_stages: Largest number of stages in a cascade.
        workers: Number of processes that decode; with 0 this process decodes.

    Returns:
        A cascade for each target, with its accuracy on the dataset and its mean GMACs, and its mean latency
        for budgets in milliseconds.

    Raises:
        ValueError: There are fewer than two plans, or the cheapest alone costs more than a target.
        VideoError: A video cannot be read.
    """
    model = checkpoint.model
    plans = list(dict.fromkeys(checkpoint.plans if plans is None else plans))
    latencies = {}
    if any(target.latency_ms is not None for target in targets):
        latencies = dict(zip(plans, (row.p50 for row in measure_latencies(model, plans)), strict=True))
    priced = [(target, *_price(target, model.config.size, latencies)) for target in targets]
    for target, limit, costs in priced:
        least = min((costs([plan])[0] for plan in plans), default=0)
        if least > limit:
            unit = str(target).split(" ")[1]
            raise ValueError(f"budget {target}: the cheapest plan alone takes {least:.3g} {unit}")
    title = "Predicting" if progress else None
    results = predict_plans(checkpoint, dataset, plans, workers=workers, progress=title)
    logits, labels = [result.logits for result in results], results[0].labels
    cascades = []
    for target, limit, costs in priced:
        (cascade,) = choose_cascades(plans, logits, labels, costs, [limit], max_stages)
        facts = Measured()
        if target.latency_ms is not None:
            whole = measure_chains(model, prefixes(cascade.stages))
            rows = [logits[plans.index(plan)] for plan in cascade.stages]
            cascade = tune_cascade(cascade.stages, rows, labels, whole, max(limit, whole[0]))
            device = device_name(checkpoint.device)
            facts = Measured(latency_ms=cascade.mean(whole), device=device)
        assert cascade.measured is not None
        facts = replace(
            facts,
            correct=cascade.measured.correct,
            total=cascade.measured.total,
            gmacs=cascade.mean(chain_gmacs(model.config.size, cascade.stages)),
        )
        cascades.append(replace(cascade, measured=facts))
    return cascades


def _price(
    target: Budget, size: NetworkSize, latencies: Mapping[Plan, float]
) -> tuple[float, Callable[[Sequence[Plan]], Sequence[float]]]:
    """The number of a budget, and a function for the costs of the first one, two, ... plans in its unit."""
    if target.tokens is not None:
        return target.tokens, chain_tokens
    if target.gflops is not None:
        return target.gflops, lambda stages: chain_gmacs(size, stages)
    assert target.latency_ms is not None
    return target.latency_ms, lambda stages: list(accumulate(latencies[plan] for plan in stages))
