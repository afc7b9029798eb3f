"""``fluxvit contrast``."""

from __future__ import annotations

from fluxvit.cli.recipes import parse_recipe, run_recipe


def run(argv: list[str]) -> int:
    from fluxvit.training.config import ContrastRecipe

    what = "Train a dual encoder by a recipe: videos and their captions meet in one space"
    recipe, device = parse_recipe(argv, "contrast", ContrastRecipe, what)

    from fluxvit.training.contrast_recipe import contrast_recipe

    return run_recipe(recipe, device, contrast_recipe)
