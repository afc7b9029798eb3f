"""The selector ``codec`` in the predictor: motion vectors of the stream choose the tokens."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from fluxvit import Predictor, SamplingGrid
from fluxvit.flux import selection

GRID = SamplingGrid(16, 64, 64)


def frames() -> list[np.ndarray]:
    """A textured square that moves down over a textured background, 64x64."""
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(noise, size=(64, 64), mode="bilinear")[0]
    background = (255 * image).byte().permute(1, 2, 0).numpy()
    clip = []
    for number in range(16):
        picture = background.copy()
        picture[2 * number : 2 * number + 24, 20:44] = background[40:64, 0:24][::-1]
        clip.append(picture)
    return clip


def encode(path: Path, codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height = stream.width = 64
        stream.pix_fmt, stream.bit_rate, stream.options = "yuv420p", 1_000_000, options
        for image in frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def predict() -> Predictor:
    return Predictor(budget=32, grid=GRID, selector="codec")


def test_the_kept_tokens_are_on_the_square(predict: Predictor, tmp_path: Path) -> None:
    prediction = predict(encode(tmp_path / "clip.mp4", "libx264", {"bf": "0"}))
    assert prediction.plan.selector == "codec"
    assert prediction.kept.shape == (32,)
    step, position = np.divmod(prediction.kept, 64)
    row, column = np.divmod(position, 8)
    top = 8 * step  # Where the square begins in the first frame of the tubelet.
    on = (row * 8 + 8 > top) & (row * 8 < top + 30) & (column >= 2) & (column <= 5)
    assert on.mean() > 0.9


def test_map_chooses_the_same_tokens(predict: Predictor, tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mp4", "libx264", {"bf": "0"})
    (mapped,) = predict.map([path])
    assert np.array_equal(mapped.kept, predict(path).kept)


def test_pixels_choose_where_there_are_no_vectors(
    predict: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """VP9 exports none, and frames in memory have none. It is logged once."""
    selection._log_no_motion.cache_clear()
    path = encode(tmp_path / "clip.webm", "libvpx-vp9", {"cpu-used": "8"})
    pixels = Predictor(budget=32, grid=GRID, selector="two_sided_pixels")
    with caplog.at_level(logging.WARNING, logger=selection.__name__):
        predict(encode(tmp_path / "clip.mp4", "libx264", {"bf": "0"}))
        assert not caplog.records
        for video in (path, path, np.stack(frames())):
            assert np.array_equal(predict(video).kept, pixels(video).kept)
    assert [record.message[:43] for record in caplog.records] == [
        "selector codec: here are no motion vectors,"
    ]


def test_an_unknown_selector_is_named(predict: Predictor) -> None:
    with pytest.raises(ValueError, match="selector 'codecs' is unknown"):
        Predictor(predict.checkpoint, 32, selector="codecs")
