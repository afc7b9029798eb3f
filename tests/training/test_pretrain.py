from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from test_recipe import TINY, world

import fluxvit
from fluxvit.cli import command, main
from fluxvit.flux.grid import legal_grids
from fluxvit.training.recipes import PretrainRecipe
from fluxvit.training.state import find_state

assert world  # A fixture.
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "pretrain").glob("*.yaml"))
FLUX = next(path for path in CONFIGS if path.stem == "flux")
SETTINGS = {"budgets": [12, 8, 4], "embed_dim": 32, "depth": 1, "pool_dim": 16}
SETTINGS |= {"patch_size": None, "tubelet_size": None}  # Those of the size, whatever the recipe has.


def pretrain(recipe: Path, data: Path, checkpoint: Path, out: Path, *options: str, **settings) -> int:
    """Two steps of a recipe with a teacher of ours."""
    teacher = [
        *("--teacher.kind", "fluxvit", "--teacher.source", str(checkpoint)),
        *("--teacher.precision", "fp32"),
    ]
    if parse(recipe).task.teacher_tokens:
        teacher += ["--task.teacher_tokens", "12"]
    model = ["--model.settings", json.dumps({**SETTINGS, **settings})]
    folders = ["--data.train", str(data / "train.jsonl"), "--out", str(out)]
    return main(["pretrain", str(recipe), *TINY, *teacher, *model, *folders, *options])


def parse(path: Path) -> PretrainRecipe:
    return command.parse("pretrain", PretrainRecipe, [str(path)])


@pytest.mark.parametrize("recipe", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_builds_and_runs(
    recipe: Path, world: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert pretrain(recipe, world, checkpoint, tmp_path / "run") == 0
    model, out = fluxvit.load(tmp_path / "run" / "last").model, tmp_path / "run"
    assert model.config.budgets == (12, 8, 4)
    assert model.num_classes == 0
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {f"{kind}@{budget}" for kind in ("layers", "pooled") for budget in (12, 8, 4)} < set(rows[0])
    assert json.loads((out / "run.json").read_text())["recipe"]["teacher"]["kind"] == "fluxvit"
    assert find_state(out).about.step == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_makes_sense_at_its_own_size(path: Path) -> None:
    recipe = parse(path)
    with torch.device("meta"):
        config = fluxvit.create_model(recipe.model.name, **recipe.model.settings.given, num_classes=0).config
    patches = {"patch_size": config.patch_size, "tubelet_size": config.tubelet_size}
    ranges = range(*recipe.grids.frames), range(*recipe.grids.sizes)
    grids = legal_grids(*ranges, recipe.grids.min_tokens, recipe.grids.max_tokens, **patches)
    seen = recipe.task.teacher_tokens or min(grid.tokens(**patches) for grid in grids)
    assert config.budgets[0] <= seen <= min(grid.tokens(**patches) for grid in grids)
    if "flux" in path.stem:
        assert (seen, config.budgets, len(grids)) == (2048, (2048, 1536, 1024), 18)
    assert recipe.task.layers <= 6


def test_labels_are_not_needed_and_what_is_learned_feeds_training_and_probes(
    world: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    bare = [{"path": str(world / row["path"])} for row in rows]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert pretrain(FLUX, folder, checkpoint, tmp_path / "run") == 0
    capsys.readouterr()
    learned = str(tmp_path / "run" / "last")

    data = ["--data.train", str(world / "train.jsonl"), "--data.val", str(world / "val.jsonl")]
    tune = Path(__file__).parents[2] / "configs" / "k710.yaml"
    start = [
        "--model.init",
        learned,
        "--model.settings",
        '{"budgets": [8, 4]}',
        "--out",
        str(tmp_path / "tune"),
    ]
    command = ["train", str(tune), *data, *TINY, "--evaluation.grid", "4x16", *start]
    assert main([*command, "--optim.lr", "1e-30"]) == 0
    ours, theirs = fluxvit.load(tmp_path / "tune" / "last").model, fluxvit.load(learned).model
    assert (ours.num_classes, ours.config.budgets) == (16, (8, 4))
    torch.testing.assert_close(ours.blocks[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)
    # Each budget starts with the pooling of the nearest one.
    torch.testing.assert_close(ours.heads[0].pool.q.weight, theirs.heads[1].pool.q.weight)
    torch.testing.assert_close(ours.heads[1].pool.q.weight, theirs.heads[2].pool.q.weight)

    splits = ["--train", str(world / "train.jsonl"), "--val", str(world / "val.jsonl")]
    probe = ["probe", learned, *splits, "--grid", "4x16", "--budget", "8", "--out", str(tmp_path / "probe")]
    assert main([*probe, "--epochs", "1"]) == 0
    assert fluxvit.load(tmp_path / "probe" / "best").model.num_classes == 16
    video = str(world / rows[0]["path"])
    capsys.readouterr()
    assert main(["predict", video, "--checkpoint", learned]) == 2
    assert "no classifier" in capsys.readouterr().err


def test_the_same_command_goes_on_and_other_settings_are_refused(
    world: Path, checkpoint: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "run"
    assert pretrain(FLUX, world, checkpoint, out) == 0
    before = next(out.glob("state-*")).stat().st_mtime_ns
    assert pretrain(FLUX, world, checkpoint, out) == 0
    assert next(out.glob("state-*")).stat().st_mtime_ns == before
    assert pretrain(FLUX, world, checkpoint, out, "--task.mask", "top") == 2
    assert "other settings" in capsys.readouterr().err


def test_a_video_that_cannot_be_read_is_replaced(
    world: Path, checkpoint: Path, tmp_path: Path, caplog
) -> None:
    """In the clips that standardise features, too."""
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["path"] = str(world / row["path"])
    rows[3]["path"] = str(tmp_path / "gone.mp4")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    standard = ["--task.standardize", "16"]
    assert pretrain(FLUX, tmp_path, checkpoint, tmp_path / "run", *standard) == 0
    assert "gone.mp4" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher.source", ""], "teacher.kind fluxvit needs teacher.source"),
        (["--teacher.kind", "magic"], "--teacher.kind is 'magic', expected one of internvideo2, fluxvit"),
        (["--teacher.source", "nowhere"], "nowhere: no such checkpoint folder"),
        (["--teacher.size", "64"], "teacher.size: fluxvit sees clips at the size of the student's tokens"),
        (["--task.teacher_tokens", "6"], "the teacher sees 6 tokens, fewer than the budget of 12"),
        (["--task.layers", "0"], "task.layers is 0, expected an integer from 1"),
        (["--task.standardize", "-1"], "task.standardize is -1, expected an integer of at least 0"),
        (["--task.selector", "best"], "--task.selector is 'best', expected one of"),
        (["--data.train", "nothing.jsonl"], "nothing.jsonl"),
        (["--epochs", "0"], "epochs is 0.0, expected a number above 0"),
    ],
)
def test_bad_settings_are_named(
    world: Path, checkpoint: Path, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    assert pretrain(FLUX, world, checkpoint, tmp_path / "run", *options) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_ctrl_c_keeps_what_was_learned(
    world: Path, checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluxvit.training.tasks.distill import DistillTask

    plain, calls = DistillTask.forward, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args)

    monkeypatch.setattr(DistillTask, "forward", interrupted)
    assert pretrain(FLUX, world, checkpoint, tmp_path / "run") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert fluxvit.load(tmp_path / "run" / "last").model.num_classes == 0
    assert pretrain(FLUX, world, checkpoint, tmp_path / "run") == 0
    assert len(calls) == 2
