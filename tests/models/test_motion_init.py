"""Initial weights for training from nothing where classes differ by motion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.motion_init import init_for_motion, moving_waves


def drifting(clips: int) -> tuple[Tensor, Tensor]:
    """Clips ``[B, 3, 8, 16, 16]`` of random textures that drift right or left, and the direction, 1 or -1."""
    generator = torch.Generator().manual_seed(0)
    textures = torch.randn(clips, 3, 1, 1, 16, generator=generator).expand(-1, -1, -1, 16, -1)
    direction = 1 - 2 * (torch.arange(clips) % 2)
    videos = [
        torch.cat([texture.roll(2 * frame * int(sign), -1) for frame in range(8)], dim=1)
        for texture, sign in zip(textures, direction, strict=True)
    ]
    return torch.stack(videos), direction.float()


@torch.no_grad()
def readable(model: FluxViT) -> float:
    """How often a linear function of the pooled vector of a new network tells the direction of new clips."""
    videos, direction = drifting(600)
    pooled = model.eval()(videos).embedding.double()
    pooled = (pooled - pooled.mean(0)) / (pooled.std(0) + 1e-6)
    known, new = pooled[:450], pooled[450:]
    ridge = known.T @ known + 10 * torch.eye(pooled.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(ridge, known.T @ direction[:450].double())
    return float(((new @ weights > 0) == (direction[450:] > 0)).double().mean())


def new_model() -> FluxViT:
    torch.manual_seed(0)
    return create_model("fluxvit_nano", num_classes=2, depth=2)


def test_a_new_network_tells_directions_apart() -> None:
    model = new_model()
    before = readable(model)
    init_for_motion(model)
    assert readable(model) > 0.9 > 0.8 > before


def test_the_weights_follow_from_the_seed() -> None:
    first, second = new_model(), new_model()
    for model in (first, second):
        torch.manual_seed(1)
        init_for_motion(model)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_waves_have_no_mean_and_a_norm_of_one(frames: int) -> None:
    waves = moving_waves(16, frames, 8, 3).view(16, frames * 64, 3)
    assert waves.mean(1).abs().max() < 1e-6
    assert torch.allclose(waves.flatten(1).norm(dim=1), torch.ones(16))
    still = waves.view(16, frames, -1)
    assert frames == 1 or (still[:, 0] - still[:, 1]).norm(dim=1).min() > 1e-3
