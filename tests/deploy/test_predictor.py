from __future__ import annotations

import io
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from conftest import small_model
from fluxvit import Budget, Plan, Predictor, SamplingGrid
from fluxvit.checkpoints import latency
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.deploy.explain import dim_dropped, explain, kept_mask, shown_frames, write_explanation
from fluxvit.deploy.predictor import Prediction
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Measured
from fluxvit.models.fluxvit import create_model
from fluxvit.models.inference import form
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.transforms import to_tensor


def test_prediction(checkpoint: Path, clip: Path) -> None:
    result = Predictor(checkpoint, 12)(clip)
    assert result.plan == Plan(SamplingGrid(8, 16, 32), 12)
    assert result.probabilities.sum() == pytest.approx(1)
    top = result.top(3)
    assert [p for _, p in top] == sorted(result.probabilities, reverse=True)[:3]
    assert top[0][0] == "abcde"[result.probabilities.argmax()]
    assert result.kept.shape == (12,)
    assert result.fps == pytest.approx(4, rel=0.01)


def test_prediction_is_the_models_on_the_same_pixels(checkpoint: Path, clip: Path) -> None:
    from fluxvit.video.transforms import normalize, resize_and_crop, to_tensor

    predictor = Predictor(checkpoint, 12)
    result = predictor(clip)
    with open_video(clip) as reader:
        video = normalize(resize_and_crop(to_tensor(reader.read(result.times)), (16, 32)))
    with torch.no_grad():
        logits = predictor.model(video[None], 12).logits[0]
    np.testing.assert_allclose(result.probabilities, logits.softmax(-1).numpy(), atol=1e-6)


@pytest.mark.parametrize("sampling", [ClipSampling(), ClipSampling("dense", 2), ClipSampling("dense", 1, 5)])
def test_a_clip_is_the_one_of_evaluation(tmp_path: Path, clip: Path, sampling: ClipSampling) -> None:
    folder = Checkpoint(small_model(), sampling=sampling).save(tmp_path / "it")
    grid = SamplingGrid(6, 16, 32)
    predictor = Predictor(folder, 12, grid=grid)
    data = ClipDataset(Manifest((Entry(clip, 0),), (), ""), sampling=sampling)
    frames = to_tensor(predictor.sample(clip, [grid]).frames[grid])
    assert torch.equal(frames, data[ClipRequest(0, grid)].video)


def test_plans_are_used_and_budgets_between_them_cut_down(checkpoint: Path) -> None:
    assert Predictor(checkpoint).plan == Plan(SamplingGrid(8, 24, 24), 24)
    assert Predictor(checkpoint, 20).plan == Plan(SamplingGrid(8, 16, 32), 20)
    assert Predictor(checkpoint, 5).plan.keep == 5
    with pytest.raises(ValueError, match="budget 1000000 tokens: the grid 8x24 has 36 tokens"):
        Predictor(checkpoint, 10**6)


