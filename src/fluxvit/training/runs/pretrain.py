"""From a recipe to a pre-trained checkpoint: a student that has learned a teacher's features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.huggingface_vision import huggingface_teacher
from fluxvit.checkpoints.official import load_internvideo2
from fluxvit.data.dataset import Augmentation, ClipDataset, ClipRequest
from fluxvit.data.loader import loader
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.teachers import FluxViTTeacher, Teacher, TokenShape
from fluxvit.training.recipes import PretrainRecipe, TeacherSettings
from fluxvit.training.runs.base import (
    Schedule,
    clip_dataset,
    start_checkpoint,
    with_manifests,
    without_broken,
)
from fluxvit.training.tasks.distill import DistillTask
from fluxvit.utils.distributed import World
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD


def pretrain_recipe(recipe: PretrainRecipe, world: World, progress: bool = True) -> Path:
    """Pre-train by a recipe, or go on where a former run of it stopped. Labels are neither needed nor read.

    Writes into ``recipe.out``: ``last``, a checkpoint folder without a classifier; ``log.jsonl``;
    ``run.json``, the recipe and the environment.

    Returns:
        The folder of the checkpoint.

    Raises:
        Stopped, OSError: See :meth:`Schedule.run`.
        ValueError: The recipe, the teacher, the data or the folder cannot be used.
    """
    recipe = with_manifests(recipe, world, progress)
    train = without_broken(recipe.data.train, read_manifest(recipe.data.train, None))
    start = start_checkpoint(recipe, classes=0)
    model = start.model
    # They are of no use before there are classes, and data parallelism waits for every trained gradient.
    model.head_norm.requires_grad_(False)
    model.aligners.requires_grad_(False)
    model.to(world.device)
    schedule = Schedule(recipe, len(train), model.config.size, world)
    checkpoint = schedule.describe(start, train, "pretrain", recipe.task.selector)
    teacher = open_teacher(recipe.teacher).to(world.device)
    # Loading a teacher may draw random numbers; decoders must start the same without.
    torch.manual_seed(recipe.optim.seed + 1)
    task = DistillTask(checkpoint, teacher, recipe.task).to(world.device)
    if recipe.task.standardize:
        task.standardize(_samples(train, recipe.task.standardize, schedule.grids[0], checkpoint))
    return schedule.run(task, clip_dataset(recipe, train), progress)


def _samples(
    train: Manifest, count: int, grid: SamplingGrid, checkpoint: Checkpoint
) -> Iterator[tuple[Tensor, TokenShape]]:
    """``count`` clips spread over the data set, for `DistillTask.standardize`; the same in every process."""
    size = checkpoint.model.config
    shape = grid.token_shape(size.patch_size, size.tubelet_size)
    # With a seed, as in training, a video that cannot be read is replaced.
    steady = ClipDataset(train, None, Augmentation("center"), jitter=False, sampling=checkpoint.sampling)
    count = min(count, len(train))
    requests = [ClipRequest(i * len(train) // count, grid, (i,)) for i in range(count)]
    batches = [requests[first : first + 8] for first in range(0, len(requests), 8)]
    for clip in loader(steady, batches):
        yield checkpoint.normalize(clip.video), shape


def open_teacher(settings: TeacherSettings) -> Teacher:
    """The teacher that settings name, on the CPU.

    Raises:
        ValueError: It cannot be loaded; the message says why.
    """
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[settings.precision]
    if settings.kind == "huggingface":
        return huggingface_teacher(settings.source, size=settings.size, dtype=dtype)
    if settings.kind == "internvideo2":
        return FluxViTTeacher(load_internvideo2(settings.source), IMAGENET_MEAN, IMAGENET_STD, dtype)
    teacher = Checkpoint.load(settings.source)
    return FluxViTTeacher(teacher.model, teacher.mean, teacher.std, dtype)
