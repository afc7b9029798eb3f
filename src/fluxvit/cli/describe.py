"""``fluxvit describe``."""

from __future__ import annotations

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "describe",
        "Let a chat model describe videos, and judge how much of what happens it tells (as DREAM-1K does). "
        "An interrupted run goes on.",
    )
    add = parser.add_argument
    add("checkpoint", help="folder of a chat model, such as runs/instruct/last")
    add("data", help="manifest of the videos; a caption says what should be told")
    add(
        "--judge", help="language model that judges: a folder, .gguf file, hub name or smollm2; default: none"
    )
    add("--budget", help="what a clip may cost, in tokens, gflops or ms; default: the largest trained")
    add("--grid", help="sampling grid, such as 16x224; default: the plan for the budget")
    add("--limit", type=int, default=256, help="tokens of a description; default: 256")
    add("--language", default="", help="where the language model is, if it has moved")
    add("--out", default="runs/describe", help="folder to write; default: runs/describe")
    add_device(parser)
    return _describe(**values(parser, argv))


def _describe(
    checkpoint: str,
    data: str,
    judge: str | None,
    budget: str | None,
    grid: str | None,
    limit: int,
    language: str,
    out: str,
    device: str | None,
) -> int:
    from pathlib import Path

    from fluxvit.data.manifest import read_manifest
    from fluxvit.deploy.chat import Chat, check_answer
    from fluxvit.evaluation.descriptions import (
        DESCRIPTIONS,
        LanguageModelJudge,
        describe_videos,
        score_descriptions,
    )
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid
    from fluxvit.machine import log_device
    from fluxvit.models.language_model import load_language_model

    check_answer(limit)
    manifest = read_manifest(data, None)
    chat = Chat(
        checkpoint,
        parse_budget(budget) if budget else None,
        grid=SamplingGrid.parse(grid) if grid else None,
        language=language,
        device=device,
    )
    log_device(chat.device)
    described = describe_videos(chat, manifest, out, limit=limit)
    lost = len(manifest) - len(described)
    say(f"{len(described)} videos described" + (f", {lost} cannot be read" if lost else ""))
    say(f"wrote   {Path(out) / DESCRIPTIONS}")
    if judge:
        model = load_language_model(judge)
        model.network.to(chat.device)
        score = score_descriptions(described, LanguageModelJudge(model))
        say(
            f"F1 {100 * score.f1:.1f} %, recall {100 * score.recall:.1f} %, precision "
            f"{100 * score.precision:.1f} %, judged by {judge}"
        )
    return 0
