"""Several processes on one machine, over gloo: the same as one, copied (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distillation import run_of
from test_training import GRIDS, MEAN, STD, Colours, Picky, dataset, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import Clip, ClipDataset
from fluxvit.data.manifest import Manifest
from fluxvit.training.config import AdapterSettings
from fluxvit.training.parallel import full, parallelize
from fluxvit.training.runs.base import adapt_model
from fluxvit.training.tasks.base import Batch
from fluxvit.training.tasks.contrastive import Captions, ContrastiveTask, contrastive_loss
from fluxvit.training.trainer import Trainer
from fluxvit.training.validation import Validation
from fluxvit.utils.distributed import ALONE, World, join_world, leave_world
from fluxvit.utils.system import Stopped
from fluxvit.video.base import VideoError
from language import SENTENCES, small_encoder

SETTINGS = {"layer_decay": 0.75, "ema": 0.9, "clip_grad": 0.5, "log_every": 1}
# Without it, what would be sharded is copied.
SHARDS = hasattr(torch.cpu.Stream, "record_event")
needs_sharding = pytest.mark.skipif(not SHARDS, reason="sharding on the CPU needs PyTorch 2.7")
ADAPTERS = importlib.util.find_spec("peft") is not None
BAD_STEP, STOP_AFTER, STEPS = 1, 3, 5


def make(
    folder: Path,
    world: World,
    *,
    stop: bool = False,
    seen: list | None = None,
    adapters: bool = False,
    validate: ClipDataset | None = None,
    after_step: Callable[[Trainer, int], None] | None = None,
    **settings,
) -> Trainer:
    """A run whose second step is bad: in the last part of the batch of the last process only."""

    def wrap(batches, first):
        for step, batch in enumerate(batches, start=first):
            if seen is not None:
                seen.append(tuple(batch.video.shape[2:]))
            if stop and step == STOP_AFTER - 1:
                os.kill(os.getpid(), signal.SIGINT)
            label = batch.label.clone()
            if step == BAD_STEP and world.rank == world.size - 1:
                label[-1] = 999
            yield batch._replace(label=label)

    folder.mkdir(parents=True, exist_ok=True)
    task = Picky(Checkpoint(small_model(), mean=MEAN, std=STD))
    if validate is not None:
        after_step = Validation(task, validate, GRIDS[0], 2, progress=False)
    settings |= {"task": lambda *_: task, "after_step": after_step}
    run = trainer(folder, steps=STEPS, wrap=wrap, world=world, **SETTINGS, **settings)
    if adapters:
        torch.manual_seed(0)
        adapt_model(run.task.model, AdapterSettings(rank=2))
    return run


def outcome(run: Trainer) -> dict[str, Any]:
    """What a run leads to: losses, trained weights, averaged weights. All processes together."""
    averaged = run.task.network(run.gather_state())
    run.world.barrier()
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return {
        "losses": {row["step"]: row["loss"] for row in rows},
        "norms": {row["step"]: row["grad_norm"] for row in rows},
        "weights": torch.cat([full(p.detach()).flatten() for p in run.task.model.parameters()]),
        "averaged": torch.cat([p.detach().flatten() for p in averaged.parameters()]).clone(),
        "skipped": run.skipped,
    }


class Broken(Colours):
    """Its sixth video cannot be read."""

    def read(self, index, positions):
        if index == 5:
            raise VideoError.of("5.mp4", "broken")
        return super().read(index, positions)


def validate(folder: Path, world: World, **settings) -> dict[str, Any]:
    """Scores and best weights of a run that validates 13 videos every two steps."""
    data = dataset(13)
    run = make(folder, world, validate=data, **settings)
    run.run(progress=False)
    model = run.task.network(run.gather_state())
    logits = torch.stack([p.logits for p in run.after_step._predict(run, model).values()])
    data.source = Broken()
    message = ""
    try:
        run.after_step._predict(run, model)
    except ValueError as error:
        message = str(error)
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    return {"rows": rows, "logits": logits, "message": message}


def distill(folder: Path, world: World, **settings) -> dict[str, Any]:
    """What a pre-training run leads to; which tokens it sees is no matter of chance."""
    run = run_of(folder, STEPS, "top", world=world, **SETTINGS, **settings)
    run.run(progress=False)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = run.task.parameters()
    return {
        "losses": {row["step"]: row["loss"] for row in rows},
        "weights": torch.cat([full(p.detach()).flatten() for p in trained]),
    }


class Towers(nn.Module):
    """Two linear ones and the contrastive loss of what they give."""

    def __init__(self, world: World) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.video, self.text = nn.Linear(8, 6), nn.Linear(5, 6)
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.world = world

    def forward(self, clips: Tensor, words: Tensor, same: Tensor) -> Tensor:
        video, text = (F.normalize(x, dim=-1) for x in (self.video(clips), self.text(words)))
        return contrastive_loss(video, text, self.scale, same, self.world)


def contrast(world: World) -> Tensor:
    """Losses and gradients of twelve pairs, shared out; some that say the same are in different processes."""
    generator = torch.Generator().manual_seed(1)
    batch = [torch.randn(12, width, generator=generator) for width in (8, 5)]
    batch.append(torch.tensor([0, 1, 2, 3, 1, 5, 0, 7, 1, 9, 10, 11]))
    own = slice(12 // world.size * world.rank, 12 // world.size * (world.rank + 1))
    towers = Towers(world)
    step = parallelize(towers, world, checkpoint_blocks=False, compile_blocks=False)
    loss = step(*(part[own] for part in batch))
    loss.backward()
    return torch.cat([p.grad.flatten() for p in towers.parameters()] + [world.mean(loss)[None]])


def align(folder: Path, world: World, **settings) -> dict[str, Any]:
    """What training a dual encoder leads to, with a caption for each label."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, texts = small_encoder()
    for block in encoder.language.text.blocks:
        # Biases of keys have no gradient but rounding, of which AdamW makes steps as of any other.
        block.qkv.bias.requires_grad_(False)
    captions = Captions(Manifest((), (), ""), texts)

    class Aligned(ContrastiveTask):
        def collate(self, clips: Clip) -> Batch:
            said = [SENTENCES[label % len(SENTENCES)] for label in clips.label]
            return {"video": clips.video, **captions.encode(said)}

    def task(checkpoint: Checkpoint) -> Aligned:
        return Aligned(checkpoint, encoder.language, captions, world)

    run = trainer(folder, STEPS, world=world, task=task, model=encoder.video, **SETTINGS, **settings)
    run.run(progress=False)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = run.task.parameters()
    return {
        "losses": {row["step"]: row["loss"] for row in rows},
        "weights": torch.cat([full(p.detach()).flatten() for p in trained]),
    }


