from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.deploy import export
from fluxvit.deploy.export import MODEL_FILES, PACKAGES, ExportedModel, open_exported
from fluxvit.deploy.predictor import Predictor
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import resize_and_crop, to_tensor


def installed(target: str) -> bool:
    return all(find_spec(name) for name in PACKAGES[target])


# One selector of each kind, which reads embeddings or pixels, for each target: an export takes seconds.
@pytest.mark.parametrize(
    ("target", "selector"),
    [(target, ("moving_pixels", "group_dynamic")[target == "pt2"]) for target in MODEL_FILES],
)
def test_an_exported_model_answers_as_the_predictor_does(
    target: str, selector: str, checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if not installed(target):
        pytest.skip(f"{target} is not installed")
    out = tmp_path / "exported"
    if selector != "group_dynamic":
        loaded = Checkpoint.load(checkpoint)
        plans = [replace(plan, selector=selector) for plan in loaded.default_plans()]
        checkpoint = replace(loaded, plans=plans).save(tmp_path / "other")
    assert main(["export", str(checkpoint), str(out), "--to", target, "--budget", "12"]) == 0
    assert "kept tokens equal" in capsys.readouterr().out
    facts = json.loads((out / "export.json").read_text())
    predictor = Predictor(checkpoint, 12, device="cpu")
    expected, grid = predictor(clip), predictor.plan.grid
    assert facts["labels"] == list(expected.labels)
    assert facts["plan"]["grid"] == str(grid)
    assert facts["outputs"]["kept"] == [1 if target == "executorch" else None, 12]
    with open_video(clip) as reader:
        times = predictor.checkpoint.sampling.times(0, reader.end, grid.frames, reader.fps)
        frames = reader.read(times)
    pixels = resize_and_crop(to_tensor(frames), (grid.height, grid.width)).permute(1, 2, 3, 0)
    logits, embedding, kept = open_exported(out / facts["file"], target)(pixels.numpy()[None])
    probabilities = torch.from_numpy(logits).double().softmax(-1)[0].numpy()
    np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
    np.testing.assert_allclose(embedding[0], expected.embedding, rtol=1e-3, atol=1e-4)
    assert np.array_equal(kept[0], expected.kept)


@pytest.mark.skipif(not installed("onnx"), reason="ONNX Runtime is not installed")
def test_the_example_needs_no_pytorch(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "exported"), "--budget", "12"]) == 0
    example = Path(__file__).parents[2] / "examples" / "onnx_labels.py"
    script = tmp_path / "labels.py"
    shutil.copy(example, script)
    blocked = "import sys; sys.modules['torch'] = sys.modules['fluxvit'] = None; "
    run = (
        f"import runpy; sys.argv = [{str(script)!r}, 'exported', {str(clip)!r}]; runpy.run_path(sys.argv[0], "
    )
    command = [sys.executable, "-c", f"{blocked}{run}run_name='__main__')"]
    lines = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    best, probability = Predictor(checkpoint, 12, device="cpu")(clip).top(1)[0]
    assert lines[0].endswith(f"%  {best}")
    assert float(lines[0].split()[0]) == pytest.approx(100 * probability, abs=2)


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "exported"
    loaded = Checkpoint.load(checkpoint)
    loaded.model.reset_classifier(0)
    loaded.labels = []
    loaded.save(tmp_path / "features")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    for arguments, message in (
        ([str(tmp_path / "features"), "--to", "pt2"], "has no classifier"),
        ([str(checkpoint), "--to", "pt2", "--budget", "0"], "budget"),
        ([str(checkpoint), "--to", "openvino"], "pip install 'fluxvit[openvino]'"),
        ([str(checkpoint), "--to", "tflite"], "--to"),
    ):
        assert main(["export", arguments[0], str(out), *arguments[1:]]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_model_that_disagrees_is_not_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ExportedModel, session: export.Session, batches: object) -> dict[str, object]:
        return {"agrees": False, "difference": 0.5, "kept_equal": True}

    monkeypatch.setattr(export, "compare", wrong)
    out = tmp_path / "exported"
    assert main(["export", str(checkpoint), str(out), "--to", "pt2", "--budget", "12"]) == 2
    assert "disagrees with PyTorch" in capsys.readouterr().err
    assert list(tmp_path.glob("*exported*")) == []


def test_only_an_exported_model_is_replaced(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["export", str(checkpoint), "", "--to", "pt2", "--budget", "12"]
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    content = clip.read_bytes()
    for out in (work, clip, checkpoint):
        command[2] = str(out)
        assert main(command) == 2
        assert f"{out} holds something else than an exported model" in capsys.readouterr().err
    assert (work / "notes.txt").read_text() == "mine"
    assert clip.read_bytes() == content
    command[2] = str(tmp_path / "exported")
    assert main(command) == main(command) == 0
