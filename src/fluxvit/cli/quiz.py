"""``fluxvit quiz``."""

from __future__ import annotations

from typing import Any

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "quiz",
        "Test a chat model on questions with answers to choose from: blind, and at each budget; "
        "or a dual encoder, which chooses the nearest answer.",
    )
    add = parser.add_argument
    add("checkpoint", help="folder of a chat model, such as runs/instruct/last, or of a dual encoder")
    add("data", help="manifest of the videos, with questions (qa), such as test.jsonl")
    add("--budgets", help="tokens, such as 1024,512, or one of 20gflops, 50ms; default: those trained for")
    add("--grid", help="sampling grid, such as 16x224; default: the plans of the checkpoint")
    add("--videos", type=int, help="so many of the manifest, drawn at random; default: all")
    add("--seed", type=int, help="of the draw; default: 0")
    add("--language", help="where the language model is, if it has moved")
    add("--precision", choices=("fp32", "bf16"), help="default: fp32")
    add("--out", help="folder to write; default: runs/quiz")
    add_device(parser)
    return _quiz(**values(parser, argv))


def _quiz(**settings: Any) -> int:
    from fluxvit.evaluation.questions import QuizConfig, run_quiz
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid

    given = {name: value for name, value in settings.items() if value is not None}
    if "budgets" in given:
        given["budgets"] = tuple(map(parse_budget, str(given["budgets"]).split(",")))
    if "grid" in given:
        given["grid"] = SamplingGrid.parse(given["grid"])
    say(run_quiz(QuizConfig(**given)))
    return 0
