from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_model
from fluxvit import Budget, Plan, Predictor, SamplingGrid
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.deploy.cascade import CascadePredictor, measure_chains, prefixes, run_stages
from fluxvit.flux.cascade import chain_gmacs
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Cascade
from fluxvit.video.writer import write_video

SMALL, LARGE = Plan(SamplingGrid(8, 16, 32), 12), Plan(SamplingGrid(6, 24, 24), 20)
SAME = Plan(SamplingGrid(8, 16, 32), 20)


@pytest.fixture
def clips(tmp_path: Path, clip: Path) -> list[Path]:
    """The moving square, and noise that stands still."""
    still = np.random.default_rng(1).integers(0, 255, (1, 48, 64, 3), dtype=np.uint8).repeat(20, 0)
    write_video(tmp_path / "still.mp4", still, 10)
    return [clip, tmp_path / "still.mp4"]


# Stages ----------------------------------------------------------------------------------------------------


def test_a_chain_costs_what_is_not_shared() -> None:
    size = small_model().config.size
    small, large, same = (grid_cost(size, plan.grid, plan.keep) for plan in (SMALL, LARGE, SAME))
    assert chain_gmacs(size, [SMALL, LARGE]) == pytest.approx(
        [small.total / 1e9, (small.total + large.total) / 1e9]
    )
    # On one grid the second stage does not embed and score again, though it encodes all of its tokens.
    shared = same.embed_kept + same.embed_dropped + same.selection
    assert small.selection == same.selection > 0
    assert chain_gmacs(size, [SMALL, SAME])[1] == pytest.approx((small.total + same.total - shared) / 1e9)


def test_stages_give_what_the_plans_give_alone_and_share_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    draw = torch.Generator().manual_seed(0)
    clips = {
        plan.grid: torch.randn(2, 3, plan.grid.frames, plan.grid.height, plan.grid.width, generator=draw)
        for plan in (SMALL, LARGE)
    }
    asked: list[SamplingGrid] = []

    def clip_of(grid: SamplingGrid) -> torch.Tensor:
        asked.append(grid)
        return clips[grid]

    with torch.no_grad():
        stages = (SMALL, SAME, LARGE)
        for plan, out in zip(stages, run_stages(model, stages, clip_of), strict=True):
            alone = model(clips[plan.grid], plan.keep)
            torch.testing.assert_close(out.logits, alone.logits)
            assert out.head == alone.head
        assert asked == [SMALL.grid, LARGE.grid]
        asked.clear()
        next(run_stages(model, stages, clip_of))
        assert asked == [SMALL.grid]  # What is not reached is not computed.


def test_chains_are_timed() -> None:
    assert min(measure_chains(small_model(), prefixes((SMALL, LARGE)), runs=1)) > 0


# Cascades --------------------------------------------------------------------------------------------------


def with_cascades(checkpoint: Path, *cascades: Cascade) -> Path:
    info = Checkpoint.load(checkpoint)
    info.cascades = list(cascades)
    info.save_plans(checkpoint)
    return checkpoint


def test_a_cascade_stops_where_it_is_sure(checkpoint: Path, clip: Path) -> None:
    predictor = Predictor(checkpoint)
    lazy = CascadePredictor(predictor, Cascade((SMALL, LARGE), 0.0, (1.0, 1.0)))(clip)
    assert lazy.plan == SMALL
    assert lazy.spent.passes == 1
    assert lazy.spent.tokens == 12
    np.testing.assert_allclose(lazy.probabilities, Predictor(checkpoint, 12)(clip).probabilities, atol=1e-6)
    keen = CascadePredictor(predictor, Cascade((SMALL, LARGE), 1.0, (1.0, 2.0)))(clip)
    assert keen.plan == LARGE
    assert keen.spent.passes == 2
    assert keen.spent.tokens == 32
    assert keen.spent.gmacs == pytest.approx(chain_gmacs(predictor.model.config.size, [SMALL, LARGE])[1])
    # As if the second plan had been asked alone, on the same frames of a file that is decoded once.
    alone = Predictor(checkpoint, 20, grid=LARGE.grid)(clip)
    assert (keen.times == alone.times).all()
    assert (keen.kept == alone.kept).all()
    softer = np.exp(np.log(alone.probabilities) / 2)
    np.testing.assert_allclose(keen.probabilities, softer / softer.sum(), atol=1e-6)
    both = CascadePredictor(predictor, Cascade((SMALL, LARGE), 1.0, (1.0, 1.0), average=True))(clip)
    np.testing.assert_allclose(both.probabilities, (lazy.probabilities + alone.probabilities) / 2, atol=1e-6)


