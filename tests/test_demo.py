from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fluxvit import Predictor, demo
from fluxvit.cli import main
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.recipes import Recipe
from fluxvit.utils.files import append_json
from fluxvit.utils.system import Stopped

SMALL = [
    "--videos",
    "64",
    "--val",
    "8",
    "--test",
    "16",
    "--epochs",
    "1.5",
    "--minutes",
    "0",
    "--workers",
    "1",
    "--device",
    "cpu",
]


def test_demo_end_to_end_and_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Every stage runs on tiny settings, and a second call finds everything done."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    results = json.loads((out / "results.json").read_text())
    kinds = ("plain", "optimised", "random", "one grid")
    assert {(row["kind"], row["budget"]) for row in results["points"]} == {
        (kind, budget) for kind in kinds for budget in demo.BUDGETS
    }
    assert all(row["total"] == 16 for row in results["points"])
    grids = {(row["kind"], row["budget"]): row["grid"] for row in results["points"]}
    assert all(grids["random", budget] == grids["optimised", budget] for budget in demo.BUDGETS)
    assert {grids["one grid", budget] for budget in demo.BUDGETS} == {"8x40"}
    page = (out / "report" / "report.html").read_text()
    assert results["headline"] in page
    assert "in random order" in page
    assert "one grid   8x40" in capsys.readouterr().out

    predictor = Predictor(out / "best", demo.BUDGETS[-1])
    assert str(predictor.plan.grid) == grids["optimised", demo.BUDGETS[-1]]
    assert len(predictor(next((out / "data" / "test").glob("*.mp4"))).top(3)) == 3

    states = {path: path.stat().st_mtime_ns for path in out.rglob("state.pt")}
    assert {path.parent.name for path in states} == {"flexible", "fixed"}
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    assert {path: path.stat().st_mtime_ns for path in states} == states
    assert json.loads((out / "results.json").read_text())["points"] == results["points"]


def test_demo_refuses_a_folder_of_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_dataset(tmp_path / "demo" / "data", MotionWorldConfig(32, 0, "demo", val=1, test=1), workers=1)
    assert main(["demo", "--out", str(tmp_path / "demo"), *SMALL]) == 2
    assert "videos is 32 there and 64 here" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["videos", "val", "test", "epochs"])
def test_demo_checks_sizes_before_it_works(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), f"--{setting}", "0"]) == 2
    assert f"{setting} is 0" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("rate", "left", "share"),
    [
        (500, 900, 1.0),  # A fast machine takes all epochs.
        (100, 900, 0.85),
        (99.9, 900, 0.85),  # Hardly any slower: the same.
        (2, 900, 0.3),
        (100, -60, 0.3),  # The time is up before it begins.
    ],
)
def test_epochs_fit_into_the_time(rate: float, left: float, share: float) -> None:
    config = demo.DemoConfig()
    pace = demo._fitted(config, rate, left)
    assert pace.epochs == pytest.approx(share * config.epochs)
    assert 2 * pace.epochs * config.videos / rate < left or share == 0.3
    assert f"{pace.epochs:g} of 13 epochs" in pace.note


def test_what_was_decided_holds_when_the_demo_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, world, now = demo.DemoConfig(str(tmp_path)), demo.join_world("cpu"), time.monotonic()
    monkeypatch.setattr(demo, "_clips_per_second", lambda *_: 100.0)
    pace = demo._pace(config, world, now)
    assert pace.epochs < 13
    monkeypatch.setattr(demo, "_clips_per_second", lambda *_: 1000.0)
    assert demo._pace(config, world, now) == pace
    with pytest.raises(ValueError, match=r"holds a demo with minutes and epochs \[15.0, 13.0\]"):
        demo._pace(replace(config, minutes=30), world, now)
    (tmp_path / "other").mkdir()
    assert demo._pace(replace(config, out=str(tmp_path / "other"), minutes=0), world, 0).epochs == 13


def test_the_set_up_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("FLUXVIT_SETUP_SECONDS", "95")
    monkeypatch.setattr(demo, "_run_demo", lambda _, started: started)
    assert time.monotonic() - demo.run_demo(demo.DemoConfig(str(tmp_path))) == pytest.approx(95, abs=5)


def test_the_speed_is_that_of_the_last_steps_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def train(recipe: Recipe, *_: object, **__: object) -> None:
        folders.append(Path(recipe.out))
        for rate in (1.0, 40.0, 120.0):
            append_json(Path(recipe.out) / "log.jsonl", {"clips_per_s": rate})
        if len(folders) == 2:
            raise Stopped("the weights so far are in a folder that will be gone")

    monkeypatch.setattr(demo, "train_recipe", train)
    config, world = demo.DemoConfig(str(tmp_path)), demo.join_world("cpu")
    assert demo._clips_per_second(config, world) == 120
    with pytest.raises(Stopped, match="while measuring the speed; the same command goes on"):
        demo._clips_per_second(config, world)
    assert not any(folder.exists() for folder in folders)
    assert not list(tmp_path.iterdir())
