"""The learned selector's network: it scores tokens by a shrunk video, before any token is embedded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.config import FluxViTConfig
from fluxvit.models.embed import full_precision


class TokenScorer(nn.Module):
    """Scores tokens by thumbnails: the mean colours of 2x2 parts of each tubelet, frame by frame.

    The network sees them beside four measures of movement: the change from the tubelet before, the change to
    the one after, the smaller of both, and the change inside. Two layers compare each token with its
    neighbours in space and time, and with the mean of the clip. A new network scores as the selector
    ``moving_pixels`` does on thumbnails; what it learns is added. It computes in fp32 in every case.

    Shapes: B clips, a pool of T x h x w tokens, V values of a tubelet's thumbnail.

    Args:
        patch_size, tubelet_size, in_chans: See ``FluxViTConfig``. Patches of an odd size are not divided.
        width: Channels of the layers.
    """

    def __init__(self, patch_size: int, tubelet_size: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size, self.in_chans = patch_size, tubelet_size, in_chans
        self.parts = 2 if patch_size % 2 == 0 else 1
        self.project = nn.Conv2d(4 + in_chans * tubelet_size * self.parts**2, width, 1)
        self.compare = nn.ModuleList(nn.Conv2d(3 * width, width, 3, padding=1) for _ in range(2))
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.score = nn.Conv2d(width, 1, 1)
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def thumbnails(self, video: Tensor) -> Tensor:
        """Shrink normalised clips ``[B, C, T, H, W]`` to fp32 thumbnails ``[B, t, V, h, w]``; V holds frames,
        then colours, then parts.
        """
        size = self.patch_size // self.parts
        x = F.avg_pool2d(video.flatten(1, 2).float(), size).unflatten(1, video.shape[1:3]).transpose(1, 2)
        x = F.pixel_unshuffle(x.flatten(1, 2), self.parts)
        return x.unflatten(1, (video.shape[2] // self.tubelet_size, -1))

    def forward(self, thumbnails: Tensor) -> Tensor:
        """Scores ``[B, T, h, w]``, fp32, of thumbnails ``[B, T, V, h, w]``."""
        batch, frames = thumbnails.shape[:2]
        with full_precision(thumbnails.device.type):
            change = self._movement(thumbnails)
            known = change[:, :, 0] + 0.5 * change[:, :, 1]
            centred = thumbnails - thumbnails.mean((1, 3, 4), keepdim=True)
            x = F.gelu(_conv(self.project, torch.cat([change, centred], 2).flatten(0, 1)))
            for layer in self.compare:
                x = x + F.gelu(_conv(layer, _with_neighbours(x, frames)))
            clip = x.unflatten(0, (batch, frames)).mean((1, 3, 4), keepdim=True)
            clip = clip.expand(-1, frames, -1, *x.shape[2:]).flatten(0, 1)
            learned = _conv(self.score, F.gelu(_conv(self.mix, torch.cat([x, clip], 1))))
            return known + learned.reshape(known.shape)

    def _movement(self, thumbnails: Tensor) -> Tensor:
        """Logarithms of the four measures of movement, less their means over the clip, ``[B, T, 4, h, w]``:
        the smaller change and the change inside first.
        """
        if thumbnails.shape[1] == 1:  # Nothing moves: the distance from the mean of the frame counts.
            smaller = before = after = thumbnails - thumbnails.mean((3, 4), keepdim=True)
        else:
            change = (thumbnails[:, 1:] - thumbnails[:, :-1]).abs()
            before = torch.cat([change[:, :1], change], 1)
            after = torch.cat([change, change[:, -1:]], 1)
            smaller = torch.minimum(before, after)
        inside = smaller
        if self.tubelet_size > 1:
            frames = thumbnails.unflatten(2, (self.tubelet_size, -1))
            inside = (frames[:, :, 1:] - frames[:, :, :-1]).flatten(2, 3)
        sizes = [part.square().mean(2).sqrt() for part in (smaller, inside, before, after)]
        movement = torch.stack(sizes, 2).clamp_min(_STILL).log()
        return movement - movement.mean((1, 3, 4), keepdim=True)


def make_token_scorer(config: FluxViTConfig) -> TokenScorer | None:
    """The learned selector of a model, if it has one."""
    if not config.selector_dim:
        return None
    return TokenScorer(config.patch_size, config.tubelet_size, config.in_chans, config.selector_dim)


# Changes that no one sees; the values of the pixels have a standard deviation of about one.
_STILL = 1e-3


def _conv(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution in fp32, whatever the type of its weights."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return F.conv2d(x, layer.weight.float(), layer.bias.float(), padding=layer.padding)


def _with_neighbours(x: Tensor, frames: int) -> Tensor:
    """Frames ``[B * T, C, h, w]`` with the frame before and the frame after beside each (zeros at the ends),
    ``[B * T, 3 * C, h, w]``: a convolution of them is one over space and time.
    """
    x = F.pad(x.unflatten(0, (-1, frames)), (0, 0, 0, 0, 0, 0, 1, 1))
    return torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], 2).flatten(0, 1)
