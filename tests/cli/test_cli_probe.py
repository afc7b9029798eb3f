from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxvit.cli import main

CLASSES = ("circle", "square")


@pytest.fixture
def manifests(clip: Path) -> list[str]:
    """Options that name two manifests of copies of one clip."""
    options = []
    for role in ("train", "val"):
        lines = [json.dumps({"manifest": 1, "classes": CLASSES})]
        for i in range(4):
            (clip.parent / f"{role}{i}.mp4").write_bytes(clip.read_bytes())
            lines.append(json.dumps({"path": f"{role}{i}.mp4", "label": i % 2}))
        path = clip.parent / f"{role}.jsonl"
        path.write_text("\n".join(lines))
        options += [f"--{role}", str(path)]
    return options


def test_probe(
    checkpoint: Path, clip: Path, manifests: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    options = ["--grid", "8x16", "--budget", "6", "--epochs", "2", "--lrs", "1e-3", "--out", str(out)]
    assert main(["probe", str(checkpoint), *manifests, *options]) == 0
    printed = capsys.readouterr().out
    assert "6 of 16 tokens of 8x16" in printed
    # Copies of one clip with two labels: nothing can be learned.
    assert "val     50.0 %" in printed
    assert json.loads((out / "probe.json").read_text())["config"]["lrs"] == [1e-3]
    assert main(["predict", str(clip), "--checkpoint", str(out / "best"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["label"] for row in answer["top"]} == set(CLASSES)
    assert answer["tokens"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lrs", "fast"], "--lrs is 'fast', expected values separated by commas, each a finite number"),
        (["--weight_decays", "0.1,,"], "--weight_decays '0.1,,': there is nothing between two commas"),
        (["--budget", "0"], "budget is 0, expected an integer of at least 1"),
        (["--test", "nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
        (["--device", "banana"], "device 'banana' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    options: list[str], message: str, checkpoint: Path, manifests: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["probe", str(checkpoint), *manifests, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
