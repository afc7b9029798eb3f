from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from language import SENTENCES, small_encoder


def test_vectors_are_unit_and_the_head_is_the_budgets_own() -> None:
    encoder, texts = small_encoder()
    video = torch.randn(3, 3, 8, 32, 32)
    for budget, head in ((24, 0), (12, 1), (6, 2)):
        vectors = encoder.embed_video(video, budget)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        out = encoder.video(video, budget)
        assert out.head == head
        by_hand = encoder.language.video_proj(encoder.video.head_norm(out.embedding))
        torch.testing.assert_close(vectors, F.normalize(by_hand, dim=-1))
    words = encoder.embed_text(*texts(SENTENCES))
    torch.testing.assert_close(words.norm(dim=1), torch.ones(len(SENTENCES)))


def test_a_text_alone_is_the_text_in_a_batch() -> None:
    encoder, texts = small_encoder()
    together = encoder.embed_text(*texts(SENTENCES))
    alone = torch.cat([encoder.embed_text(*texts([sentence])) for sentence in SENTENCES])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_temperature_starts_where_it_should_and_stays_in_its_bounds() -> None:
    encoder, _ = small_encoder()
    language = encoder.language
    torch.testing.assert_close(language.scale, torch.tensor(1 / 0.07), rtol=1e-5, atol=0)
    # Where it starts it grows like CLIP's, an exponential: relative growth near 1.
    (slope,) = torch.autograd.grad(language.scale, language.sharpness)
    assert 0.8 < slope.item() * 0.07 < 1
    for value in (-60.0, 60.0):
        with torch.no_grad():
            language.sharpness.fill_(value)
        assert 0 <= language.scale.item() <= 100
    for first, least in ((0.01, 0.01), (0.07, 0.0), (0.005, 0.01)):
        with pytest.raises(ValueError, match="temperature"):
            LanguageSide(language.text, 16, 12, first, least)


def test_sides_that_do_not_fit_are_refused() -> None:
    encoder, _ = small_encoder()
    with pytest.raises(ValueError, match="pools to 16 channels, and the language side reads 20"):
        DualEncoder(encoder.video, LanguageSide(encoder.language.text, 20, 12))


def test_the_text_tower_is_never_in_training_mode() -> None:
    encoder, _ = small_encoder()
    encoder.train()
    assert encoder.video.training
    assert encoder.language.video_proj.training
    assert not any(module.training for module in encoder.language.text.modules())
