"""The learned selector as a part of a network."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.cost import clip_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import MovingPixels, keep_best
from fluxvit.models.config import FluxViTConfig, preset
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.graphs import CapturedFluxViT
from fluxvit.models.inference import prepare

CONFIG = preset("fluxvit_nano", depth=1, selector_dim=8, tubelet_size=4, budgets=(40, 20), num_classes=5)


@pytest.fixture(scope="module")
def model() -> FluxViT:
    torch.manual_seed(0)
    made = FluxViT(CONFIG).eval()
    assert made.token_scorer is not None
    for parameter in made.token_scorer.score.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randn(3, 3, 16, 48, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("patch", "tubelet"), [(8, 4), (7, 2), (14, 1)])
def test_a_new_one_is_moving_pixels_of_thumbnails(patch: int, tubelet: int) -> None:
    config = FluxViTConfig.from_dict(
        {**CONFIG.to_dict(), "patch_size": patch, "tubelet_size": tubelet, "depth": 1}
    )
    model = FluxViT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameters
    clips = torch.randn(2, 3, 5 * tubelet, 3 * patch, 2 * patch)
    part = patch // (2 if patch % 2 == 0 else 1)
    small = torch.nn.functional.avg_pool3d(clips, (1, part, part))
    # [B, T, L, F, V] by hand.
    cells = small.unfold(3, patch // part, patch // part).unfold(4, patch // part, patch // part)
    cells = cells.unflatten(2, (-1, tubelet)).permute(0, 2, 4, 5, 3, 1, 6, 7).flatten(2, 3).flatten(4)
    expected = keep_best(MovingPixels().scores(cells), (5,), 11)
    assert torch.equal(model(clips, budget=11, selector="learned").kept, expected)


@torch.no_grad()
def test_exactly_k_nested_and_the_same_in_every_form(model: FluxViT, video: Tensor) -> None:
    budgets = [60, 31, 7, 1]
    outs = model(video, budgets, selector="learned")
    assert [out.kept.shape[1] for out in outs] == budgets
    for large, small in pairwise(outs):
        for a, b in zip(large.kept, small.kept, strict=True):
            assert set(b.tolist()) <= set(a.tolist())
    kept = outs[1].kept
    assert not torch.equal(kept, model(video, 31, selector="moving_pixels").kept)
    forms = [prepare(model, torch.float32), CapturedFluxViT(prepare(model, torch.float32))]
    for other in forms:
        assert torch.equal(other(video, 31, selector="learned").kept, kept)
    half = copy.deepcopy(model).bfloat16()(video.bfloat16(), 31, selector="learned")
    assert half.kept.shape == kept.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(video, 31, selector="learned").kept, kept)
    packed = model.forward_packed([*video], [31, 31, 31], selector="learned")
    assert torch.equal(torch.cat([out.kept for out in packed]), kept)


def test_one_frame_of_tokens(model: FluxViT) -> None:
    flat = torch.zeros(1, 3, 4, 24, 16)
    flat[..., 8:16, 8:] = 1
    fresh = FluxViT(CONFIG)
    assert fresh(flat, budget=1, selector="learned").kept.item() == 3
    assert model(flat, budget=2, selector="learned").kept.shape == (1, 2)


def test_macs_equal_a_count(model: FluxViT, video: Tensor) -> None:
    grid, size = SamplingGrid(16, 48, 32), CONFIG.size
    cost = clip_cost(size, 20, size.pool(grid), "thumbnails")
    assert model.token_scorer is not None
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.token_scorer(model.thumbnails(video[:1]))
    shrinking = video[:1].numel()
    assert 2 * (cost.selection - shrinking) == counter.get_total_flops()
    assert cost.embed_dropped == 0


def test_it_goes_with_the_checkpoint(model: FluxViT, video: Tensor, tmp_path: Path) -> None:
    Checkpoint(model, selector="learned", grids=[SamplingGrid(16, 48, 32)]).save(tmp_path / "new")
    loaded = Checkpoint.load(tmp_path / "new")
    plan = loaded.plan(20)
    assert plan.selector == "learned"
    same = loaded.model(video, plan.keep, selector=plan.selector)
    assert torch.equal(same.logits, model(video, 20, selector="learned").logits)


def test_a_network_without_one_says_how_to_get_it(video: Tensor) -> None:
    config = FluxViTConfig.from_dict({**CONFIG.to_dict(), "selector_dim": 0})
    # What identifies checkpoints of today does not change.
    assert "selector_dim" not in config.to_dict()
    plain = FluxViT(config)
    with pytest.raises(ValueError, match=r"this model has none; train it with .*selector.yaml"):
        plain(video, budget=20, selector="learned")
    plain.reset_selector(4)
    assert plain(video, budget=20, selector="learned").kept.shape == (3, 20)


def test_it_is_exported(model: FluxViT, video: Tensor) -> None:
    class Kept(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, clips: Tensor) -> Tensor:
            return self.model(clips, 20, selector="learned").kept

    program = torch.export.export(Kept(), (video[:1],)).module()
    for clip in video:
        assert torch.equal(program(clip[None]), Kept()(clip[None]))
