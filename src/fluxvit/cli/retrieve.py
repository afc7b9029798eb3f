"""``fluxvit retrieve``."""

from __future__ import annotations

from typing import Any

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "retrieve",
        "Test a dual encoder: find videos by their captions and captions by their videos, at each budget, "
        "with plain and optimised sampling.",
    )
    add = parser.add_argument
    add("checkpoint", help="folder of a dual encoder, such as runs/contrast/last")
    add("data", help="manifest of the videos, with captions, such as test.jsonl")
    add("--budgets", help="tokens, such as 1024,512, or one of 20gflops, 50ms; default: those trained for")
    add("--grid", help="test this sampling grid, such as 16x224, in place of the plan table's")
    add("--plain_size", type=int, help="side of the frames of plain sampling; default: of a training grid")
    add("--precision", choices=("fp32", "bf16"), help="default: fp32")
    add("--batch_size", type=int, help="clips at once; default: 32")
    add("--out", help="folder to write; default: runs/retrieve")
    add("--workers", type=int, help="processes that decode; default: 0, this one")
    add_device(parser)
    return _retrieve(**values(parser, argv))


def _retrieve(**settings: Any) -> int:
    from fluxvit.evaluation.retrieve import RetrieveConfig, run_retrieve
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid

    given = {name: value for name, value in settings.items() if value is not None}
    if "budgets" in given:
        given["budgets"] = tuple(map(parse_budget, str(given["budgets"]).split(",")))
    if "grid" in given:
        given["grid"] = SamplingGrid.parse(given["grid"])
    say(run_retrieve(RetrieveConfig(**given)))
    return 0
