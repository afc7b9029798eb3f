"""``fluxvit bench``: rows for every form, files, and wrong inputs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT
from fluxvit.checkpoints.loading import load_or_create
from fluxvit.deploy.bench import STAGES, Form, forms_of, measure, run_bench
from fluxvit.deploy.config import BenchConfig
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.inference import form


@pytest.fixture(autouse=True)
def _small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxvit.deploy.bench._side", lambda device: 128)


def test_it_writes_rows_stages_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    options = {"precision": ("fp32",), "backend": ("torch", "plain"), "runs": 2, "device": "cpu"}
    run_bench(BenchConfig((DEFAULT_CHECKPOINT,), budget=(36, 18), batch=(1, 2), out=str(out), **options))
    with (out / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch"], row["tokens"], row["backend"]) for row in rows] == [
        (batch, tokens, backend)
        for batch in "12"
        for tokens in ("36", "18")
        for backend in ("torch", "plain")
    ]
    size = load_or_create(DEFAULT_CHECKPOINT).model.config.size
    for row in rows:
        macs = grid_cost(size, SamplingGrid.parse(row["grid"]), int(row["tokens"])).total
        assert float(row["gmacs"]) == pytest.approx(macs / 1e9, abs=1e-4)
        rate = 2 * macs * int(row["batch"]) / float(row["p50_ms"]) * 1000
        assert float(row["tflops"]) == pytest.approx(rate / 1e12, abs=1e-4)
        assert float(row["gemm_share"]) > 0
        assert float(row["p50_ms"]) <= float(row["p90_ms"])
        assert row["peak_mb"] == ""
    content = json.loads((out / "bench.json").read_text())
    assert {"torch", "threads", "instructions", "missing"} <= content["conditions"].keys()
    assert [stage["form"] for stage in content["stages_ms"]] == ["torch fp32", "plain fp32"]
    assert all(stage[name] >= 0 for stage in content["stages_ms"] for name in STAGES)
    assert "decode" in capsys.readouterr().out
    if (out / "bench.svg").exists():
        ElementTree.parse(out / "bench.svg")
    else:
        pytest.importorskip("matplotlib", reason="no picture without matplotlib")


def test_forms() -> None:
    checkpoint = load_or_create("fluxvit_nano")
    forms, missing = forms_of(checkpoint, ("torch", "plain"), ("fp32", "bf16"))
    assert (list(map(str, forms)), missing) == (["torch fp32", "torch bf16", "plain fp32", "plain bf16"], [])
    assert [form(each.checkpoint.model) == "plain" for each in forms] == [False, False, True, True]
    video, plan = torch.randn(1, 3, 16, 128, 128), checkpoint.plan(50)
    exact, *others = (each.run(video, plan).embedding.float() for each in (forms[2], *forms))
    for other in others:
        assert torch.nn.functional.cosine_similarity(exact, other).item() > 0.99


def test_what_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxvit.models.inference.has_openvino", lambda: False)
    checkpoint = load_or_create("fluxvit_nano")
    forms, missing = forms_of(checkpoint, ("openvino", "plain"), ("fp32",))
    assert list(map(str, forms)) == ["plain fp32"]
    assert missing == [
        "openvino fp32: the backend openvino is not installed: pip install 'fluxvit[openvino]'"
    ]
    with pytest.raises(ValueError, match="not installed"):
        forms_of(checkpoint, ("openvino",), ("fp32",))


def test_the_rate_counts_both_operations_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxvit.deploy.bench._rested_ms", lambda work, device: 10.0)
    checkpoint = load_or_create("fluxvit_nano")
    plan = checkpoint.plan(50)
    (row,) = measure("nano", [Form("plain", "fp32", checkpoint)], plan, 3, runs=2)
    macs = grid_cost(checkpoint.model.config.size, plan.grid, 50).total
    assert row.clips_per_s == 300
    assert row.gemm_share == pytest.approx(3 * macs / 128**3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ("nothing",)}, "nothing is neither a checkpoint folder nor one of fluxvit_nano"),
        ({"budget": (9999,)}, "budget 9999 tokens: the grid .* has .* tokens; give at most"),
        ({"video": "missing.mp4"}, "missing.mp4"),
        ({"grid": SamplingGrid(3, 64, 64)}, "multiple of 4"),
    ],
)
def test_wrong_inputs(tmp_path: Path, options: dict, message: str) -> None:
    given = {"models": (DEFAULT_CHECKPOINT,), "backend": ("plain",), "precision": ("fp32",), "runs": 1}
    with pytest.raises(ValueError, match=message):
        run_bench(BenchConfig(**{**given, "out": str(tmp_path / "out"), **options}, device="cpu"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="something else than the results of fluxvit bench"):
        run_bench(BenchConfig((DEFAULT_CHECKPOINT,), out=str(tmp_path), device="cpu"))
