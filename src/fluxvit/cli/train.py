"""``fluxvit train``."""

from __future__ import annotations

from fluxvit.cli.recipes import parse_recipe, run_recipe


def run(argv: list[str]) -> int:
    from fluxvit.training.config import Recipe

    recipe, device = parse_recipe(argv, "train", Recipe, "Train by a recipe")

    from fluxvit.training.recipe import train_recipe

    return run_recipe(recipe, device, train_recipe)
