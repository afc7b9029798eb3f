from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import INFO, Colours

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.optimization.candidates import find_candidates
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.halving import (
    Sampling,
    Table,
    choose,
    cut,
    first_prefix,
    halve,
    paired_interval,
    pass_gmacs,
)
from fluxvit.optimization.optimize import run_optimize
from fluxvit.optimization.trials import GridClips, GridRequest, Search, split_grids
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.writer import write_video

HEADS = 3
SIZE = small_model().config.size


def sampling(number: int, keep: int = 6) -> Sampling:
    """Number ``n`` has a pool of 4 (n + 1) tokens: a higher one costs more."""
    return Sampling(keep, SamplingGrid(2 * (number + 1), 16, 16), "group_dynamic")


def cost(one: Sampling) -> float:
    return one.grid.frames


class World:
    """Samplings whose true accuracies are known, with the difficulty of each clip in common."""

    def __init__(self, accuracies: dict[Sampling, float], clips: int, seed: int, noise: float = 0.2) -> None:
        self.table = Table(clips, HEADS)
        rng = np.random.default_rng(seed)
        hard = rng.random(clips)[:, None]
        self.truth: dict[Sampling, np.ndarray] = {}
        for one, accuracy in accuracies.items():
            heads = accuracy - 0.1 * (np.arange(HEADS) != 1)
            margin = heads - (1 - noise) * hard - noise * rng.random((clips, HEADS))
            self.truth[one] = 1 / (1 + np.exp(-8 * margin))
        self.spent = 0
        self.seen: set[tuple[Sampling, int]] = set()

    def measure(self, samplings: list[Sampling], clips: range) -> None:
        for one in samplings:
            truth = self.truth[one][clips.start : clips.stop]
            now = {(one, clip) for clip in clips}
            assert not now & self.seen  # Nothing is computed twice.
            self.seen |= now
            self.table.put(one, list(clips), truth, truth > 0.5)
            self.spent += len(clips)


# The rules -------------------------------------------------------------------------------------------------


def test_paired_interval() -> None:
    one, other = np.array([0.9, 0.4, 0.7, 0.6]), np.array([0.5, 0.2, 0.1, 0.6])
    low, high = paired_interval(one, other, z=2)
    # Differences 0.4, 0.2, 0.6, 0: mean 0.3, variance 0.2 / 3.
    assert (low + high) / 2 == pytest.approx(0.3)
    assert high - low == pytest.approx(4 * math.sqrt(0.2 / 3 / 4))
    assert paired_interval(other, one, z=2) == pytest.approx((-high, -low))
    # What is common to both clips drops out, and so does a constant.
    shift = np.array([5.0, -3.0, 1.0, 0.0])
    assert paired_interval(one + shift, other + shift, z=2) == pytest.approx((low, high))
    assert paired_interval(one + 1, one) == pytest.approx((1, 1))
    assert paired_interval(one[:1], other[:1]) == (-math.inf, math.inf)


def test_paired_interval_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = paired_interval(rng.normal(0.1, 1, 50), np.zeros(50), z=1.96)
        hits += low <= 0.1 <= high
    assert 0.91 < hits / 400 < 0.98


@pytest.mark.parametrize("counts", [[30], [17, 24, 29], [60, 60]])
def test_the_first_prefix_keeps_the_promised_share(counts: list[int]) -> None:
    clips = 1200
    length = first_prefix(counts, clips)
    spent, seen, live = 0, 0, list(counts)
    while seen < clips:
        spent, seen, length = spent + sum(live) * (length - seen), length, min(clips, 3 * length)
        live = [max(2, math.ceil(count / 3)) for count in live]
    assert 0.08 < spent / (clips * sum(counts)) <= (0.135 if length > 24 else 0.16)
    assert first_prefix([2], 5) == 5
    assert first_prefix(counts, 200) == 24  # Fewer clips would drop the best.


