"""What all kinds of training runs share: data, the model to start from, batches, and the way to the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.folder import compare_keys
from fluxvit.data.cache import FrameCache
from fluxvit.data.classes import (
    match_names,
)
from fluxvit.data.dataset import Augmentation, Clip, ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Entry, Manifest, read_manifest
from fluxvit.data.prepare import prepare_manifests
from fluxvit.flux.cost import NetworkSize
from fluxvit.flux.grid import legal_grids
from fluxvit.models.adapters import add_adapters
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.training.config import AdapterSettings, RunRecipe, VideoSettings
from fluxvit.training.recipes import DataSettings
from fluxvit.training.tasks.base import Task
from fluxvit.training.trainer import Trainer
from fluxvit.utils.distributed import World, lock_run
from fluxvit.utils.files import write_json
from fluxvit.utils.system import Stopped, environment
from fluxvit.video.sampling import ClipSampling

LAST = "last"
AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)

_log = logging.getLogger(__name__)


class Course:
    """What a run of a recipe goes through: grids, batches and steps.

    Args:
        recipe: Any kind.
        videos: Number of training videos.
        size: Size of the network.
        world: The processes.
        streams: Kinds of batches that take turns; epochs are those of the videos, one of them.

    Attributes:
        grids: Grids that batches draw from.
        steps: Steps of the run.
        steps_per_epoch: On average.

    Raises:
        ValueError: No grid is legal, or a batch cannot be filled or shared out.
    """

    def __init__(
        self,
        recipe: RunRecipe,
        videos: int,
        size: NetworkSize,
        world: World,
        streams: int = 1,
    ) -> None:
        self._recipe, self._world = recipe, world
        self.grids = legal_grids(
            range(*recipe.grids.frames),
            range(*recipe.grids.sizes),
            recipe.grids.min_tokens,
            recipe.grids.max_tokens,
            patch_size=size.patch_size,
            tubelet_size=size.tubelet_size,
        )
        self._requests_from = partial(
            TrainingBatches,
            videos,
            self.grids,
            recipe.optim.batch_size,
            seed=recipe.optim.seed,
            samples=recipe.samples,
            rank=world.rank,
            processes=world.size,
        )
        self.steps = streams * self._requests_from(steps=1).steps_in(recipe.epochs)
        self.steps_per_epoch = self.steps / recipe.epochs
        warmup = round(recipe.warmup_epochs * self.steps_per_epoch)
        self._optim = replace(recipe.optim, steps=self.steps, warmup=warmup)

    def describe(self, start: Checkpoint, train: Manifest, command: str) -> Checkpoint:
        """What goes with the models of this run: ``start`` is what it starts from."""
        provenance = {
            "made_by": f"fluxvit {__version__} {command}",
            "recipe": asdict(self._recipe),
            "data": train.digest,
        }
        return replace(
            start,
            grids=list(self.grids),
            provenance=provenance,
            plans=[],
            cascades=[],
            multi_label=False,
            sampling=sampling_of(self._recipe.data),
        )

    def batches(self, dataset: ClipDataset, steps: int) -> Callable[[int], Iterable[Clip]]:
        """This process's batches of a run of ``steps``, from a first step on."""
        out, world = Path(self._recipe.out), self._world

        def start(first: int) -> Iterable[Clip]:
            requests = self._requests_from(steps=steps, start_step=first)
            report = out / ("replaced.jsonl" if world.is_main else f"replaced-{world.rank}.jsonl")
            return loader(dataset, requests, self._recipe.data.workers, report)

        return start

    def trainer(
        self,
        task: Task,
        dataset: ClipDataset,
        *,
        batches: Callable[[int], Iterable[Clip]] | None = None,
        after_step: Callable[[Trainer, int], None] | None = None,
        **facts: Any,
    ) -> Trainer:
        """A trainer that takes this course.

        Args:
            task: What is trained.
            dataset: The training clips.
            batches: Batches instead of those of ``dataset`` alone.
            after_step: See `Trainer`.
            facts: What identifies the run besides the recipe and the data set.
        """
        recipe = self._recipe
        return Trainer(
            task,
            self._optim,
            batches or self.batches(dataset, self.steps),
            Path(recipe.out),
            {"recipe": json.dumps(_identity(recipe)), "data": dataset.manifest.digest, **facts},
            self._world,
            after_step,
        )


