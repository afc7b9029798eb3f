from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

import fluxvit
from conftest import small_model
from fluxvit.checkpoints import (
    CheckpointInfo,
    convert_release,
    load_checkpoint,
    read_release,
    save_checkpoint,
    to_release,
)
from fluxvit.cli import main
from fluxvit.flux.budget import Cascade, Measured, Plan
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import create_model


def test_round_trip(checkpoint: Path) -> None:
    model, info = load_checkpoint(checkpoint)
    original = small_model()
    assert model.config == original.config
    for (name, a), (_, b) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert info.labels == list("abcde")
    assert info.grids == [SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)]
    assert info.plans[1] == Plan(SamplingGrid(8, 16, 32), 12)
    assert not model.training
    video = torch.randn(1, 3, 8, 16, 32)
    assert torch.equal(fluxvit.load(checkpoint)(video, 12).logits, original(video, 12).logits)


def test_plan_tables_keep_what_was_measured(tmp_path: Path) -> None:
    measured = Measured(correct=7, total=9, gmacs=0.5, latency_ms=3.25, device="a CPU")
    small = Plan(SamplingGrid(4, 16, 16), 6, 2, "uniform", measured)
    large = Plan(SamplingGrid(8, 16, 32), 12)
    cascade = Cascade((small, large), 0.8, (1.5, 1.0), Measured(gmacs=0.7))
    folder = save_checkpoint(
        tmp_path / "it", small_model(5), CheckpointInfo(plans=[small, large], cascades=[cascade])
    )
    info = load_checkpoint(folder)[1]
    assert (info.plans, info.cascades) == ([small, large], [cascade])
    assert (info.plans[0].measured, info.plans[1].measured) == (measured, None)
    assert (info.cascades[0].measured, info.cascades[0].stages[0].measured) == (Measured(gmacs=0.7), measured)


def test_plan_tables_of_the_first_version_are_read(checkpoint: Path) -> None:
    (checkpoint / "plans.json").write_text('[{"grid": "8x16x32", "keep": 12, "head": null}]')
    assert load_checkpoint(checkpoint)[1].plans == [Plan(SamplingGrid(8, 16, 32), 12)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('[{"keep": 12}]', "missing key 'grid'"),
        ('{"cascades": []}', "missing key 'plans'"),
        ('[{"grid": "8x16", "keep": 12, "selector": "best"}]', "selector 'best' is unknown"),
        ('[{"grid": "8x16", "keep": 12, "measured": {"speed": 1}}]', "speed"),
        ('{"plans": [], "cascades": [{"stages": [], "threshold": 1, "temperatures": []}]}', "two stages"),
    ],
)
def test_bad_plan_tables_are_named(checkpoint: Path, table: str, reason: str) -> None:
    (checkpoint / "plans.json").write_text(table)
    with pytest.raises(ValueError, match=f"plans.json: .*{reason}"):
        load_checkpoint(checkpoint)


def test_loaded_model_can_be_trained(checkpoint: Path) -> None:
    model = fluxvit.load(checkpoint).train()
    model(torch.randn(2, 3, 4, 16, 16)).logits.sum().backward()
    assert model.patch_embed.proj.weight.grad is not None


def test_replacing_keeps_nothing_of_the_old(checkpoint: Path) -> None:
    save_checkpoint(checkpoint, small_model(3), CheckpointInfo())
    model, info = load_checkpoint(checkpoint)
    assert (model.num_classes, info.labels, info.plans) == (3, [], [])
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_never_overwrites_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="something else than a checkpoint"):
        save_checkpoint(tmp_path, small_model(), CheckpointInfo())
    assert (tmp_path / "thesis.tex").exists()


def test_labels_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 labels for a model of 5 classes"):
        save_checkpoint(tmp_path / "x", small_model(), CheckpointInfo(labels=["a", "b"]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda c: (c / "model.safetensors").write_bytes(b"junk" * 9), "damaged"),
        (lambda c: (c / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda c: (c / "config.json").write_text("{}"), "missing key 'format'"),
        (lambda c: _edit(c, lambda config: config.update(format=99)), "format 99"),
        (
            lambda c: _edit(c, lambda config: config["model"].update(depth=3)),
            "disagree: .* 15 missing, 0 unexpected",
        ),
        (lambda c: _edit(c, lambda config: config["model"].update(speed=3)), "unknown model settings: speed"),
        (lambda c: _edit(c, lambda config: config.update(labels=["a"])), "1 labels for a model of 5"),
    ],
)
def test_damaged_checkpoints_say_what_is_wrong(checkpoint: Path, damage, message: str) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("device", ["banana", "cuda:77"])
def test_devices_that_are_not_there(checkpoint: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"device '?{device}"):
        load_checkpoint(checkpoint, device)


def _edit(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


# The authors' files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-size small model in the authors' format."""
    torch.manual_seed(1)
    model = create_model("fluxvit_small", layer_scale=0.1)
    path = tmp_path_factory.mktemp("release") / "fluxvit_s14.pth"
    content = {"module": to_release(model.state_dict(), model.config), "args": argparse.Namespace(lr=1.0)}
    torch.save(content, path)
    return path


def test_converted_full_size_model_runs_at_batch_one(released: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", str(released), str(tmp_path / "s"), "--activation", "gelu"]) == 0
    # 246 of the authors' tensors; ours keep the class token's position apart.
    assert "247 tensors used\n0 missing\n0 unexpected" in capsys.readouterr().out
    torch.manual_seed(1)
    original = create_model("fluxvit_small", layer_scale=0.1, activation="gelu").eval()
    model, info = load_checkpoint(tmp_path / "s")
    assert model.config.activation == "gelu"
    assert len(info.grids) == 41
    video = torch.randn(1, 3, 4, 56, 42)
    with torch.no_grad():
        torch.testing.assert_close(model(video, 30).logits, original(video, 30).logits)


def test_conversion_refuses_what_does_not_match(released: Path, tmp_path: Path) -> None:
    content = {"model": read_release(released)}
    del content["model"]["blocks.3.norm1.weight"]
    content["model"]["surprise"] = torch.zeros(2)
    content["model"]["fc_norm.bias"] = torch.zeros(5)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="allow_mismatch") as error:
        convert_release(tmp_path / "odd.pth")
    for name in ("blocks.3.norm1.weight", "surprise", "head_norm.bias: [5] in the file, [768] here"):
        assert name in str(error.value)
    model, report = convert_release(tmp_path / "odd.pth", allow_mismatch=True)
    assert len(report.missing) == len(report.unexpected) == len(report.mismatched) == 1
    assert torch.equal(model.blocks[3].norm1.weight, torch.ones(384))


def test_conversion_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    torch.save(
        {"patch_embed.proj.weight": torch.zeros(1), "pos_embed": torch.zeros(1)}, tmp_path / "flat.pth"
    )
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in [
        ("text.pth", "not a PyTorch file"),
        ("flat.pth", "not a FluxViT"),
        ("other.pth", "not a FluxViT"),
        ("list.pth", "holds no state dict"),
        ("missing.pth", "no such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert_release(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    with pytest.raises(ValueError, match="could run code"):
        convert_release(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()
