"""``fluxvit train``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fluxvit.cli.parser import Parser

if TYPE_CHECKING:
    from fluxvit.training.config import Recipe


def run(argv: list[str]) -> int:
    return _train(*parse_recipe(argv))


def parse_recipe(argv: list[str]) -> tuple[Recipe, str]:
    """The recipe of a command line, and the device."""
    from fluxvit.training.config import Recipe

    parser = Parser("train", "Train by a recipe: fluxvit train RECIPE.yaml --data.train TRAIN.jsonl ...")
    parser.add_argument("--config", action="config", help="recipe file; may be given first, without --config")
    parser.add_argument("--device", default="", help="cpu or cuda; default: CUDA if there is any")
    parser.add_class_arguments(Recipe, as_group=False)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    settings = parser.instantiate_classes(parser.parse_args(argv))
    device = settings.pop("device")
    settings.pop("config")
    return Recipe(**vars(settings)), device


def _train(recipe: Recipe, device: str) -> int:
    from fluxvit.training.distributed import join_world, leave_world
    from fluxvit.training.recipe import train_recipe
    from fluxvit.training.trainer import Stopped

    world = join_world(device or None)
    try:
        folder = train_recipe(recipe, world)
    except Stopped as stop:
        if world.is_main:
            print(f"fluxvit: {stop}", file=sys.stderr)
        return 130
    finally:
        leave_world(world)
    if world.is_main:
        print(f"checkpoint  {folder}")
    return 0