def test_the_threshold_decides_clip_by_clip(checkpoint: Path, clips: list[Path]) -> None:
    predictor = Predictor(checkpoint)
    first = CascadePredictor(predictor, Cascade((SMALL, LARGE), 0.0, (1.0, 1.0)))
    confidences = [first(path).probabilities.max() for path in clips]
    assert confidences[0] != confidences[1]
    cascade = CascadePredictor(predictor, Cascade((SMALL, LARGE), float(np.mean(confidences)), (1.0, 1.0)))
    passes = [cascade(path).spent.passes for path in clips]
    assert passes == [1 + (c < np.mean(confidences)) for c in confidences]


def test_the_cascade_nearest_below_a_mean_budget(checkpoint: Path) -> None:
    some = Cascade((SMALL, LARGE), 0.5, (1.0, 1.0), reach=(1.0, 0.25))  # 12 + 20 / 4 tokens.
    more = replace(some, threshold=0.8, reach=(1.0, 0.75))  # 27 tokens.
    predictor = Predictor(with_cascades(checkpoint, some, more))
    assert CascadePredictor(predictor, 26).cascade == some
    assert CascadePredictor(predictor, Budget(tokens=27)).cascade == more
    assert CascadePredictor(predictor).cascade == more
    size = predictor.model.config.size
    between = (some.mean(chain_gmacs(size, some.stages)) + more.mean(chain_gmacs(size, more.stages))) / 2
    assert CascadePredictor(predictor, Budget(gflops=between)).cascade == some
    with pytest.raises(
        ValueError, match="budget 16 tokens: the cheapest cascade takes 17 tokens in the mean"
    ):
        CascadePredictor(predictor, 16)


def test_milliseconds_are_measured_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of our own: a real one would make the test depend on the machine.
    monkeypatch.setattr("fluxvit.deploy.cascade.measure_chains", lambda model, chains: [10.0, 30.0])
    some = Cascade((SMALL, LARGE), 0.5, (1.0, 1.0), reach=(1.0, 0.25))
    predictor = Predictor(with_cascades(checkpoint, some))
    assert CascadePredictor(predictor, Budget(latency_ms=15)).cascade == some
    with pytest.raises(ValueError, match="takes 15 ms in the mean"):
        CascadePredictor(predictor, Budget(latency_ms=14))


def test_without_cascades(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no cascades"):
        CascadePredictor(Predictor(checkpoint))


# The command -----------------------------------------------------------------------------------------------


def test_command_with_a_cascade(
    checkpoint: Path, clips: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    some = Cascade((SMALL, LARGE), 1.0, (1.0, 1.0), reach=(1.0, 0.25))
    with_cascades(checkpoint, some)
    line = ["predict", *map(str, clips), "--checkpoint", str(checkpoint), "--cascade", "--budget", "20"]
    assert main([*line, "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["spent"]["passes"] for row in rows] == [2, 2]
    assert main(line) == 0
    assert "(20 of 27 tokens of 6x24, 32 tokens in 2 passes, " in capsys.readouterr().out
    assert main([*line, "--grid", "8x16"]) == 2
    assert "leave out --grid" in capsys.readouterr().err
    assert main([*line[:-1], "5"]) == 2
    assert "the cheapest cascade takes 17 tokens" in capsys.readouterr().err
