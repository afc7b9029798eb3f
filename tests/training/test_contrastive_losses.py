"""The contrastive loss against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.training.tasks.contrastive import contrastive_loss
from fluxvit.utils.distributed import ALONE

SAME = torch.tensor([0, 1, 2, 1, 4, 5, 6])


def pairs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    video, text = F.normalize(rows, dim=-1).to(dtype)
    return video, text, torch.tensor(3.0, dtype=dtype)


def test_the_loss_is_its_definition() -> None:
    video, text, scale = (tensor.tolist() for tensor in pairs(torch.float64))
    cosine = [[sum(a * b for a, b in zip(v, t, strict=True)) for t in text] for v in video]
    twin = [[i != j and bool(SAME[i] == SAME[j]) for j in range(7)] for i in range(7)]
    total = 0.0
    for i in range(7):
        for row in (cosine[i], [line[i] for line in cosine]):
            others = sum(math.exp(scale * row[j]) for j in range(7) if not twin[i][j])
            total += (math.log(others) - scale * row[i]) / 2
    assert contrastive_loss(*pairs(), SAME, ALONE).item() == pytest.approx(total / 7, rel=1e-5)


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    video, text, scale = pairs()
    video[3], text[3] = text[1], text[1]
    video[1] = text[1]
    distinct = contrastive_loss(video, text, scale, torch.arange(7), ALONE)
    assert contrastive_loss(video, text, scale, SAME, ALONE) < distinct - 0.05


def test_a_further_negative_counts_for_its_own_video_unless_it_says_the_same() -> None:
    video, text, scale = pairs()
    other = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    numbers = torch.arange(7)
    numbers[1:] += 100  # The negative of the first video has the words of its own caption.
    plain = scale * (video @ text.t())
    with_others = torch.cat([plain, scale * (video * other).sum(1, keepdim=True)], dim=1)
    with_others[0, -1] = -torch.inf
    own = torch.arange(7)
    expected = (F.cross_entropy(with_others, own) + F.cross_entropy(plain.t(), own)) / 2
    loss = contrastive_loss(video, text, scale, own, ALONE, (other, numbers))
    torch.testing.assert_close(loss, expected)
