"""Videos that show several classes at once, from the manifest to the prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.data.classes import multi_hot
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.deploy.cascade import CascadePredictor
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.grid import SamplingGrid
from fluxvit.training.mixing import mix_clips
from fluxvit.training.recipes import DataSettings, MixingSettings, Recipe, TaskSettings
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.video.writer import write_video

CLASSES = ["red", "green", "blue", "unused"]
GRID = SamplingGrid(4, 16, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips in which any of three colours is bright; one that shows none, and one that cannot be read."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8)):
        lines: list[dict] = [{"manifest": 1, "classes": CLASSES}]
        for i in range(count):
            labels = [c for c in range(3) if i >> c & 1]
            frames = rng.integers(0, 60, (6, 24, 24, 3)) + 150 * np.isin(range(3), labels)
            write_video(tmp_path / f"{split}{i}.mp4", frames.astype(np.uint8), 6)
            lines.append({"path": f"{split}{i}.mp4", "labels": labels})
        if split == "val":
            lines.append({"path": "gone.mp4", "labels": [1], "ok": False, "error": "missing"})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{split}.jsonl").write_text(text)
    return tmp_path


def train(folder: Path, out: str, *options: str) -> int:
    model = {"budgets": [8, 4], "embed_dim": 32, "depth": 1, "pool_dim": 16}
    return main(
        [
            *("train", "--data.train", str(folder / "train.jsonl"), "--data.val", str(folder / "val.jsonl")),
            *("--data.workers", "0", "--model.name", "fluxvit_nano", "--model.settings", json.dumps(model)),
            *("--grids.frames", "[4,5,2]", "--grids.sizes", "[16,17,8]", "--grids.min_tokens", "4"),
            *(
                "--grids.max_tokens",
                "30",
                "--evaluation.grid",
                "4x16",
                "--epochs",
                "2",
                "--warmup_epochs",
                "1",
            ),
            *("--optim.batch_size", "4", "--optim.precision", "fp32", "--device", "cpu"),
            *("--out", str(folder / out), *options),
        ]
    )


MIXING = ("--mixing.mixup", "0.8", "--mixing.cutmix", "1", "--mixing.label_smoothing", "0")


def test_from_training_to_prediction(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "run", "--task.loss", "bce", *MIXING) == 0
    rows = [json.loads(line) for line in (folder / "run" / "validation.jsonl").read_text().splitlines()]
    assert set(rows[-1]) == {"step", "mean", "map@8", "map@4"}
    # The one that is broken, of four with this class, is never found.
    assert 0 < rows[-1]["mean"] <= (1 + 4 / 5 + 1) / 3
    best = folder / "run" / "best"
    info = Checkpoint.load(best)
    assert info.multi_label
    assert info.labels == CLASSES
    assert json.loads((best / "config.json").read_text())["multi_label"] is True

    predict = Predictor(best, 8, grid=GRID, device="cpu")
    found = predict(folder / "val3.mp4")
    sampled = predict.sample(folder / "val3.mp4", [GRID])
    clip = predict.checkpoint.clip(sampled.frames[GRID], GRID)
    expected = predict.model(clip, 8).logits.sigmoid()[0]
    torch.testing.assert_close(torch.from_numpy(found.probabilities).float(), expected)

    capsys.readouterr()
    command = ["evaluate", str(best), str(folder / "val.jsonl"), "--device", "cpu", "--views", "2x1"]
    command += ["--latency=false", "--out", str(folder / "evaluation"), "--plain_size", "16"]
    assert main(command) == 0
    assert "mAP" in capsys.readouterr().out.splitlines()[1]
    results = json.loads((folder / "evaluation" / "results.json").read_text())
    point = results["points"][0]
    assert point["per_class"][3] is None
    assert point["map"] == pytest.approx(np.mean(point["per_class"][:3]))
    assert "top1" not in point
    for more in (["--report", str(folder / "report")], []):
        if not more:
            command[0] = "optimize"
            command = [*command[:3], "--budgets", "8", "--out", str(folder / "search"), "--device", "cpu"]
        assert main([*command, *more]) == 2
        assert "several classes of a video" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*command: str) -> str:
        assert main(list(command)) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("fluxvit: ")]
        return line

    manifest = str(folder / "val.jsonl")
    assert train(folder, "run") == 2
    assert (
        "train.jsonl: its videos have several labels each; train with --task.loss bce"
        in capsys.readouterr().err
    )
    evaluate = error("evaluate", str(checkpoint), manifest, "--device", "cpu", "--out", str(folder / "x"))
    assert "its videos have several labels each, but" in evaluate
    probe = error(
        "probe", str(checkpoint), "--train", manifest, "--val", manifest, "--out", str(folder / "x")
    )
    assert "its videos have several labels each, and a probe predicts one class" in probe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": {"loss": "focal"}}, "task.loss is 'focal', expected one of"),
        (
            {"task": {"loss": "bce", "label_smoothing": 0.1}},
            "is for videos of one class each",
        ),
        ({"task": {"loss": "bce"}, "mixing": {"mixup": 0.8}}, "mixing.label_smoothing spreads the one class"),
    ],
)
def test_settings_that_need_one_class_a_video(settings: dict[str, dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(
            DataSettings(**settings.get("data", {})),
            task=TaskSettings(**settings["task"]),
            mixing=MixingSettings(**settings.get("mixing", {})),
        )


def test_loss_is_binary_cross_entropy_of_every_budget_and_class() -> None:
    model = small_model()
    video = torch.randn(4, 3, 8, 24, 24)
    label = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 1, 0, 0]]).float()
    outputs = model(video, budget=[24, 12, 6])

    def step(align_weight: float) -> dict[str, torch.Tensor]:
        task = ClassifyTask(Checkpoint(model, multi_label=True), TaskSettings(align_weight=align_weight))
        return task({"video": video, "label": label})

    result = step(0)
    expected = sum(F.binary_cross_entropy_with_logits(out.logits, label) for out in outputs)
    torch.testing.assert_close(result["loss"], expected)
    hit = np.mean([label[i, int(out)] for i, out in enumerate(outputs[1].logits.argmax(-1))])
    assert result["hit@12"].item() == pytest.approx(hit)
    # The smaller budgets are aligned with the largest as ever.
    assert step(1)["loss"] > result["loss"]


def test_multi_hot_labels_are_mixed_as_the_clips_are() -> None:
    video = torch.rand(2, 3, 2, 8, 8)
    label = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    mixed, target = mix_clips(MixingSettings(mixup=0.8), video, label, 3, (1,))
    part = ((mixed[0] - video[1]) / (video[0] - video[1])).mean().item()
    torch.testing.assert_close(target[0], torch.tensor([part, 1.0, 0.0]))
    torch.testing.assert_close(target[1], torch.tensor([1 - part, 1.0, 0.0]))


def test_clips_carry_all_their_classes(clip: Path) -> None:
    entries = (Entry(clip, labels=(0, 2)), Entry(clip, labels=()), Entry(clip, 1))
    expected = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    assert torch.equal(torch.from_numpy(multi_hot(entries, 4)), expected)
    data = ClipDataset(Manifest(entries, (), ""), classes=4)
    (batch,) = loader(data, epoch_batches(3, GRID, 3))
    assert torch.equal(batch.label, expected)
    (batch,) = loader(data, [[ClipRequest(i, GRID, (0, i), samples=2) for i in range(3)]])
    assert torch.equal(batch.label, expected.repeat_interleave(2, 0))


def test_cascades_need_one_class(tmp_path: Path) -> None:
    folder = Checkpoint(small_model(), grids=[GRID], multi_label=True).save(tmp_path / "c")
    with pytest.raises(ValueError, match="a cascade stops when one class is sure enough"):
        CascadePredictor(Predictor(folder, 6, grid=GRID, device="cpu"))