def all_jobs(folder: Path, world: World) -> dict[str, Any]:
    """Everything that two processes are to show, in one start of them."""
    seen: list = []
    results: dict[str, Any] = {"seen": seen}
    for name, settings in {
        "copied": {"accumulate": 2},
        "sharded": {"accumulate": 2, "shard": SHARDS},
        "recomputed": {"checkpoint_blocks": True, "shard": SHARDS},
    }.items():
        run = make(folder / name, world, seen=seen if name == "copied" else None, **settings)
        run.run(progress=False)
        results[name] = outcome(run)
    numbers = [full(p).numel() for p in run.task.model.parameters()]
    parts = [(p.to_local() if SHARDS else p).numel() for p in run.task.model.parameters()]
    results["parts"] = sum(parts) / sum(numbers)

    stopped = make(folder / "stopped", world, stop=True, shard=SHARDS)
    with pytest.raises(Stopped):
        stopped.run(progress=False)
    state = stopped.gather_state()
    if world.is_main:
        stopped.task.export(folder / "export", state)
        for name in ("sharded_again", "copied_now"):
            shutil.copytree(folder / "stopped", folder / name)
    world.barrier()
    for name, settings in {
        "sharded_again": {"shard": SHARDS},
        "copied_now": {},
        "from_one": {"shard": SHARDS},
    }.items():
        run = make(folder / name, world, **settings)
        run.run(progress=False)
        results[name] = outcome(run)
    for name, shard in (("adapted", False), ("adapted_sharded", SHARDS)) if ADAPTERS else ():
        run = make(folder / name, world, adapters=True, accumulate=2, shard=shard)
        run.run(progress=False)
        results[name] = outcome(run)
    results["validation"] = validate(folder / "validation", world, shard=SHARDS)
    results["distilled"] = {
        name: distill(folder / f"distilled_{name}", world, shard=name == "sharded" and SHARDS)
        for name in ("copied", "sharded")
    }
    results["contrast"] = contrast(world)
    results["aligned"] = {
        name: align(folder / f"aligned_{name}", world, shard=name == "sharded" and SHARDS)
        for name in ("copied", "sharded")
    }
    return results


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    world = join_world("cpu")
    torch.save(all_jobs(folder, world), folder / f"{world.rank}.pt")
    leave_world(world)


def launch(call: str, processes: int, timeout: float = 300) -> None:
    """Run a call of this module in so many processes."""
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parent)!r}]; "
    code += f"from pathlib import Path; import test_distributed; test_distributed.{call}"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    workers = [subprocess.Popen([sys.executable, "-c", code], env=common | place) for place in places]
    try:
        assert [worker.wait(timeout) for worker in workers] == [0] * processes
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """The run of one process."""
    seen: list = []
    run = make(folder / "one", ALONE, seen=seen)
    run.run(progress=False)
    return {**outcome(run), "seen": seen, "validation": validate(folder / "validation_one", ALONE)}


