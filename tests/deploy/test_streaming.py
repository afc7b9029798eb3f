from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from torch import Tensor

from fluxvit import Plan, Predictor, SamplingGrid
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.deploy.streaming import StreamingPredictor
from fluxvit.flux.cost import grid_cost
from fluxvit.models.fluxvit import create_model
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.stream import FileFrames, FrameSource, Part, TimedFrames, open_stream
from fluxvit.video.transforms import normalize, resize_and_crop, to_tensor


def noise(count: int, height: int = 20, width: int = 28) -> np.ndarray:
    """Frames that all differ, uint8 ``[count, height, width, 3]``."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def at(frames: np.ndarray, fps: float = 1.0) -> TimedFrames:
    return TimedFrames((k / fps, image) for k, image in enumerate(frames))


def predictor_of(tmp_path: Path, plan: Plan, tubelet_size: int) -> Predictor:
    torch.manual_seed(0)
    model = create_model(
        "fluxvit_nano",
        embed_dim=32,
        depth=2,
        pool_dim=16,
        pool_heads=2,
        budgets=(24, 6),
        table_shape=(4, 4, 4),
        tubelet_size=tubelet_size,
        num_classes=5,
        layer_scale=1.0,
    )
    return Predictor(Checkpoint(model.eval(), plans=[plan]).save(tmp_path / "model"), plan.keep)


@pytest.mark.parametrize(
    ("plan", "tubelet_size", "hop", "steps"),
    [
        (Plan(SamplingGrid(8, 16, 24), 20), 1, 1, 9),
        (Plan(SamplingGrid(8, 16, 24), 20, head=1), 1, 3, 3),
        (Plan(SamplingGrid(8, 24, 16), 7), 2, 1, 5),
        (Plan(SamplingGrid(8, 24, 16), 6, selector="dynamic"), 2, 4, 2),
        (Plan(SamplingGrid(8, 16, 16), 4), 4, 1, 3),
        (Plan(SamplingGrid(8, 16, 16), 5, selector="tube"), 2, 1, 5),
        (Plan(SamplingGrid(6, 16, 16), 5, selector="pixel_difference"), 1, 2, 6),
        (Plan(SamplingGrid(8, 16, 16), 7, selector="random"), 2, 1, 5),
        (Plan(SamplingGrid(8, 16, 16), 16), 2, 1, 5),  # Nothing is dropped.
        (Plan(SamplingGrid(8, 16, 16), 16, selector="random"), 2, 1, 5),
        (Plan(SamplingGrid(1, 16, 16), 3), 1, 1, 16),
    ],
)
def test_streaming_is_the_model_on_the_frames_of_the_window(
    plan: Plan, tubelet_size: int, hop: int, steps: int, tmp_path: Path
) -> None:
    predictor, frames = predictor_of(tmp_path, plan, tubelet_size), noise(16)
    length = plan.grid.frames
    answers = list(StreamingPredictor(predictor, length, hop * tubelet_size)(at(frames)))
    assert len(answers) == steps
    for step, answer in enumerate(answers):
        start = step * hop * tubelet_size
        assert (answer.start, answer.end, answer.dropped) == (start, start + length, 0)
        clip, size = to_tensor(frames[start : start + length]), (plan.grid.height, plan.grid.width)
        video = normalize(resize_and_crop(clip, size))
        with torch.no_grad():
            out = predictor.model(video[None], plan.keep, plan.head, plan.selector)
        np.testing.assert_allclose(answer.probabilities, out.logits[0].softmax(-1).numpy(), atol=1e-4)
        np.testing.assert_allclose(answer.embedding, out.embedding[0].numpy(), atol=1e-4)
        assert (answer.kept is None) == (out.kept is None)
        if out.kept is not None:
            np.testing.assert_array_equal(answer.kept, out.kept[0].numpy())
    assert len({answer.probabilities.tobytes() for answer in answers}) == steps


@pytest.mark.parametrize("selector", ["group_dynamic", "pixel_difference", "uniform"])
def test_no_token_is_embedded_twice(selector: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(checkpoint)
    predictor._plan = Plan(SamplingGrid(8, 16, 16), 8, selector=selector)  # 4 tubelets of 4 tokens.
    seen: list[Tensor] = []
    embed = predictor.model.patch_embed.embed

    def spy(patches: Tensor) -> Tensor:
        seen.append(patches.reshape(-1, patches.shape[-1]))
        return embed(patches)

    monkeypatch.setattr(predictor.model.patch_embed, "embed", spy)
    answers = list(StreamingPredictor(predictor, 8, 2)(at(noise(32))))
    assert len(answers) == 13
    embedded = torch.cat(seen)
    assert len(embedded.unique(dim=0)) == len(embedded)
    assert len(embedded) == 64


def test_a_window_as_long_as_the_file_is_the_prediction(checkpoint: Path, clip: Path) -> None:
    predictor = Predictor(checkpoint, 12)
    source = open_stream(str(clip))
    (answer,) = StreamingPredictor(predictor, source.seconds)(source)
    prediction = predictor(clip)
    np.testing.assert_allclose(answer.probabilities, prediction.probabilities, atol=1e-4)
    np.testing.assert_array_equal(answer.kept, prediction.kept)
    assert answer.top(1) == [("abcde"[answer.probabilities.argmax()], answer.probabilities.max())]


def test_hops_are_whole_tubelets_and_tokens_have_a_rate(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, 12)  # 8x16x32: 4 tubelets of 8 tokens.
    stream = StreamingPredictor(predictor, 2.0, 0.6)
    assert (stream.hop_s, stream.token_rate, stream.plan) == (0.5, 24, predictor.plan)
    assert StreamingPredictor(predictor, 2.0, 0.01).hop_s == 0.5
    assert StreamingPredictor(predictor, 2.0, 2.0).hop_s == 2.0
    stream = StreamingPredictor(predictor, 2.0, 1.0, token_rate=9.5)
    assert stream.plan == Plan(SamplingGrid(8, 16, 32), 9)
    # Above the pool: all of it.
    assert StreamingPredictor(predictor, 2.0, 1.0, token_rate=1000).plan.keep == 32


def test_macs_of_a_step(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, 12)
    whole = grid_cost(predictor.model.config.size, predictor.plan.grid, 12)
    assert StreamingPredictor(predictor, 2.0, 2.0).macs == whole.total
    embedding = 32 * (8 * 8 * 2 * 3) * 32
    assert StreamingPredictor(predictor, 2.0, 0.5).macs == whole.total - embedding * 3 // 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0,), r"window 0: it must be from 0\.01 to 86400 seconds"),
        ((1e-9,), "window 1e-09"),
        ((1e300,), r"window 1e\+300"),
        ((2.0, float("nan")), "hop nan"),
        ((2.0, 0.5, float("inf")), "inf tokens a second: the rate must be above 0 and up to"),
        ((2.0, 0.5, 1e300), r"1e\+300 tokens a second"),
        ((float("nan"),), "window nan"),
        ((2.0, -1.0), "hop -1"),
        ((2.0, 3.0), "longer than the window of 2 s"),
        ((2.0, 0.5, 0.0), "0 tokens a second"),
        ((2.0, 0.5, 1.9), "give at least 2, or a longer hop"),
    ],
)
def test_numbers_out_of_range(options: tuple[float, ...], message: str, checkpoint: Path) -> None:
    names = ("window_s", "hop_s", "token_rate")
    with pytest.raises(ValueError, match=message):
        StreamingPredictor(Predictor(checkpoint, 12), **dict(zip(names, options, strict=False)))


def test_a_stream_that_is_too_short(checkpoint: Path) -> None:
    stream = StreamingPredictor(Predictor(checkpoint, 12), 8)
    with pytest.raises(VideoError, match="ended after 7 s, before the first window of 8 s"):
        list(stream(at(noise(7))))
    assert len(list(stream(at(noise(8))))) == 1


class Tap(FrameSource):
    """A live source whose frames come when the test lets them."""

    live = True

    def __init__(self, bursts: list[int], failure: Exception | None = None) -> None:
        self.bursts, self.failure = bursts, failure
        self.opened, self.drained = [Event() for _ in bursts], [Event() for _ in bursts]
        self.closed = Event()

    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        frames = iter(noise(sum(self.bursts)))
        try:
            for burst, opened, drained in zip(self.bursts, self.opened, self.drained, strict=True):
                assert opened.wait(30)
                for _ in range(burst):
                    yield next(frames)
                drained.set()  # All of it was taken up.
            if self.failure:
                raise self.failure
        finally:
            self.closed.set()


@pytest.mark.parametrize("gap", [3, 40])
def test_a_live_stream_skips_to_the_newest_window(gap: int, checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, 12)
    tap = Tap([8, gap * 2, 4])  # The first window; gap tubelets; two tubelets.
    answers = StreamingPredictor(predictor, 8, 2)(tap)
    tap.opened[0].set()
    assert next(answers).dropped == 0
    tap.opened[1].set()
    assert tap.drained[1].wait(30)
    late = next(answers)
    assert (late.dropped, late.end) == (gap - 1, 8 + 2 * gap)
    frames = noise(sum(tap.bursts))[2 * gap : 8 + 2 * gap]
    with torch.no_grad():
        clip = normalize(resize_and_crop(to_tensor(frames), (16, 32)))
        out = predictor.model(clip[None], 12)
    np.testing.assert_allclose(late.probabilities, out.logits[0].softmax(-1).numpy(), atol=1e-4)
    tap.opened[2].set()
    rest = list(answers)
    assert rest[-1].end == 8 + 2 * gap + 4
    assert sum(answer.dropped for answer in rest) + len(rest) == 2


def test_a_live_stream_that_breaks_off_answers_first(checkpoint: Path) -> None:
    tap = Tap([8], VideoError("camera: unplugged"))
    answers = StreamingPredictor(Predictor(checkpoint, 12), 8)(tap)
    tap.opened[0].set()
    assert next(answers).end == 8
    with pytest.raises(VideoError, match="unplugged"):
        next(answers)


class Interrupted(FrameSource):
    """A source of several parts, each with its start; frames arrived a minute ago."""

    def __init__(self, parts: list[tuple[float, np.ndarray]], live: bool) -> None:
        self._parts, self.live = parts, live

    def sample(self, period: float) -> Generator[np.ndarray, None, None]:
        raise NotImplementedError

    def parts(self, period: float) -> Generator[Part, None, None]:
        end = 0.0
        for start, frames in self._parts:
            yield Part(start, start - end, self._images(frames))
            end = start + len(frames) * period

    def _images(self, frames: np.ndarray) -> Generator[np.ndarray, None, None]:
        for frame in frames:
            self.arrived = time.monotonic() - 60
            yield frame


@pytest.mark.parametrize("live", [False, True])
def test_no_window_contains_a_gap(live: bool, checkpoint: Path) -> None:
    predictor, frames = Predictor(checkpoint, 12), noise(60)
    # The second part is too short for a window, and the other ones end within a hop.
    parts = [(0.0, frames[:13]), (20.0, frames[13:19]), (30.0, frames[19:34]), (50.0, frames[34:43])]
    answers = list(StreamingPredictor(predictor, 8, 2)(Interrupted(parts, live)))
    whole = [(start + k, frames[k : k + 8]) for start, frames in parts for k in range(0, len(frames) - 7, 2)]
    assert sum(answer.dropped for answer in answers) + len(answers) == len(whole)
    windows = dict(whole)
    for answer in answers:
        assert answer.end == answer.start + 8
        clip = normalize(resize_and_crop(to_tensor(windows[answer.start]), (16, 32)))
        with torch.no_grad():
            out = predictor.model(clip[None], 12)
        np.testing.assert_allclose(answer.probabilities, out.logits[0].softmax(-1).numpy(), atol=1e-4)
        assert answer.lag is not None
        assert answer.lag >= 60
    if not live:
        assert [(answer.start, answer.gap) for answer in answers] == [
            (0, 0), (2, 0), (4, 0), (30, 4), (32, 0), (34, 0), (36, 0), (50, 5)
        ]  # fmt: skip


def test_a_picture_that_is_shown_for_long_is_prepared_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, prepared = Predictor(checkpoint, 12), []
    clip = predictor.checkpoint.clip
    monkeypatch.setattr(predictor.checkpoint, "clip", lambda *given: prepared.append(0) or clip(*given))
    assert len(list(StreamingPredictor(predictor, 8, 2)(at(noise(4), fps=1 / 16)))) == 29
    assert len(prepared) == 4


def test_leaving_releases_the_source(checkpoint: Path) -> None:
    tap = Tap([8, 1])
    answers = StreamingPredictor(Predictor(checkpoint, 12), 8)(tap)
    tap.opened[0].set()
    next(answers)
    tap.opened[1].set()
    answers.close()
    assert tap.closed.wait(30)


def test_whatever_is_a_video_is_a_source(checkpoint: Path, clip: Path) -> None:
    stream = StreamingPredictor(Predictor(checkpoint, 12), 1.0, 0.5)
    with open_video(clip) as reader:
        frames = reader.read(reader.times)
    wanted = [answer.probabilities for answer in stream(FileFrames(clip))]
    for video, fps in (
        (str(clip), None),
        (clip, None),
        (clip.read_bytes(), None),
        (frames, 10),
        (list(frames), 10),
    ):
        found = [answer.probabilities for answer in stream(video, fps=fps)]
        np.testing.assert_array_equal(found, wanted)
