"""``fluxvit demo``."""

from __future__ import annotations

from typing import Any

from fluxvit.cli.parser import Parser, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "demo",
        "Make a small data set of videos, train a model with three token budgets on it, evaluate it at each, "
        "and write a report and a checkpoint. An interrupted demo goes on where it stopped.",
    )
    add = parser.add_argument
    add("--out", default="runs/demo", help="folder to write")
    add("--videos", type=int, help="training videos")
    add("--val", type=int, help="validation videos, on which sampling grids are chosen")
    add("--test", type=int, help="test videos")
    add("--steps", type=int, help="training steps")
    add("--control_steps", type=int, help="training steps of each control")
    add("--minutes", type=float, help="fewer steps are taken where all would take longer; 0: no limit")
    add("--seed", type=int, help="of data and training")
    add("--workers", type=int, help="processes that make videos; default: one per core")
    return _demo(**values(parser, argv))


def _demo(**settings: Any) -> int:
    from fluxvit.demo import DemoConfig, run_demo
    from fluxvit.training.trainer import Stopped

    try:
        run_demo(DemoConfig(**{name: value for name, value in settings.items() if value is not None}))
    except Stopped as stop:
        say(f"fluxvit: {stop}", error=True)
        return 130
    return 0
