"""``fluxvit instruct``."""

from __future__ import annotations

from fluxvit.cli.recipes import parse_recipe, run_recipe


def run(argv: list[str]) -> int:
    from fluxvit.training.config import InstructRecipe

    what = "Train a connector by a recipe, so that a frozen language model answers questions about videos"
    recipe, device = parse_recipe(argv, "instruct", InstructRecipe, what)

    from fluxvit.training.instruct_recipe import instruct_recipe

    return run_recipe(recipe, device, instruct_recipe)
