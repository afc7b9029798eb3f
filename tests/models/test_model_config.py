"""The configuration of a FluxViT."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluxvit.models import limits as module
from fluxvit.models.config import PRESETS, FluxViTConfig, preset
from fluxvit.models.fluxvit import FluxViT, create_model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": 0},
        {"num_classes": 7, "class_dim": 24},
        {"dual_patch_norm": False, "global_position": False, "local_position": False, "qk_norm": False},
        {"qkv_bias": True, "mlp_ratio": 48 / 11, "tubelet_size": 2, "in_chans": 4, "budgets": (9,)},
    ],
)
@pytest.mark.parametrize("name", ["fluxvit_nano", "fluxvit_base"])
def test_parameters_are_counted_without_a_network(name: str, changes: dict) -> None:
    config = preset(name, **changes)
    with torch.device("meta"):
        network = FluxViT(config)
    assert config.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 4.5}, "depth is 4.5, expected an integer from 1 to 1024"),
        ({"embed_dim": 128.0}, "embed_dim is 128.0, expected an integer"),
        ({"embed_dim": -128}, "embed_dim is -128"),
        ({"depth": 10**6}, "depth is 1000000"),
        ({"num_heads": "6"}, "num_heads is '6'"),
        ({"mlp_ratio": -1}, "mlp_ratio is -1, expected a number above 0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ({"mlp_ratio": 1e9}, "mlp_ratio is 1000000000.0"),
        ({"mlp_ratio": 1e-9}, "leaves the MLP no width"),
        ({"layer_scale": "x"}, "layer_scale is 'x'"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"table_shape": [10**6, 1, 1]}, r"table_shape\[0\] is 1000000"),
        ({"table_shape": [1, 2]}, r"table_shape is .*, expected a list of 3"),
        ({"table_shape": [4096] * 3}, "describe a network of 2.64e\\+13 parameters"),
        ({"budgets": list(range(10**5, 0, -1))}, "budgets is .*, expected a list of 1 to 64"),
        ({"budgets": []}, "budgets is .*, expected a list of 1 to 64"),
        ({"budgets": [8, 8]}, "must fall from the largest"),
        ({"num_classes": 10**9}, "num_classes is 1000000000"),
        ({"drop_path": 2}, "drop_path is 2, expected a number of at least 0 and below 1"),
        ({"dual_patch_norm": "yes"}, "dual_patch_norm is 'yes', expected true or false"),
        ({"activation": ["gelu"]}, "activation is .*, expected text"),
        ({"activation": "relu"}, "activation 'relu' is unknown"),
        ({"embed_dim": 120, "num_heads": 6, "pool_heads": 6}, "not a multiple of 16"),
    ],
)
def test_bad_values_are_named_before_anything_is_built(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FluxViTConfig(**values)
    with pytest.raises(ValueError, match=f"^c.json: model.*{message}"):
        FluxViTConfig.from_dict(values, "c.json", "model")
    with pytest.raises(ValueError, match=message):
        create_model("fluxvit_small", **values)


def test_large_real_networks_are_within_the_bounds() -> None:
    config = preset("fluxvit_large", embed_dim=6144, depth=48, num_heads=48, num_classes=22_000)  # ViT-22B.
    assert 21e9 < config.parameters < 24e9


def test_what_the_memory_cannot_hold_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 4 * PRESETS["fluxvit_nano"].parameters
    monkeypatch.setattr(module, "memory_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="needs 0 GB of memory"):
        create_model("fluxvit_nano")
    with torch.device("meta"):
        create_model("fluxvit_nano")
    monkeypatch.setattr(module, "memory_bytes", lambda: needed)
    create_model("fluxvit_nano").reset_classifier(np.int64(3))
