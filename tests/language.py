"""A small dual encoder, for the tests that need one."""

from __future__ import annotations

from pathlib import Path

import torch

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.texts import Texts
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.models.text import TextConfig, TextTransformer

SENTENCES = [
    f"a {colour} {thing} {act}"
    for colour in ("red", "blue")
    for thing in ("ball", "cube")
    for act in ("moves left", "moves right", "spins", "hops twice")
]


def small_encoder() -> tuple[DualEncoder, Texts]:
    video = small_model(num_classes=0)
    torch.manual_seed(1)
    texts = Texts.of_words(SENTENCES, context=9)
    tower = TextTransformer(TextConfig(texts.vocab_size, 9, 64, 2, 1, 24))
    return DualEncoder(video, LanguageSide(tower, 16, 12)).eval(), texts


def saved_encoder(folder: Path) -> Path:
    """A folder of one, with a plan for one of its budgets."""
    encoder, texts = small_encoder()
    grids = [SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)]
    video = Checkpoint(encoder.video, grids=grids, plans=[Plan(SamplingGrid(8, 24, 24), 12)])
    return DualEncoderCheckpoint(encoder, texts, video, {"made_by": "tests"}).save(folder)
