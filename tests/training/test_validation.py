"""Validations that are stopped, killed or cannot be written: each is done once, and ``best`` is the best."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import GRIDS, MEAN, STD, Colours, dataset, small_model, trainer

from fluxvit.checkpoints import folder as checkpoints
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.training import validation
from fluxvit.training.state import find_state
from fluxvit.training.tasks.base import Task
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.trainer import Trainer
from fluxvit.training.validation import Validation
from fluxvit.utils.distributed import ALONE, fail_together
from fluxvit.utils.system import Stopped

VIDEOS = 70  # Three batches.


class Killed(BaseException):
    """As by SIGKILL: nothing may catch it."""


def validated(folder: Path, source: Colours | None = None, **settings) -> Trainer:
    """A run of six steps, saved after each, that validates every two."""
    folder.mkdir(parents=True, exist_ok=True)
    data, model = dataset(VIDEOS), small_model()
    data.source = source or Colours()
    task = ClassifyTask(Checkpoint(model, mean=MEAN, std=STD))
    validation = Validation(task, data, GRIDS[0], 2, progress=False)
    settings = {"save_seconds": 0, "lr": 3e-3, "ema": 0.5, **settings}
    return trainer(folder, task=lambda *_: task, after_step=validation, **settings)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]


def best(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "best" / "model.safetensors")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("calm")
    validated(folder).run(progress=False)
    return folder


def assert_same(folder: Path, calm: Path) -> None:
    assert rows(folder) == rows(calm)
    torch.testing.assert_close(best(folder), best(calm), rtol=0, atol=0)


def test_best_is_the_best(calm: Path, tmp_path: Path) -> None:
    assert [row["step"] for row in rows(calm)] == [2, 4, 6]
    means = [row["mean"] for row in rows(calm)]
    winner = rows(calm)[means.index(max(means))]["step"]
    kept = {}

    def keep(run: Trainer, taken: int) -> None:
        model = run.task.network(run.gather_state())
        kept[taken] = {name: value.clone() for name, value in model.state_dict().items()}

    run = trainer(tmp_path, lr=3e-3, ema=0.5, after_step=keep)
    run.run(progress=False)
    torch.testing.assert_close(kept[winner], best(calm), rtol=0, atol=0)


@pytest.mark.parametrize("at", [2, 6])
def test_a_signal_ends_a_validation_after_its_batch(at: int, calm: Path, tmp_path: Path) -> None:
    class Signalling(Colours):
        videos = 0

        def read(self, index: int, positions: np.ndarray) -> np.ndarray:
            self.videos += 1
            if self.videos == (at // 2 - 1) * VIDEOS + 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().read(index, positions)

    source = Signalling()
    with pytest.raises(Stopped, match=f"stopped after step {at} of 6"):
        validated(tmp_path, source).run(progress=False)
    assert source.videos == (at // 2 - 1) * VIDEOS + 32
    assert find_state(tmp_path).about.step == at
    assert not (tmp_path / "validation.jsonl").exists() or rows(tmp_path)[-1]["step"] < at
    if at == 2:  # And once more, in the validation that is done again first.
        with pytest.raises(Stopped):
            validated(tmp_path, Signalling()).run(progress=False)
    validated(tmp_path).run(progress=False)
    assert_same(tmp_path, calm)


@pytest.mark.parametrize("moment", ["before best", "after best", "in the row", "after the row"])
@pytest.mark.parametrize("step", [4, 6])
def test_a_kill_loses_and_repeats_nothing(
    moment: str, step: int, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_export, real_append = Task.export, validation.append_json

    def export(self, folder, state):
        if moment == "before best" and run.after_step._best >= 0:
            raise Killed
        real_export(self, folder, state)

    def append(path, row):
        if row["step"] == step:
            if moment == "in the row":
                path.write_bytes(path.read_bytes() + b'{"step": 4, "me')
            if moment == "after the row":
                real_append(path, row)
            raise Killed
        real_append(path, row)

    monkeypatch.setattr(Task, "export", export)
    monkeypatch.setattr(validation, "append_json", append)
    run = validated(tmp_path)
    with pytest.raises(Killed):
        run.run(progress=False)
    monkeypatch.undo()
    assert find_state(tmp_path).about.step < 6
    validated(tmp_path).run(progress=False)
    assert_same(tmp_path, calm)


def test_a_run_from_the_start_forgets_what_was_in_the_folder(calm: Path, tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text('{"step": 2, "mean": 1.0}\n')
    validated(tmp_path).run(progress=False)
    assert_same(tmp_path, calm)


def test_a_best_that_cannot_be_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    real, calls = checkpoints.write_tensors, []

    def full(path, tensors):
        calls.append(path)
        if len(calls) == 1:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    validated(tmp_path).run(progress=False)
    assert [row["step"] for row in rows(tmp_path)] == [4, 6]
    assert "validation of step 2" in caplog.text
    assert "No space left" in caplog.text
    assert not list(tmp_path.glob(".best*"))
    assert (tmp_path / "best").is_dir()


def test_more_processes_than_videos_and_back_in_order() -> None:
    whole = torch.arange(14.0).view(7, 2)
    assert torch.equal(validation._interleave([whole[r::3] for r in range(3)], 7), whole)
    assert torch.equal(validation._interleave([whole], 7), whole)
    fail_together(None, ALONE, "validation")
    with pytest.raises(KeyError, match="x"):
        fail_together(KeyError("x"), ALONE, "validation")
