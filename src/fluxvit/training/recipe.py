"""From a recipe to a trained checkpoint."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fluxvit import __version__
from fluxvit.checkpoints import CheckpointInfo, load_checkpoint, save_checkpoint
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import Augmentation, Clip, ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.evaluation.classification import predict_dataset
from fluxvit.files import write_json
from fluxvit.flux.grid import SamplingGrid, legal_grids
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.training.config import Recipe
from fluxvit.training.distributed import World
from fluxvit.training.mixing import Mixing
from fluxvit.training.tasks import FluxTuning
from fluxvit.training.trainer import Stopped, Trainer

_log = logging.getLogger(__name__)


def train_recipe(recipe: Recipe, world: World, progress: bool = True) -> Path:
    """Train by a recipe, or go on where a former run of it stopped.

    Writes into ``recipe.out``: ``best`` (by validation accuracy, averaged over budgets) and ``last``, both
    checkpoint folders; ``log.jsonl`` and ``validation.jsonl``; ``run.json``, the recipe and what it ran on.

    Returns:
        The folder of the best checkpoint; of the last one if there is no validation.

    Raises:
        Stopped: A signal asked to stop; the state and ``last`` are saved.
        ValueError: The recipe, the data or the folder cannot be used; the message says why.
    """
    out = Path(recipe.out)
    # Videos that are known to be broken are left out of training; validation must answer for its own.
    train = read_manifest(recipe.data.train, recipe.data.target).readable()
    val = read_manifest(recipe.data.val, recipe.data.target) if recipe.data.val else None
    classes = _count_classes(train, val)
    model, info = _start(recipe, classes)
    model.to(world.device)
    size = model.config.size
    grids = legal_grids(
        range(*recipe.grids.frames),
        range(*recipe.grids.sizes),
        recipe.grids.min_tokens,
        recipe.grids.max_tokens,
        patch_size=size.patch_size,
        tubelet_size=size.tubelet_size,
    )
    info = replace(
        info,
        labels=list(train.labels) if len(train.labels) == classes else [],
        grids=list(grids),
        provenance={
            "made_by": f"fluxvit {__version__} train",
            "recipe": asdict(recipe),
            "data": train.digest,
        },
        plans=[],
    )
    steps_per_epoch = len(train) * recipe.samples // recipe.optim.batch_size
    steps = max(1, round(recipe.epochs * steps_per_epoch))
    optim = replace(recipe.optim, steps=steps, warmup=round(recipe.warmup_epochs * steps_per_epoch))
    dataset = _dataset(recipe, train)

    def batches(first: int) -> Iterable[Clip]:
        requests = TrainingBatches(
            len(dataset), grids, optim.batch_size, steps, optim.seed, first, recipe.samples
        )
        return loader(dataset, _Share(requests, world), recipe.data.workers)

    fingerprint = {"recipe": json.dumps(asdict(replace(recipe, out=""))), "data": train.digest}
    trainer = Trainer(
        model,
        FluxTuning(**asdict(recipe.task)),
        optim,
        batches,
        out,
        info.mean,
        info.std,
        fingerprint,
        world,
        Mixing(**recipe.mixing) if recipe.mixing is not None else None,
    )
    if val is not None and world.is_main:
        every = max(1, round(recipe.evaluation.every_epochs * steps_per_epoch))
        trainer.after_step = _Validation(recipe, trainer, info, ClipDataset(val), every, steps, progress)
    if world.is_main:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "run.json", {"recipe": asdict(recipe), "processes": world.size, **_environment()})
    world.barrier()
    try:
        trainer.run(progress=progress)
    except Stopped as stop:
        if world.is_main:
            save_checkpoint(out / "last", trainer.best_weights, info)
        raise Stopped(f"{stop}; the weights so far are in {out / 'last'}; the same command goes on") from None
    if world.is_main:
        save_checkpoint(out / "last", trainer.best_weights, info)
        if trainer.replaced or trainer.skipped:
            _log.warning(
                "%d clips could not be read and were replaced, %d steps were skipped",
                trainer.replaced,
                trainer.skipped,
            )
    return out / ("last" if val is None else "best")


class _Share:
    """This process's part of every batch: the parts of all processes make up the batch of one."""

    def __init__(self, batches: TrainingBatches, world: World) -> None:
        if batches.batch_size // batches.samples % world.size:
            raise ValueError(
                f"a batch of {batches.batch_size // batches.samples} videos cannot be shared evenly by "
                f"{world.size} processes; choose a multiple of {world.size}"
            )
        self._batches, self._world = batches, world

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        for batch in self._batches:
            yield batch[self._world.rank :: self._world.size]


