"""How well queries find what belongs to them: recall and ranks in both directions, of any two modalities.

Everything is computed from a matrix of similarities, in blocks of queries, so that no second matrix of its
size is made. What ties with the right answer ranks before it: an encoder that tells nothing apart finds
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxvit.data.texts import plain_caption

_BLOCK = 256  # Queries at once.


@dataclass(frozen=True)
class Recall:
    """Figures of one direction.

    Args:
        ranks: int64 ``[Q]``, from 1: of each query's best answer, behind all wrong ones as similar as it.
        candidates: Among how many.
    """

    ranks: Tensor
    candidates: int

    def at(self, count: int) -> float:
        """R@count: the part of the queries whose answer is among the first so many."""
        return (self.ranks <= count).double().mean().item()

    @property
    def median_rank(self) -> float:
        """The middle rank; of an even number of queries the mean of the two middle ones."""
        return self.ranks.double().quantile(0.5).item()

    @property
    def mean_rank(self) -> float:
        """The mean rank."""
        return self.ranks.double().mean().item()


def recall(similarity: Tensor, belongs: Sequence[Sequence[int]]) -> Recall:
    """Rank candidates by similarity to each query.

    Args:
        similarity: ``[Q, N]``, of queries to candidates.
        belongs: For each query the candidates that are right; the best one of them counts, and the others
            do not stand in its way.

    Raises:
        ValueError: A query has no right candidate, or one that is not there; a similarity is no number.
    """
    queries, candidates = similarity.shape
    if len(belongs) != queries:
        raise ValueError(f"{len(belongs)} lists of right candidates for {queries} queries")
    for query, answers in enumerate(belongs):
        if not answers or not all(0 <= index < candidates for index in answers):
            raise ValueError(
                f"query {query}: its right candidates are {list(answers)}; give at least one, "
                f"of 0..{candidates - 1}"
            )
    ranks = []
    for first in range(0, queries, _BLOCK):
        rows = similarity[first : first + _BLOCK]
        if rows.isnan().any():
            query = first + int(rows.isnan().any(1).nonzero()[0])
            raise ValueError(f"query {query}: a similarity is not a number; is an embedding broken?")
        right = torch.zeros_like(rows, dtype=torch.bool)
        for row, indices in enumerate(belongs[first : first + _BLOCK]):
            right[row, list(indices)] = True
        best = rows.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((rows >= best) & ~right).sum(1))
    return Recall(torch.cat(ranks).cpu(), candidates)


def right_videos(captions: Sequence[Sequence[str]]) -> list[list[int]]:
    """The videos that each caption is right for.

    A caption that several videos share is right for all of them: nothing could tell which one is meant.
    Captions are equal if they differ only in case and white space.

    Args:
        captions: Those of each video.

    Returns:
        For every caption, video by video, the numbers of its videos, rising.
    """
    videos: dict[str, list[int]] = {}
    plain = [[plain_caption(caption) for caption in row] for row in captions]
    for number, row in enumerate(plain):
        for caption in dict.fromkeys(row):
            videos.setdefault(caption, []).append(number)
    return [videos[caption] for row in plain for caption in row]


def answers_of(belongs: Sequence[Sequence[int]], candidates: int) -> list[list[int]]:
    """The other direction: for each candidate the queries that it is right for."""
    queries: list[list[int]] = [[] for _ in range(candidates)]
    for query, indices in enumerate(belongs):
        for index in indices:
            queries[index].append(query)
    return queries


def dual_softmax(similarity: Tensor, scale: float = 1.0) -> Tensor:
    """Similarities ``[Q, N]`` times each candidate's softmax over all queries (Cheng et al. 2021,
    arXiv 2109.04290): a candidate that is near to every query counts less for each.

    It takes all queries at once, which nobody has who searches: figures with it stand in a row of their own.

    Args:
        scale: Factor of the similarities in the softmax. InternVideo2 and its heirs take cosines as they are
            (1).
    """
    return similarity * (similarity * scale).softmax(0)
