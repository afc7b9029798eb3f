from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fluxvit
from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.transforms import normalize, resize_and_crop, to_tensor


def test_round_trip(checkpoint: Path) -> None:
    info = Checkpoint.load(checkpoint)
    model = info.model
    original = small_model()
    assert model.config == original.config
    for (name, a), (_, b) in zip(model.state_dict().items(), original.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert info.labels == list("abcde")
    assert info.grids == [SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)]
    assert info.plans[1] == Plan(SamplingGrid(8, 16, 32), 12)
    assert not model.training
    video = torch.randn(1, 3, 8, 16, 32)
    # Where a file puts its tensors in memory may change the last bit.
    torch.testing.assert_close(fluxvit.load(checkpoint).model(video, 12).logits, original(video, 12).logits)


def test_what_a_checkpoint_answers(checkpoint: Path) -> None:
    found = fluxvit.load(checkpoint)
    assert found.pool(SamplingGrid(8, 16, 32)) == 32
    assert found.plan(10) == Plan(SamplingGrid(8, 16, 32), 10)
    assert found.plan(10, SamplingGrid(6, 8, 40)) == Plan(SamplingGrid(6, 8, 40), 10)
    frames = np.random.default_rng(0).integers(0, 255, (4, 20, 28, 3), dtype=np.uint8)
    grid = SamplingGrid(4, 16, 16)
    expected = normalize(resize_and_crop(to_tensor(frames), (16, 16)), found.mean, found.std)
    assert torch.equal(found.clip(frames, grid)[0], expected)
    assert found.save(checkpoint.with_name("copy")).is_dir()
    assert fluxvit.load(checkpoint.with_name("copy")).digest() == found.digest()


def test_plan_tables_keep_what_was_measured(tmp_path: Path) -> None:
    measured = Measured(correct=7, total=9, gmacs=0.5, latency_ms=3.25, device="a CPU")
    small = Plan(SamplingGrid(4, 16, 16), 6, 2, "uniform", measured)
    large = Plan(SamplingGrid(8, 16, 32), 12)
    cascade = Cascade((small, large), 0.8, (1.5, 1.0), Measured(gmacs=0.7))
    folder = Checkpoint(small_model(5), plans=[small, large], cascades=[cascade]).save(tmp_path / "it")
    info = Checkpoint.load(folder)
    assert (info.plans, info.cascades) == ([small, large], [cascade])
    assert (info.plans[0].measured, info.plans[1].measured) == (measured, None)
    assert (info.cascades[0].measured, info.cascades[0].stages[0].measured) == (Measured(gmacs=0.7), measured)


@pytest.mark.parametrize("sampling", [ClipSampling("dense", 2), ClipSampling("dense", 1, 12.5)])
def test_sampling_is_stored(tmp_path: Path, sampling: ClipSampling) -> None:
    folder = Checkpoint(small_model(5), sampling=sampling).save(tmp_path / "it")
    assert Checkpoint.load(folder).sampling == sampling


def test_folders_that_name_no_sampling_were_trained_sparse(checkpoint: Path) -> None:
    facts = json.loads((checkpoint / "config.json").read_text())
    del facts["sampling"]
    (checkpoint / "config.json").write_text(json.dumps(facts))
    assert Checkpoint.load(checkpoint).sampling == ClipSampling("sparse")


def test_plans_select_by_the_rule_of_training_unless_the_table_names_another(tmp_path: Path) -> None:
    grid = SamplingGrid(8, 16, 32)
    trained = Checkpoint(small_model(5), grids=[grid], selector="moving_pixels")
    info = Checkpoint.load(trained.save(tmp_path / "it"))
    assert {plan.selector for plan in (info.plan(12), info.plan(12, grid))} == {"moving_pixels"}
    table = replace(trained, plans=[Plan(grid, 12, selector="uniform")])
    assert Checkpoint.load(table.save(tmp_path / "table")).plan(12).selector == "uniform"


def test_folders_that_name_no_selector_were_trained_with_that_of_the_paper(checkpoint: Path) -> None:
    facts = json.loads((checkpoint / "config.json").read_text())
    del facts["selector"]
    (checkpoint / "config.json").write_text(json.dumps(facts))
    assert Checkpoint.load(checkpoint).selector == "group_dynamic"


def test_plan_tables_of_the_first_version_are_read(checkpoint: Path) -> None:
    (checkpoint / "plans.json").write_text('[{"grid": "8x16x32", "keep": 12, "head": null}]')
    assert Checkpoint.load(checkpoint).plans == [Plan(SamplingGrid(8, 16, 32), 12)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('[{"keep": 12}]', "grid is missing"),
        ('{"cascades": []}', "plans is missing"),
        ('[{"grid": "8x16", "keep": 12, "selector": "best"}]', "selector 'best' is unknown"),
        ('[{"grid": "8x16", "keep": 12, "measured": {"speed": 1}}]', "speed"),
        ('{"plans": [], "cascades": [{"stages": [], "threshold": 1, "temperatures": []}]}', "two stages"),
    ],
)
def test_bad_plan_tables_are_named(checkpoint: Path, table: str, reason: str) -> None:
    (checkpoint / "plans.json").write_text(table)
    with pytest.raises(ValueError, match=f"plans.json: .*{reason}"):
        Checkpoint.load(checkpoint)


def test_loaded_model_can_be_trained(checkpoint: Path) -> None:
    model = fluxvit.load(checkpoint).model.train()
    model(torch.randn(2, 3, 4, 16, 16)).logits.sum().backward()
    assert model.patch_embed.proj.weight.grad is not None


def test_replacing_keeps_nothing_of_the_old(checkpoint: Path) -> None:
    Checkpoint(small_model(3)).save(checkpoint)
    info = Checkpoint.load(checkpoint)
    model = info.model
    assert (model.num_classes, info.labels, info.plans) == (3, [], [])
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]


def test_never_overwrites_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="something else than a checkpoint"):
        Checkpoint(small_model()).save(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_labels_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 labels for a model of 5 classes"):
        Checkpoint(small_model(), labels=["a", "b"]).save(tmp_path / "x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: (c / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda c: (c / "model.safetensors").write_bytes(b"junk" * 9), "damaged"),
        (lambda c: (c / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda c: (c / "config.json").write_text("{}"), "format is missing"),
        (lambda c: _edit(c, lambda config: config.update(format=99)), "format 99"),
        (
            lambda c: _edit(c, lambda config: config["model"].update(depth=3)),
            r"disagree: .* 15 missing \(blocks.2.norm1.weight, .*\.\.\.\), 0 unexpected",
        ),
        (
            lambda c: _edit(c, lambda config: config["model"].update(speed=3)),
            "model has no setting called 'speed'",
        ),
        (lambda c: _edit(c, lambda config: config.update(labels=["a"])), "1 labels for a model of 5"),
    ],
)
def test_damaged_checkpoints_say_what_is_wrong(checkpoint: Path, damage, message: str) -> None:
    damage(checkpoint)
    with pytest.raises(ValueError, match=message):
        Checkpoint.load(checkpoint)


@pytest.mark.parametrize("device", ["banana", "cuda:77"])
def test_devices_that_are_not_there(checkpoint: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"device '?{device}"):
        Checkpoint.load(checkpoint, device)


def _edit(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
