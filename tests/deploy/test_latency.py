from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from conftest import small_model
from fluxvit.checkpoints import latency as module
from fluxvit.checkpoints.latency import (
    Latency,
    LatencyTable,
    cache_folder,
    measure_latencies,
    plan_for,
)
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan

PLAN = Plan(SamplingGrid(4, 16, 16), 4, head=1, selector="uniform")
FIGURES = Latency(1.0, 2.0, 3.0, 7)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, torch.Tensor]]:
    """What is run instead of the network, with a clock that says 1, 2, 3, ... milliseconds in turn."""
    run: list[tuple[Plan, torch.Tensor]] = []

    def fake(model: object, plan: Plan, video: torch.Tensor) -> float:
        run.append((plan, video))
        return float(len(run))

    monkeypatch.setattr(module, "_pass_ms", fake)
    return run


def test_measuring_runs_the_plan_and_leaves_the_model_as_it_was() -> None:
    model = small_model().bfloat16().train()
    calls: list[tuple[object, ...]] = []

    def watch(_: object, inputs: tuple[object, ...]) -> None:
        video = inputs[0]
        assert isinstance(video, torch.Tensor)
        calls.append(
            (video.shape, video.dtype, *inputs[1:], model.training, torch.is_inference_mode_enabled())
        )

    with model.register_forward_pre_hook(watch):
        result = measure_latencies(model, [PLAN], batch_size=2, runs=3, warmup=1)[0]
    assert 0 < result.p10 <= result.p50 <= result.p90
    assert result.runs == 3
    assert len(calls) >= 4
    assert set(calls) == {((2, 3, 4, 16, 16), torch.bfloat16, 4, 1, "uniform", False, True)}
    assert model.training


def test_percentiles(passes: list) -> None:
    # One warm-up of 1 ms, and a second one, because nothing was slower before it; then 3, 4, ... 13 ms.
    assert measure_latencies(small_model(), [PLAN], runs=11, warmup=2)[0] == Latency(4, 8, 12, 11)


def test_plans_take_turns(passes: list) -> None:
    other = Plan(SamplingGrid(4, 16, 24), 4)
    measure_latencies(small_model(), [PLAN, other], runs=3, warmup=2)
    assert [plan for plan, _ in passes] == [PLAN, PLAN, other, other] + 3 * [PLAN, other]
    assert [tuple(video.shape[2:]) for _, video in passes[-2:]] == [(4, 16, 16), (4, 16, 24)]


def test_warm_up_goes_on_while_it_gets_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([9.0, 8.0, 7.0, 5.0, 4.9, *[5.0] * 5])
    monkeypatch.setattr(module, "_pass_ms", lambda *_: next(clock))
    assert measure_latencies(small_model(), [PLAN], runs=5, warmup=2)[0] == Latency(5, 5, 5, 5)


def test_slow_plans_are_measured_in_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pass_ms", lambda *_: 900.0)
    assert measure_latencies(small_model(), [PLAN])[0].runs == 5
    monkeypatch.setattr(module, "_pass_ms", lambda *_: 300.0)
    assert measure_latencies(small_model(), [PLAN])[0].runs == 14


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"runs": 0}, {"warmup": 0}])
def test_numbers_below_one(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measure_latencies(small_model(), [PLAN], **numbers)[0]


# The table -------------------------------------------------------------------------------------------------


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLUXVIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "fluxvit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "fluxvit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fluxvit"
    monkeypatch.setenv("FLUXVIT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_table_outlives_its_process_and_tells_plans_apart(tmp_path: Path) -> None:
    LatencyTable(small_model(), tmp_path).put(PLAN, FIGURES)
    again = LatencyTable(small_model(), tmp_path)
    assert again.get(PLAN) == FIGURES
    for other in (
        Plan(PLAN.grid, 5, head=1, selector="uniform"),
        Plan(PLAN.grid, 4, head=0, selector="uniform"),
        Plan(PLAN.grid, 4, head=1),
        Plan(SamplingGrid(4, 16, 24), 4, head=1, selector="uniform"),
    ):
        assert again.get(other) is None


def test_table_holds_for_one_architecture_precision_and_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LatencyTable(small_model(), tmp_path).put(PLAN, FIGURES)
    assert LatencyTable(small_model(num_classes=6), tmp_path).get(PLAN) is None
    assert LatencyTable(small_model().bfloat16(), tmp_path).get(PLAN) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert LatencyTable(small_model(), tmp_path).get(PLAN) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert LatencyTable(small_model(), tmp_path).get(PLAN) is None


def test_table_measures_once(tmp_path: Path, passes: list) -> None:
    table = LatencyTable(small_model(), tmp_path)
    first = table.measure(PLAN)
    count = len(passes)
    assert table.measure(PLAN) == LatencyTable(small_model(), tmp_path).measure(PLAN) == first
    assert len(passes) == count
    fresh = table.measure(PLAN, fresh=True)
    assert fresh.p50 > first.p50
    assert LatencyTable(small_model(), tmp_path).get(PLAN) == fresh


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: "not JSON\n[1]\n" + text.replace("2.0", '"fast"'),
        lambda text: text.replace("2.0", "NaN"),
        lambda text: text.replace("2.0", "-1"),
        lambda text: text.replace('"runs"', '"walks"'),
    ],
)
def test_damaged_rows_are_passed_over(tmp_path: Path, damage: Callable[[str], str]) -> None:
    LatencyTable(small_model(), tmp_path).put(PLAN, FIGURES)
    path = tmp_path / "latency.jsonl"
    path.write_text(damage(path.read_text()))
    table = LatencyTable(small_model(), tmp_path)
    assert table.get(PLAN) is None
    table.put(PLAN, FIGURES)
    assert LatencyTable(small_model(), tmp_path).get(PLAN) == FIGURES


