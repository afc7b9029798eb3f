"""The headline's steps run on a tiny data set, are kept, and add up."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest

import headline
from conftest import small_model
from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from headline_report import Row, report

GRID = SamplingGrid(16, 16, 16)


def test_every_finished_step_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    labels = Checkpoint.load(DEFAULT_CHECKPOINT).labels
    path = Checkpoint(small_model(len(labels)), labels=labels, grids=[GRID]).save(tmp_path / "model")
    out = tmp_path / "out"
    command = ["--quick", "--fixed", str(path), "--multi", str(path), "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["headline.py", *command])
    headline.main()
    assert "stop rules against single budgets" in capsys.readouterr().out
    found = json.loads((out / "headline.json").read_text())
    rows = found["rows"]
    with (out / "headline.csv").open() as file:
        assert [row["correct"] for row in csv.DictReader(file)] == [str(row["correct"]) for row in rows]
    assert {(row["model"], row["sampling"]) for row in rows} == {
        (way, sampling) for way in ("fixed", "multi") for sampling in ("plain", "cut", "optimised")
    }
    assert [row["budget"] for row in rows if (row["model"], row["sampling"]) == ("multi", "cut")] == [
        *(16, 8, 4, 2, 1)
    ]
    assert all(row["total"] == 16 and 0 < row["read_ms"] < row["file_to_logits_ms"] for row in rows)
    assert {stop["unit"] for stop in found["stop_rules"]} == {"gmacs", "ms"}
    assert "<svg" in (out / "headline.svg").read_text()

    def again(*_: object, **__: object) -> None:
        raise AssertionError("this is done already")

    for name in ("make_dataset", "predict_plans", "time_plans", "measure_chains"):
        monkeypatch.setattr(headline, name, again)
    headline.main()
    assert json.loads((out / "headline.json").read_text()) == found


def test_both_kinds_are_trained_for_the_same_steps(tmp_path: Path) -> None:
    args = argparse.Namespace(
        **{"grid": SamplingGrid(32, 64, 64), "init": DEFAULT_CHECKPOINT, "data": tmp_path, "out": tmp_path},
        **{"batch_size": 64, "lr": 1e-3, "epochs": 24.0, "workers": 0},
    )
    budgets = (512, 256, 128, 64, 32)
    fixed, multi = (headline.recipe(args, way, 1, budgets) for way in ("fixed", "multi"))
    assert (fixed.epochs, fixed.optim, fixed.model.init) == (multi.epochs, multi.optim, multi.model.init)
    assert fixed.model.settings.budgets == (512,)
    assert multi.model.settings.budgets == (512, 256, 128)
    assert (fixed.grids.frames, fixed.grids.sizes) == ((32, 33, 4), (64, 65, 8))
    assert (fixed.grids.min_tokens, fixed.grids.max_tokens) == (512, 512)
    assert (multi.grids.frames, multi.grids.sizes) == ((16, 49, 4), (48, 73, 8))
    assert (multi.grids.min_tokens, multi.grids.max_tokens) == (512, 1536)


def test_differences_are_paired_by_clip_and_averaged_over_seeds() -> None:
    right = {
        ("multi", 0): [1, 1, 1, 0],
        ("multi", 1): [1, 1, 0, 0],
        ("fixed", 0): [0, 1, 1, 0],
        ("fixed", 1): [0, 1, 0, 0],
    }
    rows = [
        Row(way, seed, sampling, 16, Plan(GRID, 16), np.array(each, bool), 1.0, 1.0, 1.0, 2.0)
        for (way, seed), each in right.items()
        for sampling in ("plain", "cut", "optimised")
    ]
    lines = [" ".join(line.split()) for line in report(rows, (16,))]
    # One clip of four differs, by 1 for both seeds: 25 points, with 1.96 * 50 / 2 points to both sides.
    title = "multi, optimised at 16, over fixed with all 16: +25.0 (-24.0 to +74.0) +25.0 +25.0 "
    assert any(line.startswith(title) for line in lines)
