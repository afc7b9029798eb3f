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

SMALL = [
    "--videos",
    "64",
    "--val",
    "8",
    "--test",
    "16",
    "--steps",
    "3",
    "--control_steps",
    "2",
    "--workers",
    "1",
]


def test_demo_end_to_end_and_again(tmp_path: Path, capsys) -> None:
    """Every stage runs on tiny settings, and a second call finds everything done."""
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["budget"] for row in results["curve"]] == sorted(
        (r["budget"] for r in results["curve"]), reverse=True
    )
    for row in results["curve"]:
        assert row["plain"]["total"] == row["optimised"]["total"] == 16
        assert row["plain"]["pool"] == row["budget"] <= row["optimised"]["pool"]
    controls = [control["name"] for control in results["controls"]]
    assert controls == ["frames in order", "shuffled frames", "a single frame"]
    page = (out / "report" / "report.html").read_text()
    assert results["headline"] in page
    assert "report" in capsys.readouterr().out

    predictor = Predictor(out / "best", results["curve"][-1]["budget"])
    assert str(predictor.plan.grid) == results["curve"][-1]["optimised"]["grid"]
    assert len(predictor(next((out / "data" / "test").glob("*.mp4"))).top(3)) == 3

    for run in (out, out / "controls" / "normal"):
        (run / "last").mkdir()  # As a stop leaves it.
    state = (out / "state.pt").stat().st_mtime_ns
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    assert (out / "state.pt").stat().st_mtime_ns == state
    assert json.loads((out / "results.json").read_text())["curve"] == results["curve"]
    assert not list(out.rglob("last"))


def test_demo_refuses_a_folder_of_other_settings(tmp_path: Path, capsys) -> None:
    make_dataset(tmp_path / "demo" / "data", MotionWorldConfig(32, 0, "demo", val=1, test=1), workers=1)
    assert main(["demo", "--out", str(tmp_path / "demo"), *SMALL]) == 2
    assert "videos is 32 there and 64 here" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["videos", "val", "test", "steps", "control_steps"])
def test_demo_checks_sizes_before_it_works(setting: str, tmp_path: Path, capsys) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), f"--{setting}", "0"]) == 2
    assert f"{setting} is 0, expected an integer" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("step", "left", "steps", "control_steps"),
    [
        (0.1, 900, 1000, 300),  # A fast machine takes all of them.
        (0.7, 900, 800, 240),
        (0.701, 900, 800, 240),  # Hardly any slower: the same.
        (30.0, 900, 300, 90),
        (0.7, -60, 300, 90),  # The time is up before it begins.
    ],
)
def test_steps_fit_into_the_time(step: float, left: float, steps: int, control_steps: int) -> None:
    config = demo.DemoConfig()
    rates = demo._Rates(step, step / 3, 0.01)
    pace = demo._fitted(config, rates, left)
    assert (pace.steps, pace.control_steps) == (steps, control_steps)
    clips = (len(demo.GRIDS) + 3) * 240 + 9 * 400
    seconds = steps * step + 3 * control_steps * step / 3 + clips * 0.01
    assert seconds < left or steps == 300
    assert (f"{steps} of 1000" in pace.told(config)) == (steps < 1000)


def test_what_was_decided_holds_when_the_demo_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = demo.DemoConfig(str(tmp_path))
    monkeypatch.setattr(demo, "_rates", lambda *_: demo._Rates(0.7, 0.2, 0.01))
    pace = demo._fit(config, tmp_path, None, time.monotonic())
    assert pace.steps < 1000
    monkeypatch.setattr(demo, "_rates", lambda *_: demo._Rates(0.01, 0.01, 0.01))
    assert demo._fit(config, tmp_path, None, time.monotonic()) == pace
    with pytest.raises(ValueError, match=r"holds a demo with minutes, steps .* \[15.0, 1000, 300\]"):
        demo._fit(replace(config, minutes=30), tmp_path, None, time.monotonic())
    assert demo._fit(replace(config, minutes=0), tmp_path / "other", None, 0).steps == 1000


@pytest.mark.parametrize(("text", "seconds"), [("95", 95), ("", 0), ("-3", 0), ("nan", 0), ("9" * 400, 0)])
def test_the_set_up_counts(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXVIT_SETUP_SECONDS", text)
    assert demo._setup_seconds() == seconds


def test_the_speed_is_that_of_the_steps_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 18.0, 20.0, 21.0, *(21.0 + 0.5 * k for k in range(1, 99))])
    monkeypatch.setattr(demo.time, "perf_counter", lambda: next(clock))

    def steps_taken(limit: int):
        def train(*_, after_step, **__) -> None:
            for taken in range(limit + 1):
                after_step(taken)

        return train

    monkeypatch.setattr(demo, "train_model", steps_taken(14))
    assert demo._step_seconds(None, [50], demo.GRIDS, 0) == 0.5
    # On a slow machine half a minute has to do.
    seen: list[int] = []
    slow = iter(range(0, 990, 10))
    monkeypatch.setattr(demo.time, "perf_counter", lambda: seen.append(1) or next(slow))
    assert demo._step_seconds(None, [50], demo.GRIDS, 0) == 10
    assert len(seen) == 7
