"""``fluxvit pretrain``."""

from __future__ import annotations

from fluxvit.cli.recipes import parse_recipe, run_recipe


def run(argv: list[str]) -> int:
    from fluxvit.training.config import PretrainRecipe

    what = "Pre-train by a recipe: learn a frozen teacher's features, without labels"
    recipe, device = parse_recipe(argv, "pretrain", PretrainRecipe, what)

    from fluxvit.training.pretrain import pretrain_recipe

    return run_recipe(recipe, device, pretrain_recipe)
