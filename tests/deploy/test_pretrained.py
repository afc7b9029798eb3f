"""The checkpoints that come with the package answer without any training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxvit import Predictor
from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, PRETRAINED, Checkpoint, pretrained_names
from fluxvit.cli import main
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another seed than any checkpoint was trained or tested on."""
    config = MotionWorldConfig(32, 4242, "demo", val=0, test=0)
    return make_dataset(tmp_path_factory.mktemp("data") / "mw", config, workers=1, progress=False)


@pytest.mark.parametrize("name", pretrained_names())
def test_shipped_checkpoints_are_small_and_have_a_card(name: str) -> None:
    files = list((PRETRAINED / name).iterdir())
    assert sum(path.stat().st_size for path in files) <= 8e6
    card = (PRETRAINED / name / "README.md").read_text()
    assert "Accuracy" in card
    assert "Limits" in card
    # Nothing of the machine that made it.
    config = (PRETRAINED / name / "config.json").read_text()
    assert "/tmp" not in config + card
    assert "/home" not in config + card


def test_the_default_tells_motions_at_every_budget(clips: Path) -> None:
    info = Checkpoint.load(DEFAULT_CHECKPOINT)
    model = info.model
    data = ClipDataset(read_manifest(clips / "train.jsonl"))
    assert [plan.keep for plan in info.plans] == list(model.config.budgets)
    for plan in info.plans:
        (result,) = predict_plans(info, data, [plan])
        assert result.score.accuracy > 0.4  # Of 16 classes: by chance once in 10 to the 9.


def test_predicting_without_naming_a_checkpoint(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = clips / "train" / "000000.mp4"
    assert main(["predict", str(clip), "--json", "--top", "1"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["top"][0]["label"] == Predictor()(clip).top(1)[0][0]
    assert DEFAULT_CHECKPOINT in printed.err


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT_CHECKPOINT).mkdir()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        Checkpoint.load(DEFAULT_CHECKPOINT)
    with pytest.raises(ValueError, match=f"the package itself has .*{DEFAULT_CHECKPOINT}"):
        Checkpoint.load("fluxvit_nano_motion")