class _Validation:
    """Scores the model every so often and keeps the best."""

    def __init__(
        self,
        recipe: Recipe,
        trainer: Trainer,
        info: CheckpointInfo,
        dataset: ClipDataset,
        every: int,
        steps: int,
        progress: bool,
    ) -> None:
        self._trainer, self._info, self._dataset = trainer, info, dataset
        self._every, self._steps, self._progress = every, steps, progress
        self._grid = SamplingGrid.parse(recipe.evaluation.grid)
        self._workers, self._out = recipe.data.workers, Path(recipe.out)
        config = trainer.model.config
        self._grid.token_shape(config.patch_size, config.tubelet_size)  # Now, not after an epoch.
        self._log = self._out / "validation.jsonl"
        self._best = self._former_best()

    def _former_best(self) -> float:
        if not self._log.exists():
            return -1.0
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["mean"] for line in lines), default=-1.0)

    def __call__(self, taken: int) -> None:
        if taken % self._every and taken != self._steps:
            return
        model = self._trainer.best_weights
        budgets = model.config.budgets
        results = predict_dataset(
            model,
            self._dataset,
            self._grid,
            budgets,
            mean=self._info.mean,
            std=self._info.std,
            workers=self._workers,
            progress="Validating" if self._progress else None,
        )
        scores = [result.score.accuracy for result in results]
        mean = sum(scores) / len(scores)
        by_budget = {f"accuracy@{b}": score for b, score in zip(budgets, scores, strict=True)}
        if mean > self._best:
            self._best = mean
            save_checkpoint(self._out / "best", model, self._info)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": taken, "mean": mean, **by_budget}) + "\n")


def _count_classes(train: Manifest, val: Manifest | None) -> int:
    for manifest, name in ((train, "training"), (val, "validation")):
        if manifest is not None and any(entry.label < 0 for entry in manifest.entries):
            raise ValueError(
                f"the {name} manifest has videos without a label; probe it from labelled sources"
            )
    seen = 1 + max(entry.label for entry in (*train.entries, *(val.entries if val else ())))
    return max(seen, len(train.labels))


def _start(recipe: Recipe, classes: int) -> tuple[FluxViT, CheckpointInfo]:
    """The model to train: new, or from a checkpoint, with new classifiers if the classes differ."""
    torch.manual_seed(recipe.optim.seed)
    if not recipe.model.init:
        return create_model(
            recipe.model.name, **{**recipe.model.settings, "num_classes": classes}
        ), CheckpointInfo()
    model, info = load_checkpoint(recipe.model.init)
    if recipe.model.settings:
        changed = FluxViTConfig.from_dict({**model.config.to_dict(), **recipe.model.settings})
        fresh = FluxViT(changed)
        fresh.load_state_dict(model.state_dict())
        model = fresh
    if model.num_classes != classes:
        model.reset_classifier(classes)
    return model, info


def _dataset(recipe: Recipe, manifest: Manifest) -> ClipDataset:
    source = None
    if recipe.data.cache:
        cache = FrameCache(recipe.data.cache, manifest, recipe.data.cache_frames, recipe.data.cache_side)
        source = cache.build()
    augmentation = Augmentation(**recipe.augment)
    return ClipDataset(manifest, source, augmentation, max_bad_clips=recipe.data.max_bad_clips)


def _environment() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {
        "fluxvit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }
