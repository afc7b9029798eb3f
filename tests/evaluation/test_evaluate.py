"""Whole evaluations: what is tested, what counts as wrong, going on, and several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation import evaluate
from fluxvit.evaluation.config import EvaluateConfig, Views
from fluxvit.evaluation.evaluate import run_evaluation
from fluxvit.evaluation.tested_plans import EvaluatedPlan, plans_to_test
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.utils.distributed import join_world, leave_world
from fluxvit.video.sampling import ClipSampling

VIDEOS, BROKEN, DAMAGED = 9, 2, 5
CLASSES = ["a", "b", "c", "d", "e"]


@pytest.fixture
def data(clip: Path) -> Path:
    """Nine videos of two classes; one is known to be broken, one is damaged and nobody knows."""
    lines = [json.dumps({"manifest": 1, "classes": CLASSES})]
    for i in range(VIDEOS):
        (clip.parent / f"{i}.mp4").write_bytes(clip.read_bytes()[: 100 if i == DAMAGED else None])
        facts = {"ok": False, "error": "cut off"} if i == BROKEN else {}
        lines.append(json.dumps({"path": f"{i}.mp4", "label": i % 2, **facts}))
    path = clip.parent / "test.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def config(checkpoint: Path, data: Path, tmp_path: Path) -> EvaluateConfig:
    options = {"out": str(tmp_path / "out"), "batch_size": 2, "latency": False, "precision": "fp32"}
    return EvaluateConfig(str(checkpoint), str(data), **options)


def evaluated(config: EvaluateConfig) -> list[EvaluatedPlan]:
    return plans_to_test(
        Checkpoint.load(config.checkpoint),
        config.checkpoint,
        config.budgets,
        grid=config.grid,
        plain_size=config.plain_size,
        baselines=config.baselines,
    )


def results(config: EvaluateConfig, name: str = "results.json") -> dict:
    return json.loads((Path(config.out) / name).read_text())


def test_what_is_tested(config: EvaluateConfig) -> None:
    found = evaluated(replace(config, baselines=("tube", "group_dynamic")))
    # Frames are those of the training grid with the largest pool whose tubelet fits into six tokens: 4x16.
    assert [(s.kind, s.budget, str(s.plan.grid), s.plan.keep, s.plan.selector) for s in found] == [
        ("plain", 24, "12x16", 24, "group_dynamic"),
        ("optimised", 24, "8x24", 24, "group_dynamic"),
        ("tube", 24, "8x24", 24, "tube"),
        ("plain", 12, "6x16", 12, "group_dynamic"),
        ("optimised", 12, "8x16x32", 12, "group_dynamic"),
        ("tube", 12, "8x16x32", 12, "tube"),
        ("plain", 6, "2x16", 4, "group_dynamic"),
        ("optimised", 6, "8x16x32", 6, "group_dynamic"),
        ("tube", 6, "8x16x32", 6, "tube"),
    ]


def test_clips_are_sampled_as_in_training(config: EvaluateConfig) -> None:
    checkpoint = Checkpoint.load(config.checkpoint)
    replace(checkpoint, sampling=ClipSampling("dense", 2, 5)).save(config.checkpoint)
    run_evaluation(replace(config, budgets=(Budget(tokens=6),)), progress=False)
    assert results(config)["protocol"]["sampling"] == "dense, every 2. frame at 5 frames a second"


def test_another_grid(config: EvaluateConfig) -> None:
    changed = replace(config, grid=SamplingGrid(8, 16, 16), plain_size=8)
    plain, main = evaluated(replace(changed, budgets=(Budget(tokens=15),)))
    assert plain.plan == Plan(SamplingGrid(30, 8, 8), 15)
    assert (main.kind, main.plan) == ("group_dynamic", Plan(SamplingGrid(8, 16, 16), 15))
    with pytest.raises(ValueError, match="budget 99 tokens: the grid 8x16 has 16 tokens"):
        evaluated(replace(changed, budgets=(Budget(tokens=99),)))
    # Budgets of training that nobody asked for get what the grid has.
    mains = [row for row in evaluated(changed) if row.kind != "plain"]
    assert [row.plan.keep for row in mains] == [min(row.budget, 16) for row in mains]


def test_gflops_pay_for_whole_frames_too(config: EvaluateConfig) -> None:
    model = Checkpoint.load(config.checkpoint).model
    limit = 1e-3
    found = evaluated(replace(config, budgets=(Budget(gflops=limit),)))
    assert [s.kind for s in found] == ["plain", "optimised"]
    assert len({s.budget for s in found}) == 1
    for row in found:
        grid, keep = row.plan.grid, row.plan.keep
        assert grid_cost(model.config.size, grid, keep).total / 1e9 <= limit
    grid = found[0].plan.grid
    more = SamplingGrid(grid.frames + 2, grid.height, grid.width)
    assert grid_cost(model.config.size, more, 10**6).total / 1e9 > limit


def test_without_a_plan_table(config: EvaluateConfig, tmp_path: Path) -> None:
    model = Checkpoint.load(config.checkpoint).model
    bare = replace(config, checkpoint=str(Checkpoint(model).save(tmp_path / "bare")))
    with pytest.raises(ValueError, match="give --plain_size"):
        evaluated(bare)
    assert {s.kind for s in evaluated(replace(bare, plain_size=16))} == {"plain"}
    with pytest.raises(ValueError, match="give the baselines a --grid"):
        evaluated(replace(bare, plain_size=16, baselines=("tube",)))


def test_figures_and_files(config: EvaluateConfig, data: Path) -> None:
    evaluation = run_evaluation(replace(config, views=Views(2, 1)), progress=False)
    assert evaluation is not None
    found = results(config)
    assert found == json.loads(json.dumps(evaluation.results))
    reasons = {row["path"]: row["error"] for row in found["unreadable"]}
    assert reasons[f"{BROKEN}.mp4"] == "cut off"
    assert set(reasons) == {f"{BROKEN}.mp4", f"{DAMAGED}.mp4"}
    assert str(data.parent) not in reasons[f"{DAMAGED}.mp4"]
    assert "2 videos cannot be read and count as wrong" in str(evaluation)

    file = np.load(Path(config.out) / "predictions.npz")
    truth = np.array([i % 2 for i in range(VIDEOS)])
    assert file["labels"].tolist() == truth.tolist()
    assert file["paths"].tolist() == [f"{i}.mp4" for i in range(VIDEOS)]
    lost = np.isnan(file["log_probabilities"]).any(2)
    assert (lost == np.isin(np.arange(VIDEOS), [BROKEN, DAMAGED])).all()

    # Copies of one clip: all of one class are right, but for the unreadable one, or none are.
    assert {point["total"] for point in found["points"]} == {VIDEOS}
    assert all(point["correct"] in (0, 4, 3) for point in found["points"])
    largest = [point for point in found["points"] if point["budget"] == 24]
    assert all("confusion" in point for point in largest)
    assert all("confusion" not in point for point in found["points"] if point not in largest)
    assert {sum(map(sum, point["confusion"])) for point in largest} == {VIDEOS - 2}
    assert found["points"][0]["top5"] is None
    assert found["points"][0]["per_class"][2:] == [None] * 3
    assert found["protocol"]["views"] == "2x1"
    assert found["protocol"]["grid"].startswith("12x16, 8x24")
    assert found["chance"] == 0.2


def test_one_view_is_what_the_predictor_says(config: EvaluateConfig, clip: Path) -> None:
    run_evaluation(config, progress=False)
    file = np.load(Path(config.out) / "predictions.npz")
    place = file["requests"].tolist().index("8x16x32, 12 tokens, group_dynamic, nearest head")
    said = Predictor(config.checkpoint, 12, precision="fp32")(clip).probabilities
    assert np.allclose(np.exp(file["log_probabilities"][place, 0]), said, atol=1e-5)


def test_latencies_of_the_tested_plans(config: EvaluateConfig) -> None:
    run_evaluation(replace(config, budgets=(Budget(tokens=6),), latency=True), progress=False)
    for point in results(config)["points"]:
        assert 0 < point["latency_ms"]["p10"] <= point["latency_ms"]["p50"] <= point["latency_ms"]["p90"]
        assert point["latency_ms"]["device"]


def test_goes_on_behind_the_last_grid(config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run_evaluation(replace(config, out=config.out + "2"), progress=False)
    real, grids = evaluate.predict_plans, []

    def predict(model, dataset, plans, **settings):
        if len(grids) == 2:
            raise KeyboardInterrupt
        grids.append(plans[0].grid)
        return real(model, dataset, plans, **settings)

    monkeypatch.setattr(evaluate, "predict_plans", predict)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(config, progress=False)
    first = grids.copy()
    for _ in range(2):  # There are five grids.
        grids.clear()
        try:
            run_evaluation(config, progress=False)
        except KeyboardInterrupt:
            assert not set(grids) & set(first)
            first += grids
    assert len(grids) == 1
    assert results(config) == results(replace(config, out=config.out + "2"))

    grids.clear()
    run_evaluation(config, progress=False)
    assert not grids
    # Another protocol forgets all of it.
    for other in (replace(config, views=Views(2, 1)), replace(config, precision="bf16")):
        grids.clear()
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(other, progress=False)
        assert len(grids) == 2


def test_a_damaged_file_of_predictions_is_computed_again(config: EvaluateConfig) -> None:
    run_evaluation(config, progress=False)
    before = results(config)
    path = Path(config.out) / "predictions.npz"
    path.write_bytes(path.read_bytes()[:200])
    run_evaluation(config, progress=False)
    assert results(config) == before
    assert len(np.load(path)["requests"]) == 6


def test_videos_that_chose_the_plans_are_told_of(config: EvaluateConfig, tmp_path: Path) -> None:
    def warning(account: dict) -> str:
        (Path(config.checkpoint) / "optimize.json").write_text(json.dumps(account))
        evaluation = run_evaluation(config, progress=False)
        assert evaluation is not None
        assert ("Caution" in evaluation.results["conditions"]) == bool(evaluation.warning)
        assert evaluation.results["trials"] == account.get("trials", [])
        return evaluation.warning

    digest = read_manifest(config.data).digest
    assert warning({"data": {"digest": digest}, "trials": [{"budget": 6}]}).startswith("9 videos of")
    assert warning({"data": {"digest": "other"}}) == ""
    other = tmp_path / "other.jsonl"
    other.write_text('{"path": "3.mp4", "label": 0}\n{"path": "far.mp4", "label": 0}')
    assert warning({"data": {"digest": "other", "manifest": str(other)}}).startswith("1 videos of")


def test_classes_are_numbered_as_the_checkpoint_does(config: EvaluateConfig, data: Path) -> None:
    former = run_evaluation(config, progress=False)
    header, *rows = data.read_text().splitlines()
    other = data.with_name("other.jsonl")
    # The same videos of the same classes: a is number 3 here, and b is number 0.
    header = header.replace(json.dumps(CLASSES), '["b", "c", "unused", "a"]')
    rows = [row.replace('"label": 0', '"label": 3').replace('"label": 1', '"label": 0') for row in rows]
    other.write_text("\n".join([header, *rows]))
    found = run_evaluation(replace(config, data=str(other), out=f"{config.out}2"), progress=False)
    assert former is not None
    assert found is not None
    assert found.results["classes"] == CLASSES
    for one, two in zip(former.results["points"], found.results["points"], strict=True):
        assert one == two


def test_classes_that_the_checkpoint_does_not_have(config: EvaluateConfig, data: Path) -> None:
    header, *rows = data.read_text().splitlines()
    other = data.with_name("other.jsonl")
    other.write_text("\n".join([header.replace('"a", "b"', '"A", "f"'), *rows]))
    with pytest.raises(ValueError, match=r"classes that .*checkpoint does not name: 'f' \(videos: 4\)"):
        run_evaluation(replace(config, data=str(other)), progress=False)
    other.write_text("\n".join([*rows, '{"path": "1.mp4", "label": 5}']))
    with pytest.raises(ValueError, match=r"0 to 5, but .*checkpoint names 5, so"):
        run_evaluation(replace(config, data=str(other)), progress=False)


@pytest.mark.parametrize(
    "bad",
    [{"precision": "fp16"}, {"batch_size": 0}, {"baselines": ("x",)}, {"plain_size": 0}],
)
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        EvaluateConfig("checkpoint", "data", **bad)


def _process(rank: int, port: int, config: EvaluateConfig) -> None:
    """Evaluate in one of two processes: first undisturbed, then with a disk that fails the second process."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world, seen, fails = join_world("cpu"), [], False
    real = ClipDataset.__getitem__

    def getitem(self, request):
        seen.append(f"{request.grid} {request.item}")
        if fails and rank == 1:
            raise OSError("the disk is gone")
        return real(self, request)

    ClipDataset.__getitem__ = getitem
    found = run_evaluation(config, world, progress=False)
    assert (found is None) == (rank == 1)
    own, fails, message = seen.copy(), True, ""
    try:
        run_evaluation(replace(config, out=f"{config.out}-fails"), world, progress=False)
    except (OSError, ValueError) as error:
        message = str(error)
    leave_world(world)
    (Path(config.out) / f"seen{rank}.json").write_text(json.dumps([own, message]))


def _together(config: EvaluateConfig) -> list[list]:
    Path(config.out).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, port, config)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    return [results(config, f"seen{rank}.json") for rank in range(2)]


def test_two_processes_see_each_video_once_find_the_same_and_fail_together(config: EvaluateConfig) -> None:
    run_evaluation(replace(config, out=config.out + "1"), progress=False)
    (seen, message), (other, other_message) = _together(config)
    assert seen
    assert other
    assert message == "evaluation failed in process 1: the disk is gone"
    assert other_message == "the disk is gone"
    together = seen + other
    assert len(set(together)) == len(together) == 5 * (VIDEOS - 1)
    assert results(config) == results(replace(config, out=config.out + "1"))
    one, two = (np.load(Path(out) / "predictions.npz") for out in (config.out + "1", config.out))
    assert np.array_equal(one["log_probabilities"], two["log_probabilities"], equal_nan=True)
