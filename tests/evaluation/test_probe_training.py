from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colours import GRID, INFO, backbone, dataset

from fluxvit.evaluation.classification import predict_plans
from fluxvit.evaluation.probing.features import cached_features
from fluxvit.evaluation.probing.linear import (
    LinearProbes,
    Setting,
    Standardizer,
    losses,
    merge,
    score_probes,
    train_probes,
)
from fluxvit.flux.plan import Plan


def random_vectors(count: int) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def test_settings_trained_together_are_as_if_alone() -> None:
    # The one that diverges must not harm its neighbours.
    settings = [Setting(1e-3, 0.0), Setting(1e37, 0.5), Setting(1e-2, 0.5)]
    x, labels = random_vectors(20), torch.arange(20) % 3

    def trained(chosen: list[Setting]) -> torch.Tensor:
        probes = LinearProbes(len(chosen), 8, 3, 0)
        train_probes(probes, x, labels, chosen, epochs=4, batch_size=8)
        return probes(x).detach()

    together = trained(settings)
    assert not together[1].isfinite().all()
    for number in (0, 2):
        torch.testing.assert_close(together[number], trained([settings[number]])[0], rtol=0, atol=1e-6)
    # And they did differ, by learning rate and by decay.
    assert (together[0] - together[2]).abs().max() > 1e-3
    decayed = trained([replace(settings[2], weight_decay=0.0)])
    assert (together[2] - decayed[0]).abs().max() > 1e-4


def test_training_is_adamw_along_a_cosine() -> None:
    x, labels = random_vectors(6), torch.arange(6) % 3
    probes = LinearProbes(1, 8, 3, 0)
    reference = torch.nn.Linear(8, 3)
    reference.load_state_dict(probes[0].state_dict())
    optimizer = torch.optim.AdamW(
        [
            {"params": [reference.weight], "weight_decay": 0.5},
            {"params": [reference.bias], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + math.cos(math.pi * step / 5))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(reference(x), labels).backward()
        optimizer.step()
    train_probes(probes, x, labels, [Setting(0.1, 0.5)], epochs=5, batch_size=6)
    torch.testing.assert_close(probes[0].weight, reference.weight, rtol=0, atol=1e-5)


def test_losses_are_each_settings_own() -> None:
    logits, labels = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 1])
    expected = [torch.nn.functional.cross_entropy(logits[s], labels) for s in range(2)]
    torch.testing.assert_close(losses(logits, labels), torch.stack(expected))


def test_probes_learn_what_features_hold_and_no_more() -> None:
    def accuracy(informative: bool) -> float:
        labels = torch.randint(3, (400,), generator=torch.Generator().manual_seed(2))
        x = random_vectors(400)
        if informative:
            x = x + 6.0 * torch.nn.functional.one_hot(labels, 8)
        probes = LinearProbes(1, 8, 3, 0)
        train_probes(probes, x[:200], labels[:200], [Setting(1e-2, 0.0)], epochs=20, batch_size=50)
        return score_probes(probes, x[200:], labels[200:])[0][0] / 200

    assert accuracy(informative=True) == 1
    assert 0.23 < accuracy(informative=False) < 0.44


def test_standardising_folds_into_the_linear_layer() -> None:
    x = 5 + torch.randn(50, 8) * torch.linspace(0.01, 2, 8)
    x[:, 3] = 1.0
    standardizer = Standardizer.fit(x)
    z = standardizer(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    layer, folded = torch.nn.Linear(8, 3), torch.nn.Linear(8, 3)
    folded.load_state_dict(standardizer.fold(layer))
    torch.testing.assert_close(folded(torch.nn.functional.layer_norm(x, (8,))), layer(z), rtol=0, atol=1e-4)


@pytest.mark.parametrize("keep", [6, 16])
def test_merged_model_says_what_the_probe_says(keep: int, tmp_path: Path) -> None:
    frozen, data = backbone(keep), dataset(12)
    labels = torch.arange(12) % 3
    for readout, x in cached_features(frozen, data, tmp_path).items():
        standardizer = Standardizer.fit(x)
        probes, z = LinearProbes(2, x.shape[1], 3, 0), standardizer(x)
        train_probes(probes, z, labels, [Setting(1e-4, 0), Setting(1e-2, 0)], epochs=9, batch_size=4)
        model = merge(frozen, readout, standardizer, probes[1])
        (merged,) = predict_plans(replace(INFO, model=model), data, [Plan(GRID, keep)])
        torch.testing.assert_close(merged.logits, probes(z)[1].detach(), rtol=0, atol=2e-4)
        trunk = {
            n: v for n, v in model.state_dict().items() if n.startswith(("blocks", "patch", "pos", "cls"))
        }
        for name, value in trunk.items():
            assert torch.equal(value, frozen.checkpoint.model.state_dict()[name]), name
