from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fluxvit
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.cli.command import parse
from fluxvit.data.dataset import ClipRequest
from fluxvit.data.loader import TrainingBatches
from fluxvit.data.manifest import read_manifest, write_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.grid import SamplingGrid, legal_grids
from fluxvit.flux.plan import Plan
from fluxvit.models.config import PRESETS
from fluxvit.models.fluxvit import FluxViT
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.config import ModelSettings
from fluxvit.training.recipes import DataSettings, Recipe
from fluxvit.training.runs.base import start_checkpoint
from fluxvit.training.state import find_state
from fluxvit.utils import files
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.writer import write_video

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SIZES = sorted((FOLDER / "sizes").glob("*.yaml"))
# What makes any recipe small enough to take two steps here.
TINY = [
    *("--model.name", "fluxvit_nano", "--grids.frames", "[4,7,2]", "--grids.sizes", "[16,25,8]"),
    *("--grids.min_tokens", "4", "--grids.max_tokens", "30", "--epochs", "1"),
    *("--warmup_epochs", "0.5", "--optim.batch_size", "8", "--data.workers", "0", "--device", "cpu"),
    *("--optim.precision", "fp32", "--data.cache", ""),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MotionWorldConfig(16, 0, "demo", val=4, test=1)
    return make_dataset(tmp_path_factory.mktemp("data") / "mw", config, workers=1, progress=False)


def arguments(recipe: Path, world: Path, out: Path, *options: str) -> list[str]:
    data = [
        *("--data.root", "", "--data.train", str(world / "train.jsonl")),
        *("--data.val", str(world / "val.jsonl")),
    ]
    settings = json.dumps({"budgets": [8, 4], "embed_dim": 32, "depth": 1, "pool_dim": 16})
    data += ["--evaluation.grid", "4x16"]
    return ["train", str(recipe), *data, *TINY, "--out", str(out), "--model.settings", settings, *options]


def train(recipe: Path, world: Path, out: Path, *options: str) -> int:
    return main(arguments(recipe, world, out, *options))


@pytest.mark.parametrize("recipe", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_builds_and_runs(recipe: Path, world: Path, tmp_path: Path) -> None:
    assert train(recipe, world, tmp_path / "run") == 0
    model = fluxvit.load(tmp_path / "run" / "best").model
    assert model.config.budgets == (8, 4)
    assert model.num_classes == 16
    rows = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    figure = "map" if "loss: bce" in recipe.read_text() else "accuracy"
    assert set(rows[-1]) == {"step", "mean", f"{figure}@8", f"{figure}@4"}
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["recipe"]["optim"]["batch_size"] == 8


def test_the_sampling_and_the_selector_of_a_recipe_go_with_the_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = []

    def watched(checkpoint: Checkpoint, dataset: Any, plans: list[Plan], **options: Any) -> Any:
        validated.extend(plans)
        return predict_plans(checkpoint, dataset, plans, **options)

    monkeypatch.setattr("fluxvit.training.validation.predict_plans", watched)
    dense = ["--data.sampling", "dense", "--data.stride", "2", "--data.stride_fps", "10"]
    assert train(CONFIGS[0], world, tmp_path / "run", *dense, "--task.selector", "moving_pixels") == 0
    for name in ("best", "last"):
        checkpoint = Checkpoint.load(tmp_path / "run" / name)
        assert checkpoint.sampling == ClipSampling("dense", 2, 10)
        assert checkpoint.plan(8).selector == "moving_pixels"
    assert {plan.selector for plan in validated} == {"moving_pixels"}


WITH_OVERLAYS = [
    *((path,) for path in CONFIGS),
    *((FOLDER / recipe, size) for recipe in ("k400.yaml", "folder.yaml") for size in SIZES),
    (FOLDER / "k400.yaml", FOLDER / "overlays" / "authors_script.yaml"),
]


@pytest.mark.parametrize("paths", WITH_OVERLAYS, ids=lambda paths: "-".join(path.stem for path in paths))
def test_every_recipe_makes_sense_at_its_own_size(paths: tuple[Path, ...]) -> None:
    recipe = parse("train", Recipe, [*map(str, paths)])
    with torch.device("meta"):
        config = fluxvit.create_model(recipe.model.name, **recipe.model.settings.given).config
    patches = {"patch_size": config.patch_size, "tubelet_size": config.tubelet_size}
    ranges = range(*recipe.grids.frames), range(*recipe.grids.sizes)
    grids = legal_grids(*ranges, recipe.grids.min_tokens, recipe.grids.max_tokens, **patches)
    # Flux: grids of many shapes, none smaller than the smallest budget, some to select from for each.
    assert len(grids) > 4
    assert min(grid.tokens(**patches) for grid in grids) >= config.budgets[-1]
    assert max(grid.tokens(**patches) for grid in grids) > config.budgets[0]
    SamplingGrid.parse(recipe.evaluation.grid).token_shape(**patches)
    if recipe.data.cache:
        assert max(grid.frames for grid in grids) <= recipe.data.cache_frames
        assert max(grid.height for grid in grids) <= recipe.data.cache_side


def test_later_files_win_and_keep_what_they_do_not_name() -> None:
    small, base = (
        parse("train", Recipe, [str(FOLDER / "k400.yaml"), str(FOLDER / "sizes" / f"{size}.yaml")])
        for size in ("small", "base")
    )
    assert {path.stem for path in SIZES} == {name.removeprefix("fluxvit_") for name in PRESETS}
    assert (small.model.name, base.model.name) == ("fluxvit_small", "fluxvit_base")
    assert small.model.settings == base.model.settings
    assert base.model.settings.drop_path == 0.1
    released = parse(
        "train", Recipe, [str(FOLDER / "k400.yaml"), str(FOLDER / "overlays" / "authors_script.yaml")]
    )
    assert (released.grids.max_tokens, released.grids.min_tokens) == (6144, 2048)
    assert released.optim.layer_decay == 0.75
    assert released.mixing.active


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(
    world: Path, tmp_path: Path, capsys
) -> None:
    recipe, out = CONFIGS[-1], tmp_path / "run"
    assert train(recipe, world, out) == 0
    before = next(out.glob("state-*")).stat().st_mtime_ns
    assert train(recipe, world, out) == 0
    assert next(out.glob("state-*")).stat().st_mtime_ns == before
    run = (out / "run.json").read_bytes()
    assert train(recipe, world, out, "--optim.lr", "0.5", "--optim.batch_size", "4") == 2
    error = capsys.readouterr().err
    assert "other settings: optim.batch_size was 8, is 4; optim.lr was 0.0004, is 0.5; give them" in error
    assert (out / "run.json").read_bytes() == run


def test_more_epochs_go_on_with_the_optimiser(world: Path, tmp_path: Path, capsys) -> None:
    recipe, out = CONFIGS[-1], tmp_path / "run"
    assert train(recipe, world, out) == 0
    assert train(recipe, world, out, "--epochs", "3") == 0
    assert find_state(out).about.step == 6
    rows = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == sorted({2, *(row["step"] for row in rows), 6})
    assert train(recipe, world, out, "--epochs", "2") == 2
    assert "has taken 6 steps, and this one would end after 4" in capsys.readouterr().err


def test_a_second_run_in_the_folder_is_refused(world: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
    out = tmp_path / "run"
    code = (
        "import sys, time; from fluxvit.utils.files import lock_folder\n"
        "with lock_folder(sys.argv[1]): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            assert train(CONFIGS[-1], world, out) == 2
        finally:
            holder.kill()
    error = capsys.readouterr().err
    assert f"{out} is being written by another run (process {holder.pid} on" in error
    assert error.count("\n") == 1
    assert [path.name for path in out.iterdir()] == [".lock"]
    assert train(CONFIGS[-1], world, out) == 0


def test_how_the_work_is_done_may_change_halfway(world: Path, tmp_path: Path) -> None:
    recipe, out = CONFIGS[-1], tmp_path / "run"
    assert train(recipe, world, out) == 0
    options = [
        *("--optim.shard", "true", "--optim.accumulate", "4", "--optim.log_every", "3"),
        *("--optim.save_seconds", "7", "--optim.checkpoint_blocks", "true", "--data.workers", "1"),
    ]
    assert train(recipe, world, out, *options) == 0


def test_a_termination_does_not_wait_for_the_validation(world: Path, tmp_path: Path) -> None:
    """With data workers, under a validation that would take minutes."""
    out, val = tmp_path / "run", tmp_path / "val.jsonl"
    rows = [json.loads(line) for line in (world / "val.jsonl").read_text().splitlines()]
    for row in rows:
        row["path"] = str(world / row["path"])
    header = {"manifest": 1, "classes": read_manifest(world / "val.jsonl").labels}
    val.write_text("".join(json.dumps(row) + "\n" for row in [header, *rows * 1000]))
    options = ["--data.val", str(val), "--data.workers", "1", "--epochs", "2"]
    command = arguments(CONFIGS[-1], world, out, *options)
    screen = tmp_path / "screen"
    with screen.open("wb") as output:
        shown = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "200"}  # Or there is no progress bar.
        run = subprocess.Popen(
            [sys.executable, "-m", "fluxvit", *command], stdout=output, stderr=output, env=shown
        )
        try:
            deadline = time.monotonic() + 100
            while b"Validating" not in screen.read_bytes():
                assert run.poll() is None, screen.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(0.5)
            run.terminate()
            assert run.wait(60) == 130  # The whole validation would take minutes.
        finally:
            run.kill()
    assert find_state(out).about.step == 2
    assert not (out / "validation.jsonl").exists()
    assert fluxvit.load(out / "last").model.num_classes == 16


def test_tuning_another_model_with_new_classes(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = CONFIGS[-1]
    changed = '{"drop_path": 0.2, "budgets": [8, 4, 2], "embed_dim": null, "depth": null, "pool_dim": null}'
    settings = ["--model.init", str(checkpoint), "--model.settings", changed, "--epochs", "1"]
    assert train(recipe, world, tmp_path / "run", *settings) == 0
    tuned, start = fluxvit.load(tmp_path / "run" / "last").model, fluxvit.load(checkpoint).model
    assert (tuned.num_classes, start.num_classes) == (16, 5)
    assert tuned.config.drop_path == 0.2
    assert tuned.config.budgets == (8, 4, 2)
    close = (tuned.patch_embed.proj.weight - start.patch_embed.proj.weight).abs().max()
    assert 0 < close < 0.05


def rewrite(manifest: Path, out: Path, order: list[int], names: list[str] | None = None) -> Path:
    """A manifest in which class ``i`` has the number ``order[i]``, and other names if any are given."""
    read = read_manifest(manifest)
    entries = tuple(replace(entry, label=order[entry.label]) for entry in read.entries)
    labels = [""] * len(read.labels)
    for old, new in enumerate(order):
        labels[new] = (names or read.labels)[old]
    write_manifest(out, replace(read, entries=entries, labels=tuple(labels), root=manifest.parent))
    return out


def scores(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]


def test_validation_numbers_its_classes_as_training_does(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, val = CONFIGS[-1], world / "val.jsonl"
    assert train(recipe, world, tmp_path / "one") == 0
    other = rewrite(val, tmp_path / "val.jsonl", list(range(16))[::-1])
    assert train(recipe, world, tmp_path / "two", "--data.val", str(other)) == 0
    assert scores(tmp_path / "one") == scores(tmp_path / "two")
    names = [f"class {i}" for i in range(16)]
    strange = rewrite(val, tmp_path / "strange.jsonl", list(range(16)), names)
    assert train(recipe, world, tmp_path / "three", "--data.val", str(strange)) == 2
    assert "classes that" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_classes_without_training_videos_are_named(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = read_manifest(world / "train.jsonl")
    manifest, used = tmp_path / "train.jsonl", {entry.label for entry in full.entries}
    only = read_manifest(world / "val.jsonl").entries[0].label
    rest = tuple(entry for entry in full.entries if entry.label != only)
    assert only in used
    write_manifest(manifest, replace(full, entries=rest * 2))
    assert train(CONFIGS[-1], world, tmp_path / "run", "--data.train", str(manifest)) == 0
    text = "\n".join(caplog.messages)
    assert f"has no video of, and count as wrong: {full.labels[only]!r}" in text
    assert "of 16 classes have no video and are not learned" in text


def test_one_class_is_nothing_to_learn(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    full = read_manifest(world / "train.jsonl")
    entries = tuple(replace(entry, label=3) for entry in full.entries)
    write_manifest(tmp_path / "one.jsonl", replace(full, entries=entries))
    options = ["--data.train", str(tmp_path / "one.jsonl")]
    assert train(CONFIGS[-1], world, tmp_path / "run", *options) == 2
    assert "one.jsonl: all videos are of one class" in capsys.readouterr().err


def test_classes_of_the_same_name_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["a", "b", "a", *(f"c{i}" for i in range(13))]
    twice = rewrite(world / "train.jsonl", tmp_path / "train.jsonl", list(range(16)), names)
    assert train(CONFIGS[-1], world, tmp_path / "run", "--data.train", str(twice), "--data.val", "") == 2
    assert "train.jsonl: several classes have the same name: 'a'" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_batches_of_one(processes: int) -> None:
    def requests(rank: int, size: int) -> list[list[ClipRequest]]:
        grids = [SamplingGrid(4, 16, 16)]
        return list(TrainingBatches(40, grids, 8, 20, 0, rank=rank, processes=size))

    parts = [requests(rank, processes) for rank in range(processes)]
    for whole, *shares in zip(requests(0, 1), *parts, strict=True):
        assert {request for share in shares for request in share} == set(whole)
        assert {len(share) for share in shares} == {8 // processes}
    with pytest.raises(ValueError, match="8 videos cannot be shared evenly by 3 processes"):
        requests(0, 3)


def test_initial_weights_are_those_of_the_recipe_unless_a_checkpoint_is_given(tmp_path: Path) -> None:
    def start(**settings: str) -> FluxViT:
        recipe = Recipe(DataSettings(), model=ModelSettings("fluxvit_nano", **settings))
        return start_checkpoint(recipe, 4).model

    small, motion = start(), start(weights="motion")
    assert small.blocks[0].ls1.gamma.unique().tolist() == pytest.approx([0.1])
    assert motion.blocks[0].ls1.gamma.unique().tolist() == [1.0]
    assert not torch.equal(small.patch_embed.proj.weight, motion.patch_embed.proj.weight)
    Checkpoint(small).save(tmp_path / "small")
    kept = start(init=str(tmp_path / "small"), weights="motion")
    assert torch.equal(kept.patch_embed.proj.weight, small.patch_embed.proj.weight)


def test_a_run_does_not_go_on_with_other_class_names(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--data.train", str(tmp_path / "train.jsonl"), "--data.val", ""]
    rewrite(world / "train.jsonl", tmp_path / "train.jsonl", list(range(16)))
    assert train(CONFIGS[-1], world, tmp_path / "run", *options) == 0
    rewrite(world / "train.jsonl", tmp_path / "train.jsonl", list(range(16)), [f"x{i}" for i in range(16)])
    assert train(CONFIGS[-1], world, tmp_path / "run", *options) == 2
    assert "settings" in capsys.readouterr().err


def start(checkpoint: Path, names: list[str]) -> tuple[FluxViT, FluxViT]:
    """The checkpoint's model, and the one that training starts from with these classes."""
    recipe = Recipe(DataSettings(), model=ModelSettings(init=str(checkpoint)))
    return fluxvit.load(checkpoint).model, start_checkpoint(recipe, len(names), names).model


def test_a_checkpoint_of_the_same_classes_keeps_its_classifiers(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = start(checkpoint, ["a", "b", "c", "d", "e"])
    assert torch.equal(old.heads[1].fc.weight, new.heads[1].fc.weight)
    assert not caplog.messages
    order = [4, 2, 0, 1, 3]
    old, new = start(checkpoint, ["abcde"[i] for i in order])
    for one, two in zip(old.heads, new.heads, strict=True):
        assert torch.equal(one.fc.weight[order], two.fc.weight)
        assert torch.equal(one.fc.bias[order], two.fc.bias)
    assert "numbered as in the data, by name" in caplog.messages[0]


def test_a_checkpoint_of_as_many_other_classes_gets_new_classifiers(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = start(checkpoint, ["a", "b", "c", "d", "f"])
    assert not (old.heads[0].fc.weight == new.heads[0].fc.weight).any()
    assert torch.equal(old.patch_embed.proj.weight, new.patch_embed.proj.weight)
    expected = "the classifier starts anew, since only 4 of its 5 classes are named as in the data"
    assert expected in caplog.messages[0]


def test_a_checkpoint_whose_classes_are_not_named_is_believed_and_that_is_said(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(DataSettings(), model=ModelSettings(init=str(checkpoint)))
    model = start_checkpoint(recipe, 5).model
    assert torch.equal(model.heads[0].fc.weight, fluxvit.load(checkpoint).model.heads[0].fc.weight)
    assert "its 5 classes are taken to be those of the data" in caplog.messages[0]


def test_unreadable_videos_are_replaced_and_named(world: Path, tmp_path: Path, caplog) -> None:
    for i in range(14):
        write_video(tmp_path / f"{i}.mp4", [torch.full((24, 24, 3), i, dtype=torch.uint8).numpy()] * 4, 8)
    (tmp_path / "14.mp4").write_bytes(b"")
    (tmp_path / "15.mp4").write_text("text")
    lines = [json.dumps({"path": f"{i}.mp4", "label": i % 3}) + "\n" for i in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    options = ["--data.val", "", "--data.train", str(tmp_path / "train.jsonl")]
    recipe = CONFIGS[-1]
    assert train(recipe, world, tmp_path / "run", *options) == 0
    assert "14.mp4" in caplog.text
    assert "15.mp4" in caplog.text
    assert "3 clips could not be read" in caplog.text  # Number 14 tried 15, too.
    for i in range(14):
        (tmp_path / f"{i}.mp4").unlink()
    assert train(recipe, world, tmp_path / "other", *options) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "epochs is 0.0, expected a number above 0"),
        (["--optim.steps", "7"], "set epochs instead"),
        (["--optim.warmup", "7"], "set warmup_epochs instead"),
        (["--grids.min_tokens", "1000", "--grids.max_tokens", "2000"], "no grid of frames"),
        (["--optim.batch_size", "64"], "do not fill a batch"),
        (["--evaluation.grid", "4x17"], "height 17 is not a multiple of 8"),
        (["--data.train", "nowhere.jsonl"], "no such manifest"),
        (["--model.init", "nowhere"], "no such checkpoint folder"),
        (["--augment.crop", "round"], "augment.crop"),
        (["--augment.flip", "7"], "augment.flip is 7.0, expected a number from 0 to 1"),
        (["--augment.flp", "0.5"], "--augment.flp"),
        (["--augment.rand_augment", "auto"], "cannot read 'auto'"),
        (["--mixing.mixup", "-1"], "mixing.mixup is -1.0, expected a number from 0 to 1000000.0"),
        (["--model.settings.depth", "many"], "model.settings.depth"),
        (["--data.root", "clips"], "give data.root, or data.train and data.val"),
        (["--data.train", ""], "no data: give data.train"),
        (["--data.sampling", "thick"], "expected one of sparse, dense"),
    ],
)
def test_bad_recipes_are_refused(
    options: list[str], message: str, world: Path, tmp_path: Path, capsys
) -> None:
    assert train(CONFIGS[-1], world, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_classes_is_checked_and_split_by_the_run(tmp_path: Path, caplog) -> None:
    for name, brightness in (("dark", 20), ("light", 200)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for i in range(12):
            frame = torch.full((24, 24, 3), brightness + i, dtype=torch.uint8).numpy()
            write_video(tmp_path / "clips" / name / f"{i}.mp4", [frame] * 4, 8)
    for i in range(12, 16):  # Enough that one or the other is held out.
        (tmp_path / "clips" / "dark" / f"{i}.mp4").write_text("text")
    options = [
        "--data.root",
        str(tmp_path / "clips"),
        "--data.train",
        "",
        "--data.val",
        "",
    ]
    assert train(CONFIGS[-1], tmp_path, tmp_path / "run", *options) == 0
    splits = {name: read_manifest(tmp_path / "run" / f"{name}.jsonl") for name in ("train", "val")}
    paths = {name: {entry.path for entry in split.entries} for name, split in splits.items()}
    assert len(paths["train"] | paths["val"]) == 28
    assert not paths["train"] & paths["val"]
    assert [entry.label for entry in splits["val"].entries].count(0) == 1
    assert splits["val"].labels == ("dark", "light")
    broken = sum(not entry.ok for split in splits.values() for entry in split.entries)
    assert broken == 4
    assert "cannot be read and are left out" in caplog.text
    # The command line again: nothing is checked anew, the run is finished.
    assert train(CONFIGS[-1], tmp_path, tmp_path / "run", *options) == 0
    (tmp_path / "none").mkdir()
    options[1] = str(tmp_path / "none")
    assert train(CONFIGS[-1], tmp_path, tmp_path / "other", *options) == 2


def test_known_broken_videos_count_as_wrong_in_validation(world: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (world / "val.jsonl").read_text().splitlines()]
    for row in rows:
        row["path"] = str(world / row["path"])
    broken = [
        {**row, "path": str(tmp_path / f"{i}.mp4"), "ok": False, "error": "empty"}
        for i, row in enumerate(rows)
    ]
    means = []
    header = {"manifest": 1, "classes": read_manifest(world / "val.jsonl").labels}
    for name, listed in (("whole", rows), ("half", rows + broken)):
        val = tmp_path / f"{name}.jsonl"
        val.write_text("".join(json.dumps(row) + "\n" for row in [header, *listed]))
        assert train(CONFIGS[-1], world, tmp_path / name, "--data.val", str(val)) == 0
        means.append(json.loads((tmp_path / name / "validation.jsonl").read_text().splitlines()[-1])["mean"])
    assert means[1] == means[0] / 2


def test_a_logger_that_is_missing_changes_no_run(world: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("fluxvit.training.logs.importlib.util.find_spec", lambda name: None)
    assert train(CONFIGS[-1], world, tmp_path / "run", "--optim.tensorboard=true") == 2
    assert "optim.tensorboard needs a package" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
