"""Parts that ``benchmarks/ablations.py`` takes out and adds leave the function as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ablations import Way, stripped, with_parts
from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.writer import write_video

GRID = SamplingGrid(2, 8, 8)  # A single token.


def test_other_weights_take_over_what_glpe_and_dpn_did(tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    write_video(video, np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8), 4)
    # The only token has the mean sizes, so that nothing but LPE's values is lost.
    manifest = Manifest((Entry(video, 0),), (), "")
    model = small_model()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if any(part in name for part in ("patch_embed.norm", "pos_embed.s", "local_shift")):
                weights.uniform_(0.5, 1.5)
            elif "local_scale" in name:
                weights.zero_()
    checkpoint = Checkpoint(model)
    clip = checkpoint.clip(Predictor(checkpoint, 1, grid=GRID).sample(video, [GRID]).frames[GRID], GRID)
    before = model(clip).logits
    plain = stripped(checkpoint, manifest, GRID)
    assert not any("norm_before" in name or "local" in name for name in plain.model.state_dict())
    torch.testing.assert_close(plain.model.eval()(clip).logits, before)
    again = with_parts(plain, Way(), manifest, GRID).model.eval()
    torch.testing.assert_close(
        with_parts(plain, Way(glpe=False), manifest, GRID).model.eval()(clip).logits, before
    )
    for block in again.blocks:
        torch.nn.init.zeros_(block.attn.local_scale)
    torch.testing.assert_close(again(clip).logits, before)
