from __future__ import annotations

import pytest

from fluxvit.flux.budget import Budget, Plan, fit_budget, nearest_plan, parse_budget
from fluxvit.flux.cost import NetworkSize, grid_cost
from fluxvit.flux.grid import SamplingGrid

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


def fit(budget: Budget, plans: list[Plan]) -> Plan:
    return fit_budget(budget, plans, SIZE, measure_ms=gmacs)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1024", Budget(tokens=1024)),
        ("64 tokens", Budget(tokens=64)),
        ("20gflops", Budget(gflops=20)),
        ("0.5GFLOPs", Budget(gflops=0.5)),
        ("50ms", Budget(latency_ms=50)),
    ],
)
def test_parse(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "-5", "12.5", "ten", "5s", "0ms", "50 ms 3"])
def test_parse_errors(text: str) -> None:
    with pytest.raises(ValueError, match="budget"):
        parse_budget(text)


@pytest.mark.parametrize("units", [{}, {"tokens": 5, "gflops": 1.0}, {"latency_ms": 0.0}])
def test_a_budget_is_one_positive_number(units: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**units)


def test_nearest_plan_is_the_largest_that_was_made_for_less() -> None:
    plans = [Plan(SPARSE, 24, head=2), Plan(DENSE, 96, head=0)]
    assert nearest_plan(plans, 96) == plans[1]
    # A head was chosen for that number of tokens only.
    assert nearest_plan(plans, 95) == Plan(SPARSE, 95)
    assert nearest_plan(plans, 500) == Plan(DENSE, 500)
    assert nearest_plan(plans, 3) == Plan(SPARSE, 3)


def test_tokens_above_the_pool_keep_the_pool() -> None:
    assert fit(Budget(tokens=10**6), [Plan(SPARSE, 24)]) == Plan(SPARSE, 128)


@pytest.mark.parametrize("limit", [0.03, 0.06, 0.1, 0.2, 0.7, 1.0, 5.0])
@pytest.mark.parametrize(
    "plans",
    [
        [Plan(SPARSE, 24), Plan(DENSE, 96)],
        [Plan(DENSE, 24), Plan(SPARSE, 96)],
        [Plan(SamplingGrid(32, 40, 40), 24), Plan(SamplingGrid(16, 40, 40), 48)],
    ],
)
def test_no_affordable_number_of_tokens_is_much_larger(plans: list[Plan], limit: float) -> None:
    """Against trying every number of tokens, also where the smaller budget has the dearer grid."""
    affordable = [
        plan
        for tokens in range(1, 6401)
        if gmacs(plan := fit(Budget(tokens=tokens), plans)) <= limit and plan.keep == tokens
    ]
    if not affordable:
        with pytest.raises(ValueError, match="the least that this model can spend"):
            fit(Budget(gflops=limit), plans)
        return
    best = max(plan.keep for plan in affordable)
    for budget in (Budget(gflops=limit), Budget(latency_ms=limit)):
        found = fit(budget, plans)
        assert gmacs(found) <= limit
        assert found in affordable
        # Milliseconds are measured, so the search stops a little early.
        assert found.keep >= best - (26 if budget.latency_ms else 0)
