"""Dual encoders as sentence-transformers use them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.flux.budget import Budget
from fluxvit.hf import sentence_transformer
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from language import SENTENCES, saved_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_encoder(tmp_path / "dual")


def expected(folder: Path, clip: Path, budget: int | None) -> np.ndarray:
    """The vector of a video by the checkpoint's own means."""
    checkpoint = DualEncoderCheckpoint.load(folder)
    plan = checkpoint.video.plan(budget)
    with open_video(clip) as reader, torch.no_grad():
        times = checkpoint.video.sampling.times(0, reader.end, plan.grid.frames, reader.fps)
        video = checkpoint.video.clip(reader.read(times), plan.grid)
        return checkpoint.model.embed_video(video, plan.keep, plan.head, plan.selector)[0].numpy()


def test_vectors_are_those_of_the_checkpoint(folder: Path, clip: Path) -> None:
    model = sentence_transformer(folder, budget=6, device="cpu")
    texts = DualEncoderCheckpoint.load(folder).embed_texts(SENTENCES).numpy()
    np.testing.assert_allclose(model.encode(SENTENCES), texts, atol=1e-6)
    np.testing.assert_allclose(model.encode(SENTENCES[0], prompt="a "), model.encode("a " + SENTENCES[0]))
    assert model.get_embedding_dimension() == texts.shape[1] == 12
    video = model.encode(str(clip))
    np.testing.assert_allclose(video, expected(folder, clip, 6), atol=1e-5)
    cosines = model.similarity(video, texts).numpy()
    np.testing.assert_allclose(cosines, video[None] @ texts.T, atol=1e-6)


def test_the_budget_of_the_module_and_of_a_call(folder: Path, clip: Path) -> None:
    model = sentence_transformer(folder, device="cpu")
    np.testing.assert_allclose(model.encode(clip), expected(folder, clip, None), atol=1e-5)
    for budget in (6, "6", Budget(tokens=6)):
        np.testing.assert_allclose(model.encode(clip, budget=budget), expected(folder, clip, 6), atol=1e-5)
    assert np.abs(model.encode(clip) - expected(folder, clip, 6)).max() > 1e-3
    model[0].budget = 6
    np.testing.assert_allclose(model.encode(clip), expected(folder, clip, 6), atol=1e-5)
    with pytest.raises(ValueError, match="budget '6 apples'"):
        model.encode(clip, budget="6 apples")
    with pytest.raises(ValueError, match="tokens"):
        sentence_transformer(folder, budget=0)


def test_forms_of_a_video(folder: Path, clip: Path) -> None:
    model = sentence_transformer(folder, device="cpu")
    video = model.encode(clip)
    files = [str(clip), clip.read_bytes(), {"video": clip}, {"path": None, "bytes": clip.read_bytes()}]
    np.testing.assert_allclose(model.encode(files), np.stack([video] * 4), atol=1e-5)
    with clip.open("rb") as file:
        np.testing.assert_allclose(model.encode(file), video, atol=1e-5)
    with open_video(clip) as reader:
        array = reader.read(reader.times)
    channels_first = torch.from_numpy(array).permute(0, 3, 1, 2)
    described = {"array": array, "video_metadata": {"fps": 10}}
    frames = [array, channels_first, list(array), described, {"video": described}]
    np.testing.assert_allclose(model.encode(frames), np.stack([video] * 5), atol=1e-5)
    facts = {"num_frames": 20, "begin_stream_seconds": 0.0, "end_stream_seconds": 2.0}
    decoder = SimpleNamespace(  # As torchcodec's.
        metadata=SimpleNamespace(width=64, height=48, codec="h264", **facts),
        get_frames_played_at=lambda times: SimpleNamespace(data=channels_first[[int(10 * t) for t in times]]),
    )
    np.testing.assert_allclose(model.encode(decoder), video, atol=1e-5)
    # Another size and number of frames, in one batch.
    assert model.encode([array, array[:3, :20, :30]]).shape == (2, 12)


def test_inputs_that_cannot_be_encoded_are_named(folder: Path, clip: Path) -> None:
    model = sentence_transformer(folder, device="cpu")
    with pytest.raises(VideoError, match=r"missing\.mp4: no such file"):
        model.encode("missing.mp4")
    with pytest.raises(VideoError, match="this is an address"):
        model.encode("https://example.org/clip")
    assert model.encode({"text": "missing.mp4 red"}).shape == (12,)
    with pytest.raises(ValueError, match="two calls"):
        model.encode(["a red ball", clip])
    with pytest.raises(ValueError, match="is empty"):
        model.encode([" "])


def test_a_saved_folder_loads_in_another_process(folder: Path, clip: Path, tmp_path: Path) -> None:
    model = sentence_transformer(folder, budget=6, device="cpu")
    for _ in range(2):  # The second replaces the first.
        model.save(str(tmp_path / "saved"))
    code = (
        "import sys, numpy as np, torch\ntorch.set_num_threads(1)\n"
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device='cpu')\n"
        "np.save(sys.argv[3], np.stack([model.encode(sys.argv[2]), model.encode('a red ball')]))"
    )
    out = tmp_path / "vectors.npy"
    subprocess.run([sys.executable, "-c", code, tmp_path / "saved", clip, out], check=True, timeout=120)
    np.testing.assert_array_equal(np.load(out), [model.encode(clip), model.encode("a red ball")])
    assert DualEncoderCheckpoint.load(tmp_path / "saved" / "encoder").digest() == model[0].checkpoint.digest()
