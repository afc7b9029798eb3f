"""The parts that all kinds of training runs share: data, the initial model, and the run itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.folder import compare_keys
from fluxvit.data.cache import FrameCache
from fluxvit.data.classes import match_names
from fluxvit.data.dataset import Augmentation, Clip, ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Entry, Manifest, read_manifest
from fluxvit.data.prepare import prepare_manifests
from fluxvit.flux.cost import NetworkSize
from fluxvit.flux.grid import SamplingGrid, legal_grids
from fluxvit.models.adapters import add_adapters
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.motion_init import init_for_motion
from fluxvit.training.config import AdapterSettings, EvalSettings, RunRecipe, VideoSettings
from fluxvit.training.recipes import DataSettings
from fluxvit.training.tasks.base import Task
from fluxvit.training.trainer import Trainer
from fluxvit.utils.distributed import World, fail_together, lock_run
from fluxvit.utils.files import write_json
from fluxvit.utils.system import Stopped, environment
from fluxvit.video.sampling import ClipSampling

LAST = "last"
AnyRecipe = TypeVar("AnyRecipe", bound=RunRecipe)

_log = logging.getLogger(__name__)


class Schedule:
    """The grids, batches and steps of a run of a recipe, and the way through it.

    Args:
        recipe: A recipe of any kind.
        videos: Number of training videos.
        size: Size of the network.
        world: The processes.
        streams: Kinds of batches that take turns. Epochs are those of the videos, which are one kind.

    Attributes:
        grids: Grids that batches draw from.
        steps: Steps of the run.

    Raises:
        ValueError: No grid is legal, or a batch cannot be filled or shared evenly.
    """

    def __init__(
        self, recipe: RunRecipe, videos: int, size: NetworkSize, world: World, streams: int = 1
    ) -> None:
        self._recipe, self._world, self._out = recipe, world, Path(recipe.out)
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
        self._steps_per_epoch = self.steps / recipe.epochs
        warmup = round(recipe.warmup_epochs * self._steps_per_epoch)
        self._optim = replace(recipe.optim, steps=self.steps, warmup=warmup)

    def describe(self, start: Checkpoint, train: Manifest, command: str, selector: str) -> Checkpoint:
        """The model ``start``, with the metadata of the checkpoints of this run."""
        provenance = {
            "made_by": f"fluxvit {__version__} {command}",
            "recipe": asdict(self._recipe),
            "data": train.digest,
        }
        return replace(
            start,
            labels=[],
            grids=list(self.grids),
            provenance=provenance,
            plans=[],
            cascades=[],
            multi_label=False,
            sampling=sampling_of(self._recipe.data),
            selector=selector,
        )

    def batches(self, dataset: ClipDataset, steps: int) -> Callable[[int], Iterable[Clip]]:
        """This process's batches of a run of ``steps``, from a first step on."""

        def start(first: int) -> Iterable[Clip]:
            requests = self._requests_from(steps=steps, start_step=first)
            rank = "" if self._world.is_main else f"-{self._world.rank}"
            return loader(dataset, requests, self._recipe.data.workers, self._out / f"replaced{rank}.jsonl")

        return start

    def validation(self, settings: EvalSettings, progress: bool) -> dict[str, Any]:
        """Options of `Validation`."""
        return {
            "grid": SamplingGrid.parse(settings.grid),
            "every": max(1, round(settings.every_epochs * self._steps_per_epoch)),
            "workers": self._recipe.data.workers,
            "progress": progress,
        }

    def run(
        self,
        task: Task,
        dataset: ClipDataset,
        progress: bool,
        *,
        batches: Callable[[int], Iterable[Clip]] | None = None,
        after_step: Callable[[Trainer, int], None] | None = None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Path:
        """Train to the end, report what went wrong on the way, and keep the last weights.

        Args:
            task: The task that is trained.
            dataset: The training clips.
            progress: Show a progress bar.
            batches: Batches instead of those of ``dataset`` alone.
            after_step: See `Trainer`.
            facts: Facts that identify the run, besides the recipe and the data set.

        Returns:
            The folder of the last checkpoint.

        Raises:
            Stopped: A signal asked to stop; the state and the checkpoint are saved.
            OSError: The last state or checkpoint could not be saved.
            ValueError: See :meth:`Trainer.run`; or another run is writing into the folder.
        """
        recipe, world, out = self._recipe, self._world, self._out
        digest = {"the digest of the training videos": dataset.manifest.digest}
        trainer = Trainer(
            task,
            self._optim,
            batches or self.batches(dataset, self.steps),
            out,
            {**_identity(recipe), **digest, **facts},
            world,
            after_step,
        )

        def keep_last() -> None:
            state = trainer.gather_state()
            if world.is_main:
                task.export(out / LAST, state)

        with lock_run(out, world):
            trainer.check_saved()
            if world.is_main:
                out.mkdir(parents=True, exist_ok=True)
                facts_of_run = {"recipe": asdict(recipe), "processes": world.size}
                write_json(out / "run.json", {**facts_of_run, **environment(world.device)})
            world.barrier()
            try:
                trainer.run(progress=progress)
            except Stopped as stop:
                keep_last()
                raise Stopped(
                    f"{stop}; the weights so far are in {out / LAST}; the same command goes on"
                ) from None
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


def without_broken(path: str, manifest: Manifest) -> Manifest:
    """The videos of a manifest that are not known to be broken.

    Raises:
        ValueError: All of its videos are broken.
    """
    rest = manifest.readable()
    if len(rest) < len(manifest):
        broken = len(manifest) - len(rest)
        text = "%s: %d of %d videos cannot be read and are left out; it says why"
        _log.warning(text, path, broken, len(manifest))
    return rest


def readable_with(path: str, what: str, has: Callable[[Entry], bool]) -> Manifest:
    """The readable videos of a manifest that have something, such as a caption.

    Args:
        what: The name of what they must have.
        has: Whether a video has it.

    Raises:
        ValueError: None has it, or the manifest cannot be read.
    """
    manifest = without_broken(path, read_manifest(path, None))
    entries = tuple(entry for entry in manifest.entries if has(entry))
    if not entries:
        raise ValueError(f"{path}: none of its {len(manifest)} videos has a {what}")
    if len(entries) == len(manifest):
        return manifest
    _log.warning("%s: %d videos have no %s and are left out", path, len(manifest) - len(entries), what)
    return replace(manifest, entries=entries, digest=f"{manifest.digest}-{what}")


def with_manifests(recipe: AnyRecipe, world: World, progress: bool) -> AnyRecipe:
    """The recipe with manifests in place of a data set that is not checked yet.

    Raises:
        ValueError: There is no data, or it cannot be used.
    """
    Augmentation(**asdict(recipe.augment))  # A wrong setting must show before a data set is checked.
    if not recipe.data.root:
        if not recipe.data.train:
            raise ValueError("no data: give data.train, a manifest, or data.root, a folder of videos")
        return recipe
    trouble: Exception | None = None
    if world.is_main:
        try:
            prepare_manifests(recipe.data.root, recipe.out, progress=progress)
        except ValueError as error:
            trouble = error
    fail_together(trouble, world, "checking the videos")
    train, val = (str(Path(recipe.out) / f"{split}.jsonl") for split in ("train", "val"))
    data = replace(recipe.data, train=train, root="")
    if isinstance(data, DataSettings):
        data = replace(data, val=val)
    return replace(recipe, data=data)


def _identity(recipe: RunRecipe) -> dict[str, Any]:
    """The settings that a run cannot change halfway: all but those of how the work is done and reported.

    Manifests may be moved, because their digests are compared.
    """
    settings = asdict(recipe)
    del settings["out"], settings["device"]
    for name in ("train", "val", "workers"):
        settings["data"].pop(name, None)
    settings["data"]["cache"] = bool(recipe.data.cache)  # A cache may be moved.
    for name in (
        *("accumulate", "checkpoint_blocks", "compile_blocks", "shard"),
        *("save_seconds", "log_every", "tensorboard"),
    ):
        del settings["optim"][name]
    return settings


def start_checkpoint(
    recipe: RunRecipe, classes: int, names: Sequence[str] = (), same_classes: bool = False
) -> Checkpoint:
    """The model to train, new or from a checkpoint; its classifiers are new if the classes differ.

    Args:
        classes: Number of classes of the data; 0 for no classifier.
        names: Names of the classes; empty if they are unknown.
        same_classes: Refuse a checkpoint whose classifiers would be new.

    Raises:
        ValueError: The checkpoint cannot be read, the settings do not fit it, or it has other classes.
    """
    torch.manual_seed(recipe.optim.seed)
    if not recipe.model.init:
        made = create_model(recipe.model.name, **recipe.model.settings.given, num_classes=classes)
        if recipe.model.weights == "motion":
            init_for_motion(made)
        return Checkpoint(made)
    checkpoint = Checkpoint.load(recipe.model.init)
    model = checkpoint.model
    settings = recipe.model.settings.given
    model.reset_budgets(settings.pop("budgets", model.config.budgets))
    model.reset_selector(settings.pop("selector_dim", model.config.selector_dim))
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
    if not _fit_classifier(checkpoint, classes, names, recipe.model.init) and same_classes:
        raise ValueError(
            f"{recipe.model.init}: its classes are not those of the data; give data that have them"
        )
    return checkpoint


def adapt_model(model: FluxViT, settings: AdapterSettings) -> None:
    """If settings ask for adapters, freeze the model except for adapters of its blocks, and its heads."""
    if settings.rank:
        add_adapters(model, settings.rank, settings.alpha or settings.rank, settings.layers)
        train_heads(model)


def train_heads(model: FluxViT) -> None:
    """Train the poolings, the classifiers and everything else that follows the blocks."""
    for part in (model.heads, model.head_norm, model.aligners):
        part.requires_grad_(True)


def _fit_classifier(start: Checkpoint, classes: int, names: Sequence[str], checkpoint: str) -> bool:
    """Keep the classifiers of a checkpoint if its classes are those of the data, in any order; whether so."""
    model = start.model
    if model.num_classes != classes:
        if model.num_classes and classes:
            text = "%s: the classifier starts anew, since it has %d classes and the data have %d"
            _log.info(text, checkpoint, model.num_classes, classes)
        model.reset_classifier(classes)
        return False
    if not start.labels or not names:
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
            return True
        model.reset_classifier(classes)
        _log.warning(
            "%s: the classifier starts anew, since only %d of its %d classes are named as in the data",
            checkpoint,
            len(numbers),
            classes,
        )
        return False
    return True


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
    """The way in which a recipe samples clips."""
    return ClipSampling(data.sampling, data.stride, data.stride_fps or None)
