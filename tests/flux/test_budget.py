from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Measured, Plan, fit_budget, nearest_plan
from fluxvit.models.config import preset
from fluxvit.models.fluxvit import FluxViT

SIZE = NetworkSize(
    embed_dim=128,
    depth=4,
    mlp_ratio=4,
    patch_size=8,
    tubelet_size=2,
    in_chans=3,
    pool_dim=128,
    num_classes=16,
)
SPARSE, DENSE = SamplingGrid(16, 32, 32), SamplingGrid(64, 160, 160)


def gmacs(plan: Plan) -> float:
    return grid_cost(SIZE, plan.grid, plan.keep).total / 1e9


def fit(budget: Budget, plans: list[Plan], clock: Callable[[Plan], float] = gmacs) -> Plan:
    return fit_budget(budget, plans, SIZE, measure_ms=lambda plan, fresh: clock(plan))


def full(grid: SamplingGrid) -> Plan:
    return Plan(grid, grid.tokens(SIZE.patch_size, SIZE.tubelet_size))


def right(share: float) -> Measured:
    return Measured(correct=round(1000 * share), total=1000)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1024", Budget(tokens=1024)),
        ("64 tokens", Budget(tokens=64)),
        ("20gflops", Budget(gflops=20)),
        ("0.5GFLOPs", Budget(gflops=0.5)),
        ("50ms", Budget(latency_ms=50)),
        ("1 token", Budget(tokens=1)),
        ("64/s", Budget(tokens_per_s=64)),
        ("0.5 tokens/s", Budget(tokens_per_s=0.5)),
    ],
)
def test_parse(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (Budget(tokens=1), "1 token"),
        (Budget(tokens=123456789), "123456789 tokens"),
        (Budget(gflops=20.0), "20 GFLOPs"),
        (Budget(gflops=100), "100 GFLOPs"),
        (Budget(latency_ms=12.345678901), "12.345678901 ms"),
        (Budget(latency_ms=1e-7), "0.0000001 ms"),
        (Budget(tokens_per_s=64), "64 tokens/s"),
        (Budget(latency_ms=1e22), "10000000000000000000000 ms"),
    ],
)
def test_a_budget_is_printed_as_it_is_read(budget: Budget, text: str) -> None:
    assert str(budget) == text
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-5",
        "12.5",
        "ten",
        "5s",
        "0ms",
        "50 ms 3",
        "1_000",
        "١٢",
        "nan",
        "inf",
        "1e400",
        "1e3ms",
        "9" * 13,
        "9" * 400,
        "9" * 5000,
        "9" * 309 + "gflops",
        "0." + "0" * 399 + "1ms",
        "5\x1b[2J",
    ],
)
def test_parse_errors(text: str) -> None:
    with pytest.raises(ValueError, match="budget") as caught:
        Budget.parse(text)
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "units",
    [
        {},
        {"tokens": 5, "gflops": 1.0},
        {"latency_ms": 0.0},
        {"gflops": float("nan")},
        {"latency_ms": float("inf")},
        {"tokens": 12.5},
        {"tokens": 36.0},
        {"tokens": True},
        {"tokens": "36"},
        {"tokens": Decimal(36)},
        {"tokens": 10**400},
        {"gflops": 10**400},
        {"latency_ms": True},
    ],
)
def test_a_budget_is_one_positive_number(units: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**units)


def test_scalars_of_numpy_and_pytorch_are_numbers() -> None:
    assert Budget.of(np.int64(36)) == Budget.of(torch.tensor(36)) == Budget(tokens=36)
    assert type(Budget(tokens=np.int64(36)).tokens) is int
    assert Budget(gflops=np.float32(0.5)) == Budget(gflops=0.5)
    budget = Budget(latency_ms=3)
    assert Budget.of(budget) is budget


def test_nearest_plan_is_the_largest_that_was_made_for_less() -> None:
    plans = [Plan(SPARSE, 24, head=2), Plan(DENSE, 96, head=0)]
    assert nearest_plan(plans, 96) == plans[1]
    # A head was chosen for that number of tokens only.
    assert nearest_plan(plans, 95) == Plan(SPARSE, 95)
    assert nearest_plan(plans, 500) == Plan(DENSE, 500)
    assert nearest_plan(plans, 3) == Plan(SPARSE, 3)


def test_tokens_above_the_pool_are_an_error() -> None:
    with pytest.raises(ValueError, match="budget 129 tokens: the grid 16x32 has 128 tokens; give at most"):
        fit(Budget(tokens=129), [Plan(SPARSE, 24)])
    assert fit(Budget(tokens=128), [Plan(SPARSE, 24)]) == Plan(SPARSE, 128)
    # The pool of another plan is large enough.
    assert fit(Budget(tokens=129), [Plan(SPARSE, 96), Plan(DENSE, 24)]) == Plan(DENSE, 129)