def test_a_file_of_bytes_and_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "latency.jsonl").write_bytes(b"\xff\x00\xfe" * 50)
    assert LatencyTable(small_model(), tmp_path).get(PLAN) is None
    # A file stands where the folder should be: that holds for root, too.
    (tmp_path / "file").write_text("")
    table = LatencyTable(small_model(), tmp_path / "file")
    table.put(PLAN, FIGURES)
    assert table.get(PLAN) == FIGURES


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    tables = [LatencyTable(small_model(), tmp_path) for _ in range(4)]
    plans = [[Plan(PLAN.grid, keep, head) for keep in range(1, 9)] for head in range(4)]

    def write(table: LatencyTable) -> None:
        for plan in plans[tables.index(table)]:
            table.put(plan, FIGURES)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, tables))
    last = LatencyTable(small_model(), tmp_path)
    assert all(last.get(plan) == FIGURES for row in plans for plan in row)


def test_the_file_is_cut_to_the_newest_rows_when_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = LatencyTable(small_model(), tmp_path)
    for ms in (1.0, 2.0, 3.0):
        table.put(PLAN, Latency(ms, ms, ms, 5))
    table.put(Plan(PLAN.grid, 5), FIGURES)
    monkeypatch.setattr(module, "_MOST_ROWS", 3)
    again = LatencyTable(small_model(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "latency.jsonl").read_text().splitlines()]
    assert [(row["keep"], row["p50"]) for row in rows] == [(4, 3.0), (5, 2.0)]
    assert again.get(PLAN) == Latency(3.0, 3.0, 3.0, 5)


# Budgets ---------------------------------------------------------------------------------------------------


def test_milliseconds_lead_to_a_plan_that_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_pass_ms", lambda model, plan, video: 10.0 + plan.keep)
    table = LatencyTable(small_model(), tmp_path)
    plan = plan_for(small_model(), Budget(latency_ms=30), [Plan(SamplingGrid(8, 24, 24), 24)], table)
    assert plan.measured is not None
    assert 28.5 <= plan.measured.latency_ms <= 30
    assert plan.measured.latency_ms == 10 + plan.keep
    assert plan.measured.device == table.conditions["device"]
    size = small_model().config.size
    assert plan.measured.gmacs == grid_cost(size, plan.grid, plan.keep).total / 1e9


def test_a_table_of_a_slower_day_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [Plan(SamplingGrid(8, 16, 16), 8), Plan(SamplingGrid(8, 24, 24), 24)]
    table = LatencyTable(small_model(), tmp_path)
    monkeypatch.setattr(module, "_pass_ms", lambda model, plan, video: 3.0 * (10 + plan.keep))
    plan_for(small_model(), Budget(latency_ms=60), plans, table)
    monkeypatch.setattr(module, "_pass_ms", lambda model, plan, video: 10.0 + plan.keep)
    for ms in (38, 12):  # In between, and below all that the table knows.
        plan = plan_for(small_model(), Budget(latency_ms=ms), plans, LatencyTable(small_model(), tmp_path))
        assert 0.95 * ms <= 10 + plan.keep <= ms


def test_other_units_measure_nothing(passes: list) -> None:
    plans = [Plan(SamplingGrid(8, 24, 24), 24)]
    assert plan_for(small_model(), Budget(tokens=12), plans).measured.latency_ms is None
    assert plan_for(small_model(), Budget(gflops=0.001), plans).measured.gmacs <= 0.001
    assert not passes
