"""Times are sorted, in range and as many as asked for, whatever the video."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxvit.video.sampling import ClipSampling, segment_times

frames_wanted = st.integers(1, 64)
starts = st.floats(-100, 10_000)
lengths = st.floats(1e-3, 10_000)


@st.composite
def draws(draw: st.DrawFn) -> dict:
    """A seed for a random draw, or a view."""
    if draw(st.booleans()):
        return {"seed": draw(st.integers(0, 2**32 - 1))}
    views = draw(st.integers(1, 8))
    return {"views": views, "view": draw(st.integers(0, views - 1))}


def arguments(draw: dict) -> dict:
    """Keyword arguments for a fresh, identical draw."""
    return {"generator": np.random.default_rng(draw["seed"])} if "seed" in draw else draw


@given(starts, lengths, frames_wanted, draws())
def test_segment_times(start: float, length: float, frames: int, draw: dict) -> None:
    times = segment_times(start, start + length, frames, **arguments(draw))
    assert times.shape == (frames,)
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= start
    assert times[-1] < start + length
    # One in each segment, up to rounding.
    segments = (times - start) / length * frames
    assert np.all(np.abs(segments - np.arange(frames) - 0.5) <= 0.5 + 1e-4)
    np.testing.assert_array_equal(times, segment_times(start, start + length, frames, **arguments(draw)))


@given(starts, lengths, frames_wanted, draws(), st.floats(1, 120), st.integers(1, 8))
def test_dense_times(start: float, length: float, frames: int, draw: dict, fps: float, stride: int) -> None:
    def sample() -> np.ndarray:
        return ClipSampling("dense", stride).times(start, start + length, frames, fps, **arguments(draw))

    times = sample()
    assert times.shape == (frames,)
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= start
    assert times[-1] < start + length
    np.testing.assert_array_equal(times, sample())


def test_segment_views_interleave() -> None:
    assert segment_times(0, 8, 2).tolist() == [2, 6]
    assert [segment_times(10, 18, 2, view=v, views=3).tolist() for v in range(3)] == [
        [11, 15],
        [12, 16],
        [13, 17],
    ]


def test_dense_views_run_from_the_first_window_to_the_last() -> None:
    every_fifth = ClipSampling("dense", 5)
    first, middle, last = (every_fifth.times(0, 10, 4, 10, view=v, views=3) for v in range(3))
    np.testing.assert_allclose(first, [0.05, 0.55, 1.05, 1.55])
    np.testing.assert_allclose(last, first + 8)
    np.testing.assert_allclose(middle, every_fifth.times(0, 10, 4, 10))


def test_dense_repeats_the_last_frame_of_a_short_video() -> None:
    times = ClipSampling("dense", 2).times(0, 0.4, 4, 10)
    np.testing.assert_array_equal(times, ClipSampling("dense", 2, fps=10).times(0, 0.4, 4, 25))
    assert np.floor(times * 10).tolist() == [0, 2, 3, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segment_times(0, 1, 0), "frames must be"),
        (lambda: segment_times(1, 1, 4), "must end after it starts"),
        (lambda: segment_times(0, float("nan"), 4), "must end after it starts"),
        (lambda: segment_times(0, 1, 4, view=2, views=2), "view must be"),
        (lambda: segment_times(0, 1, 4, generator=np.random.default_rng(0), views=2), "no views"),
        (lambda: ClipSampling("dense").times(1, 1, 4, 25), "must end after it starts"),
        (lambda: ClipSampling("dense", fps=0), "fps is 0"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
