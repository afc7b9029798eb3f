from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fluxvit.deploy.search.windows import windows
from fluxvit.video.reader import open_video
from fluxvit.video.writer import write_video
from shades import FPS, GRID, shades


def spans(path: Path, seconds: float, **options) -> list[tuple[float, float]]:
    return [(round(w.start, 2), round(w.end, 2)) for w in windows(path, GRID, seconds, **options)]


def test_windows_overlap_by_half_and_reach_the_end(tmp_path: Path) -> None:
    path = shades(tmp_path / "a.mp4", 9.5)
    assert spans(path, 4) == [(0, 4), (2, 6), (4, 8), (6, 9.5)]
    assert spans(path, 3)[-1] == (7.5, 9.5)
    # What is left is shorter than an eighth of a window.
    assert spans(shades(tmp_path / "c.mp4", 9.3), 3)[-1] == (6.0, 9.0)
    assert spans(path, 20) == [(0, 9.5)]
    assert spans(shades(tmp_path / "b.mp4", 0.1), 4) == [(0, 0.1)]


def test_a_window_shows_its_own_frames_in_order(tmp_path: Path) -> None:
    path = shades(tmp_path / "a.mp4", 8)
    for window in windows(path, GRID, 4):
        assert window.video.shape == (3, 4, 16, 16)
        seen = window.video[2].float().mean((1, 2)) - 9.5
        middles = window.start + (torch.arange(4) + 0.5) / 4 * (window.end - window.start)
        torch.testing.assert_close(seen, 40 * middles / 8, rtol=0, atol=2.5)


def test_windows_do_not_reach_across_cuts(tmp_path: Path) -> None:
    parts = [shades(tmp_path / f"{i}.mp4", 5, hue=i % 2, seed=i) for i in range(3)]
    frames = []
    for part in parts:
        with open_video(part) as reader:
            frames += list(reader.read(reader.times))
    path = tmp_path / "whole.mp4"
    write_video(path, frames, FPS, crf=5)
    found = spans(path, 4)
    assert not any(start < cut < end for start, end in found for cut in (5, 10))
    assert [start for start, _ in found] == [0, 2, 5, 7, 10, 12]
    assert [end for _, end in found] == [4, 5, 9, 10, 14, 15]
    assert any(start < 5 < end for start, end in spans(path, 4, shots=False))


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, float("nan"), float("inf"), 1e6])
def test_windows_out_of_range(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"it must be from 0\.01 to 86400 seconds"):
        next(windows(tmp_path, GRID, seconds))