def test_halving_finds_the_best_at_a_fraction_of_the_cost() -> None:
    lost = []
    for seed in range(12):
        rng = np.random.default_rng(100 + seed)
        accuracies = {sampling(i): float(a) for i, a in enumerate(rng.permutation(np.linspace(0.4, 0.8, 27)))}
        world = World(accuracies, 600, seed)
        finalists = halve(world.table, {6: list(accuracies)}, world.measure, cost)
        chosen, head = choose(world.table, finalists[6], cost)
        everywhere = {one: float((truth[:, 1] > 0.5).mean()) for one, truth in world.truth.items()}
        lost.append(max(everywhere.values()) - everywhere[chosen])
        assert head == 1
        assert world.spent <= 0.17 * 600 * 27
    # Neighbours are 1.5 points apart: more than the noise of all clips, less than that of a prefix.
    assert np.mean(lost) <= 0.005
    assert max(lost) <= 0.02


def test_a_clearly_better_one_is_never_dropped() -> None:
    for seed in range(20):
        accuracies = {sampling(i): 0.75 if i == 13 else 0.5 for i in range(27)}
        world = World(accuracies, 300, seed)
        assert sampling(13) in halve(world.table, {6: list(accuracies)}, world.measure, cost)[6]


def test_few_candidates_and_clips_do_not_drop_the_best_early() -> None:
    kept = 0
    for seed in range(100):
        accuracies = {sampling(i): 0.7 if i == 4 else 0.6 for i in range(9)}
        world = World(accuracies, 200, seed, noise=0.5)
        kept += sampling(4) in halve(world.table, {6: list(accuracies)}, world.measure, cost)[6]
    assert kept >= 95


def test_budgets_are_ranked_apart_on_the_same_clips() -> None:
    rising = {sampling(i, 6): 0.3 + 0.05 * i for i in range(9)}
    falling = {sampling(i, 12): 0.7 - 0.05 * i for i in range(9)}
    world = World(rising | falling, 400, 0)
    finalists = halve(world.table, {12: list(falling), 6: list(rising)}, world.measure, cost)
    assert choose(world.table, finalists[6], cost)[0] == sampling(8, 6)
    assert choose(world.table, finalists[12], cost)[0] == sampling(0, 12)
    assert all(world.table.seen(one).all() for rows in finalists.values() for one in rows)


def enter(table: Table, one: Sampling, truth: np.ndarray, right: np.ndarray | None = None) -> None:
    right = truth > 0.5 if right is None else right
    table.put(one, range(len(truth)), np.stack([truth] * HEADS, 1), np.stack([right] * HEADS, 1))


def test_cut_drops_what_is_separated_and_keeps_the_cheapest_of_equals() -> None:
    table, rng = Table(100, HEADS), np.random.default_rng(0)
    truth = rng.random(100)
    enter(table, sampling(0), truth - 0.1)  # Paired, the difference is beyond doubt.
    enter(table, sampling(1), truth + 1e-3 * rng.normal(size=100))
    enter(table, sampling(2), truth + 1e-3 * rng.normal(size=100))
    assert cut(table, [sampling(2), sampling(1), sampling(0)], cost) == [sampling(1)]
    # Unpaired noise of the same means leaves it open.
    table = Table(100, HEADS)
    enter(table, sampling(0), rng.permutation(truth) - 0.02)
    enter(table, sampling(1), truth)
    assert cut(table, [sampling(0), sampling(1)], cost) == [sampling(1), sampling(0)]


def test_choose_takes_the_cheaper_of_a_tie_only() -> None:
    table, truth = Table(1000, HEADS), np.full(1000, 0.5)
    rank = np.arange(1000)
    for number, correct in ((0, 895), (1, 898), (2, 900)):
        enter(table, sampling(number), truth, rank < correct)
    rows = [sampling(2), sampling(1), sampling(0)]
    assert choose(table, rows, cost)[0] == sampling(1)  # Two clips of 1000 less, but not five.


def test_a_head_is_chosen_by_its_answers() -> None:
    table = Table(10, HEADS)
    truth = np.tile([0.4, 0.6, 0.6], (10, 1))
    right = np.ones((10, HEADS), bool)
    right[0, 1] = False
    table.put(sampling(0), range(10), truth, right)
    assert choose(table, [sampling(0)], cost) == (sampling(0), 2)


