"""States on the disk: always one that is whole, whatever goes wrong."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from test_training import trainer, weights

from fluxvit.training import state
from fluxvit.training.recipes import TaskSettings
from fluxvit.training.state import About, changed_settings, find_state, save_state, tidy
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.utils.distributed import ALONE
from fluxvit.utils.files import append_json, read_json_lines
from fluxvit.utils.system import Stopped


def full_disk(tensors, checkpoint_id: Path) -> None:
    checkpoint_id.mkdir()
    (checkpoint_id / "__0_0.distcp").write_bytes(b"half a state")
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, which PyTorch hides behind an error of its own."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(folder: Path, step: int) -> None:
    save_state(folder, About(step), {"a": torch.full((3,), float(step))}, ALONE)


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_a_full_disk_leaves_the_former_state(size: int, tmp_path: Path) -> None:
    save(tmp_path, 1)
    with (
        small_disk(size),
        pytest.raises(OSError, match="step 2 could not be saved: File too large") as caught,
    ):
        save(tmp_path, 2)
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path), errno.EFBIG)
    assert [path.name for path in tmp_path.iterdir()] == ["state-1"]
    saved, target = find_state(tmp_path), torch.zeros(3)
    saved.read({"a": target})
    assert (saved.about.step, target.tolist()) == (1, [1.0] * 3)


def test_training_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """It warns, goes on, tries again, and the final state is as if nothing had been."""
    expected = trainer(tmp_path / "calm", save_seconds=0)
    expected.folder.mkdir()
    expected.run(progress=False)

    real, saves = state.dcp.save, []

    def sometimes(tensors, checkpoint_id: Path) -> None:
        saves.append(checkpoint_id.name)
        full_disk(tensors, checkpoint_id) if len(saves) in (2, 3) else real(
            tensors, checkpoint_id=checkpoint_id
        )

    monkeypatch.setattr(state.dcp, "save", sometimes)
    run = trainer(tmp_path / "full", save_seconds=0)
    run.folder.mkdir()
    run.run(progress=False)
    assert saves == [f".state-{step}.partial" for step in range(1, 7)]
    assert torch.equal(weights(run), weights(expected))
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("fluxvit")]
    assert len(warnings) == 2
    assert all(str(run.folder) in text and "\n" not in text for text in warnings)
    assert (
        "step 2 could not be saved: No space left on device; the last good state is of step 1" in warnings[0]
    )
    assert find_state(run.folder).about.step == 6


def test_a_last_state_that_cannot_be_saved_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state.dcp, "save", full_disk)
    with pytest.raises(OSError, match="there is none; make room, and the same command goes on") as caught:
        trainer(tmp_path).run(progress=False)
    assert caught.value.filename == str(tmp_path)


def test_the_newer_of_two_states_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash between writing one and removing the other."""
    with monkeypatch.context() as patch:
        patch.setattr(state, "_remove", lambda folders: None)
        for step in (5, 10, 9):
            save(tmp_path, step)
    saved, target = find_state(tmp_path), torch.zeros(3)
    saved.read({"a": target})
    assert saved.about.step == target[0] == 10
    assert saved.layout == {"a": (torch.Size([3]), torch.float32)}
    save(tmp_path, 11)
    assert [path.name for path in tmp_path.iterdir()] == ["state-11"]


def test_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    tag = "000000-12"  # A process of another machine.
    folders = (f".best.{tag}.partial", f".best.{tag}.old", f".last.{tag}.old")
    for name in (*folders, ".state-4.partial", "last", ".kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    for name in (f".validation.{tag}.partial.jsonl", "log.jsonl"):
        (tmp_path / name).write_text(name)
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept", "best", "last", "log.jsonl"]
    # It had lost its name to a successor that never came.
    assert (tmp_path / "best" / "file").read_text() == f".best.{tag}.old"
    assert (tmp_path / "last" / "file").read_text() == "last"


def test_parameters_without_a_gradient_resume(tmp_path: Path) -> None:
    """The optimiser knows nothing of the aligners when nothing is aligned."""

    def run(folder: Path, stop: bool):
        return trainer(
            folder,
            wrap=stopping if stop else lambda batches, first: batches,
            task=partial(ClassifyTask, settings=TaskSettings(align_weight=0)),
        )

    def stopping(batches, first):
        for number, batch in enumerate(batches):
            if number == 2:
                run_stopped.stopping = lambda: True
            yield batch

    run_stopped = run(tmp_path / "a", True)
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(Stopped):
        run_stopped.run(progress=False)
    whole, resumed = run(tmp_path / "b", False), run(tmp_path / "a", False)
    whole.run(progress=False)
    resumed.run(progress=False)
    assert torch.equal(weights(whole), weights(resumed))


def test_settings_that_differ_are_named() -> None:
    saved = {"lr": 0.1, "optim": {"batch_size": 32, "betas": [0.9, 0.98]}, "augment": {"flip": 0.0}}
    saved |= {"model": {"name": "a", "settings": {"budgets": [8, 4]}}, "epochs": 2, "dropped": 1}
    given = {"lr": 0.1, "optim": {"batch_size": 64, "betas": (0.9, 0.98)}, "augment": {"flip": 0.5}}
    given |= {"model": {"name": "", "settings": {"budgets": None}}, "epochs": 4, "new": 2}
    assert changed_settings(saved, given, free={"epochs"}) == [
        "augment.flip was 0.0, is 0.5",
        'model.name was a, is ""',
        "model.settings.budgets was [8, 4], is not set",
        "optim.batch_size was 32, is 64",
    ]
    assert changed_settings(saved, saved) == []


def test_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_json_lines(path) == []
    append_json(path, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "me\xc3')
    assert read_json_lines(path) == [{"step": 1}]
    append_json(path, {"step": 2})
    append_json(path, {"step": 3})
    assert [row["step"] for row in read_json_lines(path)] == [1, 2, 3]
