"""One of each kind of file that commands read, small and good: ``hostile.py`` changes them."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.video.writer import write_video
from language import saved_encoder
from talking import saved_chat
from towers import tower_shapes


def good_files(folder: Path) -> Path:
    """One of each kind of file that commands read, small."""
    measured = Measured(correct=3, total=4, gmacs=0.1, latency_ms=2.0, device="x")
    plans = [Plan(SamplingGrid(8, 24, 24), 24, 0, measured=measured), Plan(SamplingGrid(8, 16, 32), 12)]
    made = Checkpoint(
        small_model(),
        labels=["a", "b", "c", "d", "e"],
        grids=[SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)],
        plans=plans,
        cascades=[Cascade((plans[1], plans[0]), 0.5, (1.0, 1.2), measured, reach=(1.0, 0.5))],
    )
    made.save(folder / "model")
    saved_encoder(folder / "dual")
    saved_chat(folder)
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    for i in range(2):
        write_video(folder / "videos" / f"{i}.mp4", rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8), 8)
    rows = [
        {"path": f"videos/{i}.mp4", "label": i, "captions": ["a ball"], "start": 0.0, "end": 0.5}
        for i in range(2)
    ]
    facts = {
        "frames": 8,
        "fps": 8.0,
        "width": 16,
        "height": 16,
        "duration": 1.0,
        "rotation": 0,
        "codec": "h264",
    }
    header = {
        "manifest": 1,
        "name": "x",
        "split": "val",
        "root": ".",
        "classes": ["a", "b", "c", "d", "e"],
    }
    lines = [header, *({**row, **facts, "ok": True, "noflip": False} for row in rows)]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    torch.save({"model": _tower(), "epoch": 3, "args": {"lr": 0.1}}, folder / "tower.pth")
    (folder / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], "name": "x"}))
    (folder / "names.txt").write_text("ball\ncube\n")
    command = [
        "index",
        "videos",
        "--db",
        "videos.db",
        "--checkpoint",
        "dual",
        "--device",
        "cpu",
        "--seconds",
        "1",
    ]
    recipe = [
        *("train", "--data.train", "train.jsonl", "--data.workers", "0", "--model.name", "fluxvit_nano"),
        *("--model.settings", '{"budgets": [8, 4], "embed_dim": 32, "depth": 1, "pool_dim": 16}'),
        *("--grids.frames", "[4,5,2]", "--grids.sizes", "[16,17,8]", "--grids.min_tokens", "4"),
        *("--grids.max_tokens", "30", "--epochs", "1", "--warmup_epochs", "0.5", "--optim.batch_size", "2"),
        *("--optim.precision", "fp32", "--device", "cpu", "--out", "run", "--evaluation.grid", "4x16"),
    ]
    with inside(folder):
        for words in (command, recipe):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                assert main(words) == 0, err.getvalue()
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def _tower() -> dict[str, torch.Tensor]:
    """A small vision tower with InternVideo2's names."""
    torch.manual_seed(5)
    return {name: torch.randn(shape) * 0.02 for name, shape in tower_shapes(64, 1, 128, classes=3).items()}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Have a folder as the working directory."""
    former = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(former)