def test_pass_cost_is_that_of_single_plans_less_what_they_share() -> None:
    grid = SamplingGrid(8, 32, 32)
    one = Sampling(6, grid, "group_dynamic")
    assert pass_gmacs(SIZE, [one], 1) == pytest.approx(one.gmacs(SIZE))
    both = [one, Sampling(12, grid, "group_dynamic")]
    parts = [grid_cost(SIZE, grid, row.keep) for row in both]
    shared = parts[0].embed_kept + parts[0].embed_dropped + parts[0].selection
    assert pass_gmacs(SIZE, both, 1) == pytest.approx((sum(part.total for part in parts) - shared) / 1e9)
    heads = parts[0].pooling + parts[0].classifier
    assert pass_gmacs(SIZE, [one], 3) == pytest.approx((parts[0].total + 2 * heads) / 1e9)
    # Embeddings serve all selectors that read them; a blind one embeds what it keeps.
    dynamic, blind = Sampling(6, grid, "dynamic"), Sampling(6, grid, "random")
    extra = parts[0].blocks + heads + parts[0].selection
    assert pass_gmacs(SIZE, [one, dynamic], 1) == pytest.approx((parts[0].total + extra) / 1e9)
    assert pass_gmacs(SIZE, [one, blind], 1) == pytest.approx(one.gmacs(SIZE) + blind.gmacs(SIZE))


# Candidates ------------------------------------------------------------------------------------------------

TRAINED = Checkpoint(
    small_model(), grids=[SamplingGrid(4, 24, 24), SamplingGrid(8, 24, 24), SamplingGrid(8, 32, 32)]
)


def grids_for(budget: int, aspect: float = 1.0, **settings: tuple) -> set[str]:
    config = OptimizeConfig("c", "d", budgets=(budget,), **settings)
    rows = find_candidates(config, TRAINED, lambda: aspect)[budget]
    return {str(row.grid) for row in rows}


def test_candidates_lie_around_the_training_grids() -> None:
    # Frames 4, 8 and 12; sides 16 to 40; at most 96 tokens.
    assert grids_for(24) == {
        *("4x32", "4x40", "8x24", "8x32", "12x16", "12x24", "12x32"),
    }
    assert grids_for(96) == {"12x32"}
    assert "2x16" in grids_for(4)  # Plain sampling may have fewer frames.
    assert grids_for(24, frames=(8,), sizes=(16, 24, 48)) == {"8x24", "8x48"}


def test_oblong_videos_get_oblong_grids() -> None:
    assert "8x24x32" in grids_for(24, aspect=4 / 3)
    assert "8x32x24" in grids_for(24, aspect=3 / 4)
    assert "8x24x32" not in grids_for(24, aspect=1.1)


def test_selectors_choose_only_where_something_is_dropped() -> None:
    plain = OptimizeConfig(
        "c", "d", budgets=(36,), selectors=("dynamic", "random"), frames=(8,), sizes=(24, 32)
    )
    rows = find_candidates(plain, TRAINED, lambda: 1.0)[36]
    assert [(str(row.grid), row.selector) for row in rows] == [
        ("8x24", "dynamic"),
        ("8x32", "dynamic"),
        ("8x32", "random"),
    ]


def test_bad_candidates_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"budget 99: no candidate grid has as many tokens \(the largest has 36\)"
    ):
        grids_for(99, frames=(8,), sizes=(24,))
    with pytest.raises(ValueError, match="height 25 is not a multiple of 8"):
        grids_for(24, frames=(8,), sizes=(25,))
    with pytest.raises(ValueError, match="names no training grids"):
        find_candidates(OptimizeConfig("c", "d"), Checkpoint(small_model()), lambda: 1.0)


# Passes over clips -----------------------------------------------------------------------------------------

GRIDS = (SamplingGrid(4, 16, 24), SamplingGrid(6, 16, 16), SamplingGrid(8, 24, 24))


