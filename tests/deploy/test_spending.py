from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_model
from fluxvit import Budget, Plan, Predictor, SamplingGrid
from fluxvit.checkpoints import load_checkpoint, save_plans
from fluxvit.cli import main
from fluxvit.deploy.explain import shown_frames
from fluxvit.deploy.spending import CascadePredictor, CorpusPredictor, measure_chains, prefixes, run_stages
from fluxvit.flux.budget import Cascade
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.spending import chain_gmacs, motion, share_tokens, spread
from fluxvit.video.base import VideoError
from fluxvit.video.writer import write_video

SMALL, LARGE = Plan(SamplingGrid(8, 16, 32), 12), Plan(SamplingGrid(6, 24, 24), 20)
SAME = Plan(SamplingGrid(8, 16, 32), 20)


@pytest.fixture
def clips(tmp_path: Path, clip: Path) -> list[Path]:
    """The moving square, and noise that stands still."""
    still = np.random.default_rng(1).integers(0, 255, (1, 48, 64, 3), dtype=np.uint8).repeat(20, 0)
    write_video(tmp_path / "still.mp4", still, 10)
    return [clip, tmp_path / "still.mp4"]


# Sharing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_shares_add_up_and_keep_within_limits_and_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    needs = rng.lognormal(0, rng.uniform(0, 4), rng.integers(1, 40)).round(2).tolist()
    floor, mean, ceiling = sorted(rng.integers(1, 60, 3).tolist())
    shares = share_tokens(needs, mean, floor, ceiling)
    assert sum(shares) == mean * len(needs)
    assert floor <= min(shares)
    assert max(shares) <= ceiling
    order = np.argsort(needs, kind="stable")
    ranked = [(needs[i], shares[i]) for i in order]
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(ranked) if a[0] < b[0])


def test_shares_are_in_proportion_where_no_limit_is_met() -> None:
    assert share_tokens([1, 2, 3], 20, 1, 60) == [10, 20, 30]
    # What the ceiling cuts off goes to the others, in proportion.
    assert share_tokens([1, 2, 30], 20, 1, 30) == [10, 20, 30]
    assert share_tokens([1, 1, 100], 20, 15, 60) == [15, 15, 30]
    assert share_tokens([0, 0, 0], 7, 1, 9) == [7, 7, 7]
    assert share_tokens([0, 0, 5], 7, 1, 9) == [6, 6, 9]
    assert share_tokens([], 7, 1, 9) == []


