from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fluxvit import Predictor, demo, demo_pace
from fluxvit.cli import main
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.recipes import Recipe
from fluxvit.utils.files import append_json, write_json
from fluxvit.utils.system import Stopped

SIZES = {"videos": 32, "val": 4, "test": 8, "epochs": 2, "minutes": 0, "workers": 1, "device": "cpu"}
SMALL = [f"--{name}={value}" for name, value in SIZES.items()]


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
    assert all(row["total"] == 8 for row in results["points"])
    grids = {(row["kind"], row["budget"]): row["grid"] for row in results["points"]}
    assert all(grids["random", budget] == grids["optimised", budget] for budget in demo.BUDGETS)
    assert {grids["one grid", budget] for budget in demo.BUDGETS} == {"32x32"}
    page = (out / "report" / "report.html").read_text()
    assert results["headline"] in page
    assert "in random order" in page
    assert "one grid   32x32" in capsys.readouterr().out

    predictor = Predictor(out / "best", demo.BUDGETS[-1])
    assert str(predictor.plan.grid) == grids["optimised", demo.BUDGETS[-1]]
    assert len(predictor(next((out / "data" / "test").glob("*.mp4"))).top(3)) == 3

    states = {path: path.stat().st_mtime_ns for path in out.rglob("state-*/about.json")}
    assert {path.parents[1].name for path in states} == {"flexible", "fixed"}
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    assert {path: path.stat().st_mtime_ns for path in states} == states
    assert json.loads((out / "results.json").read_text())["points"] == results["points"]


def test_demo_refuses_a_folder_of_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = MotionWorldConfig(33, 0, "demo", val=4, test=8)
    (tmp_path / "demo" / "data").mkdir(parents=True)
    record = {"name": other.name, "version": other.version, **asdict(other)}
    write_json(tmp_path / "demo" / "data" / "config.json", record)
    assert main(["demo", "--out", str(tmp_path / "demo"), *SMALL]) == 2
    assert "videos is 33 there and 32 here" in capsys.readouterr().err


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
        (75, 900, 0.85),
        (74.9, 900, 0.85),  # Hardly any slower: the same.
        (2, 900, 0.3),
        (100, -60, 0.3),  # The time is up before it begins.
    ],
)
def test_epochs_fit_into_the_time(
    rate: float, left: float, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_pace.time, "monotonic", lambda: 900 - left)
    config = demo.DemoConfig(str(tmp_path))
    pace = demo_pace.choose_pace(config, 0, lambda: rate)
    assert pace.epochs == pytest.approx(share * config.epochs)
    assert 2 * pace.epochs * config.videos / rate < left or share == 0.3
    assert f"{pace.epochs:g} of 13 epochs" in pace.note


def test_what_was_decided_holds_when_the_demo_goes_on(tmp_path: Path) -> None:
    config, now = demo.DemoConfig(str(tmp_path)), time.monotonic()
    pace = demo_pace.choose_pace(config, now, lambda: 70.0)
    assert pace.epochs < 13
    assert demo_pace.choose_pace(config, now, lambda: 1000.0) == pace
    with pytest.raises(ValueError, match=r"holds a demo with minutes and epochs \[15.0, 13.0\]"):
        demo_pace.choose_pace(replace(config, minutes=30), now, lambda: 70.0)
    (tmp_path / "other").mkdir()
    unlimited = replace(config, out=str(tmp_path / "other"), minutes=0)
    assert demo_pace.choose_pace(unlimited, 0, lambda: 1 / 0).epochs == 13


def test_the_set_up_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    seconds = []

    def stop(config: demo.DemoConfig, started: float, measure: object) -> None:
        seconds.append(time.monotonic() - started)
        raise Stopped

    monkeypatch.setenv("FLUXVIT_SETUP_SECONDS", "95")
    monkeypatch.setattr(demo, "make_dataset", lambda *_, **__: None)
    monkeypatch.setattr(demo, "choose_pace", stop)
    with pytest.raises(Stopped):
        demo.run_demo(demo.DemoConfig(str(tmp_path), device="cpu"))
    assert seconds == [pytest.approx(95, abs=5)]


def test_the_speed_is_that_of_the_last_steps_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: Recipe, *_: object, **__: object) -> None:
        Path(recipe.out).mkdir()
        for rate in (1.0, 40.0, 120.0):
            append_json(Path(recipe.out) / "log.jsonl", {"clips_per_s": rate})

    monkeypatch.setattr(demo, "train_recipe", train)
    assert demo._clips_per_second(demo.DemoConfig(str(tmp_path)), demo.join_world("cpu")) == 120
    assert not list(tmp_path.iterdir())