def manifest(count: int) -> Manifest:
    return Manifest(tuple(Entry(Path(f"{i}.mp4"), i % 3) for i in range(count)), (), "digest")


@pytest.mark.parametrize("sampling", [ClipSampling(), ClipSampling("dense", 2), ClipSampling("dense", 1, 5)])
def test_clips_are_those_of_ordinary_evaluation(clip: Path, sampling: ClipSampling) -> None:
    listed = Manifest((Entry(clip, 1), Entry(clip, 2, start=0.35, end=1.5)), (), "digest")
    ordinary = ClipDataset(listed, sampling=sampling)
    together = GridClips(listed, ordinary.source, sampling)
    for item in range(2):
        found = together[GridRequest(item, GRIDS)]
        assert int(found.label) == item + 1
        for grid, pixels in zip(GRIDS, split_grids(found.video[None], GRIDS), strict=True):
            assert torch.equal(pixels[0], ordinary[ClipRequest(item, grid)].video)


class Film:
    """Videos without files: what is shown depends on the moment."""

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        moments = [np.random.default_rng([index, int(1000 * at)]) for at in positions]
        return np.stack([rng.integers(0, 255, (20, 28, 3), dtype=np.uint8) for rng in moments])


class Flaky(Colours):
    """Fails at every third clip, and can stop after a number of reads."""

    def __init__(self, stop_after: int = 10**9) -> None:
        super().__init__()
        self.left = stop_after

    def read(self, index: int, positions: np.ndarray) -> np.ndarray:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        if index % 3 == 2:
            raise VideoError.of(f"{index}.mp4", "broken")
        return super().read(index, positions)


def candidates() -> dict[int, list[Sampling]]:
    return {
        budget: [Sampling(budget, grid, name) for grid in GRIDS for name in ("group_dynamic", "random")]
        for budget in (9, 6)
    }


def test_figures_are_those_of_ordinary_evaluation(tmp_path: Path) -> None:
    search = Search(INFO, manifest(7), Film(), candidates())
    search.run(tmp_path / "log", {}, exhaustive=True)
    for one in (candidates()[9][4], candidates()[6][1]):
        for head in range(HEADS):
            plan = Plan(one.grid, one.keep, head, one.selector)
            (result,) = predict_plans(INFO, ClipDataset(manifest(7), Film()), [plan])
            truth = result.logits.softmax(-1)[torch.arange(7), result.labels]
            np.testing.assert_allclose(search.table.truth(one, head), truth, atol=2e-6)
            assert search.table.score(one, head) == result.score


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    def search(source: Colours, log: str) -> Search:
        found = Search(replace(INFO, model=small_model()), manifest(60), source, candidates())
        found.run(tmp_path / log, {"seed": 0})
        return found

    whole = search(Flaky(), "whole")
    for reads in (20, 25):
        with pytest.raises(KeyboardInterrupt):
            search(Flaky(reads), "torn")
    with (tmp_path / "torn").open("a") as log:
        log.write('{"clips": [0, 1')  # As a crash leaves it.
    source = Flaky()
    again = search(source, "torn")
    assert 0 < source.reads < 40
    assert again.table.usable.tolist() == [i % 3 != 2 for i in range(60)]
    for one in (row for rows in candidates().values() for row in rows):
        for head in range(HEADS):
            np.testing.assert_array_equal(again.table.truth(one, head), whole.table.truth(one, head))
    assert again.gmacs == pytest.approx(whole.gmacs)
    search = Search(replace(INFO, model=small_model()), manifest(60), source, candidates())
    with pytest.raises(ValueError, match="a search with other seed; choose another folder"):
        search.run(tmp_path / "torn", {"seed": 1})


def test_data_without_a_readable_clip_are_refused(tmp_path: Path) -> None:
    class Broken(Colours):
        def read(self, index: int, positions: np.ndarray) -> np.ndarray:
            raise VideoError.of("same.mp4", "broken")

    search = Search(replace(INFO, model=small_model()), manifest(20), Broken(), candidates())
    with pytest.raises(ValueError, match=r"no clip can be read, the first: same\.mp4: broken"):
        search.run(tmp_path / "log", {})


