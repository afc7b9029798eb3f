"""Outputs that are not finite are errors, wherever results are fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import small_model
from fluxvit.cli import main
from fluxvit.models.finite import NotFiniteError, check_finite
from fluxvit.utils.files import append_json, write_json, write_json_lines


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bad_value_is_an_error_that_names_the_place(bad: float, dtype: torch.dtype) -> None:
    values = torch.zeros(3, 4, dtype=dtype)
    assert check_finite(values, "a.mp4") is values
    values[1, 2] = bad
    with pytest.raises(NotFiniteError, match=r"a\.mp4: the network's output is not finite"):
        check_finite(values, "a.mp4")


def test_json_never_holds_nan(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for write in (write_json, append_json, lambda p, value: write_json_lines(p, [value])):
        with pytest.raises(ValueError, match="JSON"):
            write(path, {"a": float("nan")})
        assert not path.exists()


def broken(checkpoint: Path) -> Path:
    """The checkpoint with a bias that overflows: the weights are finite, the outputs are not."""
    file = checkpoint / "model.safetensors"
    state = load_file(file)
    state["blocks.0.mlp.fc1.weight"] = torch.full_like(state["blocks.0.mlp.fc1.weight"], 3e38)
    save_file(state, file)
    return checkpoint


@pytest.mark.parametrize("command", ["predict", "stream"])
@pytest.mark.parametrize("extra", [[], ["--json"]])
def test_predict_refuses(checkpoint: Path, clip: Path, command: str, extra: list[str], capsys) -> None:
    code = main([command, str(clip), "--checkpoint", str(broken(checkpoint)), "--device", "cpu", *extra])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "clip.mp4: the network's output is not finite" in err


def test_evaluate_and_optimize_refuse(checkpoint: Path, clip: Path, tmp_path: Path, capsys) -> None:
    manifest = tmp_path / "val.jsonl"
    rows = [{"path": clip.name, "label": k} for k in range(5)]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    folder = str(broken(checkpoint))
    for command in ("evaluate", "optimize"):
        extra = ["--frames", "8", "--sizes", "24"] if command == "optimize" else ["--grid", "8x24"]
        extra += ["--out", str(tmp_path / command)]
        code = main([command, folder, str(manifest), "--budgets", "12", *extra, "--device", "cpu"])
        assert code == 2
        assert "the network's output is not finite" in capsys.readouterr().err


def test_small_model_is_finite() -> None:
    video = torch.rand(1, 3, 8, 24, 24)
    check_finite(small_model()(video).logits, "noise")
