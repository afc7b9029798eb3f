"""Metrics of predictions.

A clip without an answer (its row is NaN, because it could not be read) is wrong in every figure. Its
probability is the same for each class. N clips, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """The accuracy of ``correct`` answers to ``total`` clips."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        n, p, z = self.total, self.accuracy, 1.959964
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def record(self) -> dict[str, Any]:
        """What result files hold of it."""
        return {**asdict(self), "accuracy": self.accuracy, "interval": self.interval}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Metrics:
    """Figures of a data set.

    Args:
        top1: Clips whose class is the likeliest.
        top5: Clips whose class is among the five likeliest; None if there are no more than five.
        per_class: Accuracy in each class; None where it has no clips.
        confusion: int64 ``[C, C]``: clips of a class (row) that were taken for another (column). A row lacks
            the clips without an answer.
        nll: Mean negative log-likelihood of the true class, in nats.
    """

    top1: Score
    top5: Score | None
    per_class: list[float | None]
    confusion: Tensor
    nll: float

    @property
    def mean_class(self) -> float:
        """Mean accuracy of the classes that have clips."""
        return mean_of_classes(self.per_class)

    @property
    def record(self) -> dict[str, Any]:
        """What result files hold of it, without the confusion."""
        low, high = self.top1.interval
        return {
            "top1": self.top1.accuracy,
            "low": low,
            "high": high,
            "correct": self.top1.correct,
            "total": self.top1.total,
            "top5": None if self.top5 is None else self.top5.accuracy,
            "mean_class": self.mean_class,
            "nll": self.nll,
            "per_class": self.per_class,
        }


def measure(log_probabilities: Tensor, labels: Tensor) -> Metrics:
    """Figures of predictions.

    A class that others tie with ranks behind all of them: what does not tell classes apart is never right.

    Args:
        log_probabilities: ``[N, C]``; logits will do. Rows that are not numbers are clips without an answer.
        labels: int64 ``[N]``, below C.
    """
    total, classes = log_probabilities.shape
    answered = ~log_probabilities.isnan().any(-1)
    rows = log_probabilities.double().where(answered[:, None], torch.zeros((), dtype=torch.float64))
    rows = rows.log_softmax(-1)
    true = rows.gather(1, labels[:, None])
    rank = (rows >= true).sum(1) - 1
    rank[~answered] = classes
    right = rank < 1
    # Of classes that tie the wrong one is the answer, as it is in the score.
    others = rows.scatter(1, labels[:, None], -math.inf)
    answer = torch.where(right, labels, others.argmax(1)) if classes > 1 else labels
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    ones = torch.ones(int(answered.sum()), dtype=torch.int64)
    confusion.index_put_((labels[answered], answer[answered]), ones, accumulate=True)
    counts = labels.bincount(minlength=classes)
    hits = labels[right].bincount(minlength=classes)
    return Metrics(
        top1=Score(int(right.sum()), total),
        top5=Score(int((rank < 5).sum()), total) if classes > 5 else None,
        per_class=[h / n if n else None for h, n in zip(hits.tolist(), counts.tolist(), strict=True)],
        confusion=confusion,
        nll=float(-true.mean()),
    )


def average_precision(scores: Tensor, targets: Tensor) -> list[float | None]:
    """Average precision of each class: the mean, over its clips, of the precision at the clip's rank.

    Clips of equal score have one rank, that of the last of them, so that their order does not matter. A clip
    without an answer is never found, and counts among those that there are.

    Args:
        scores: ``[N, C]``, the higher the surer; rows that are not numbers are clips without an answer.
        targets: ``[N, C]``, 1 where a clip shows a class, else 0.

    Returns:
        For each class; None for those that no clip shows.
    """
    answered = ~scores.isnan().any(-1)
    totals = targets.sum(0).tolist()
    found: list[float | None] = []
    for values, truth, total in zip(
        scores[answered].t(), targets[answered].double().t(), totals, strict=True
    ):
        if not total:
            found.append(None)
            continue
        values, order = values.sort(descending=True)
        hits = truth[order].cumsum(0)
        is_last = torch.ones(len(values), dtype=torch.bool)  # Of those of equal score.
        is_last[:-1] = values[1:] != values[:-1]
        ranks = is_last.nonzero()[:, 0] + 1
        precision = hits[is_last] / ranks
        gained = hits[is_last].diff(prepend=torch.zeros(1, dtype=torch.float64))
        found.append(float((precision * gained).sum() / total))
    return found


def mean_of_classes(per_class: Sequence[float | None]) -> float:
    """The mean of what classes have, without those that have nothing; 0 if none has."""
    present = [value for value in per_class if value is not None]
    return sum(present) / len(present) if present else 0.0
