"""Contrastive losses against their definitions, in blocks, and over several processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.training.tasks.contrastive_losses import LOSSES, contrastive_loss
from fluxvit.utils.distributed import ALONE

SAME = torch.tensor([0, 1, 2, 1, 4, 5, 6])


def pairs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    video, text = F.normalize(torch.randn(2, 7, 5, generator=generator, dtype=torch.float64), dim=-1).to(
        dtype
    )
    return video, text, torch.tensor(3.0, dtype=dtype), torch.tensor(-1.5, dtype=dtype)


def plain(kind: str) -> float:
    """The definitions, pair by pair."""
    video, text, scale, bias = (tensor.tolist() for tensor in pairs(torch.float64))
    cosine = [[sum(a * b for a, b in zip(v, t, strict=True)) for t in text] for v in video]
    twin = [[i != j and bool(SAME[i] == SAME[j]) for j in range(7)] for i in range(7)]
    total = 0.0
    for i in range(7):
        if kind == "infonce":
            for row in (cosine[i], [line[i] for line in cosine]):
                others = sum(math.exp(scale * row[j]) for j in range(7) if not twin[i][j])
                total += (math.log(others) - scale * row[i]) / 2
        else:
            for j in range(7):
                sign = 1 if i == j else -1
                if not twin[i][j]:
                    total += math.log(1 + math.exp(-sign * (scale * cosine[i][j] + bias)))
    return total / 7


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_losses_are_their_definitions_in_any_blocks(kind: str, block: int) -> None:
    def value_and_gradients(block: int) -> tuple[Tensor, ...]:
        video, text, scale, bias = (tensor.requires_grad_() for tensor in pairs())
        sigmoid = bias if kind == "sigmoid" else None
        loss = contrastive_loss(video, text, scale, SAME, ALONE, kind=kind, bias=sigmoid, block=block)
        trained = [video, text, scale] + ([bias] if kind == "sigmoid" else [])
        return loss.detach(), *torch.autograd.grad(loss, trained)

    loss, *gradients = value_and_gradients(block)
    assert loss.item() == pytest.approx(plain(kind), rel=1e-5)
    for ours, whole in zip(gradients, value_and_gradients(7)[1:], strict=True):
        torch.testing.assert_close(ours, whole)


def test_similarities_are_not_kept_for_the_backward_pass() -> None:
    def saved(block: int) -> int:
        """Numbers that autograd holds."""
        video, text, scale, _ = (tensor.requires_grad_() for tensor in pairs())
        video, text = video.repeat(64, 1), text.repeat(64, 1)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            contrastive_loss(video, text, scale, torch.arange(len(video)), ALONE, block=block)
        return max(sizes)

    rows = 7 * 64
    assert saved(rows) == rows**2
    assert saved(rows // 8) < rows**2 / 7


def test_what_is_said_twice_is_not_held_against_itself() -> None:
    video, text, scale, _ = pairs()
    video[3], text[3] = text[1], text[1]
    video[1] = text[1]
    apart = contrastive_loss(video, text, scale, torch.arange(7), ALONE)
    assert contrastive_loss(video, text, scale, SAME, ALONE) < apart - 0.05


def test_unknown_losses_are_named() -> None:
    video, text, scale, _ = pairs()
    with pytest.raises(ValueError, match="choose infonce or sigmoid"):
        contrastive_loss(video, text, scale, SAME, ALONE, kind="triplet")
    with pytest.raises(ValueError, match="needs a bias"):
        contrastive_loss(video, text, scale, SAME, ALONE, kind="sigmoid")