@pytest.fixture(scope="module")
def one_adapted(folder: Path) -> dict[str, Any]:
    """The run of one process that trains adapters."""
    run = make(folder / "one_adapted", ALONE, adapters=True)
    run.run(progress=False)
    return outcome(run)


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    with pytest.raises(Stopped):
        make(folder / "from_one", ALONE, stop=True).run(progress=False)
    launch(f"work(Path({str(folder)!r}))", 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


WAYS = ["copied", "sharded", "recomputed", "sharded_again", "copied_now", "from_one"]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_the_steps_of_one(way: str, one: dict, two: list[dict]) -> None:
    """Copied, sharded, and resumed from the other's state: losses, gradients and weights are the same."""
    for result in two:
        found = result[way]
        assert found["losses"].keys() == one["losses"].keys() == {0, 2, 3, 4}
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert found["norms"] == pytest.approx(one["norms"], rel=1e-4)
        assert found["skipped"] == 1
        torch.testing.assert_close(found["weights"], one["weights"], rtol=0, atol=1e-5)
        torch.testing.assert_close(found["averaged"], one["averaged"], rtol=0, atol=1e-5)


@pytest.mark.skipif(not ADAPTERS, reason="adapters need peft")
@pytest.mark.parametrize("way", ["adapted", "adapted_sharded"])
def test_two_processes_train_adapters_as_one(way: str, one: dict, one_adapted: dict, two: list[dict]) -> None:
    test_two_processes_take_the_steps_of_one(way, one_adapted, two)
    assert one_adapted["losses"] != one["losses"]


def test_processes_sample_the_same_grids(one: dict, two: list[dict]) -> None:
    assert len(set(one["seen"])) == 2
    assert two[0]["seen"] == two[1]["seen"] == one["seen"]


@needs_sharding
def test_sharding_shares_out(two: list[dict]) -> None:
    assert sum(result["parts"] for result in two) == pytest.approx(1)
    assert max(result["parts"] for result in two) < 0.6


@needs_sharding
def test_a_sharded_state_goes_on_in_one_process(folder: Path, one: dict, two: list[dict]) -> None:
    assert [path.name for path in (folder / "stopped").glob("*state*")] == [f"state-{STOP_AFTER}"]
    shutil.copytree(folder / "stopped", folder / "one_now")
    # The recipe may say shard still: one process has nothing to share out.
    exported, compared = Checkpoint.load(folder / "export").model, []

    def compare(run: Trainer, taken: int) -> None:
        if taken == STOP_AFTER:
            model = run.task.network(run.gather_state())
            for theirs, ours in zip(exported.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6, check_device=False)
            compared.append(taken)

    run = make(folder / "one_now", ALONE, shard=SHARDS, after_step=compare)
    run.run(progress=False)
    assert compared
    found = outcome(run)
    assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
    torch.testing.assert_close(found["weights"], one["weights"], rtol=0, atol=1e-5)
    assert [path.name for path in (folder / "one_now").glob("*state*")] == [f"state-{STEPS}"]


def test_every_video_is_validated_once(folder: Path, one: dict, two: list[dict]) -> None:
    expected = one["validation"]
    assert [row["step"] for row in expected["rows"]] == [2, 4, 5]
    for result in two:
        found = result["validation"]
        assert found["rows"] == expected["rows"]
        torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=1e-4)
    best = [Checkpoint.load(folder / name / "best").model for name in ("validation", "validation_one")]
    for ours, theirs in zip(*(model.parameters() for model in best), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_unreadable_validation_video_is_raised_by_all(one: dict, two: list[dict]) -> None:
    assert one["validation"]["message"] == "5.mp4: broken"
    # Video 5 is the second process's.
    assert two[1]["validation"]["message"] == "5.mp4: broken"
    assert two[0]["validation"]["message"] == "validation failed in process 1: 5.mp4: broken"


@pytest.mark.parametrize("way", ["copied", "sharded"])
def test_two_processes_distil_as_one(way: str, folder: Path, two: list[dict]) -> None:
    """The teacher is whole in each; decoders are copied, or shared out, with the student."""
    one = distill(folder / "distilled_one", ALONE)
    # The state of several processes is one of one process, decoders included.
    again = distill(folder / f"distilled_{way}", ALONE)
    torch.testing.assert_close(again["weights"], one["weights"], rtol=0, atol=1e-5)
    for result in two:
        found = result["distilled"][way]
        assert found["losses"].keys() == one["losses"].keys() == {0, 1, 2, 3, 4}
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-5)
        torch.testing.assert_close(found["weights"], one["weights"], rtol=0, atol=1e-5)


def test_two_processes_contrast_as_one(two: list[dict]) -> None:
    """The loss is of the joint batch, and so are its gradients."""
    one = contrast(ALONE)
    for result in two:
        torch.testing.assert_close(result["contrast"], one, rtol=0, atol=1e-5)
    assert one.abs().max() > 0.1


@pytest.mark.parametrize("way", ["copied", "sharded"])
def test_two_processes_align_as_one(way: str, folder: Path, two: list[dict]) -> None:
    """A dual encoder's text tower and temperature are copied, or shared out, with the video side."""
    one = align(folder / "aligned_one", ALONE)
    for result in two:
        found = result["aligned"][way]
        assert found["losses"].keys() == one["losses"].keys() == {0, 1, 2, 3, 4}
        assert found["losses"] == pytest.approx(one["losses"], abs=1e-4)
        torch.testing.assert_close(found["weights"], one["weights"], rtol=0, atol=5e-5)
