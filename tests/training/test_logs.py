from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from test_training import small_model, trainer, weights

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.training.logs import Meter, peak_memory, progress_line
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.trainer import Trainer


def test_meter() -> None:
    def slow():
        for _ in range(3):
            time.sleep(0.03)
            yield None

    meter = Meter(torch.device("cpu"))
    for _ in meter.watch(slow()):
        time.sleep(0.01)
        meter.finish_step(clips=4, tokens=80)
        time.sleep(0.1)  # A validation: no step's time.
    figures = meter.figures()
    assert figures["tokens_per_s"] == pytest.approx(20 * figures["clips_per_s"])
    assert 12 / 0.3 < figures["clips_per_s"] <= 12 / 0.12
    assert 0.5 < figures["data_wait"] < 1
    assert 0.05 < figures["memory_gib"] < 100
    assert peak_memory(torch.device("cpu")) > 50e6


def test_log_tells_speed_and_rates(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=5, log_every=2)
    run.run(progress=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    for row in rows:
        assert row.keys() >= {"loss", "lr", "grad_norm", "clips_per_s", "tokens_per_s", "data_wait"}
        assert row["gemm_share"] > 0
        assert all(math.isfinite(value) for value in row.values())
    assert rows[0]["lr"] == pytest.approx(1e-3 / 2)


def test_kept_tokens_are_counted_over_all_budgets() -> None:
    count = ClassifyTask(Checkpoint(small_model())).count_tokens
    # A pool of 72 tokens for budgets 24, 12 and 6; one of 18.
    assert count(torch.zeros(2, 3, 16, 24, 24)) == 2 * (24 + 12 + 6)
    assert count(torch.zeros(1, 3, 4, 24, 24)) == 18 + 12 + 6


def test_multiply_accumulates_of_a_step() -> None:
    model = small_model()
    task, video = ClassifyTask(Checkpoint(model)), torch.zeros(2, 3, 16, 24, 24)
    (one, *rest) = (grid_cost(model.config.size, SamplingGrid(16, 24, 24), keep) for keep in (24, 12, 6))
    # All budgets share the embedding and the scores of the pool.
    forward = one.total + sum(cost.blocks + cost.pooling + cost.classifier for cost in rest)
    assert task.count_macs(video) == 3 * 2 * forward
    model.blocks.requires_grad_(False)
    assert task.count_macs(video) == 2 * forward
    model.blocks[0].norm1.weight.requires_grad_(True)
    assert task.count_macs(video) == 2 * 2 * forward


def test_logging_does_not_change_the_run(tmp_path: Path) -> None:
    runs = []
    for name, every in (("a", 1), ("b", 100)):
        (tmp_path / name).mkdir()
        runs.append(trainer(tmp_path / name, log_every=every))
        runs[-1].run(progress=name == "a")
    assert torch.equal(*map(weights, runs))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (2, 3):  # The second run goes on where the first one ended.

        def after(run: Trainer, taken: int) -> None:
            if taken == 2:
                run.log(taken, {"val/mean": 0.5})

        trainer(tmp_path, steps=steps, log_every=1, tensorboard=True, after_step=after).run(progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(event.step, event.value) for event in events.Scalars("val/mean")] == [(2, 0.5)]
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({row["step"]: row["loss"] for row in rows})


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'fluxvit\[tensorboard\]'"):
        trainer(tmp_path, tensorboard=True).check_saved()


def test_plain_line_where_there_is_no_terminal(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxvit.training.logs._PLAIN_LINE_SECONDS", -1.0)
    monkeypatch.setenv("TERM", "dumb")
    figures = {"clips_per_s": 12.3, "tokens_per_s": 45678.0, "data_wait": 0.25, "memory_gib": 1.5}
    figures["gemm_share"] = 0.23
    with progress_line("Training", 10, 2, True) as advance:
        advance({"loss": 1.5, "accuracy@8": 0.25}, figures)
    printed = capsys.readouterr().out
    assert (
        "Training 3/10  loss 1.50 @8 0.25  45,678 tokens/s, 12.3 clips/s, 23 % of the GEMM rate, 25 % waiting"
        in printed
    )
