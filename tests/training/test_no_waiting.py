"""A training step never waits for the device: nothing is read back before the next step, and only the input
is copied, without waiting.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from test_distillation import STUDENT, TEACHER

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.teachers import FluxViTTeacher
from fluxvit.training.config import TrainConfig
from fluxvit.training.ema import Ema
from fluxvit.training.optim import make_optimizer
from fluxvit.training.recipes import DistillSettings, MixingSettings
from fluxvit.training.tasks.base import Task
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.tasks.contrastive import Captions, ContrastiveTask
from fluxvit.training.tasks.distill import DistillTask
from fluxvit.training.trainer import LateFigures, Trainer
from fluxvit.utils.distributed import ALONE, World
from host_copies import no_host_copies
from language import SENTENCES, small_encoder

META = torch.device("meta")


def classify() -> Task:
    model = create_model("fluxvit_nano", depth=2, drop_path=0.1, drop_rate=0.1, num_classes=5)
    return ClassifyTask(Checkpoint(model), mixing=MixingSettings(mixup=0.5, cutmix=0.5))


def distill() -> Task:
    teacher = FluxViTTeacher(FluxViT(TEACHER), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)).to(META)
    return DistillTask(Checkpoint(FluxViT(STUDENT)), teacher, DistillSettings(teacher_tokens=24))


def contrast() -> Task:
    encoder, texts = small_encoder()
    entries = tuple(Entry(Path(f"{i}.mp4"), captions=(SENTENCES[i],)) for i in range(4))
    captions = Captions(Manifest(entries, (), ""), texts)
    return ContrastiveTask(Checkpoint(encoder.video), encoder.language, captions, ALONE)


@pytest.mark.parametrize("make", [classify, distill, contrast])
def test_a_step_waits_for_nothing(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make().to(META)
    config = TrainConfig(batch_size=4, accumulate=1 if make is contrast else 2, ema=0.9, precision="fp32")
    trainer = Trainer(task, config, lambda first: [], tmp_path, {}, World(0, 1, META))
    trainer.ema = Ema(task, 0.9)
    # PyTorch knows the kernel of the fused optimiser on this device, but does not offer it.
    optim = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(optim, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # There is none either.
    optimizer = make_optimizer(task, config)
    network = task.model.config
    frames, side = 4 * network.tubelet_size, 3 * network.patch_size
    video = torch.zeros(4, 3, frames, side, side, dtype=torch.uint8)
    numbers = torch.arange(4)
    clip = Clip(video, numbers, numbers, 0 * numbers)
    read: list[int] = []

    def late(figures: LateFigures) -> list[float]:
        """In place of the figures of the former step, which are there by then."""
        read.append(figures._figures.numel())
        return [1.0] * (read[-1] - 1) + [0.0]

    monkeypatch.setattr(LateFigures, "read", late)
    trainer._step(task, clip, 0, optimizer)  # The first step makes constants, such as the clips' mean.
    assert not read
    with no_host_copies():
        trainer._step(task, clip, 1, optimizer)
    assert len(read) == 1
    assert {value.device for value in optimizer.state[task.model.cls_token].values()} == {META}
