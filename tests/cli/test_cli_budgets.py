"""A budget that a command cannot honour is an error; it is never dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxvit.cli import main

PER_CLIP = "budget 64 tokens/s: this takes what one clip may cost"
TOO_MANY = "budget 100000 tokens: the grid 8x24 has 36 tokens; give at most as many, or a larger grid"


@pytest.mark.parametrize(
    ("command", "budget", "message"),
    [
        ("export {checkpoint} out --to pt2", "64/s", PER_CLIP),
        ("export {checkpoint} out --to pt2", "100000", TOO_MANY),
        ("predict {clip} --checkpoint {checkpoint}", "100000", TOO_MANY),
        ("features {clip} --checkpoint {checkpoint}", "100000", TOO_MANY),
        ("stream {clip} --checkpoint {checkpoint}", "100000", TOO_MANY),
    ],
)
def test_budgets_that_cannot_be_honoured(
    command: str, budget: str, message: str, checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word.format(checkpoint=checkpoint, clip=clip) for word in command.split()]
    assert main([*arguments, "--budget", budget]) == 2
    assert message in capsys.readouterr().err
