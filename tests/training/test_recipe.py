from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fluxvit
from fluxvit.cli import main
from fluxvit.data.motionworld import MotionWorldConfig, make_motionworld
from fluxvit.video.writer import write_video

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
# What makes any recipe small enough to take two steps here.
TINY = [
    *("--model.name", "fluxvit_nano", "--grids.frames", "[4,7,2]", "--grids.sizes", "[16,25,8]"),
    *("--grids.min_tokens", "4", "--grids.max_tokens", "30", "--evaluation.grid", "4x16", "--epochs", "1"),
    *("--warmup_epochs", "0.5", "--optim.batch_size", "8", "--data.workers", "0", "--device", "cpu"),
    *("--optim.precision", "fp32", "--data.cache", ""),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MotionWorldConfig(16, 0, "demo", val=4, test=1)
    return make_motionworld(tmp_path_factory.mktemp("data") / "mw", config, workers=1, progress=False)


def train(recipe: Path, world: Path, out: Path, *options: str) -> int:
    data = ["--data.train", str(world / "train.jsonl"), "--data.val", str(world / "val.jsonl")]
    settings = json.dumps({"budgets": [8, 4], "embed_dim": 32, "depth": 1, "pool_dim": 16})
    return main(
        ["train", str(recipe), *data, *TINY, "--out", str(out), "--model.settings", settings, *options]
    )


@pytest.mark.parametrize("recipe", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_builds_and_runs(recipe: Path, world: Path, tmp_path: Path) -> None:
    assert train(recipe, world, tmp_path / "run") == 0
    model = fluxvit.load(tmp_path / "run" / "best")
    assert model.config.budgets == (8, 4)
    assert model.num_classes == 16
    rows = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert set(rows[-1]) == {"step", "mean", "accuracy@8", "accuracy@4"}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["recipe"]["optim"]["batch_size"] == 8


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(
    world: Path, tmp_path: Path, capsys
) -> None:
    recipe, out = CONFIGS[-1], tmp_path / "run"
    assert train(recipe, world, out) == 0
    before = (out / "state.pt").stat().st_mtime_ns
    assert train(recipe, world, out) == 0
    assert (out / "state.pt").stat().st_mtime_ns == before
    assert train(recipe, world, out, "--optim.lr", "0.5") == 2
    assert "other settings" in capsys.readouterr().err


def test_tuning_another_model_with_new_classes(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = CONFIGS[-1]
    settings = ["--model.init", str(checkpoint), "--model.settings", '{"drop_path": 0.2}', "--epochs", "1"]
    assert train(recipe, world, tmp_path / "run", *settings) == 0
    tuned, start = fluxvit.load(tmp_path / "run" / "last"), fluxvit.load(checkpoint)
    assert (tuned.num_classes, start.num_classes) == (16, 5)
    assert tuned.config.drop_path == 0.2
    close = (tuned.patch_embed.proj.weight - start.patch_embed.proj.weight).abs().max()
    assert 0 < close < 0.05


def test_unreadable_videos_are_replaced_and_named(world: Path, tmp_path: Path, caplog) -> None:
    for i in range(14):
        write_video(tmp_path / f"{i}.mp4", [torch.full((24, 24, 3), i, dtype=torch.uint8).numpy()] * 4, 8)
    (tmp_path / "14.mp4").write_bytes(b"")
    (tmp_path / "15.mp4").write_text("text")
    lines = [json.dumps({"path": f"{i}.mp4", "label": i % 3}) + "\n" for i in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    options = ["--data.val", "", "--augment", "{}", "--data.train", str(tmp_path / "train.jsonl")]
    recipe = CONFIGS[-1]
    assert train(recipe, world, tmp_path / "run", *options) == 0
    assert "14.mp4" in caplog.text
    assert "15.mp4" in caplog.text
    assert "3 clips could not be read" in caplog.text  # Number 14 tried 15, too.
    for i in range(14):
        (tmp_path / f"{i}.mp4").unlink()
    assert train(recipe, world, tmp_path / "other", *options, "--data.max_bad_clips", "5") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs 0 must be above 0"),
        (["--optim.steps", "7"], "set epochs instead"),
        (["--optim.warmup", "7"], "set warmup_epochs instead"),
        (["--grids.min_tokens", "1000", "--grids.max_tokens", "2000"], "no grid of frames"),
        (["--optim.batch_size", "64"], "do not fill a batch"),
        (["--evaluation.grid", "4x17"], "height 17 is not a multiple of 8"),
        (["--data.train", "nowhere.jsonl"], "no such manifest"),
        (["--model.init", "nowhere"], "no such checkpoint folder"),
        (["--augment", '{"crop": "round"}'], "choose resized or multi_scale"),
    ],
)
def test_bad_recipes_are_refused(
    options: list[str], message: str, world: Path, tmp_path: Path, capsys
) -> None:
    try:
        code = train(CONFIGS[-1], world, tmp_path / "run", *options)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err
