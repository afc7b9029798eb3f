"""A moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.parallel import local


class Ema:
    """Exponential moving average of parameters and buffers; what is evaluated and saved as the model.

    Args:
        model: Followed; the average starts at its weights, and is shared out between processes as they are.
        decay: Per step, such as 0.9999. While few steps have been taken it is (1 + step) / (10 + step), so
            that the average does not remember the initialisation.

    Attributes:
        weights: The average, named as in the model's state dict.
    """

    def __init__(self, model: FluxViT, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay of the moving average is {decay}; it lies between 0 and 1")
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: FluxViT, step: int) -> None:
        """Move towards ``model`` after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            ours, theirs = local(self.weights[name]), local(value)
            if ours.is_floating_point():
                ours.lerp_(theirs.to(ours.dtype), 1 - decay)
            else:
                ours.copy_(theirs)