def run_trainer(trainer: Trainer, recipe: RunRecipe, progress: bool) -> Path:
    """Run to the end, tell what went wrong on the way, and keep the last weights.

    Returns:
        The folder of the last checkpoint.

    Raises:
        Stopped: A signal asked to stop; the state and the checkpoint are saved.
        OSError: The last state or checkpoint could not be saved.
        ValueError: See :meth:`Trainer.run`; or another run is writing into the folder.
    """
    with lock_run(trainer.folder, trainer.world):
        trainer.check_saved()
        return _run_trainer(trainer, recipe, progress)


def _run_trainer(trainer: Trainer, recipe: RunRecipe, progress: bool) -> Path:
    world, out = trainer.world, trainer.folder

    def keep_last() -> None:
        state = trainer.gather_state()
        if world.is_main:
            trainer.task.export(out / LAST, state)

    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(
            out / "run.json",
            {"recipe": asdict(recipe), "processes": world.size, **environment(world.device)},
        )
    world.barrier()
    try:
        trainer.run(progress=progress)
    except Stopped as stop:
        keep_last()
        raise Stopped(f"{stop}; the weights so far are in {out / LAST}; the same command goes on") from None
    keep_last()
    replaced = sum(world.gather(trainer.replaced))
    if world.is_main and (replaced or trainer.skipped):
        _log.warning(
            "%d clips could not be read and were replaced, %d steps were skipped%s",
            replaced,
            trainer.skipped,
            f"; the files are named in {out / 'replaced.jsonl'}" if replaced else "",
        )
    return out / LAST


def readable(path: str, target: str | None) -> Manifest:
    """The videos of a manifest that are not known to be broken; it is said how many are.

    Args:
        target: Key of the class index; None: labels are not asked for.

    Raises:
        ValueError: The manifest cannot be read, or all of its videos are broken.
    """
    return without_broken(path, read_manifest(path, target))


def without_broken(path: str, manifest: Manifest) -> Manifest:
    rest = manifest.readable()
    if len(rest) < len(manifest):
        _log.warning(
            "%s: %d of %d videos cannot be read and are left out; it says why",
            path,
            len(manifest) - len(rest),
            len(manifest),
        )
    return rest


def readable_with(path: str, what: str, has: Callable[[Entry], bool]) -> Manifest:
    """The readable videos of a manifest that have something; it is said how many have not.

    Args:
        what: They must have.
        has: Tells whether a video does.

    Raises:
        ValueError: None has it, or the manifest cannot be read.
    """
    manifest = readable(path, None)
    entries = tuple(entry for entry in manifest.entries if has(entry))
    if not entries:
        raise ValueError(f"{path}: none of its {len(manifest)} videos has a {what}")
    if len(entries) == len(manifest):
        return manifest
    _log.warning("%s: %d videos have no %s and are left out", path, len(manifest) - len(entries), what)
    return replace(manifest, entries=entries, digest=f"{manifest.digest}-{what}")


def with_manifests(recipe: AnyRecipe, world: World, progress: bool) -> AnyRecipe:
    """The recipe with manifests in place of a data set that is yet to be checked.

    Raises:
        ValueError: There is no data, or it cannot be used.
    """
    # Before a data set is gone through.
    Augmentation(**asdict(recipe.augment))
    if not recipe.data.root:
        if not recipe.data.train:
            raise ValueError("no data: give data.train, a manifest, or data.root, a folder of videos")
        return recipe
    failure = ""
    if world.is_main:
        try:
            prepare_manifests(recipe.data.root, recipe.out, progress=progress)
        except ValueError as error:
            failure = str(error)
    failure = world.main_value(failure)
    if failure:
        raise ValueError(failure)
    train, val = (str(Path(recipe.out) / f"{split}.jsonl") for split in ("train", "val"))
    data = replace(recipe.data, train=train, root="")
    if isinstance(data, DataSettings):
        data = replace(data, val=val)
    return replace(recipe, data=data)