def test_a_budget_per_second_follows_the_length() -> None:
    rate = Budget(tokens_per_s=64)
    assert rate.spread(2, 512) == (1, 128)
    assert rate.spread(600, 512) == (75, 512)
    assert rate.spread(9, 512) == (2, 288)
    assert rate.spread(8.1, 512) == (2, 259)  # 518 tokens.
    with pytest.raises(ValueError, match=r"budget 64 tokens/s: 0.01 s of video get 0.64 tokens; give more"):
        rate.spread(0.01, 512)
    with pytest.raises(ValueError, match="this takes what one clip may cost"):
        fit(rate, [Plan(SPARSE, 24)])


@pytest.mark.parametrize("seconds", [0.1, 1, 59.94, 3600.5])
@pytest.mark.parametrize("most", [36, 1000])
def test_what_is_spread_is_not_more_than_the_budget(seconds: float, most: int) -> None:
    for rate in (10, 12.5, 333):
        clips, tokens = Budget(tokens_per_s=rate).spread(seconds, most)
        assert tokens <= most
        total = int(rate * seconds + 1e-6)
        assert total - clips < clips * tokens <= total


TABLES = [
    [Plan(SPARSE, 24), Plan(DENSE, 96)],
    [Plan(DENSE, 24), Plan(SPARSE, 96)],
    [Plan(SamplingGrid(32, 40, 40), 24), Plan(SamplingGrid(16, 40, 40), 48)],
    [full(SPARSE), full(SamplingGrid(32, 32, 32)), full(SamplingGrid(32, 64, 64))],
]


@pytest.mark.parametrize("limit", [0.03, 0.06, 0.1, 0.2, 0.7, 1.0, 5.0])
@pytest.mark.parametrize("plans", TABLES)
def test_a_budget_is_spent_as_far_as_the_plans_allow(plans: list[Plan], limit: float) -> None:
    """Against trying every number of tokens of every grid."""
    affordable = [
        plan
        for row in plans
        for keep in range(1, full(row.grid).keep + 1)
        if gmacs(plan := Plan(row.grid, keep)) <= limit
    ]
    if not affordable:
        for budget in (Budget(gflops=limit), Budget(latency_ms=limit)):
            with pytest.raises(ValueError, match="the least that this model can spend"):
                fit(budget, plans)
        return
    standing = [row for row in plans if row in affordable]
    if standing:
        base = max(standing, key=lambda row: row.keep)
        better = [row for row in plans if row.keep > base.keep]
        usable = [p for p in affordable if p.grid == base.grid or p.grid in [row.grid for row in better]]
        most = max(gmacs(plan) for plan in usable if plan.keep >= base.keep)
    else:
        most = max(gmacs(plan) for plan in affordable)
    for budget, share in ((Budget(gflops=limit), 0.95), (Budget(latency_ms=limit), 0.94)):
        found = fit(budget, plans)
        assert found in affordable
        assert gmacs(found) >= share * min(most, limit)


@pytest.mark.parametrize("plans", TABLES)
def test_gflops_buy_the_last_token(plans: list[Plan]) -> None:
    for tokens in (20, 50, 100):
        grid = plans[0].grid
        found = fit(Budget(gflops=gmacs(Plan(grid, tokens)) + 1e-9), plans)
        more = Plan(found.grid, found.keep + 1)
        assert found.keep == full(found.grid).keep or gmacs(more) > gmacs(Plan(grid, tokens)) + 1e-9


def test_the_base_is_the_most_accurate_plan_that_fits() -> None:
    cheap = Plan(SamplingGrid(32, 32, 32), 24, head=1, measured=right(0.8))
    dear = Plan(SPARSE, 96, measured=right(0.7))
    best = Plan(DENSE, 96, measured=right(0.9))
    limit = gmacs(dear) * 1.1
    found = fit(Budget(gflops=limit), [cheap, dear, best])
    assert (
        found.grid == cheap.grid
    )  # Though the worse one has more tokens; what is left buys more of the grid.
    assert found.keep > 24
    # Without all accuracies known the most tokens decide.
    assert fit(Budget(gflops=limit), [cheap, replace(dear, measured=None), best]).grid == SPARSE
    # Of equals, the cheapest; nothing is left over, so the row is taken with its head.
    again = fit(Budget(gflops=gmacs(cheap) + 1e-9), [cheap, replace(dear, measured=right(0.8)), best])
    assert again == cheap
    assert again.measured == right(0.8)


