from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fluxvit.evaluation.probing.training import (
    AttentiveProbes,
    LinearProbes,
    Probes,
    Setting,
    losses,
    score_probes,
    train_probes,
)
from fluxvit.models.layers import AttentionPool


def make(kind: str, count: int) -> Probes:
    return LinearProbes(count, 8, 3, 0) if kind == "linear" else AttentiveProbes(count, 16, 2, 12, 3, 0)


def random_features(kind: str, count: int) -> torch.Tensor:
    shape = (count, 8) if kind == "linear" else (count, 5, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_settings_trained_together_are_as_if_alone(kind: str) -> None:
    # The one that diverges must not harm its neighbours.
    settings = [Setting(1e-3, 0.0), Setting(1e37, 0.5), Setting(1e-2, 0.5)]
    x, labels = random_features(kind, 20), torch.arange(20) % 3

    def trained(chosen: list[Setting]) -> torch.Tensor:
        stack = make(kind, len(chosen))
        train_probes(stack, lambda i: x[i], labels, chosen, epochs=4, batch_size=8)
        return stack(x).detach()

    together = trained(settings)
    assert not together[:, 1].isfinite().all()
    for place in (0, 2):
        torch.testing.assert_close(together[:, place], trained([settings[place]])[:, 0], rtol=0, atol=1e-6)
    # And they did differ, by learning rate and by decay.
    assert (together[:, 0] - together[:, 2]).abs().max() > 1e-3
    decayed = trained([replace(settings[2], weight_decay=0.0)])
    assert (together[:, 2] - decayed[:, 0]).abs().max() > 1e-4


def test_training_is_adamw_along_a_cosine() -> None:
    x, labels = random_features("linear", 6), torch.arange(6) % 3
    stack = make("linear", 1)
    reference = torch.nn.Linear(8, 3)
    reference.load_state_dict(stack.one(0))
    optimizer = torch.optim.AdamW(
        [
            {"params": [reference.weight], "weight_decay": 0.5},
            {"params": [reference.bias], "weight_decay": 0.0},
        ],
        lr=0.1,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(reference(x), labels).backward()
        optimizer.step()
        schedule.step()
    train_probes(stack, lambda i: x[i], labels, [Setting(0.1, 0.5)], epochs=5, batch_size=6)
    torch.testing.assert_close(stack.one(0)["weight"], reference.weight.detach(), rtol=0, atol=1e-6)


def test_losses_are_each_settings_own() -> None:
    logits, labels = torch.randn(4, 2, 3), torch.tensor([0, 1, 2, 1])
    expected = [torch.nn.functional.cross_entropy(logits[:, s], labels) for s in range(2)]
    torch.testing.assert_close(losses(logits, labels), torch.stack(expected))


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_probes_learn_what_features_hold_and_no_more(kind: str) -> None:
    def accuracy(informative: bool) -> float:
        labels = torch.randint(3, (400,), generator=torch.Generator().manual_seed(2))
        x = random_features(kind, 400)
        if informative:
            hints = 6.0 * torch.nn.functional.one_hot(labels, x.shape[-1])
            x = x + hints.view(400, *[1] * (x.ndim - 2), -1)
        stack = make(kind, 1)
        train_probes(stack, lambda i: x[i], labels[:200], [Setting(1e-2, 0.0)], epochs=20, batch_size=50)
        hits, _ = score_probes(stack, lambda i: x[200 + i], labels[200:], 64)
        return hits[0] / 200

    assert accuracy(informative=True) == 1
    assert 0.23 < accuracy(informative=False) < 0.44


def test_folded_attention_equals_the_models_pooling() -> None:
    stack = AttentiveProbes(2, 16, 4, 12, 3, 0)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens = 3 * torch.randn(5, 7, 16) + torch.randn(16)
    logits = stack(tokens)
    for s in range(2):
        probe = stack.one(s)
        pool = AttentionPool(16, 4, 12)
        pool.load_state_dict(
            {
                **pool.state_dict(),
                "k.bias": torch.randn(16),  # Of no consequence, which is why probes have none.
                **{name.replace("_", "."): value for name, value in probe.items() if "_" in name},
            }
        )
        pooled = torch.nn.functional.layer_norm(pool(tokens), (12,))
        expected = pooled @ probe["weight"].T + probe["bias"]
        torch.testing.assert_close(logits[:, s], expected, rtol=0, atol=1e-5)
