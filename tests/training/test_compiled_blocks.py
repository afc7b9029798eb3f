"""Compiled blocks: how often they are compiled, and that nothing else changes."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import pytest
import torch
from test_distillation import STUDENT, TEACHER
from test_training import trainer, weights
from torch import nn
from torch._dynamo.utils import counters

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.teachers import FluxViTTeacher
from fluxvit.training.parallel import parallelize
from fluxvit.training.recipes import DistillSettings
from fluxvit.training.tasks.base import Task
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.tasks.distill import DistillTask
from fluxvit.utils.distributed import ALONE


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace blocks as always, and run what was traced without a compiler."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()


def classify() -> Task:
    # Every block has another drop path rate.
    return ClassifyTask(Checkpoint(create_model("fluxvit_nano", depth=10, drop_path=0.2, num_classes=5)))


def distill() -> Task:
    teacher = FluxViTTeacher(FluxViT(TEACHER), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    return DistillTask(Checkpoint(FluxViT(STUDENT)), teacher, DistillSettings(teacher_tokens=24))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [classify, distill])
def test_one_compilation_serves_all_grids_and_budgets(make, recompute: bool) -> None:
    task = make()
    step = parallelize(task, ALONE, checkpoint_blocks=recompute, compile_blocks=True).train()
    config = task.model.config

    def take(clips: int, t: int, h: int, w: int) -> None:
        size = (t * config.tubelet_size, h * config.patch_size, w * config.patch_size)
        batch = {"video": torch.randn(clips, 3, *size), "label": torch.arange(clips)}
        step(batch)["loss"].backward()

    take(2, 4, 3, 3)
    compiled = counters["stats"]["unique_graphs"]
    # With and without drop path, and the teacher without gradients; far below PyTorch's limit of 8.
    assert 1 <= compiled <= 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        for clips, t, h, w in [(3, 4, 4, 4), (2, 8, 3, 5), (4, 5, 6, 4), (5, 2, 9, 7), (2, 12, 2, 2)]:
            take(clips, t, h, w)
    assert counters["stats"]["unique_graphs"] == compiled
    assert not counters["graph_break"]


def test_a_run_is_the_same_with_and_without(tmp_path: Path) -> None:
    runs = []
    for name, compiled in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        for steps in (3, 6):  # Resumed once.
            run = trainer(tmp_path / name, steps, ema=0.9, compile_blocks=compiled)
            run.run(progress=False)
        run.task.export(tmp_path / name / "last", run.gather_state())
        runs.append(run)
    assert counters["stats"]["unique_graphs"]
    plain, compiled = runs
    assert torch.equal(weights(plain), weights(compiled))
    assert plain.task.state_dict().keys() == compiled.task.state_dict().keys()
    saved = [Checkpoint.load(tmp_path / name / "last").digest() for name in "ab"]
    assert saved[0] == saved[1]


def test_blocks_are_not_compiled_on_a_cpu_by_itself(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=1)
    run.run(progress=False)
    assert run.config.compile_blocks == "auto"
    assert not counters["stats"]