def test_more_tokens_of_the_same_grid_are_not_bought_where_they_are_known_to_be_worse() -> None:
    fewer, more = Plan(DENSE, 64, measured=right(0.9)), Plan(DENSE, 256, measured=right(0.85))
    for budget in (Budget(gflops=500), Budget(latency_ms=500)):
        assert fit(budget, [fewer, more]) == fewer
        assert fit(budget, [fewer, replace(more, selector="uniform")]) == full(DENSE)
        assert fit(budget, [fewer, replace(more, measured=right(0.95))]) == full(DENSE)


def test_below_every_plan_the_one_that_gives_up_least_is_cut() -> None:
    plans = [Plan(SamplingGrid(32, 40, 40), 24), Plan(SPARSE, 100)]
    slightly = fit(Budget(gflops=0.95 * gmacs(plans[0])), plans)
    assert slightly.grid == plans[0].grid
    assert slightly.keep in (21, 22, 23)
    # The dense grid's embedding alone is above this.
    assert fit(Budget(gflops=gmacs(Plan(SPARSE, 2)) + 1e-9), plans) == Plan(SPARSE, 2)


# Milliseconds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_what_is_found_holds_when_measured_afresh(seed: int, share: float) -> None:
    """A clock of one percent noise, overhead, and steps of 16 tokens, after which a token is cheaper."""
    noise = random.Random(seed)
    plans = [Plan(SamplingGrid(32, 64, 64), 64), Plan(SamplingGrid(32, 64, 64), 256)]
    fresh_ones: list[tuple[Plan, float]] = []

    def clock(plan: Plan, fresh: bool) -> float:
        stairs = 0.2 + gmacs(replace(plan, keep=min(1024, -(-plan.keep // 16) * 16))) - plan.keep % 16 / 1e4
        spent = stairs * noise.gauss(1, 0.01)
        if fresh:
            fresh_ones.append((plan, spent))
        return spent

    limit = share * (0.2 + gmacs(full(plans[0].grid)))
    found = fit_budget(Budget(latency_ms=limit), plans, SIZE, clock)
    plan, spent = fresh_ones[-1]
    assert found == plan
    assert 0.95 * limit <= spent <= limit


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 3.0])
def test_old_figures_are_dropped_when_a_fresh_one_disagrees(factor: float) -> None:
    plans = [Plan(SPARSE, 24), Plan(SamplingGrid(32, 64, 64), 96)]
    old: dict[Plan, float] = {}

    def clock(plan: Plan, fresh: bool) -> float:
        return gmacs(plan) if fresh else old.setdefault(plan, factor * gmacs(plan))

    for limit in (0.02, 0.1, 0.3):
        found = fit_budget(Budget(latency_ms=limit), plans, SIZE, clock)
        assert 0.95 * limit <= gmacs(found) <= limit


def test_a_latency_above_all_is_the_largest_plan_and_one_below_all_an_error() -> None:
    assert fit(Budget(latency_ms=1000), TABLES[0]) == full(DENSE)
    with pytest.raises(ValueError, match=r"budget 0\.5 ms: the least that this model can spend is 1 ms"):
        fit(
            Budget(latency_ms=0.5),
            TABLES[0],
            clock=lambda plan: 1 + (plan.keep - 1) / 1000 + (plan.grid != SPARSE),
        )


def test_a_device_that_gets_slower_all_the_time_is_told() -> None:
    passed = [0]

    def clock(plan: Plan, fresh: bool) -> float:
        passed[0] += fresh
        return gmacs(plan) * (1 + passed[0])

    with pytest.raises(ValueError, match=r"budget 0\.1 ms: .* the device is busy"):
        fit_budget(Budget(latency_ms=0.1), [Plan(SamplingGrid(32, 64, 64), 96)], SIZE, clock)
    assert passed[0] < 50


@pytest.mark.parametrize("keep", [64, 256])
def test_gflops_are_what_the_network_really_computes(keep: int) -> None:
    """PyTorch's own count of matrix products; what it leaves out, selection and norms, is below 2 %."""
    config = preset("fluxvit_tiny")
    grid = SamplingGrid(4, 112, 112)
    with torch.device("meta"):
        model, video = FluxViT(config), torch.empty(1, 3, 4, 112, 112)
    with torch.no_grad():
        model.pos_embed((4, 8, 8))  # Positions are resampled once a grid, not once a clip.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(video, keep)
    counted = counter.get_total_flops() / 2e9
    assert counted == pytest.approx(grid_cost(config.size, grid, keep).total / 1e9, rel=0.02)
    found = fit_budget(Budget(gflops=1.02 * counted), [Plan(grid, keep)], config.size, lambda plan, fresh: 0)
    assert keep <= found.keep <= 1.05 * keep or found.keep == 256
