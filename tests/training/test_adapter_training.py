"""Training by low-rank adapters."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_chat_training import CONFIGS as INSTRUCT
from test_chat_training import train_chat
from test_contrastive import RECIPE as CONTRAST
from test_contrastive import train_contrastive
from test_recipe import CONFIGS, arguments, world

import fluxvit
from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.cli import main
from fluxvit.training import trainer
from talking import tiny_language_model

pytest.importorskip("peft")
assert world  # A fixture.
RECIPE = next(path for path in CONFIGS if path.stem == "motionworld_nano")
OVERLAY = Path(__file__).parents[2] / "configs" / "overlays" / "lora.yaml"
ADAPTERS = ["--model.adapters.rank", "2", "--model.adapters.layers", "[attn.qkv, mlp.fc1]"]
KEPT: dict = {"embed_dim": None, "depth": None, "pool_dim": None}  # What the checkpoint has.
TRAINED = ("attn.qkv.weight", "mlp.fc1.weight")
HEADS = ("heads.", "head_norm.", "aligners.")


def train(world: Path, init: Path, out: Path, *options: str, adapters: Sequence[str] = ADAPTERS) -> int:
    settings = json.dumps({**KEPT, "budgets": [8, 4], "drop_path": 0.3})
    given = ["--model.init", str(init), "--model.settings", settings, *adapters, "--optim.lr", "0.01"]
    return main(arguments(RECIPE, world, out, *given, "--epochs", "2", *options))


def changed(run: Path, init: Path) -> set[str]:
    """Tensors of a checkpoint that are not as they were, but for its heads."""
    ours, theirs = (fluxvit.load(folder).model.state_dict() for folder in (run, init))
    return {
        name for name in theirs if not name.startswith(HEADS) and not torch.equal(ours[name], theirs[name])
    }


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_a_stopped_run_goes_on_to_the_same_ordinary_checkpoint(
    ema: str, world: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert train(world, checkpoint, tmp_path / "whole", "--optim.ema", ema) == 0
    step = trainer.Trainer._step

    def stop(self, *arguments):
        if arguments[2] == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", stop)
        assert train(world, checkpoint, tmp_path / "cut", "--optim.ema", ema) == 130
    assert train(world, checkpoint, tmp_path / "cut", "--optim.ema", ema) == 0
    one, other = (fluxvit.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Of the blocks the adapted layers alone have moved, and what moved them has few channels.
    before = fluxvit.load(checkpoint).model.state_dict()
    moved = {name for name in before if name.endswith(TRAINED)}
    assert changed(tmp_path / "whole" / "last", checkpoint) == moved
    ranks = {int(torch.linalg.matrix_rank(one[name] - before[name], rtol=1e-3)) for name in moved}
    assert ranks == {2}


def test_the_checkpoint_needs_no_library(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert train(world, checkpoint, tmp_path / "run", adapters=["--config", str(OVERLAY)]) == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["recipe"]["model"]["adapters"]["rank"] == 16
    code = (
        "import sys; sys.modules['peft'] = None; import fluxvit, torch\n"
        f"model = fluxvit.load({str(tmp_path / 'run' / 'best')!r}).model\n"
        "assert model(torch.zeros(1, 3, 4, 16, 16), budget=4).logits.shape == (1, 16)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_both_towers_of_a_dual_encoder_are_trained(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    kept = ["--model.settings", json.dumps({**KEPT, "budgets": None, "pool_heads": None})]
    given = ["--model.init", str(checkpoint), *kept, *ADAPTERS, "--optim.lr", "0.01"]
    assert train_contrastive(CONTRAST, world, tmp_path / "run", *given) == 0
    found = changed(tmp_path / "run" / "last" / "video", checkpoint)
    assert found == {f"blocks.{block}.{name}" for block in (0, 1) for name in TRAINED}


def test_a_chat_model_may_adapt_what_it_sees(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    language = str(tiny_language_model(tmp_path / "lm"))
    options = [*ADAPTERS, "--task.adapters.rank", "2", "--optim.lr", "0.01"]
    assert train_chat(INSTRUCT[0], world, checkpoint, language, tmp_path / "run", *options) == 0
    loaded = ChatCheckpoint.load(tmp_path / "run" / "last")
    chat = loaded.model
    folder = tmp_path / "run" / "last" / "video"
    assert changed(folder, checkpoint) == {f"blocks.{block}.{name}" for block in (0, 1) for name in TRAINED}
    # The heads stay, and the plans of what the video side was do not.
    old, new = fluxvit.load(checkpoint).model.heads.state_dict(), chat.video.heads.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in new)
    assert loaded.video.plans == []


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("train", ["--model.init", ""], "give the checkpoint, model.init"),
        ("train", ["--model.adapters.layers", "[attn.key]"], "model.adapters.layers"),
        ("train", ["--model.adapters.rank", "-1"], "adapters.rank is -1, expected an integer from 0"),
        ("train-contrastive", ["--task.video", "head"], "task.video head leaves the blocks as they are"),
        ("pretrain", [], "pre-training trains the whole network"),
    ],
)
def test_bad_settings_are_refused(command: str, options: list[str], message: str, capsys) -> None:
    argv = [command, "--data.train", "m.jsonl", "--model.init", "checkpoint", "--model.adapters.rank", "2"]
    argv += ["--teacher.source", "file"] if command == "pretrain" else []
    try:
        code = main([*argv, *options])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
