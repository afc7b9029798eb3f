"""Low-rank adapters of linear layers (LoRA, Hu et al. 2021, arXiv 2106.09685).

The library ``peft`` makes and trains them. Merging needs no library: the scaled product of an adapter's two
matrices is added to the weight of its layer, after which the network is an ordinary one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "default"  # The name that peft gives to the only adapter of a layer.


def add_adapters(network: nn.Module, rank: int, alpha: int, layers: Sequence[str]) -> nn.ModuleDict:
    """Freeze a network and add a trainable adapter to each of its linear layers of certain names, in place.

    An adapter adds ``alpha / rank * up(down(x))`` to the output of its layer. ``up`` starts at 0, so that
    the network first computes what it did before.

    Args:
        network: Any network; its layers of these names are replaced by layers of ``peft``.
        rank: Width between the two linear maps ``down`` and ``up``.
        alpha: Numerator of the factor of the output of every adapter.
        layers: Last parts of the paths of the layers, such as ``q_proj`` or ``attn.qkv``.

    Returns:
        The modules ``down`` and ``up`` of each adapter, by the path of its layer with ``/`` in place of
        ``.``.

    Raises:
        ValueError: The network has no linear layers of these names, or ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"adapters need the package peft: pip install 'fluxvit[lora]' ({error})") from None
    named = {
        path: module
        for path, module in network.named_modules()
        if any(f".{path}".endswith(f".{name}") for name in layers)
    }
    if not named or not all(isinstance(module, nn.Linear) for module in named.values()):
        raise ValueError(
            f"adapters: {type(network).__name__} has no linear layers called {' or '.join(layers)}; "
            "train without adapters, or name other layers"
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(named))
    inject_adapter_in_model(config, network, _NAME)
    return nn.ModuleDict(
        {
            path.replace(".", "/"): nn.ModuleDict({"down": layer.lora_A[_NAME], "up": layer.lora_B[_NAME]})
            for path, layer in adapted_layers(network).items()
        }
    )


def adapted_layers(network: nn.Module) -> dict[str, Any]:
    """The layers of a network that have an adapter, by path."""
    return {path: module for path, module in network.named_modules() if hasattr(module, "lora_A")}


def merged_state(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the adapters merged into the weights: that of the network before adapters were added.

    Args:
        network: The network with its adapters.
        state: Weights named as in its state dict. They are not modified.
    """
    merged = {
        name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name
    }
    for path, layer in adapted_layers(network).items():
        down, up = (state[f"{path}.lora_{part}.{_NAME}.weight"] for part in "AB")
        merged[f"{path}.weight"] = merged[f"{path}.weight"] + layer.scaling[_NAME] * (up @ down)
    return merged


@torch.no_grad()
def merge_adapters(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Add saved adapters to the weights of a network's linear layers, in place.

    Args:
        state: ``down.weight`` and ``up.weight`` of each adapter, under the path of its layer as
            :func:`add_adapters` gives it. Their product is added without a factor.

    Raises:
        ValueError: The network has no such layer, or an adapter does not fit its layer.
    """
    layers, adapters = dict(network.named_modules()), dict[str, dict[str, Tensor]]()
    for name, value in state.items():
        path, _, part = name.removesuffix(".weight").rpartition(".")
        adapters.setdefault(path.replace("/", "."), {})[part] = value
    for path, parts in adapters.items():
        layer = layers.get(path)
        fits = isinstance(layer, nn.Linear) and parts.keys() == {"down", "up"}
        if fits:
            up, down = parts["up"], parts["down"]
            fits = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
            fits = fits and (up.shape[0], down.shape[1]) == (layer.out_features, layer.in_features)
        if not fits:
            raise ValueError(f"the adapter of {path} does not fit {type(network).__name__}")
        layer.weight += (up @ down).to(layer.weight)