def test_a_budget_per_second_is_spread_over_the_video(checkpoint: Path, clip: Path) -> None:
    predictor = Predictor(checkpoint, Budget(tokens_per_s=25))  # 50 tokens in two seconds, at most 24 a clip.
    answer = predictor(clip)
    assert (answer.spent.passes, answer.plan.keep, answer.spent.tokens) == (3, 16, 48)
    frames = answer.plan.grid.frames
    assert answer.times.shape == (3 * frames,)
    pool = predictor.checkpoint.pool(answer.plan.grid)
    assert answer.kept.shape == (48,)
    assert (np.bincount(answer.kept // pool) == 16).all()
    # The clips are the views of a test.
    plain, sampling = Predictor(checkpoint, 16), predictor.checkpoint.sampling
    with open_video(clip) as reader:
        views = [sampling.times(0, reader.end, frames, reader.fps, view=n, views=3) for n in range(3)]
        parts = [plain(reader.read(times), fps=25) for times in views]
    np.testing.assert_array_equal(answer.times, np.concatenate(views))
    mean = np.mean([part.probabilities for part in parts], axis=0)
    np.testing.assert_allclose(answer.probabilities, mean, atol=1e-6)
    np.testing.assert_array_equal(answer.kept[:16], parts[0].kept)
    shown = explain(answer, predictor.model.config.patch_size, predictor.model.config.tubelet_size)
    assert len(shown) == 3 * frames
    (mapped,) = predictor.map([clip])
    np.testing.assert_array_equal(mapped.probabilities, answer.probabilities)
    with pytest.raises(ValueError, match="the plan follows from the length of a video"):
        predictor.plan  # noqa: B018


def test_a_video_too_short_for_a_budget_per_second_is_an_error_of_that_video(
    checkpoint: Path, clip: Path
) -> None:
    predictor = Predictor(checkpoint, Budget(tokens_per_s=10))
    short = np.zeros((2, 32, 32, 3), np.uint8)
    error, answer = predictor.map([short, clip], fps=None)
    assert isinstance(error, VideoError)
    assert "0.08 s of video get 0.8 tokens; give more tokens per second" in str(error)
    assert answer.spent.tokens == 20


def test_a_grid_can_be_asked_for(checkpoint: Path, clip: Path) -> None:
    assert Predictor(checkpoint, 10, grid=SamplingGrid(6, 8, 40))(clip).kept.shape == (10,)
    assert Predictor(checkpoint, grid=SamplingGrid(4, 16, 16)).plan.keep == 8


def test_budget_in_gflops_counts_everything(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, Budget(gflops=0.0008))
    size, plan = predictor.model.config.size, predictor.plan
    assert grid_cost(size, plan.grid, plan.keep).total <= 0.0008e9
    assert grid_cost(size, plan.grid, plan.keep + 2).total > 0.0008e9


def test_budget_in_milliseconds_is_measured(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of our own: a real one would make the test depend on the machine.
    monkeypatch.setattr(latency, "_pass_ms", lambda model, plan, video: 10.0 + plan.keep)
    plan = Predictor(checkpoint, Budget(latency_ms=30)).plan
    assert plan.keep in (19, 20)
    assert plan.measured.latency_ms == 10 + plan.keep
    with pytest.raises(ValueError, match="budget 5 ms: the least that this model can spend is 11 ms"):
        Predictor(checkpoint, Budget(latency_ms=5))


def test_selector_and_head_of_a_plan_are_used(tmp_path: Path, clip: Path) -> None:
    plan = Plan(SamplingGrid(8, 16, 32), 12, head=2, selector="uniform", measured=Measured(3, 4))
    folder = Checkpoint(small_model(), plans=[plan]).save(tmp_path / "planned")
    predictor = Predictor(folder, 12)
    calls: list[tuple[object, ...]] = []
    predictor.model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[1:]))
    result = predictor(clip)
    assert calls == [(12, 2, "uniform")]
    assert result.plan == plan
    assert result.plan.measured.accuracy == 0.75
    assert result.plan.measured.gmacs > 0
    # With fewer tokens it is another plan, of the same selector; neither head nor accuracy hold.
    fewer = Predictor(folder, 10).plan
    assert fewer == Plan(plan.grid, 10, selector="uniform")
    assert fewer.measured.accuracy is None
    assert Predictor(folder, 12, head=0).plan.measured.accuracy is None


def test_default_plans_sample_about_two_and_a_half_times_the_budget() -> None:
    with torch.device("meta"):
        model = create_model("fluxvit_small")
    grids = [SamplingGrid(t, s, s) for t in (8, 12, 16) for s in (168, 224)]
    (plan,) = Checkpoint(model, grids=grids).default_plans(1024)
    assert plan == Plan(SamplingGrid(16, 168, 168), 1024)
    with pytest.raises(ValueError, match="give a grid"):
        Checkpoint(model).default_plans(1024)


@pytest.mark.parametrize("budget", [0, -3])
def test_budget_of_nothing(checkpoint: Path, budget: int) -> None:
    with pytest.raises(ValueError, match=r"budget: tokens is .*, expected an integer of at least 1"):
        Predictor(checkpoint, budget)


def test_models_without_classifier_or_head(checkpoint: Path, tmp_path: Path) -> None:
    Checkpoint(small_model(0)).save(tmp_path / "headless")
    with pytest.raises(ValueError, match="no classifier"):
        Predictor(tmp_path / "headless")
    with pytest.raises(ValueError, match="heads 0 to 2"):
        Predictor(checkpoint, head=3)


# Inputs ----------------------------------------------------------------------------------------------------


def test_a_video_may_be_given_in_many_ways(checkpoint: Path, clip: Path) -> None:
    predictor = Predictor(checkpoint, 12)
    wanted = predictor(clip)
    with open_video(clip) as reader:
        frames = reader.read(reader.times)
    with clip.open("rb") as file:
        files = [str(clip), clip.read_bytes(), io.BytesIO(clip.read_bytes()), file]
        for video in files:
            found = predictor(video)
            np.testing.assert_array_equal(found.probabilities, wanted.probabilities)
            assert found.path == (clip if video is files[0] else None)
    for video in (frames, torch.from_numpy(frames), list(frames)):
        found = predictor(video, fps=10)
        np.testing.assert_array_equal(found.probabilities, wanted.probabilities)
        assert (found.path, found.fps) == (None, pytest.approx(wanted.fps))


def test_predictions_keep_no_frames(checkpoint: Path) -> None:
    # 60 frames of 6 MB that take up the memory of one.
    video = np.broadcast_to(np.zeros((1080, 1920, 3), np.uint8), (60, 1080, 1920, 3))
    predictor = Predictor(checkpoint, 12)
    tracemalloc.start()
    predictor(video)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_does_not_wait_for_threads_of_its_parent(checkpoint: Path) -> None:
    Predictor(checkpoint, 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        child = os.fork()
        if child == 0:
            os._exit(torch.get_num_threads())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    finally:
        torch.set_num_threads(threads)


# Explanation -----------------------------------------------------------------------------------------------


def test_kept_mask_repeats_tubelets() -> None:
    mask = kept_mask(np.array([0, 5]), (2, 1, 3), 2)
    assert mask.astype(int).tolist() == [[[1, 0, 0]], [[1, 0, 0]], [[0, 0, 1]], [[0, 0, 1]]]
    assert kept_mask(None, (2, 1, 3), 1).all()


def test_dropped_patches_are_dim_and_kept_ones_untouched() -> None:
    frames = np.full((1, 48, 72, 3), (200, 100, 50), np.uint8)
    mask = np.array([[[True, False, False], [False, False, False]]])
    shown = dim_dropped(frames, mask)
    assert (shown[0, 5:20, 5:20] == frames[0, 5:20, 5:20]).all()
    assert shown[0, 30:, 30:].max() < 50
    # The outline runs along the border with dropped patches only, not along the frame's edge.
    assert shown[0, 10, 23].tolist() == [255, 214, 10]
    assert shown[0, 0, 10].tolist() == [200, 100, 50]


def test_explanation_follows_the_motion(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    prediction = Predictor(checkpoint, 8, grid=SamplingGrid(8, 48, 64))(clip)
    mask = kept_mask(prediction.kept, (4, 6, 8), 2)
    # The square is 16 px high, on rows 16 to 32; everything else is still.
    assert mask[:, 2:4].sum() == mask.sum()
    picture = explain(prediction, 8, 2)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 8
    write_explanation(tmp_path / "out.mp4", prediction, 8, 2)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


def test_a_video_in_memory_is_given_again_to_be_shown(checkpoint: Path, clip: Path) -> None:
    predict, content = Predictor(checkpoint, 8), clip.read_bytes()
    prediction = predict(content)
    with pytest.raises(ValueError, match="given in memory; give it again"):
        explain(prediction, 8, 2)
    np.testing.assert_array_equal(shown_frames(prediction, video=content), shown_frames(predict(clip)))


def test_a_checkpoint_runs_in_its_inference_form_unless_it_was_made_smaller(
    checkpoint: Path, clip: Path
) -> None:
    loaded = Checkpoint.load(checkpoint)
    assert form(loaded.model) == "plain"
    in_torch = Predictor(loaded, 12, precision="fp32", backend="torch")
    assert form(in_torch.model) in ("packed float32", "prepared float32")
    assert form(Predictor(loaded, 12, precision="bf16").model).endswith(" bfloat16")
    assert form(loaded.model) == "plain"
    loaded.model.bfloat16()
    predictor = Predictor(loaded, 12)
    assert predictor.model is loaded.model
    assert np.isfinite(predictor(clip).probabilities).all()


# Many videos -----------------------------------------------------------------------------------------------


def test_map_answers_in_order_and_goes_on_after_damaged_videos(
    checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    predictor = Predictor(checkpoint, 12)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"not a video")
    frames = np.random.default_rng(0).integers(0, 256, (9, 30, 40, 3), dtype=np.uint8)
    videos = [clip, damaged, frames, clip.read_bytes(), damaged]
    answers = list(predictor.map(iter(videos), ahead=2))
    assert [isinstance(answer, VideoError) for answer in answers] == [False, True, False, False, True]
    assert "damaged.mp4" in str(answers[1])
    for video, answer in zip(videos, answers, strict=True):
        if not isinstance(answer, VideoError):
            np.testing.assert_array_equal(answer.probabilities, predictor(video).probabilities)
    assert list(predictor.map([])) == []
    with pytest.raises(ValueError, match="ahead is 0"):
        predictor.map([clip], ahead=0)


def test_map_takes_few_videos_ahead_and_ends_when_it_is_closed(checkpoint: Path, clip: Path) -> None:
    predictor, taken = Predictor(checkpoint, 12), []

    def videos() -> Iterator[Path]:
        for number in range(100):
            taken.append(number)
            yield clip

    answers = predictor.map(videos(), ahead=3)
    for count in (1, 2):
        assert isinstance(next(answers), Prediction)
        assert len(taken) <= count + 3
    answers.close()
    assert len(taken) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_map_raises_what_is_not_the_fault_of_a_video(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="fps"):
        list(Predictor(checkpoint, 12).map([np.zeros((4, 30, 40, 3), np.uint8)], fps=-1))
