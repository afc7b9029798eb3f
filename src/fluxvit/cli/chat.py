"""``fluxvit chat``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "chat",
        "Ask questions about a video, in the terminal; an empty line ends it. With --ask it answers these "
        "and ends.",
    )
    add = parser.add_argument
    add("clip", help="video file, or folder of frames")
    add("--checkpoint", default="runs/instruct/last", help="folder of a chat model; default: %(default)s")
    add("--ask", action="append", help="a question; can be given several times")
    add("--budget", help="what a clip may cost, in tokens, gflops or ms; default: the largest trained")
    add("--grid", help="sampling grid, such as 16x224; default: the plan for the budget")
    add("--clips", type=int, default=1, help="parts of a long video that are looked at each; default: 1")
    add("--language", default="", help="where the language model is, if it has moved")
    add("--temperature", type=float, default=0.0, help="0 says the likeliest; default: 0")
    add("--limit", type=int, default=256, help="tokens of an answer; default: 256")
    add_device(parser)
    return _chat(**values(parser, argv))


def _chat(
    clip: str,
    checkpoint: str,
    ask: list[str] | None,
    budget: str | None,
    grid: str | None,
    clips: int,
    language: str,
    temperature: float,
    limit: int,
    device: str | None,
) -> int:
    from fluxvit.deploy.chat import Chat, check_answer
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid
    from fluxvit.machine import log_device

    check_answer(limit, temperature)
    chat = Chat(
        checkpoint,
        parse_budget(budget) if budget else None,
        grid=SamplingGrid.parse(grid) if grid else None,
        language=language,
        device=device,
    )
    vectors = chat.watch(clip, clips)
    log_device(chat.device)
    plan, parts = chat.plan, f"{clips} clips, each " if clips > 1 else ""
    say(f"{clip}: {parts}{plan.keep} tokens of {plan.grid}, {vectors} vectors for {chat.language.source}")
    for question in ask or _typed():
        if ask:
            say(f"> {question}")
        for piece in chat.ask(question, limit=limit, temperature=temperature):
            say(piece, end="", flush=True)
        say()
    return 0


def _typed() -> Iterator[str]:
    """Lines from the keyboard, up to an empty one."""
    while True:
        if sys.stdin.isatty():
            say("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()
