from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colours import GRID, INFO, backbone, dataset

from fluxvit.evaluation.classification import predict_dataset
from fluxvit.evaluation.features import cached_features
from fluxvit.evaluation.probing.readouts import Standardizer, merge, readouts
from fluxvit.evaluation.probing.training import (
    AttentiveProbes,
    LinearProbes,
    Probes,
    Setting,
    score_probes,
    train_probes,
)


def test_standardising_folds_into_the_linear_layer() -> None:
    x = 5 + torch.randn(50, 8) * torch.linspace(0.01, 2, 8)
    x[:, 3] = 1.0
    standardizer = Standardizer.fit(x)
    z = standardizer(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    weight, bias = torch.randn(3, 8), torch.randn(3)
    folded_weight, folded_bias = standardizer.fold(weight, bias)
    normed = torch.nn.functional.layer_norm(x, (8,))
    torch.testing.assert_close(normed @ folded_weight.T + folded_bias, z @ weight.T + bias, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "keep"), [("linear", 6), ("linear", 16), ("attentive", 6)])
def test_merged_model_says_what_the_probe_says(kind: str, keep: int, tmp_path: Path) -> None:
    frozen, data = backbone(kind, keep), dataset(12)
    rows = cached_features(frozen, data, tmp_path)
    labels = torch.arange(12) % 3
    for readout in readouts(frozen, {"train": rows}, "cpu"):
        if kind == "linear":
            stack: Probes = LinearProbes(2, readout.width, 3, 0)
        else:
            stack = AttentiveProbes(2, 32, frozen.checkpoint.model.config.pool_heads, 16, 3, 0)
        fetch = readout.fetch["train"]
        train_probes(stack, fetch, labels, [Setting(1e-4, 0), Setting(1e-2, 0)], epochs=9, batch_size=4)
        expected = stack(fetch(torch.arange(12)))[:, 1].detach()
        model = merge(frozen, readout, stack.one(1))
        (said,) = predict_dataset(replace(INFO, model=model), data, GRID, [keep])
        # Cached tokens are rounded to half precision.
        torch.testing.assert_close(said.logits, expected, rtol=0, atol=0.02 if kind == "attentive" else 2e-4)
        trunk = {
            n: v for n, v in model.state_dict().items() if n.startswith(("blocks", "patch", "pos", "cls"))
        }
        for name, value in trunk.items():
            assert torch.equal(value, frozen.checkpoint.model.state_dict()[name]), name


def test_untrained_backbone_tells_colours_but_not_labels_without_meaning(tmp_path: Path) -> None:
    frozen = backbone("linear")
    rows = cached_features(frozen, dataset(90), tmp_path)
    meaningless = torch.randint(3, (90,), generator=torch.Generator().manual_seed(0))
    for readout in readouts(frozen, {"train": rows}, "cpu"):
        fetch = readout.fetch["train"]
        for labels, lowest, highest in ((torch.arange(90) % 3, 30, 30), (meaningless, 2, 19)):
            stack = LinearProbes(1, readout.width, 3, 0)
            train_probes(stack, fetch, labels[:60], [Setting(1e-2, 0.0)], epochs=20, batch_size=16)
            (hits,), _ = score_probes(stack, lambda i, fetch=fetch: fetch(60 + i), labels[60:], 16)
            assert lowest <= hits <= highest, readout.name
