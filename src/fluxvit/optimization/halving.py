"""The search for the best sampling of each budget on few clips: successive halving on paired clips.

A *sampling* is a grid, a number of kept tokens and a selector; every head of the model reads what it yields.
All samplings see the same clips, a growing prefix of a shuffled set. After each prefix those that are
significantly worse than the leader are dropped, and of the others the better third stays (successive halving:
Jamieson and Talwalkar 2016; racing on paired differences: Maron and Moore 1994).

On a prefix samplings are ranked by the mean probability that they give to the truth. It moves with every
clip, where right or wrong moves with few; and no single clip outweighs the others, as in the log-probability.
(On 600 MotionWorld clips and 33 to 58 samplings, the leader after 48 clips was in the end 1.0 to 2.0 points
of accuracy behind the best by this score, 1.1 to 2.6 by log-probability, 2.4 to 3.0 by accuracy.) Only on all
clips does accuracy decide, because it is the goal.

Shapes: N clips, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fluxvit.evaluation.metrics import Score
from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import get_selector

GROWTH = 3
"""Each prefix is this many times as long as the one before, and this many times fewer samplings see it."""
SHARE = 0.135
"""Share of the cost of an exhaustive search that the prefixes may cost."""
FEWEST_CLIPS, FINALISTS = 8, 3
"""Clips that the first prefix has at least, and samplings of a budget that see all clips unless separated."""
# 99 %, two-sided, because a race compares many samplings several times.
_Z = 2.576
# Samplings whose scores surely differ by less count as equal, and so do final accuracies this close.
_SAME_SCORE, _SAME_ACCURACY = 0.005, 0.0025


@dataclass(frozen=True, order=True)
class Sampling:
    """The tokens of a clip that the blocks see: ``keep`` tokens of ``grid``, chosen by ``selector``."""

    keep: int
    grid: SamplingGrid
    selector: str

    def gmacs(self, size: NetworkSize) -> float:
        """1e9 multiply-accumulates of a clip at one head, everything counted."""
        return grid_cost(size, self.grid, self.keep, self.selector).total / 1e9


class Table:
    """The results of each sampling on each clip so far.

    Args:
        clips: N, the shuffled set.
        heads: H.
    """

    def __init__(self, clips: int, heads: int) -> None:
        self._shape = clips, heads
        self._truth: dict[Sampling, np.ndarray] = {}
        self._right: dict[Sampling, np.ndarray] = {}
        self.usable = np.ones(clips, bool)
        """False where a clip cannot be read."""

    def put(self, sampling: Sampling, clips: Sequence[int], truth: np.ndarray, right: np.ndarray) -> None:
        """Enter the probability of the truth and whether the answer was right, ``[n, H]``, of n clips."""
        if sampling not in self._truth:
            self._truth[sampling] = np.full(self._shape, np.nan)
            self._right[sampling] = np.zeros(self._shape, bool)
        self._truth[sampling][clips] = truth
        self._right[sampling][clips] = right

    def seen(self, sampling: Sampling) -> np.ndarray:
        """bool ``[N]``: the clips that a sampling was tried on."""
        return ~np.isnan(self._truth[sampling][:, 0])

    def truth(self, sampling: Sampling, head: int) -> np.ndarray:
        """float64 ``[n]``: probabilities of the truth on the clips seen, in their order."""
        return self._truth[sampling][self.seen(sampling), head]

    def right(self, sampling: Sampling, head: int) -> np.ndarray:
        """bool ``[n]``: whether the answers on the clips seen were right."""
        return self._right[sampling][self.seen(sampling), head]

    def best_head(self, sampling: Sampling) -> int:
        """The head with the highest mean probability of the truth."""
        return int(self._truth[sampling][self.seen(sampling)].mean(0).argmax())

    def most_accurate_head(self, sampling: Sampling) -> int:
        """The head that was right most often; of equals, the one with the higher mean probability."""
        heads = range(self._shape[1])
        return max(heads, key=lambda h: (self.right(sampling, h).sum(), self.truth(sampling, h).mean()))

    def score(self, sampling: Sampling, head: int) -> Score:
        """Accuracy on the clips seen."""
        right = self.right(sampling, head)
        return Score(int(right.sum()), len(right))


def paired_interval(one: np.ndarray, other: np.ndarray, z: float = _Z) -> tuple[float, float]:
    """Interval of the mean of ``one - other``, figures of the same clips ``[n]``; at ``z`` of 2.576, 99 %.

    It is normal, from the standard deviation of the differences; a single clip's is without bounds.
    """
    gap = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    if len(gap) < 2:
        return -math.inf, math.inf
    half = z * gap.std(ddof=1) / math.sqrt(len(gap))
    return float(gap.mean() - half), float(gap.mean() + half)


def first_prefix(counts: Sequence[int], clips: int, share: float = SHARE) -> int:
    """Length of the first prefix, such that halving costs at most ``share`` of the exhaustive search, if
    every sampling cost the same; :data:`FEWEST_CLIPS` at least, where there are as many.

    Args:
        counts: Samplings of each budget.
        clips: N.
    """

    def cost(length: int) -> int:
        spent, seen, live = 0, 0, list(counts)
        while seen < clips:
            spent += sum(live) * (length - seen)
            seen, length = length, min(clips, GROWTH * length)
            live = [min(count, _survivors(count)) for count in live]
        return spent

    fewest = min(FEWEST_CLIPS, clips)
    fitting = [n for n in range(fewest, clips + 1) if cost(n) <= share * sum(counts) * clips]
    return max(fitting, default=fewest)


def _survivors(count: int) -> int:
    return max(FINALISTS, math.ceil(count / GROWTH))


def cut(table: Table, live: Sequence[Sampling], cost: Callable[[Sampling], float]) -> list[Sampling]:
    """The samplings that go on to a longer prefix, best first; all were tried on the same clips.

    Dropped are those whose paired interval to the leader is above 0, and then all but the best third (three
    at least). If all that are left are surely within half a point of the leader, only the cheapest stays.
    """
    truth = {sampling: table.truth(sampling, table.best_head(sampling)) for sampling in live}
    ranked = sorted(live, key=lambda sampling: (-truth[sampling].mean(), cost(sampling), sampling))
    leader, *others = ranked
    gaps = {sampling: paired_interval(truth[leader], truth[sampling]) for sampling in others}
    equal = [sampling for sampling in others if gaps[sampling][0] <= 0]
    stay = [leader, *equal][: _survivors(len(live))]
    if all(gaps[sampling][1] < _SAME_SCORE for sampling in stay[1:]):
        stay = [min(stay, key=cost)]
    return stay


def halve(
    table: Table,
    candidates: Mapping[int, Sequence[Sampling]],
    measure: Callable[[list[Sampling], range], None],
    cost: Callable[[Sampling], float],
) -> dict[int, list[Sampling]]:
    """Search for each budget's best sampling; budgets are ranked independently and share the passes.

    Args:
        table: Filled as it goes.
        candidates: Samplings of each budget.
        measure: Enters into the table the results of samplings on a range of the shuffled clips.
        cost: Cost of a sampling, to choose between equals.

    Returns:
        For each budget the samplings that have seen all clips. One that is alone has seen them too: they make
        its accuracy's interval narrow, and those that did not choose it make it honest.
    """
    clips = len(table.usable)
    live = {budget: list(samplings) for budget, samplings in candidates.items()}
    seen, length = 0, first_prefix([len(samplings) for samplings in live.values()], clips)
    while True:
        # In one call, so that samplings of the same grid share its embedding.
        measure(sorted({s for samplings in live.values() for s in samplings}), range(seen, length))
        seen = length
        if seen == clips:
            return live
        if table.usable[:seen].any():
            live = {budget: cut(table, samplings, cost) for budget, samplings in live.items()}
        decided = all(len(samplings) == 1 for samplings in live.values())
        length = clips if decided else min(clips, GROWTH * length)


def choose(
    table: Table, finalists: Iterable[Sampling], cost: Callable[[Sampling], float]
) -> tuple[Sampling, int]:
    """The most accurate of samplings that saw all clips, and its head.

    Samplings within a quarter of a point of the best count as equal, because no set of this size can separate
    them; the cheapest of them is chosen.
    """
    heads = {sampling: table.most_accurate_head(sampling) for sampling in finalists}

    def rank(sampling: Sampling) -> tuple[float, float]:
        head = heads[sampling]
        return table.score(sampling, head).accuracy, float(table.truth(sampling, head).mean())

    best = max(rank(sampling)[0] for sampling in heads)
    equal = [sampling for sampling in heads if rank(sampling)[0] >= best - _SAME_ACCURACY]
    chosen = min(equal, key=lambda sampling: (cost(sampling), *(-figure for figure in rank(sampling))))
    return chosen, heads[chosen]


def pass_gmacs(size: NetworkSize, samplings: Iterable[Sampling], heads: int) -> float:
    """1e9 multiply-accumulates of trying samplings at every head on one clip.

    Selectors that read embeddings share those of a grid's pool. For each of the others as many tokens are
    embedded as it keeps at most. No selector scores a grid twice.
    """
    blocks = 0
    embedded: dict[tuple[SamplingGrid, str], int] = {}
    scored: dict[tuple[SamplingGrid, str], int] = {}
    for sampling in samplings:
        grid, selector = sampling.grid, sampling.selector
        cost = grid_cost(size, grid, sampling.keep, selector)
        blocks += cost.blocks + heads * (cost.pooling + cost.classifier)
        shared = "" if get_selector(selector).reads == "embeddings" else selector
        for known, key, macs in (
            (embedded, (grid, shared), cost.embed_kept + cost.embed_dropped),
            (scored, (grid, selector), cost.selection),
        ):
            known[key] = max(known.get(key, 0), macs)
    return (blocks + sum(embedded.values()) + sum(scored.values())) / 1e9