# All of it -------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for i in range(12):
        rng = np.random.default_rng(i)
        write_video(tmp_path / f"{i}.mp4", rng.integers(0, 255, (16, 48, 64, 3), dtype=np.uint8), 8)
        rows.append({"path": f"{i}.mp4", "label": i % 5})
    (tmp_path / "3.mp4").write_bytes(b"no video")
    rows.append({"path": "12.mp4", "label": 0, "ok": False, "error": "missing"})
    path = tmp_path / "held.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_optimize_writes_what_it_found(
    checkpoint: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    info = Checkpoint.load(checkpoint)
    info.plans.append(Plan(SamplingGrid(8, 32, 32), 30))
    info.save(checkpoint)
    config = OptimizeConfig(str(checkpoint), str(data), budgets=(12, 6), out=str(tmp_path / "out"))
    result = run_optimize(config, progress=False)
    assert result.clips == 11
    assert len(result.unreadable) == 2
    assert "3.mp4" in caplog.text
    plans = {plan.keep: plan for plan in Checkpoint.load(checkpoint).plans}
    assert list(plans) == [30, 24, 12, 6]  # Plans of other budgets stay.
    for budget in (12, 6):
        plan, score = plans[budget], result.best[budget].score
        assert plan == result.best[budget].plan
        assert plan.measured is not None
        assert (plan.measured.correct, plan.measured.total) == (score.correct, 11)
        assert plan.measured.gmacs == pytest.approx(grid_cost(SIZE, plan.grid, budget).total / 1e9)
        assert plan.measured.latency_ms
        assert plan.measured.device
        one = ClipDataset(Manifest(tuple(e for i, e in enumerate(entries(data)) if i != 3), (), ""))
        (checked,) = predict_plans(info, one, [plan])
        assert checked.score == score
    record = json.loads((checkpoint / "optimize.json").read_text())
    assert record["data"]["clips"] == 11
    assert {row["budget"] for row in record["trials"]} == {12, 6}
    assert record["cost"]["share"] == pytest.approx(result.spent.share)
    assert "optimistic" in str(result)
    assert "2 videos cannot be read" in str(result)
    info.save(checkpoint)  # The account is no stranger in the folder.
    # All is in the log: nothing is computed again.
    assert run_optimize(config, progress=False).spent == result.spent


def entries(path: Path) -> list[Entry]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Entry(path.parent / row["path"], row["label"]) for row in rows if row.get("ok", True)]


def test_a_copy_gets_the_plans(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    once = OptimizeConfig(str(checkpoint), str(data), (6,), out=str(tmp_path / "out"), precision="fp32")
    config = replace(once, exhaustive=True, to=str(tmp_path / "to"))
    result = run_optimize(config, progress=False)
    assert result.spent.share == pytest.approx(1)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert result.best[6].plan in Checkpoint.load(tmp_path / "to").plans
    assert (tmp_path / "to" / "optimize.json").exists()
    with pytest.raises(ValueError, match="holds a search with other precision"):
        run_optimize(replace(config, precision="bf16"), progress=False)
    with pytest.raises(ValueError, match="holds a search with other exhaustive"):
        run_optimize(once)
    other = small_model()
    torch.nn.init.ones_(other.cls_token)
    Checkpoint(other).save(tmp_path / "other")
    with pytest.raises(ValueError, match="holds another checkpoint"):
        run_optimize(OptimizeConfig(str(checkpoint), str(data), to=str(tmp_path / "other")))


def test_what_tests_may_not_choose(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"path": "4.mp4", "label": 1}))
    with pytest.raises(ValueError, match=r"held.jsonl and .*test.jsonl share 1 videos, such as .*4.mp4"):
        run_optimize(OptimizeConfig(str(checkpoint), str(data), test=str(test)))


def test_the_package_is_not_written_to(data: Path) -> None:
    with pytest.raises(ValueError, match=r"comes with the package, which is not written to.*--to"):
        run_optimize(OptimizeConfig("fluxvit_nano_motionworld", str(data)))
