"""``fluxvit probe``."""

from __future__ import annotations

from typing import Any

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "probe",
        "Train classifiers on the features of a frozen checkpoint: several settings at once, chosen on "
        "validation videos. Features are kept on disk; an interrupted run goes on with them.",
    )
    add = parser.add_argument
    add("checkpoint", help="checkpoint folder, such as runs/demo/best")
    add("--train", required=True, help="manifest of the videos that train")
    add("--val", required=True, help="manifest of the videos that choose the setting")
    add("--test", help="manifest of the videos that the chosen probe is scored on")
    add("--kind", help="linear or attentive; default: linear")
    add("--grid", help="sampling grid, such as 16x224; default: the checkpoint's plan for the budget")
    add("--budget", type=int, help="tokens kept; default: the checkpoint's largest budget")
    add("--selector", help="which tokens are kept, such as uniform; default: group_dynamic")
    add("--epochs", type=int, help="passes over the training features; default: 20")
    add("--batch_size", type=int, help="videos a step; default: 64")
    add("--lrs", help="learning rates; default: 1e-4,3e-4,1e-3,3e-3,1e-2")
    add("--weight_decays", help="each is tried with each learning rate; default: 0.01")
    add("--seed", type=int, help="of initial weights and order")
    add("--target", help="key of the class index in the manifests; default: label")
    add("--out", help="folder to write; default: runs/probe")
    add("--cache", help="folder of features; default: features in the folder to write")
    add("--workers", type=int, help="processes that decode; default: 0, this one")
    add_device(parser)
    return _probe(**values(parser, argv))


def _probe(lrs: str | None, weight_decays: str | None, **settings: Any) -> int:
    from fluxvit.evaluation.probes import ProbeConfig, run_probe

    given = {name: value for name, value in settings.items() if value is not None}
    for name, text in (("lrs", lrs), ("weight_decays", weight_decays)):
        if text is not None:
            try:
                given[name] = tuple(float(part) for part in str(text).split(","))
            except ValueError:
                raise ValueError(f"--{name} {text!r}: give numbers, such as 1e-4,1e-3") from None
    say(run_probe(ProbeConfig(**given)))
    return 0
