from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colours import GRID, INFO, Colours

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.manifest import Entry, Manifest, write_manifest
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation.config import ProbeConfig
from fluxvit.evaluation.probing.probe import run_probe
from fluxvit.evaluation.probing.splits import read_splits
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.utils.files import write_json
from fluxvit.video.writer import write_video


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of files as in `Colours`, in three manifests with class names, and a random checkpoint."""
    number = 0
    for role, count in (("train", 24), ("val", 6), ("test", 6)):
        entries = []
        for _ in range(count):
            path = tmp_path / "videos" / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_video(path, Colours().read(number, np.zeros(8)), 8)
            entries.append(Entry(path, number % 3))
            number += 1
        manifest = Manifest(tuple(entries), ("red", "green", "blue"), "", root=tmp_path / "videos")
        write_manifest(tmp_path / f"{role}.jsonl", manifest)
    replace(INFO, model=small_model()).save(tmp_path / "backbone")
    return tmp_path


def config(folder: Path, **settings: object) -> ProbeConfig:
    given: dict[str, object] = {
        "checkpoint": str(folder / "backbone"),
        "train": str(folder / "train.jsonl"),
        "val": str(folder / "val.jsonl"),
        "grid": SamplingGrid(8, 16, 16),
        "budget": 6,
        "lrs": (1e-3, 1e-2),
        "batch_size": 8,
        "out": str(folder / "out"),
    }
    return ProbeConfig(**{**given, **settings})  # type: ignore[arg-type]


def test_run(videos: Path) -> None:
    before = (videos / "backbone" / "model.safetensors").read_bytes()
    result = run_probe(
        config(videos, test=str(videos / "test.jsonl"), lrs=(1e-9, 1e-2, 1e37)), progress=False
    )
    assert (videos / "backbone" / "model.safetensors").read_bytes() == before
    assert len(result.trials) == 6
    assert sum(trial.diverged for trial in result.trials) == 2
    assert result.best.setting.lr == 1e-2
    assert result.best.val.accuracy == 1
    assert result.test is not None
    assert (result.test.correct, result.test.total) == (6, 6)
    record = json.loads((videos / "out" / "probe.json").read_text())
    assert record["test"]["correct"] == 6
    assert record["chosen"]["lr"] == 1e-2
    assert record["data"]["train"]["videos"] == 24
    text = str(result)
    assert "diverged" in text
    assert "test    100.0 % (61.0 to 100.0)" in text
    # The checkpoint stands alone: its plan, its labels, its answers.
    info = Checkpoint.load(videos / "out" / "best")
    model = info.model
    assert info.labels == ["red", "green", "blue"]
    assert model.config.budgets == (6,)
    prediction = Predictor(videos / "out" / "best")(videos / "videos" / "31.mp4")
    assert prediction.plan.keep == 6
    assert str(prediction.plan.grid) == "8x16"
    assert prediction.top(1)[0][0] == "green"


def test_val_that_chose_is_called_optimistic(videos: Path) -> None:
    assert "optimistic; --test" in str(run_probe(config(videos, epochs=1), progress=False))


def test_edge_of_the_learning_rates_is_said(videos: Path) -> None:
    text = str(run_probe(config(videos, lrs=(1e-9, 1e-2)), progress=False))
    assert "the largest that was tried; try larger ones too" in text


def test_unreadable_videos_are_left_out_of_training_and_wrong_in_validation(videos: Path) -> None:
    for role in ("train", "val"):
        lines = (videos / f"{role}.jsonl").read_text().splitlines()
        broken = {**json.loads(lines[-1]), "path": "missing.mp4", "ok": False, "error": "missing"}
        (videos / f"{role}.jsonl").write_text("\n".join([*lines, json.dumps(broken)]))
    result = run_probe(config(videos), progress=False)
    assert (result.best.val.correct, result.best.val.total) == (6, 7)
    assert "1 videos cannot be read and count as wrong" in str(result)


def test_plan_of_the_checkpoint_is_the_default(videos: Path) -> None:
    plans = [Plan(GRID, 12), Plan(SamplingGrid(4, 16, 16), 6)]
    replace(INFO, model=small_model(), plans=plans).save(videos / "backbone")
    result = run_probe(config(videos, grid=None, budget=6, epochs=1), progress=False)
    assert "6 of 8 tokens of 4x16" in str(result)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lrs": (1e-3, 0.0)}, "lrs[1] is 0.0, expected a number above 0"),
        ({"lrs": ()}, "lrs is [], expected"),
        ({"weight_decays": (-1.0,)}, "weight_decays[0] is -1.0"),
        ({"workers": -1}, "workers is -1"),
        ({"budget": 0}, "budget is 0, expected an integer of at least 1"),
        ({"grid": SamplingGrid(8, 30, 30)}, "height 30 is not a multiple of 8; use 24 or 32"),
        ({"grid": None}, "names neither plans nor training grids; give a grid"),
        ({"target": "verb"}, "no key 'verb'"),
        ({"lrs": (1e37,)}, "every setting diverged; use learning rates below 1e+37"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str, videos: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run_probe(config(videos, **settings), progress=False)


@pytest.mark.parametrize(
    ("train", "val", "names", "message"),
    [
        ([0, 0], [0], None, "train.jsonl: a probe needs videos of two classes"),
        ([0, 1], [0, 2, 3], None, "val.jsonl has classes that .*train.jsonl has no video of: 2, 3"),
        ([0, 1], [0, 2], (("a", "b", "c"), ("a", "b", "c")), "no video of: 'c'"),
        ([0, 1], [0, 1], (("a", "b"), ("b", "x")), "train.jsonl does not name: 'x'"),
    ],
)
def test_classes_that_do_not_fit(
    train: list[int], val: list[int], names: tuple | None, message: str, tmp_path: Path
) -> None:
    for place, (role, labels) in enumerate((("train", train), ("val", val))):
        entries = tuple(Entry(tmp_path / f"{role}{i}.mp4", label) for i, label in enumerate(labels))
        manifest = Manifest(entries, names[place] if names else (), "", root=tmp_path)
        write_manifest(tmp_path / f"{role}.jsonl", manifest)
    with pytest.raises(ValueError, match=message):
        run_probe(config(tmp_path), progress=False)


def test_splits_are_numbered_as_training_is(tmp_path: Path) -> None:
    splits = {"train": ([0, 1, 2], ("a", "b", "c")), "val": ([0, 1], ("c", "a")), "test": ([0, 2], ())}
    for role, (labels, names) in splits.items():
        entries = tuple(Entry(tmp_path / f"{role}{i}.mp4", label) for i, label in enumerate(labels))
        write_manifest(tmp_path / f"{role}.jsonl", Manifest(entries, names, "", root=tmp_path))
    found = read_splits(*(str(tmp_path / f"{role}.jsonl") for role in splits))
    assert [split.labels.tolist() for split in found.values()] == [[0, 1, 2], [2, 0], [0, 2]]


def test_no_labels(tmp_path: Path) -> None:
    for role in ("train", "val"):
        (tmp_path / f"{role}.jsonl").write_text('{"path": "a.mp4"}\n')
    with pytest.raises(ValueError, match="line 1: no key 'label'"):
        run_probe(config(tmp_path), progress=False)


def test_videos_in_two_splits(videos: Path) -> None:
    with pytest.raises(ValueError, match="share 24 videos"):
        run_probe(config(videos, val=str(videos / "train.jsonl")), progress=False)
    with pytest.raises(ValueError, match="share 6 videos"):
        run_probe(config(videos, test=str(videos / "val.jsonl")), progress=False)


def test_a_foreign_folder_is_not_overwritten(videos: Path) -> None:
    write_json(videos / "out" / "best" / "notes.json", {})
    with pytest.raises(ValueError, match="holds something else"):
        run_probe(config(videos, epochs=1), progress=False)