@pytest.mark.parametrize("limits", [(0, 9), (8, 9), (1, 6)])
def test_limits_that_leave_no_room(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a mean of 7 tokens"):
        share_tokens([1, 2], 7, *limits)


@pytest.mark.parametrize("need", [-1.0, float("nan"), float("inf")])
def test_needs_that_are_none(need: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        share_tokens([1.0, need], 7, 1, 9)


def test_needs_of_scores() -> None:
    even, one = torch.ones(1, 4, 5), torch.zeros(1, 4, 5)
    one[0, 2, 3] = 20
    assert motion(even) == motion(one) == pytest.approx(1)
    assert spread(even) == pytest.approx(20)
    assert spread(one) == pytest.approx(1)


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
    _, info = load_checkpoint(checkpoint)
    info.cascades = list(cascades)
    save_plans(checkpoint, info)
    return checkpoint


def test_a_cascade_stops_where_it_is_sure(checkpoint: Path, clip: Path) -> None:
    predictor = Predictor(checkpoint, keep_frames=True)
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
    alone = Predictor(checkpoint, 20, grid=LARGE.grid, keep_frames=True)(clip)
    assert (keen.frames == alone.frames).all()
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
    monkeypatch.setattr("fluxvit.deploy.spending.measure_chains", lambda model, chains: [10.0, 30.0])
    some = Cascade((SMALL, LARGE), 0.5, (1.0, 1.0), reach=(1.0, 0.25))
    predictor = Predictor(with_cascades(checkpoint, some))
    assert CascadePredictor(predictor, Budget(latency_ms=15)).cascade == some
    with pytest.raises(ValueError, match="takes 15 ms in the mean"):
        CascadePredictor(predictor, Budget(latency_ms=14))


def test_without_cascades(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no cascades"):
        CascadePredictor(Predictor(checkpoint))


# A shared budget -------------------------------------------------------------------------------------------


def test_what_moves_more_gets_more_and_the_mean_is_kept(checkpoint: Path, clips: list[Path]) -> None:
    corpus = CorpusPredictor(Predictor(checkpoint, 8, grid=SamplingGrid(8, 48, 64)))
    predictions = list(corpus.spend([corpus.look(path) for path in clips]))
    moving, still = (p.spent.tokens for p in predictions)
    assert moving > still
    assert moving + still == 16
    assert [p.path for p in predictions] == clips
    for path, prediction in zip(clips, predictions, strict=True):
        alone = Predictor(checkpoint, prediction.spent.tokens, grid=SamplingGrid(8, 48, 64))(path)
        np.testing.assert_allclose(prediction.probabilities, alone.probabilities, atol=1e-5)
        assert (prediction.kept == alone.kept).all()
        assert prediction.spent == alone.spent


def test_limits_of_a_shared_budget(checkpoint: Path, clips: list[Path]) -> None:
    predictor = Predictor(checkpoint, 8, grid=SamplingGrid(8, 48, 64))
    corpus = CorpusPredictor(predictor, "spread", floor=7, ceiling=9)
    assert sorted(corpus.shares([corpus.look(path) for path in clips])) in ([7, 9], [8, 8])
    with pytest.raises(ValueError, match="floor 9"):
        CorpusPredictor(predictor, floor=9)
    with pytest.raises(ValueError, match="choose motion or spread"):
        CorpusPredictor(predictor, "sound")
    # A pool below one and a half times the mean is a ceiling, too.
    whole = CorpusPredictor(Predictor(checkpoint, 30, grid=SamplingGrid(8, 24, 24)))
    assert max(whole.shares([whole.look(path) for path in clips])) <= 36


def test_only_selectors_that_score_embeddings_share(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, 8)
    predictor.plan = replace(predictor.plan, selector="uniform")
    with pytest.raises(ValueError, match="selector uniform scores no embeddings"):
        CorpusPredictor(predictor)


def test_shared_predictions_are_explained_from_their_videos(checkpoint: Path, clip: Path) -> None:
    predictor = Predictor(checkpoint, 8)
    corpus = CorpusPredictor(predictor)
    path, memory = corpus.spend([corpus.look(clip), corpus.look(clip.read_bytes())])
    np.testing.assert_array_equal(shown_frames(path), shown_frames(predictor(clip)))
    with pytest.raises(ValueError, match="were not kept"):
        shown_frames(memory)


def test_an_unreadable_clip_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        CorpusPredictor(Predictor(checkpoint, 8)).look(tmp_path / "bad.mp4")


# The command -----------------------------------------------------------------------------------------------


def test_command_with_a_cascade(
    checkpoint: Path, clips: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    some = Cascade((SMALL, LARGE), 1.0, (1.0, 1.0), reach=(1.0, 0.25))
    with_cascades(checkpoint, some)
    line = ["predict", *map(str, clips), "--checkpoint", str(checkpoint), "--cascade", "--budget", "20"]
    assert main([*line, "--json"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(row) for row in out.splitlines()]
    assert [row["spent"]["passes"] for row in rows] == [2, 2]
    assert "2 clips: 32 tokens and" in err
    assert main(line) == 0
    assert "(pass 2: 20 of 27 tokens of 6x24, 32 tokens in all, " in capsys.readouterr().out
    assert main([*line, "--grid", "8x16"]) == 2
    assert "leave out --grid" in capsys.readouterr().err
    assert main([*line[:-1], "5"]) == 2
    assert "the cheapest cascade takes 17 tokens" in capsys.readouterr().err


def test_command_with_a_shared_budget(
    checkpoint: Path, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    line = ["predict", *map(str, clips), str(tmp_path / "bad.mp4"), "--checkpoint", str(checkpoint)]
    line += ["--share", "motion"]
    assert main([*line, "--budget", "8", "--json"]) == 2
    out, err = capsys.readouterr()
    rows = [json.loads(row) for row in out.splitlines()]
    assert sum(row["tokens"] for row in rows) == 16
    assert len(rows) == 2
    assert "bad.mp4" in err
    assert "2 clips: 8 tokens and" in err
    assert main([*line, "--explain", "why.mp4"]) == 2
    assert "without --share" in capsys.readouterr().err
