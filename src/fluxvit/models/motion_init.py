"""Initial weights with which a network can tell movements apart from the first step on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.layers import LayerScale


@torch.no_grad()
def init_for_motion(model: FluxViT) -> None:
    """Initialise a network for training from nothing where classes differ by motion.

    With the usual weights (standard deviation 0.02, a small LayerScale) a new network is nearly linear, and a
    linear function of single tokens cannot tell a movement from its reverse. Here matrices are scaled by
    their width, LayerScale is 1, classifiers are 0, and the filters of the patch embedding are waves that
    move, so that mean activations already differ between opposite directions. Tubelets of one frame show no
    movement; their filters are waves that stand still.
    """
    embed = model.patch_embed
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not embed.proj:
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, LayerScale):
            module.gamma.fill_(1.0)
    for i, block in enumerate(model.blocks, start=1):
        block.attn.proj.weight.div_((2 * i) ** 0.5)
        block.mlp.fc2.weight.div_((2 * i) ** 0.5)
    for head in model.heads:
        if isinstance(head.fc, nn.Linear):
            nn.init.zeros_(head.fc.weight)
    waves = moving_waves(len(embed.proj.weight), embed.tubelet_size, embed.patch_size, embed.in_chans)
    embed.proj.weight.copy_(waves)


def moving_waves(count: int, frames: int, size: int, channels: int) -> Tensor:
    """Random plane waves ``[count, frames * size * size * channels]``, each of mean 0 and norm 1.

    A patch spans a fifth to three quarters of a wavelength, and the phase moves by up to a quarter of a cycle
    from frame to frame, either way: objects that move by a good part of a patch need waves this long.
    """
    angle, phase = 2 * math.pi * torch.rand(2, count, 1, 1, 1)
    frequency = (1.2 + 3.6 * torch.rand(count, 1, 1, 1)) / size  # Radians a pixel.
    speed = 1.6 * (2 * torch.rand(count, 1, 1, 1) - 1)  # Radians a frame.
    place = torch.arange(size) - (size - 1) / 2
    time = (torch.arange(frames) - (frames - 1) / 2)[:, None, None]
    along = place * angle.cos() + place[:, None] * angle.sin()
    waves = torch.cos(frequency * along + speed * time + phase)
    colours = 1 + 0.5 * torch.randn(count, 1, 1, 1, channels)
    waves = (waves - waves.mean((1, 2, 3), keepdim=True))[..., None] * colours
    return F.normalize(waves.flatten(1), dim=1)
