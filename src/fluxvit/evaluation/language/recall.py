"""Recall and ranks of retrieval in both directions, for any two modalities.

Everything is computed from a matrix of similarities, in blocks of queries, so that no second matrix of its
size is made. Candidates that tie with the right one rank before it, so that an encoder that tells nothing
apart finds nothing.
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
    """The ranks of one direction.

    Args:
        ranks: int64 ``[Q]``, from 1: the rank of each query's best answer, behind all wrong ones that are as
            similar.
    """

    ranks: Tensor

    def at(self, count: int) -> float:
        """R@count: the share of the queries whose answer is among the first ``count``."""
        return (self.ranks <= count).double().mean().item()

    @property
    def record(self) -> dict[str, float]:
        """What result files hold: R@1, R@5 and R@10 in percent, and the median and the mean rank."""
        ranks = self.ranks.double()
        recalls = {f"r{count}": 100 * self.at(count) for count in (1, 5, 10)}
        return {**recalls, "median_rank": ranks.quantile(0.5).item(), "mean_rank": ranks.mean().item()}


def recall(similarity: Tensor, belongs: Sequence[Sequence[int]]) -> Recall:
    """Rank candidates by similarity to each query.

    Args:
        similarity: Similarities ``[Q, N]`` of queries and candidates.
        belongs: The right candidates of each query; the best one counts, and the others are not in its way.

    Raises:
        ValueError: A query has no right candidate, or one that does not exist; a similarity is not a number.
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
    return Recall(torch.cat(ranks).cpu())


def right_videos(captions: Sequence[Sequence[str]]) -> list[list[int]]:
    """The videos that each caption is right for.

    A caption that several videos share is right for all of them, because nothing could tell which one is
    meant. Captions are equal if they differ only in case and white space.

    Args:
        captions: The captions of each video.

    Returns:
        For every caption, video by video, the numbers of its videos in rising order.
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
