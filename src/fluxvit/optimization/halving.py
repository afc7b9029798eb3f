"""The search for the best sampling of each budget on few clips: successive halving on paired clips.

A *sampling* is a grid, a number of kept tokens and a selector; each is tried with all heads of the model.
All samplings see the same clips, a growing prefix of a shuffled set. After each prefix the samplings that are
significantly worse than the leader are dropped, and the better third of the others stays (successive halving:
Jamieson and Talwalkar 2016; racing on paired differences: Maron and Moore 1994).

On a prefix, samplings are ranked by the mean probability that they give to the true class. Every clip changes
this score, whereas few clips change the accuracy; and no single clip outweighs the others, as may happen with
the log-probability. (On 600 MotionWorld clips and 33 to 58 samplings, the leader after 48 clips was in the
end 1.0 to 2.0 points of accuracy behind the best by this score, 1.1 to 2.6 by log-probability, 2.4 to 3.0 by
accuracy.) On all clips the accuracy decides, because it is the goal.

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
"""Factor by which each prefix is longer than the one before, and by which fewer samplings see it."""
SHARE = 0.135
"""Largest cost of the prefixes, as a share of the cost of an exhaustive search, if the first prefix is longer
than :data:`FEWEST_CLIPS`."""
FEWEST_CLIPS, FINALISTS = 24, 3
"""Fewest clips of the first prefix, and number of samplings of a budget that see all clips if they do not
differ significantly."""
# The interval is 99 %, two-sided, because many samplings are compared several times.
_Z = 2.576
# Scores that surely differ by less than the first number, and final accuracies within the second, count as
# equal.
_SAME_SCORE, _SAME_ACCURACY = 0.005, 0.0025


@dataclass(frozen=True, order=True)
class Sampling:
    """The tokens of a clip that the blocks see: ``keep`` tokens of ``grid``, chosen by ``selector``."""

    keep: int
    grid: SamplingGrid
    selector: str

    def gmacs(self, size: NetworkSize) -> float:
        """All multiply-accumulates of a clip with one head, in 1e9."""
        return grid_cost(size, self.grid, self.keep, self.selector).total / 1e9


class Table:
    """The results of each sampling on each clip so far.

    Args:
        clips: N, the number of clips in the shuffled set.
        heads: H, the number of heads.
    """

    def __init__(self, clips: int, heads: int) -> None:
        self._shape = clips, heads
        self._truth: dict[Sampling, np.ndarray] = {}
        self._right: dict[Sampling, np.ndarray] = {}
        self.usable = np.ones(clips, bool)
        """False where a clip cannot be read."""

    def put(self, sampling: Sampling, clips: Sequence[int], truth: np.ndarray, right: np.ndarray) -> None:
        """Store probabilities of the true class, and whether answers were right, ``[n, H]`` for n clips."""
        if sampling not in self._truth:
            self._truth[sampling] = np.full(self._shape, np.nan)
            self._right[sampling] = np.zeros(self._shape, bool)
        self._truth[sampling][clips] = truth
        self._right[sampling][clips] = right

    def seen(self, sampling: Sampling) -> np.ndarray:
        """bool ``[N]``: the clips on which a sampling was tried."""
        return ~np.isnan(self._truth[sampling][:, 0])

    def truth(self, sampling: Sampling, head: int) -> np.ndarray:
        """float64 ``[n]``: probabilities of the true class on the clips seen, in their order."""
        return self._truth[sampling][self.seen(sampling), head]

    def right(self, sampling: Sampling, head: int) -> np.ndarray:
        """bool ``[n]``: whether the answers on the clips seen were right."""
        return self._right[sampling][self.seen(sampling), head]

    def best_head(self, sampling: Sampling) -> int:
        """The head with the highest mean probability of the true class."""
        return int(self._truth[sampling][self.seen(sampling)].mean(0).argmax())

    def most_accurate_head(self, sampling: Sampling) -> int:
        """The head that was right most often; ties go to the one with the higher mean probability."""
        heads = range(self._shape[1])
        return max(heads, key=lambda h: (self.right(sampling, h).sum(), self.truth(sampling, h).mean()))

    def score(self, sampling: Sampling, head: int) -> Score:
        """Accuracy on the clips seen."""
        right = self.right(sampling, head)
        return Score(int(right.sum()), len(right))


def paired_interval(one: np.ndarray, other: np.ndarray, z: float = _Z) -> tuple[float, float]:
    """Confidence interval of the mean of ``one - other``, numbers of the same clips ``[n]``; 99 % by default.

    It is the normal interval from the standard deviation of the differences, and infinite for a single clip.
    """
    gap = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    if len(gap) < 2:
        return -math.inf, math.inf
    half = z * gap.std(ddof=1) / math.sqrt(len(gap))
    return float(gap.mean() - half), float(gap.mean() + half)


def first_prefix(counts: Sequence[int], clips: int, share: float = SHARE) -> int:
    """Length of the first prefix, chosen so that halving costs at most ``share`` of the exhaustive search.

    All samplings are assumed to cost the same. The length is at least :data:`FEWEST_CLIPS`, if there are as
    many clips.

    Args:
        counts: Number of samplings of each budget.
        clips: N, the number of clips.
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
    """The samplings that stay for a longer prefix, best first. All were tried on the same clips.

    Samplings are dropped if the paired interval of their distance to the leader is above 0, and then all but
    the best third (at least three). If all that are left are surely within half a point of the leader, only
    the cheapest stays.
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
        table: Table of results, which ``measure`` fills.
        candidates: Samplings of each budget.
        measure: Tries samplings on a range of the shuffled clips and stores the results in the table.
        cost: Returns the cost of a sampling, which decides between equals.

    Returns:
        For each budget the samplings that have seen all clips. Even a single remaining sampling sees all
        clips: its interval of accuracy becomes narrower, and clips that did not choose it are counted, too.
    """
    clips = len(table.usable)
    live = {budget: list(samplings) for budget, samplings in candidates.items()}
    seen, length = 0, first_prefix([len(samplings) for samplings in live.values()], clips)
    while True:
        # One call for all budgets lets samplings of the same grid share its embedding.
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
    """The most accurate of the samplings that saw all clips, and its head.

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
    """Multiply-accumulates in 1e9 of trying samplings with all heads on one clip.

    Selectors that read embeddings share those of a grid's pool. For every other selector, the largest number
    of tokens that it keeps is embedded. No selector scores a grid twice.
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
