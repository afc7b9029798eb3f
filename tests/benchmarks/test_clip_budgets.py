"""The rules of ``benchmarks/clip_budgets.py``."""

from __future__ import annotations

import torch

from clip_budgets import compare, holding
from fluxvit import Checkpoint, create_model
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan


def test_tokens_that_hold_a_share_are_counted_from_the_highest_score() -> None:
    weights = torch.tensor([[0.1, 0.6, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]])
    assert holding(weights, 0.5).tolist() == [1, 2]
    assert holding(weights, 0.75).tolist() == [2, 3]


def test_a_rule_gains_where_scores_tell_the_need_and_not_where_they_do_not() -> None:
    plans = [Plan(SamplingGrid(8, 16, 16), keep, selector="moving_pixels") for keep in (1, 4, 16)]
    needs_more = torch.arange(40) % 4 == 0  # The answer of the cheapest plan is wrong for these.
    wrong = torch.stack([needs_more, torch.zeros(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)])
    logits = torch.stack([~wrong, wrong], 2).float()
    spread = torch.where(needs_more[:, None], torch.ones(16), torch.eye(16)[0] + 1e-6).double()
    even = torch.linspace(1, 2, 16, dtype=torch.float64).repeat(40, 1)
    checkpoint = Checkpoint(create_model("fluxvit_nano", num_classes=2))
    gains = []
    for scores in (spread, even):
        answers = {
            "logits": logits,
            "labels": torch.zeros(40, dtype=torch.long),
            "scores": {"moving": scores},
        }
        first = compare(checkpoint, plans, answers, answers)["share, moving"][1]
        gains.append((first[1] - first[2]).mean().item())
    assert gains[0] > 0.02
    assert abs(gains[1]) < 1e-9
