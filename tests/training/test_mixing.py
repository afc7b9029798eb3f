"""What is mixed, how much of it, and that labels say so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxvit.training.mixing import mix_clips, smooth_one_hot
from fluxvit.training.recipes import MixingSettings

CLASSES = 7


def mix(video: torch.Tensor, label: torch.Tensor, classes: int, seed: tuple[int, ...], **options):
    """Mixing with the authors' settings, but for ``options``."""
    given = MixingSettings(**{"mixup": 0.8, "cutmix": 1.0, **options})
    return mix_clips(given, video, label, classes, seed)


def constant_clips(batch: int, height: int = 10, width: int = 14) -> torch.Tensor:
    """Clips whose every pixel is the clip's number plus 1."""
    return torch.arange(1.0, batch + 1).view(-1, 1, 1, 1, 1).expand(batch, 3, 4, height, width)


def labels(batch: int) -> torch.Tensor:
    return torch.arange(batch) % CLASSES


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31), st.floats(0, 0.9))
def test_labels_keep_their_mass_and_tell_what_is_seen(
    batch: int, height: int, width: int, step: int, smoothing: float
) -> None:
    """Of clips that show their own number, the mean brightness tells the shares of a clip and its partner."""
    video = constant_clips(batch, height, width)
    mixed, target = mix(video, labels(batch), CLASSES, (0, step), label_smoothing=smoothing)
    assert mixed.shape == video.shape
    torch.testing.assert_close(target.sum(-1), torch.ones(batch))
    own, partner = smooth_one_hot(labels(batch), CLASSES, smoothing), video.flip(0)[:, 0, 0, 0, 0]
    seen = mixed.mean((1, 2, 3, 4))
    for i in range(batch):
        if i == batch - 1 - i:
            torch.testing.assert_close(mixed[i], video[i])
            torch.testing.assert_close(target[i], own[i])
        else:
            share = (seen[i] - partner[i]) / (i + 1 - partner[i])
            expected = share * own[i] + (1 - share) * own[batch - 1 - i]
            torch.testing.assert_close(target[i], expected, atol=1e-4, rtol=0)


def test_mixup_is_a_weighted_mean() -> None:
    video = torch.randn(4, 3, 2, 6, 6)
    mixed, target = mix(video, torch.arange(4), 4, (1, 2), mixup=0.8, cutmix=0)
    weight = target.diag().view(-1, 1, 1, 1, 1) - 0.025
    weight = weight / 0.9
    torch.testing.assert_close(mixed, weight * video + (1 - weight) * video.flip(0))


def test_cutmix_box_is_the_same_in_all_frames_and_clips() -> None:
    for step in range(20):
        video = constant_clips(4)
        mixed, target = mix(video, torch.arange(4), 4, (1, step), mixup=0, label_smoothing=0)
        own = mixed == video
        assert (own == own[:1, :1, :1]).all()
        outside = own[0, 0, 0]
        # A box: what is foreign is a product of rows and columns.
        assert torch.equal(~outside, (~outside).any(1)[:, None] & (~outside).any(0))
        torch.testing.assert_close(target.diag(), outside.float().mean().expand(4))


def test_input_is_not_changed() -> None:
    video = torch.randn(4, 3, 2, 6, 6)
    before = video.clone()
    for step in range(10):
        mix(video, torch.arange(4), 4, (0, step))
    assert torch.equal(video, before)


def test_steps_are_reproducible_and_differ() -> None:
    video = torch.randn(2, 3, 2, 16, 16)
    runs = [[mix(video, torch.arange(2), 2, (5, step))[0] for step in range(8)] for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
    assert all(not torch.equal(one, two) for one, two in zip(runs[0], runs[0][1:], strict=False))
    assert not torch.equal(mix(video, torch.arange(2), 2, (6, 0))[0], runs[0][0])


@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_switch_probability(switch: float) -> None:
    video, count = constant_clips(2, 8, 8), 600
    cut = 0
    for step in range(count):
        mixed, _ = mix(video, torch.arange(2), 2, (0, step), switch=switch)
        # CutMix leaves every pixel one clip's or the other's.
        cut += bool(((mixed == 1) | (mixed == 2)).all())
    assert abs(cut / count - switch) <= 4 * math.sqrt(switch * (1 - switch) / count)


def test_mixup_weights_follow_their_beta_distribution() -> None:
    video = constant_clips(2, 1, 1)
    mixup = {"cutmix": 0, "label_smoothing": 0}
    targets = (mix(video, torch.arange(2), 2, (0, step), **mixup)[1] for step in range(1000))
    weights = np.array([target[0, 0].item() for target in targets])
    # Beta(a, a) has mean 1/2 and variance 1 / (8 a + 4).
    assert weights.mean() == pytest.approx(0.5, abs=0.04)
    assert weights.var() == pytest.approx(1 / (8 * 0.8 + 4), rel=0.1)


def test_smoothing() -> None:
    target = smooth_one_hot(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(target, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))


def test_half_precision_stays() -> None:
    mixed, target = mix(torch.randn(2, 3, 2, 4, 4).bfloat16(), torch.arange(2), 2, (0, 0))
    assert mixed.dtype == torch.bfloat16
    assert target.dtype == torch.float32
