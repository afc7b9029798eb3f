"""Low-rank adapters of a frozen language model (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

ADAPTED = ("q_proj", "v_proj")
"""The projections that get one, as in the paper; so queries and values are called in Llama and its kin."""


class Adapter(nn.Module):
    """A linear map through a few channels, 0 when it is made.

    Args:
        dim: Channels that come in.
        out_dim: Channels that come out.
        rank: Channels between them.
    """

    def __init__(self, dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, out_dim, bias=False)
        nn.init.normal_(self.down.weight, std=dim**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` to ``[..., out_dim]``."""
        return self.up(self.down(x))


def add_adapters(network: Any, rank: int, names: Sequence[str] = ADAPTED) -> nn.ModuleDict:
    """Add an adapter to what each linear layer of these names gives; the layers stay as they are.

    Returns:
        The adapters, which are no part of the network, by its layers' paths (with ``/`` for ``.``).

    Raises:
        ValueError: The network has no such layers.
    """
    adapters = nn.ModuleDict()
    for path, layer in network.named_modules():
        if path.rpartition(".")[2] in names and isinstance(layer, nn.Linear):
            adapter = Adapter(layer.in_features, layer.out_features, rank)
            adapters[path.replace(".", "/")] = adapter
            layer.register_forward_hook(_adding(adapter))
    if not adapters:
        raise ValueError(
            f"adapters: {type(network).__name__} has no linear layers called {' or '.join(names)}; "
            "train without them"
        )
    return adapters


def _adding(adapter: Adapter) -> Any:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + adapter(inputs[0]).to(output.dtype)

    return add


def adapter_rank(state: dict[str, Tensor]) -> int:
    """The rank of adapters in a state dict; 0 if there are none."""
    for name, value in state.items():
        if name.endswith("down.weight"):
            return int(torch.as_tensor(value).shape[0])
    return 0
