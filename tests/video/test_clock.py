from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from clips import encode, numbers_of
from hypothesis import given
from hypothesis import strategies as st

from fluxvit.data.check import inspect_video
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.clock import Clock
from fluxvit.video.reader import open_video
from fluxvit.video.stream import open_stream

TICK = 1 / 1000
BROADCAST, OTHER = 0x0200, 0


@dataclass
class Stamp:
    dts: int | None
    pts: int | None
    duration: int | None = 40


def mended(stamps: list[Stamp], flags: int = OTHER, time_base: float = TICK) -> Clock:
    clock = Clock(time_base, 25.0, flags)
    for stamp in stamps:
        clock.mend(stamp)
    return clock


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=20), st.integers(-(2**40), 2**40))
def test_a_continuous_clock_is_left_alone(steps: list[int], start: int) -> None:
    times = (start + np.cumsum(steps)).tolist()
    stamps = [Stamp(time, time + 80) for time in times]
    assert mended(stamps).jumps == 0
    assert [(s.dts, s.pts) for s in stamps] == [(time, time + 80) for time in times]


@given(
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(2, 10)), min_size=1, max_size=5),
    st.sampled_from([BROADCAST, OTHER]),
)
def test_parts_are_laid_end_to_end(parts: list[tuple[int, int]], flags: int) -> None:
    stamps = [Stamp(start + 40 * i, start + 40 * i + 80) for start, count in parts for i in range(count)]
    clock = mended(stamps, flags)
    dts = [stamp.dts for stamp in stamps]
    steps = np.diff(np.array(dts))
    # A gap that may be a still picture stays; all else goes on by one frame.
    longest = 10_000 if flags == BROADCAST else 30 * 3_600_000
    assert ((steps >= -100) & (steps <= longest + 40)).all()
    assert clock.jumps <= len(parts) - 1
    assert all(stamp.pts - stamp.dts == 80 for stamp in stamps)


@pytest.mark.parametrize(("flags", "jumps"), [(BROADCAST, 1), (OTHER, 0)])
def test_a_gap_of_minutes_is_a_jump_in_broadcasts_only(flags: int, jumps: int) -> None:
    stamps = [Stamp(0, 0), Stamp(60_000, 60_000)]
    assert mended(stamps, flags).jumps == jumps
    assert stamps[1].dts == (40 if jumps else 60_000)


@pytest.mark.parametrize("wild", [2**62, -(2**62), 2**63 - 1, -(2**63) + 1])
def test_stamps_that_arithmetic_overflows_on_are_dropped(wild: int) -> None:
    stamps = [Stamp(0, 0), Stamp(wild, wild), Stamp(40, 40)]
    assert mended(stamps).jumps == 0
    assert stamps[1].dts is None
    assert stamps[2].dts == 40


def test_a_presentation_time_of_another_age_follows_stored_order() -> None:
    stamps = [Stamp(0, 0), Stamp(40, 10**15), Stamp(80, 80)]
    mended(stamps)
    assert stamps[1].pts == 40


def joined(folder: Path, suffix: str, codec: str, options: dict[str, str]) -> Path:
    """Two recordings of the same clock in one file, byte by byte."""
    parts = [
        encode(folder / f"{start}{suffix}", codec, count=50, start=start, options=options).read_bytes()
        for start in (0, 50)
    ]
    path = folder / f"joined{suffix}"
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".ts", "libx264", {"bf": "2", "g": "25"}),
        (".ts", "mpeg2video", {"bf": "2", "g": "15"}),
        (".mpg", "mpeg2video", {"bf": "2", "g": "15"}),
    ],
)
def test_joined_recordings_are_read_in_stored_order(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    path = joined(tmp_path, suffix, codec, options)
    with open_video(path) as reader:
        assert reader.end == pytest.approx(4.0, abs=0.05)
        shown = numbers_of(reader.read(reader.times))
        assert shown == list(range(100))
        assert numbers_of(reader.read([3.9, 0.1, 2.02])) == [97, 2, 50]
    assert inspect_video(path)["duration"] == pytest.approx(4.0, abs=0.05)
    sampled = list(open_stream(str(path)).sample(0.04))
    assert numbers_of(np.stack(sampled)) == list(range(100))
    cut = list(windows(path, SamplingGrid(4, 32, 32), 2.0, shots=False))
    assert [(round(w.start), round(w.end)) for w in cut] == [(0, 2), (1, 3), (2, 4)]


def leaping(path: Path, hours: float) -> Path:
    """A second of video, and another one so many hours later."""
    times = [40 * i for i in range(25)] + [int(hours * 3_600_000) + 40 * i for i in range(25)]
    return encode(path, count=50, pts=times, options={"bf": "0"})


@pytest.mark.parametrize(("hours", "suffix"), [(26, ".mp4"), (26, ".mkv"), (8760, ".mkv"), (490560, ".mkv")])
def test_a_leap_of_the_clock_costs_no_work(tmp_path: Path, suffix: str, hours: int) -> None:
    path = leaping(tmp_path / f"leap{suffix}", hours)
    with open_video(path) as reader:
        assert len(reader.times) == 50
        assert reader.end == pytest.approx(hours * 3600 + 1 if hours < 30 else 2.0, abs=0.1)
        assert numbers_of(reader.read(reader.times)) == list(range(50))
    # Windows are cut where there are frames, not along the claimed time.
    assert len(list(windows(path, SamplingGrid(4, 32, 32), 0.5, shots=False))) < 20


@pytest.mark.parametrize(("first_fps", "delay"), [(25, 80), (30, 67), (50, 40), (60, 0)])
def test_no_two_frames_fall_together_at_the_joint(first_fps: int, delay: int) -> None:
    """The later part is at another rate, or has no delay between storing and showing its frames."""
    step = 1000 // first_fps
    former = [Stamp(step * i, step * i + 80, step) for i in range(20)]
    later = [Stamp(40 * i, 40 * i + delay) for i in range(20)]
    clock = mended(former + later)
    assert clock.jumps == 1
    shown = [stamp.pts for stamp in former + later if stamp.pts is not None]
    assert shown == sorted(set(shown))
    assert (np.diff([stamp.dts for stamp in former + later]) > 0).all()
