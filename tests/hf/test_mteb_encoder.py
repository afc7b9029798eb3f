"""Checkpoints as mteb evaluates them, on tasks in the form of MVEB's."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mteb")

import mteb
from datasets import Dataset, Features, Value, Video
from torch.utils.data import DataLoader

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.deploy.predictor import Predictor
from fluxvit.hf import MTEBEncoder
from fluxvit.synthetic.motionworld import MakeMotionWorldConfig, make_motionworld
from fluxvit.video.base import VideoError
from language import SENTENCES, saved_encoder
from mveb_budgets import motionworld_tasks


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    config = MakeMotionWorldConfig(
        out=str(out), videos=40, val=1, test=32, difficulty="demo", factors=("slide", "lift"), workers=1
    )
    return make_motionworld(config)


def loader(paths: list[Path], batch_size: int = 2, workers: int = 0) -> DataLoader:
    features = Features({"video": Video(), "label": Value("int64")})
    columns = {"video": [str(path) for path in paths], "label": [0] * len(paths)}
    return DataLoader(Dataset.from_dict(columns, features=features), batch_size, num_workers=workers)


def test_accuracy_follows_the_budget(world: Path, tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path / "results")
    accuracies = []
    for budget in (36, 1):
        encoder = MTEBEncoder("fluxvit_nano_motionworld", budget, device="cpu")
        (task,) = motionworld_tasks(world, with_texts=False)
        task.n_experiments = 2
        result = mteb.evaluate(encoder, task, cache=cache, show_progress_bar=False)
        assert result.model_name == f"fluxvit/fluxvit_nano_motionworld-{budget}-token{'s' * (budget > 1)}"
        accuracies.append(result.task_results[0].get_score())
    # Four motions, that the packaged checkpoint knows; one token shows next to nothing.
    assert accuracies[0] > 0.7 > accuracies[1]
    # The results of one budget do not stand in for those of another.
    assert len(list((tmp_path / "results").rglob("MotionWorldClassification.json"))) == 2


def test_a_dual_encoder_retrieves(world: Path, tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    encoder = MTEBEncoder(folder, 12, name="someone/dual", device="cpu")
    _, task = motionworld_tasks(world, with_texts=True)
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    assert 0 <= result.task_results[0].get_score() < 0.9  # It has learned nothing.
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("someone/dual-12-tokens", 12, 9)
    assert meta.modalities == ["video", "text"]
    parameters = DualEncoderCheckpoint.load(folder).model.parameters()
    assert meta.n_parameters == sum(weight.numel() for weight in parameters)


def test_vectors_are_those_of_the_checkpoint(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    encoder = MTEBEncoder(checkpoint, 12, device="cpu", precision="fp32")
    one = encoder.encode(loader([clip, clip, clip]), show_progress_bar=False)
    answer = Predictor(checkpoint, 12, device="cpu", precision="fp32")(clip)
    np.testing.assert_allclose(one, np.stack([answer.embedding] * 3), atol=1e-5)
    two = encoder.encode(loader([clip] * 3, workers=1), show_progress_bar=False)
    np.testing.assert_array_equal(two, one)

    folder = saved_encoder(tmp_path / "dual")
    dual = MTEBEncoder(folder, 6, device="cpu", precision="fp32")
    texts = DualEncoderCheckpoint.load(folder).embed_texts(SENTENCES)
    rows = DataLoader(Dataset.from_dict({"text": SENTENCES}), 3)
    np.testing.assert_allclose(dual.encode(rows, show_progress_bar=False), texts, atol=1e-6)
    # Both in one row, as in questions about videos.
    both = loader([clip]).dataset.rename_column("label", "text").cast_column("text", Value("string"))
    video = torch.from_numpy(dual.encode(loader([clip]), show_progress_bar=False))
    text = DualEncoderCheckpoint.load(folder).embed_texts(["0"])
    expected = torch.nn.functional.normalize(video + text, dim=-1)
    np.testing.assert_allclose(dual.encode(DataLoader(both, 1), show_progress_bar=False), expected, atol=1e-5)


def test_the_revision_names_the_plan(checkpoint: Path) -> None:
    first, second = (MTEBEncoder(checkpoint, budget, device="cpu").mteb_model_meta for budget in (24, 12))
    digest = Checkpoint.load(checkpoint).digest()
    assert first.revision == f"{digest}-8x24-24-group_dynamic"
    assert second.revision == f"{digest}-8x16x32-12-group_dynamic"
    assert (
        MTEBEncoder(checkpoint, device="cpu").mteb_model_meta.name == f"fluxvit/{checkpoint.name}-24-tokens"
    )


def test_what_cannot_be_encoded_is_named(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    encoder = MTEBEncoder(checkpoint, 12, device="cpu")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:100])
    with pytest.raises(VideoError, match="broken"):
        encoder.encode(loader([clip, broken]), show_progress_bar=False)
    texts = DataLoader(Dataset.from_dict({"text": ["a ball"]}), 1)
    with pytest.raises(ValueError, match="embeds no texts"):
        encoder.encode(texts, show_progress_bar=False)


@pytest.mark.parametrize("library", ["mteb", "sentence_transformers"])
def test_a_missing_library_is_named_with_its_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (library, f"{library}.models"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"fluxvit.hf.{library}", raising=False)
    with pytest.raises(ImportError, match=rf"needs {library.replace('_', '-')} .*'fluxvit\[mteb\]'"):
        import_module(f"fluxvit.hf.{library}")