def _identity(recipe: RunRecipe) -> dict[str, Any]:
    """The settings that a run cannot change halfway: all but those of how the work is done and told.

    Manifests may be moved: their digests are compared.
    """
    settings = asdict(recipe)
    del settings["out"], settings["device"]
    for name in ("train", "val", "workers"):
        settings["data"].pop(name, None)
    settings["data"]["cache"] = bool(recipe.data.cache)  # Not where it lies.
    for name in (
        *("accumulate", "checkpoint_blocks", "compile_blocks", "shard"),
        *("save_seconds", "log_every", "tensorboard"),
    ):
        del settings["optim"][name]
    return settings


def start_checkpoint(recipe: RunRecipe, classes: int, names: Sequence[str] = ()) -> Checkpoint:
    """The model to train and what goes with it, new or from a checkpoint.

    The classifiers are new if the classes differ.

    Args:
        classes: How many classes the data have; 0: no classifier.
        names: The names of the classes; empty if they are unknown.

    Raises:
        ValueError: The checkpoint cannot be read, or the settings do not fit it.
    """
    torch.manual_seed(recipe.optim.seed)
    if not recipe.model.init:
        made = create_model(recipe.model.name, **recipe.model.settings.given, num_classes=classes)
        return Checkpoint(made)
    checkpoint = Checkpoint.load(recipe.model.init)
    model = checkpoint.model
    settings = recipe.model.settings.given
    model.reset_budgets(settings.pop("budgets", model.config.budgets))
    if settings:
        changed = FluxViT(FluxViTConfig.from_dict({**model.config.to_dict(), **settings}))
        report = compare_keys(model.state_dict(), changed)
        if not report.matches:
            raise ValueError(
                f"model.settings {settings} do not fit the weights of {recipe.model.init}: {report.summary}"
            )
        changed.load_state_dict(model.state_dict())
        model = changed
    checkpoint = replace(checkpoint, model=model)
    _fit_classifier(checkpoint, classes, names, recipe.model.init)
    return checkpoint


def adapt_model(model: FluxViT, settings: AdapterSettings) -> None:
    """If settings ask for adapters: freeze the model but for adapters of its blocks, and its heads."""
    if settings.rank:
        add_adapters(model, settings.rank, settings.alpha or settings.rank, settings.layers)
        train_heads(model)


def train_heads(model: FluxViT) -> None:
    """Have the poolings, the classifiers and what else follows the blocks trained."""
    for part in (model.heads, model.head_norm, model.aligners):
        part.requires_grad_(True)


def _fit_classifier(start: Checkpoint, classes: int, names: Sequence[str], checkpoint: str) -> None:
    """Keep a checkpoint's classifiers if its classes are those of the data, whatever their order."""
    model = start.model
    if model.num_classes != classes:
        if model.num_classes and classes:
            text = "%s: the classifier starts anew, since it tells %d classes and the data have %d"
            _log.info(text, checkpoint, model.num_classes, classes)
        model.reset_classifier(classes)
    elif not start.labels or not names:
        if classes and (start.labels or names):
            _log.warning(
                "%s: its %d classes are taken to be those of the data, since only one of the two names them",
                checkpoint,
                classes,
            )
    elif list(start.labels) != list(names):
        numbers = match_names(names, start.labels, "the data", checkpoint)
        if len(numbers) == classes:
            model.reorder_classes([numbers[number] for number in range(classes)])
            _log.warning("%s: its classes are numbered as in the data, by name", checkpoint)
            return
        model.reset_classifier(classes)
        _log.warning(
            "%s: the classifier starts anew, since only %d of its %d classes are named as in the data",
            checkpoint,
            len(numbers),
            classes,
        )


def clip_dataset(recipe: RunRecipe, manifest: Manifest, **settings: Any) -> ClipDataset:
    """Training clips of a manifest; further settings are those of `ClipDataset`."""
    source = None
    if recipe.data.cache:
        cache = FrameCache(recipe.data.cache, manifest, recipe.data.cache_frames, recipe.data.cache_side)
        source = cache.build()
    return ClipDataset(
        manifest,
        source,
        Augmentation(**asdict(recipe.augment)),
        sampling=sampling_of(recipe.data),
        **settings,
    )


def sampling_of(data: VideoSettings) -> ClipSampling:
    """How the settings of a recipe sample clips."""
    return ClipSampling(data.sampling, data.stride, data.stride_fps or None)
