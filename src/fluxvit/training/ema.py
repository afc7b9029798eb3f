"""A moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluxvit.training.parallel import local


class Ema:
    """Exponential moving average of parameters and buffers, which is evaluated and exported.

    Args:
        module: The module to follow. The average starts at its weights, and is sharded as they are.
        decay: Decay per step, such as 0.9999. While few steps have been taken it is (1 + step) / (10 + step),
            so that the average does not remember the initialisation.

    Attributes:
        weights: The average, named as in the module's state dict.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay of the moving average is {decay}; it lies between 0 and 1")
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards ``module`` after optimiser step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = [], []
        for name, value in module.state_dict().items():
            average, value = local(self.weights[name]), local(value)
            if average.is_floating_point():
                ours.append(average)
                theirs.append(value.to(average.dtype))
            else:
                average.copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - decay)
