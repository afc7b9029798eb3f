from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluxvit import Budget, Plan, SamplingGrid
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.flux.cascade import chain_gmacs, chain_tokens
from fluxvit.flux.plan import Cascade
from fluxvit.optimization.cascade import (
    cascade_curve,
    choose_cascades,
    fit_temperature,
    tune_cascade,
    tune_cascades,
)
from spending import follow

CHEAP, MIDDLE, DEAR = (Plan(SamplingGrid(8, 16, 16), keep) for keep in (4, 8, 16))


def some_logits(clips: int, sharpness: float, seed: int) -> tuple[Tensor, Tensor]:
    """Logits whose softmax is exactly how likely each class is, times a sharpness; and labels."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(clips, 4, generator=draw, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0]
    return sharpness * logits, labels


def two_stages() -> tuple[list[Tensor], Tensor]:
    """Six clips, two classes: the first stage is less sure, and is wrong where it is least sure."""
    margins = torch.tensor([4.0, 3.0, 2.0, -0.5, 1.0, -0.2])
    first = torch.stack([margins, torch.zeros(6)], 1)
    second = torch.tensor([[5.0, 0.0]]).expand(6, 2)
    return [first, second], torch.zeros(6, dtype=torch.long)


def labelled(clip: Path, *labels: int) -> ClipDataset:
    return ClipDataset(Manifest(tuple(Entry(path=clip, label=label) for label in labels), (), "digest"))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_the_logits_were_multiplied_by(sharpness: float) -> None:
    logits, labels = some_logits(4000, sharpness, seed=1)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.1)


def test_temperature_is_the_minimum_of_the_likelihood() -> None:
    logits, labels = some_logits(300, 2.0, seed=2)
    best = fit_temperature(logits, labels)
    loss = [torch.nn.functional.cross_entropy(logits / (best * step), labels) for step in (0.98, 1, 1.02)]
    assert loss[1] < min(loss[0], loss[2])
    # Where every clip is right, or nothing is told, it stays finite.
    assert fit_temperature(10 * torch.eye(3), torch.arange(3)) == pytest.approx(0.05)
    assert 0.05 <= fit_temperature(torch.zeros(3, 3), torch.arange(3)) <= 20


def test_curve_goes_from_the_first_stage_alone_to_all_of_both() -> None:
    logits, labels = two_stages()
    curve = cascade_curve(logits, labels, [1.0, 3.0], [1.0, 1.0])
    assert (curve[0].cost, curve[0].correct, curve[0].reach) == (1, 4, (1, 0))
    assert (curve[-1].cost, curve[-1].correct, curve[-1].reach) == (3, 6, (1, 1))
    # A higher threshold never costs less.
    assert [point.cost for point in curve] == sorted(point.cost for point in curve)
    assert curve[2].reach == (1, pytest.approx(2 / 6))


def test_the_most_accurate_threshold_within_the_cost_and_then_the_cheapest() -> None:
    logits, labels = two_stages()
    # Going on for the two least sure clips, 1 + 2 / 6 * 2 in the mean, makes all right; more is wasted.
    cascade = tune_cascade([CHEAP, DEAR], logits, labels, [1.0, 3.0], target=3.0)
    assert cascade.mean([1.0, 3.0]) == pytest.approx(1 + 2 / 6 * 2)
    assert (cascade.measured.correct, cascade.measured.total) == (6, 6)
    tight = tune_cascade([CHEAP, DEAR], logits, labels, [1.0, 3.0], target=1.4)
    assert tight.measured.correct == 5
    assert tight.mean([1.0, 3.0]) <= 1.4
    with pytest.raises(ValueError, match="the cheapest first stage takes 1"):
        tune_cascade([CHEAP, DEAR], logits, labels, [1.0, 3.0], target=0.9)


def test_following_a_cascade_gives_what_its_curve_says() -> None:
    logits, labels = zip(*(some_logits(200, s, seed=3) for s in (1.0, 1.5, 2.0)), strict=True)
    rows = [
        x + torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i, x in enumerate(logits)
    ]
    costs = [1.0, 2.5, 6.0]
    cascade = tune_cascade([CHEAP, MIDDLE, DEAR], rows, labels[0], costs, target=3.0)
    stop, answers = follow(cascade, rows)
    assert int((answers == labels[0]).sum()) == cascade.measured.correct
    assert torch.tensor(costs)[stop].mean().item() == pytest.approx(cascade.mean(costs))
    assert 0 < cascade.threshold < 1


def test_answers_are_averaged_where_that_is_better() -> None:
    # The second stage is sure and wrong where the first is nearly right: only the mean of both is right.
    first = torch.tensor([[0.0, 0.9], [0.9, 0.0]]).repeat(8, 1)
    second = torch.tensor([[0.5, 0.0], [0.0, 0.5]]).repeat(8, 1)
    labels = torch.tensor([1, 0]).repeat(8)
    curve = cascade_curve([first, second], labels, [1, 2], [1, 1], average=True)
    assert curve[-1].correct == 16
    assert cascade_curve([first, second], labels, [1, 2], [1, 1])[-1].correct == 0


def test_the_pair_is_chosen_that_is_worth_its_cost() -> None:
    labels = torch.zeros(8, dtype=torch.long)
    right, wrong = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.3])
    half = torch.stack([right, wrong] * 4)
    plans, logits = [DEAR, MIDDLE, CHEAP], [right.expand(8, 2), half, half]
    (cheap, dear) = choose_cascades(plans, logits, labels, chain_tokens, [12, 40])
    # The middle plan tells no more than the cheap one, at twice the tokens.
    assert cheap.stages == dear.stages == (CHEAP, DEAR)
    assert cheap.measured.correct == 8
    with pytest.raises(ValueError, match="optimise for two budgets"):
        choose_cascades(plans[:1], logits[:1], labels, chain_tokens, [12])


def test_a_checkpoint_is_tuned_and_its_cascades_are_kept(checkpoint: Path, clip: Path) -> None:
    info = Checkpoint.load(checkpoint)
    dataset = labelled(clip, 0, 1, 2, 3)
    targets = [Budget(tokens=20), Budget(gflops=1.0)]
    info.cascades = tune_cascades(info, dataset, targets, progress=False)
    size = info.model.config.size
    for cascade in info.cascades:
        assert [plan.keep for plan in cascade.stages] == [12, 24]
        assert cascade.measured.total == 4
        assert cascade.measured.gmacs == pytest.approx(cascade.mean(chain_gmacs(size, cascade.stages)))
    assert info.cascades[0].mean(chain_tokens(info.cascades[0].stages)) <= 20
    info.save_plans(checkpoint)
    again = Checkpoint.load(checkpoint).cascades
    assert again == info.cascades
    assert [c.reach for c in again] == [c.reach for c in info.cascades]
    with pytest.raises(ValueError, match="budget 11 tokens: the cheapest plan alone takes 12 tokens"):
        tune_cascades(info, dataset, [Budget(tokens=11)], progress=False)


def test_reach_must_fall_from_one() -> None:
    for reach in ((1.0,), (0.9, 0.5), (1.0, 1.5), (1.0, -0.1)):
        with pytest.raises(ValueError, match="reach"):
            Cascade((CHEAP, DEAR), 0.5, (1.0, 1.0), reach=reach)
    # Unknown: as if every clip came to the end.
    assert Cascade((CHEAP, DEAR), 0.5, (1.0, 1.0)).mean([4, 20]) == 20
