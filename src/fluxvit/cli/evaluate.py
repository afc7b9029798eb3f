"""``fluxvit evaluate``."""

from __future__ import annotations

from typing import Any

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "evaluate",
        "Test a checkpoint on labelled videos: plain and optimised sampling at each budget. An interrupted "
        "evaluation goes on where it was; under torchrun the processes share the videos.",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint folder, such as runs/demo/best")
    add("data", help="manifest of the videos, such as test.jsonl")
    add("--budgets", help="tokens, such as 1024,512, or one of 20gflops, 50ms; default: those trained for")
    add("--views", help="CLIPSxCROPS of each video, such as 4x3; default: 1x1")
    add("--grid", help="test this sampling grid, such as 16x224, in place of the plan table's")
    add("--head", type=int, help="head to read; default: the plan's, or the nearest to the budget")
    add("--selector", help="which tokens are kept; default: what the plan says")
    add("--baselines", help="other selectors on the same grids, such as random,uniform,tube")
    add("--plain_size", type=int, help="side of the frames of plain sampling; default: of a training grid")
    add("--sampling", help="sparse or dense; default: sparse")
    add("--stride", type=int, help="frames between two, of dense sampling; default: 4")
    add("--stride_fps", type=float, help="rate that the stride counts; default: each video's own")
    add("--target", help="key of the class index in the manifest; default: label")
    add("--seed", type=int, help="of selectors that draw; default: 0")
    add("--precision", help="fp32 or bf16; default: fp32")
    add("--batch_size", type=int, help="views at once; default: 32")
    add("--no_latency", action="store_true", help="do not measure how long plans take")
    add("--out", help="folder to write; default: runs/evaluate")
    add("--report", help="folder of a report to write, one HTML page with figures")
    add("--workers", type=int, help="processes that decode, for each process; default: 0, itself")
    add_device(parser)
    return _evaluate(**values(parser, argv))


def _evaluate(device: str | None, no_latency: bool, **settings: Any) -> int:
    from fluxvit.evaluation.evaluate import EvaluateConfig, run_evaluation
    from fluxvit.evaluation.views import Views
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid
    from fluxvit.training.distributed import join_world, leave_world

    given = {name: value for name, value in settings.items() if value is not None}
    readers = {
        "budgets": lambda text: tuple(map(parse_budget, text.split(","))),
        "views": Views.parse,
        "grid": SamplingGrid.parse,
        "baselines": lambda text: tuple(text.split(",")),
    }
    for name, read in readers.items():
        if name in given:
            given[name] = read(str(given[name]))
    config = EvaluateConfig(**given, latency=not no_latency)
    world = join_world(device)
    try:
        evaluation = run_evaluation(config, world)
    finally:
        leave_world(world)
    if evaluation is not None:
        say(evaluation)
    return 0
