from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fluxvit.video.reader import open_video
from fluxvit.video.writer import write_video

FRAMES = np.zeros((3, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (FRAMES, {"fps": 0}, "fps must be a number of frames per second"),
        (FRAMES, {"fps": float("nan")}, "fps must be"),
        (FRAMES, {"fps": float("inf")}, "fps must be"),
        (FRAMES, {"fps": 1e9}, "fps must be"),
        (FRAMES, {"fps": 25, "crf": 52}, "crf from 0 to 51"),
        (FRAMES, {"fps": 25, "gop": 0}, "gop must be at least 1"),
        (FRAMES / 255, {"fps": 25}, r"frame 0: a frame is uint8 \[H, W, 3\], got float64"),
        (FRAMES[..., 0], {"fps": 25}, r"got uint8 \[16, 16\]"),
        (FRAMES.transpose(0, 3, 1, 2), {"fps": 25}, r"got uint8 \[3, 16, 16\]"),
        (FRAMES[:, :0], {"fps": 25}, r"got uint8 \[0, 16, 3\]"),
        ([FRAMES[0], FRAMES[1, :8]], {"fps": 25}, "frame 1 is 16x8, the first was 16x16"),
        ([], {"fps": 25}, "no frames to write"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, frames: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.mp4", frames, **options)
    assert not list(tmp_path.iterdir())


def test_slow_and_odd_rates_are_kept(tmp_path: Path) -> None:
    for fps in (1 / 86_400, 0.01, 0.4, 29.97, 240):
        write_video(tmp_path / "clip.mp4", FRAMES, fps)
        with open_video(tmp_path / "clip.mp4") as reader:
            assert reader.times[1] == pytest.approx(1 / fps, rel=1e-3)


def test_what_is_written_does_not_depend_on_the_cpu(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(40, 200, (20, 28, 3)), np.ones((6, 6, 1))) + rng.normal(0, 6, (120, 168, 3))
    frames = [scene[t : t + 96, 2 * t : 2 * t + 96].clip(0, 255).astype(np.uint8) for t in range(24)]
    write_video(tmp_path / "clip.mp4", frames, 25)
    with av.open(str(tmp_path / "plain.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        # Without any code written for one kind of processor.
        stream.options = {"crf": "23", "preset": "veryfast", "g": "8", "bf": "0", "x264-params": "asm=0"}
        stream.codec_context.thread_count = 1
        for frame in [*(av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames), None]:
            container.mux(stream.encode(frame))
    with open_video(tmp_path / "clip.mp4") as written, open_video(tmp_path / "plain.mp4") as plain:
        np.testing.assert_array_equal(written.read(range(24)), plain.read(range(24)))
