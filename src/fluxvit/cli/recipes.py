"""What commands that run a recipe share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fluxvit.cli.parser import Parser, add_device
from fluxvit.terminal import say

if TYPE_CHECKING:
    from pathlib import Path

    from fluxvit.training.distributed import World

R = TypeVar("R")


def parse_recipe(argv: list[str], command: str, kind: type[R], what: str) -> tuple[R, str | None]:
    """The recipe of a command line, and the device.

    Args:
        command: Name of the command.
        kind: Of the recipe.
        what: The command does.
    """
    parser = Parser(command, f"{what}: fluxvit {command} RECIPE.yaml --data.train TRAIN.jsonl ...")
    parser.add_argument("--config", action="config", help="recipe file; may be given first, without --config")
    add_device(parser)
    parser.add_class_arguments(kind, as_group=False)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    settings = parser.instantiate_classes(parser.parse_args(argv))
    device = settings.pop("device")
    settings.pop("config")
    return kind(**vars(settings)), device


def run_recipe(recipe: R, device: str | None, work: Callable[[R, World], Path]) -> int:
    """Do the work of a recipe in all processes; the exit code."""
    from fluxvit.training.distributed import join_world, leave_world
    from fluxvit.training.trainer import Stopped

    world = join_world(device)
    try:
        folder = work(recipe, world)
    except Stopped as stop:
        if world.is_main:
            say(f"fluxvit: {stop}", error=True)
        return 130
    finally:
        leave_world(world)
    if world.is_main:
        say(f"checkpoint  {folder}")
    return 0
