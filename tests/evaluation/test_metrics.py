"""Figures against what can be counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fluxvit.evaluation.metrics import average_precision, mean_of_classes, measure

NAN = math.nan


def rows(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def test_counts() -> None:
    found = measure(
        rows([0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [NAN, NAN, NAN]),
        torch.tensor([0, 0, 1, 1, 1]),
    )
    assert (found.top1.correct, found.top1.total) == (3, 5)
    assert found.top5 is None
    assert found.per_class == [1.0, pytest.approx(1 / 3), None]
    assert found.mean_class == pytest.approx(2 / 3)
    # The clip without an answer is in no column.
    assert found.confusion.tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert found.nll == pytest.approx(-sum(map(math.log, (0.7, 0.5, 0.8, 0.3, 1 / 3))) / 5)


def test_ties_count_against_us() -> None:
    logits = torch.zeros(6, 6)
    logits[1:, :5] = 1.0  # Five classes tie before the sixth.
    found = measure(logits, torch.tensor([0, 0, 1, 2, 5, 4]))
    assert found.top1.correct == 0
    # All six tie in the first row; the sixth class is sixth in the fifth.
    assert found.top5 is not None
    assert found.top5.correct == 4
    assert found.confusion.diagonal().sum() == 0
    assert found.confusion.sum() == 6


def test_top5_needs_six_classes() -> None:
    labels = torch.tensor([0])
    assert measure(torch.zeros(1, 5), labels).top5 is None
    assert measure(torch.zeros(1, 6), labels).top5 is not None


def test_logits_do_as_well() -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * 5 + 3
    labels = torch.arange(50) % 8
    one, other = measure(logits, labels), measure(logits.log_softmax(-1), labels)
    assert one.top1 == other.top1
    assert one.nll == pytest.approx(other.nll)
    assert one.nll == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))


def test_no_answers_at_all() -> None:
    found = measure(torch.full((3, 4), NAN), torch.tensor([0, 1, 1]))
    assert found.top1.correct == 0
    assert found.mean_class == 0
    assert found.nll == pytest.approx(math.log(4))


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.1, 0.5], [0.7, 0.1, 0.5], [0.6, 0.2, 0.5], [NAN] * 3])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]).float()
    # First: ranks 1 and 3 of its clips. Second: three clips tie for ranks 2 to 4, one of them is right; the
    # one without an answer is never found. Third: no clip shows it.
    found = average_precision(scores, targets)
    assert found == [pytest.approx((1 / 1 + 2 / 3) / 2), pytest.approx((1 / 4) / 2), None]
    assert mean_of_classes(found) == pytest.approx((5 / 6 + 1 / 8) / 2)
    assert mean_of_classes([None]) == 0


def test_average_precision_does_not_depend_on_the_order_of_clips() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (40, 3), generator=generator).float()
    targets = torch.randint(2, (40, 3), generator=generator).float()
    found = average_precision(scores, targets)
    order = torch.randperm(40, generator=generator)
    assert average_precision(scores[order], targets[order]) == pytest.approx(found)
    assert average_precision(scores.sigmoid(), targets) == pytest.approx(found)  # Ranks alone count.
    assert average_precision(targets, targets) == [1, 1, 1]
    # Scores that tell nothing are worth the share of the clips that show the class.
    shares = targets.mean(0).tolist()
    assert average_precision(torch.zeros(40, 3), targets) == pytest.approx(shares)
    nothing = average_precision(torch.full((40, 3), NAN), targets)
    assert nothing == [0, 0, 0]
