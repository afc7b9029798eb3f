from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fluxvit.cli import main


@pytest.fixture
def data(clip: Path) -> Path:
    path = clip.parent / "test.jsonl"
    path.write_text(
        '{"manifest": 1, "classes": ["a", "b", "c", "d", "e"]}\n{"path": "clip.mp4", "label": 0}\n'
        '{"path": "gone.mp4", "label": 1}'
    )
    return path


def test_evaluate(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    options = ["--budgets", "12,6", "--views", "2x1", "--baselines", "tube,uniform", "--latency=false"]
    options += ["--precision", "fp32"]
    assert main(["evaluate", str(checkpoint), str(data), *options, "--out", str(out), "--device", "cpu"]) == 0
    printed, errors = capsys.readouterr()
    assert re.fullmatch(r"fluxvit: running on cpu, .*\n", errors)
    assert re.search(r"2 videos of 5 classes, 2x1 views, \w+ float32\n", printed)
    assert "  gone.mp4: no such file" in printed
    assert f"wrote   {out / 'results.json'}" in printed
    found = json.loads((out / "results.json").read_text())
    assert [(point["kind"], point["budget"]) for point in found["points"]] == [
        (kind, budget) for budget in (12, 6) for kind in ("plain", "optimised", "tube", "uniform")
    ]
    assert all(point["latency_ms"] is None for point in found["points"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets", "many"], "budget 'many': give tokens (1024)"),
        (["--views", "3"], "views '3': give CLIPSxCROPS, such as 4x3"),
        (
            ["--baselines", "best"],
            "--baselines is 'best', expected values separated by commas, each one of group",
        ),
        (["--grid", "7x16"], "frames 7 is not a multiple of 2"),
        (["--precision", "fp8"], "--precision is 'fp8', expected one of auto, fp32, bf16"),
        (["--device", "banana"], "device 'banana' is unknown"),
        (["--target", "object"], "no key 'object'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    options: list[str],
    message: str,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", str(checkpoint), str(data), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
