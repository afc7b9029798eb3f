"""``fluxvit optimize``."""

from __future__ import annotations

import re
from typing import Any

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.schema import shown
from fluxvit.terminal import say

_NUMBERS = ("budgets", "frames", "sizes", "heights", "widths")


def run(argv: list[str]) -> int:
    parser = Parser(
        "optimize",
        "Find the best sampling for each token budget on held-out videos, and write the plan table beside "
        "the weights. Few clips decide on most candidates. An interrupted search goes on.",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint folder, such as runs/demo/best")
    add("data", help="manifest of the held-out videos that choose; not those that test")
    add("--budgets", help="tokens kept, a plan for each, such as 512,1024,2048; default: those of training")
    add("--frames", help="frames of the candidate grids, such as 8,12,16; default: around those of training")
    add("--sizes", help="sides of square candidate grids, such as 168,224; default: around those of training")
    add("--heights", help="with --widths, instead of --sizes: every height with every width")
    add("--widths", help="see --heights")
    add("--selectors", help="such as group_dynamic,dynamic; default: those of the plans so far")
    add("--clips", type=int, help="videos to use, drawn at random; default: all")
    add("--seed", type=int, help="of the order of the videos")
    add("--test", help="manifest of the videos that will test; refused if it shares videos with the data")
    add("--exhaustive", action="store_true", help="try every candidate on every clip")
    add("--cascades", help="tune cascades, too, for mean budgets such as 20gflops,30gflops or 40,60 or 8ms")
    add("--to", help="folder for a copy of the checkpoint that gets the plans; default: itself")
    add("--target", help="key of the class index in the manifests; default: label")
    add("--out", help="folder of the log; default: runs/optimize")
    add("--workers", type=int, help="processes that decode; default: 0, this one")
    add_device(parser)
    return _optimize(**values(parser, argv))


def _optimize(**settings: Any) -> int:
    given = {name: value for name, value in settings.items() if value is not None}
    for name in _NUMBERS:
        if name in given:
            parts = [part.strip() for part in str(given[name]).split(",")]
            if not all(re.fullmatch(r"-?\d{1,12}", part, re.ASCII) for part in parts):
                raise ValueError(
                    f"--{name} {shown(given[name])}: give whole numbers of up to 12 digits, such as 8,16"
                )
            given[name] = tuple(map(int, parts))
    if "selectors" in given:
        given["selectors"] = tuple(given["selectors"].split(","))
    if "cascades" in given:
        from fluxvit.flux.budget import parse_budget

        given["cascades"] = tuple(map(parse_budget, str(given["cascades"]).split(",")))
    try:
        from fluxvit.dual_checkpoints import is_dual
        from fluxvit.evaluation.optimize import OptimizeConfig, run_optimize
        from fluxvit.evaluation.retrieve import optimize_dual

        config = OptimizeConfig(**given)
        say(optimize_dual(config) if is_dual(config.checkpoint) else run_optimize(config))
    except KeyboardInterrupt:
        say("fluxvit: interrupted; the same command goes on", error=True)
        return 130
    return 0
