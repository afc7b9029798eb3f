"""From a recipe to a trained checkpoint."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from fluxvit.data.classes import (
    name_classes,
    numbered_like,
    repeated,
    without_videos,
)
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.training.recipes import DataSettings, Recipe
from fluxvit.training.runs.base import (
    Schedule,
    adapt_model,
    clip_dataset,
    start_checkpoint,
    with_manifests,
    without_broken,
)
from fluxvit.training.tasks.base import Task
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.tasks.selector import SelectorTask
from fluxvit.training.validation import BEST, Validation
from fluxvit.utils.distributed import World

_log = logging.getLogger(__name__)


def train_recipe(recipe: Recipe, world: World, progress: bool = True) -> Path:
    """Train by a recipe, or go on where a former run of it stopped.

    Writes into ``recipe.out``: ``best`` (by validation accuracy, averaged over budgets) and ``last``, both
    checkpoint folders; ``log.jsonl`` and ``validation.jsonl``; ``run.json``, the recipe and the environment.

    Returns:
        The folder of the best checkpoint, or of the last one if there is no validation.

    Raises:
        Stopped, OSError: See :meth:`Schedule.run`.
        ValueError: The recipe, the data or the folder cannot be used.
    """
    recipe = with_manifests(recipe, world, progress)
    # Videos that are known to be broken are left out of training; in validation they count as wrong.
    train = without_broken(recipe.data.train, read_manifest(recipe.data.train, recipe.data.target))
    val = read_manifest(recipe.data.val, recipe.data.target) if recipe.data.val else None
    multi_label = recipe.task.loss == "bce"
    classes, val = _shared_classes(recipe.data, train, val, multi_label)
    start = start_checkpoint(recipe, classes, train.labels, same_classes=recipe.task.train == "selector")
    model = start.model
    adapt_model(model, recipe.model.adapters)
    model.to(world.device)
    schedule = Schedule(recipe, len(train), model.config.size, world)
    checkpoint = replace(
        schedule.describe(start, train, "train", recipe.task.selector),
        labels=list(train.labels),
        multi_label=multi_label,
    )
    task: Task
    if recipe.task.train == "selector":
        task = SelectorTask(checkpoint)
    else:
        task = ClassifyTask(checkpoint, recipe.task, recipe.mixing)
    width = classes if multi_label else None
    # The digest of the data has only indices; other names would be other classes.
    facts: dict[str, Any] = {"classes": list(train.labels)}
    validation = None
    if val is not None:
        shown = without_broken(recipe.data.val, val)
        facts["the digest of the validation videos"] = shown.digest
        validation = Validation(
            task,
            ClipDataset(shown, classes=width, sampling=checkpoint.sampling),
            broken=[entry for entry in val.entries if not entry.ok],
            **schedule.validation(recipe.evaluation, progress),
        )
    dataset = clip_dataset(recipe, train, classes=width)
    last = schedule.run(task, dataset, progress, after_step=validation, facts=facts)
    return last if val is None else last.with_name(BEST)


def _shared_classes(
    data: DataSettings, train: Manifest, val: Manifest | None, multi_label: bool
) -> tuple[int, Manifest | None]:
    """The number of classes, and the validation videos with their classes numbered as in training.

    Args:
        train: The training videos that can be read.
        val: All validation videos.
        multi_label: Whether videos may show several classes, or none.

    Raises:
        ValueError: Videos have no label, or several where one is expected; there are fewer than two classes;
            or validation videos are of classes that the training manifest does not name.
    """
    for manifest, path in ((train, data.train), (val, data.val)):
        if manifest is None:
            continue
        if manifest.multi_label and not multi_label:
            raise ValueError(f"{path}: its videos have several labels each; train with --task.loss bce")
        bare = [entry for entry in manifest.entries if entry.ok and entry.labels is None and entry.label < 0]
        if bare:
            raise ValueError(
                f"{path}: {len(bare)} videos have no label, such as {bare[0].path}; probe it from labelled "
                "sources"
            )
    if twice := repeated(train.labels):
        raise ValueError(f"{data.train}: several classes have the same name: {', '.join(map(repr, twice))}")
    used = {number for entry in train.entries for number in entry.classes}
    if not used or (len(used) == 1 and not multi_label):
        shown = f"all videos are of one class ({name_classes(used, train.labels)})" if used else "no class"
        raise ValueError(f"{data.train}: {shown}; a classifier needs two or more to tell apart")
    classes = len(train.labels) or 1 + max(used)
    if val is not None:
        val = numbered_like(val, train.labels, classes, data.val, data.train)
        new = sorted({number for entry in val.entries for number in entry.classes} - used)
        if new:
            count = sum(not used.issuperset(entry.classes) for entry in val.entries)
            _log.warning(
                "%s: %d of its %d videos are of classes that %s has no video of, and count as wrong: %s",
                data.val,
                count,
                len(val),
                data.train,
                name_classes(new, train.labels),
            )
            classes = max(classes, 1 + new[-1])
    if missing := without_videos(classes, train):
        _log.warning(
            "%s: %d of %d classes have no video and are not learned: %s",
            data.train,
            len(missing),
            classes,
            name_classes(missing, train.labels),
        )
    return classes, val
