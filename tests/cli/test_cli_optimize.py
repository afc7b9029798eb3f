from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main


@pytest.fixture
def data(clip: Path) -> str:
    """A manifest of copies of one clip."""
    rows = []
    for i in range(6):
        (clip.parent / f"copy{i}.mp4").write_bytes(clip.read_bytes())
        rows.append(json.dumps({"path": f"copy{i}.mp4", "label": i % 5}))
    path = clip.parent / "held.jsonl"
    path.write_text("\n".join(rows))
    return str(path)


def test_optimize(checkpoint: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--budgets", "12,6", "--frames", "4,8", "--sizes", "16,24", "--out", str(tmp_path / "out")]
    options += ["--selectors", "group_dynamic,uniform", "--videos", "5"]
    assert main(["optimize", str(checkpoint), data, *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("budget")
    assert "all 14 candidates on all 5 clips" in printed
    assert f"checkpoint  {checkpoint}" in printed
    plans = Checkpoint.load(checkpoint).plans
    assert {plan.keep for plan in plans} == {24, 12, 6}
    settings = json.loads((checkpoint / "optimize.json").read_text())["settings"]
    assert settings["frames"] == [4, 8]
    assert settings["selectors"] == ["group_dynamic", "uniform"]


def test_cascades_of_the_plans_that_saw_all_clips(
    checkpoint: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--budgets", "12,6", "--frames", "8", "--sizes", "16,24", "--out", str(tmp_path / "out")]
    broken = Path(data).with_name("copy2.mp4")
    broken.write_bytes(b"")
    assert main(["optimize", str(checkpoint), data, *options, "--cascades", "9,0.02gflops"]) == 0
    printed = capsys.readouterr().out
    assert "\n9 tokens in the mean: " in printed
    cascades = Checkpoint.load(checkpoint).cascades
    assert len(cascades) == 2
    assert cascades[0].mean([6, 18]) <= 9
    assert all(cascade.measured is not None and cascade.measured.total == 5 for cascade in cascades)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cascades", "9,some"], "budget 'some': give tokens"),
        (["--budgets", "many"], "--budgets is 'many', expected values separated by commas, each an integer"),
        (["--budgets", "0"], "budgets[0] is 0, expected an integer of at least 1"),
        (["--frames", "8,"], "--frames '8,': there is nothing between two commas"),
        (
            ["--selectors", "best"],
            "--selectors is 'best', expected values separated by commas, each one of group",
        ),
        (["--videos", "0"], "videos is 0"),
        (["--test", "nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
        (["--target", "action"], "no key 'action'"),
        (["--device", "banana"], "device 'banana' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    options: list[str], message: str, checkpoint: Path, data: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["optimize", str(checkpoint), data, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_test_set_is_refused(checkpoint: Path, data: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["optimize", str(checkpoint), data, "--test", data]) == 2
    assert "share 6 videos" in capsys.readouterr().err
