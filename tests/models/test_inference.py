"""The inference form computes what the network computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.inference import InferenceBlock, PackedLinear, PlainLinear, can_pack, prepare


def with_random_weights(**settings: Any) -> FluxViT:
    """A network in which no parameter has the neutral value that it is initialised with."""
    torch.manual_seed(0)
    model = create_model("fluxvit_nano", num_classes=5, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


SETTINGS = (
    {},
    {"qk_norm": False},
    {"local_position": False},
    {"qkv_bias": True},
    {"activation": "gelu"},
    {"dual_patch_norm": False, "class_dim": 16},
)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
@torch.inference_mode()
def test_in_fp32_it_differs_by_rounding_only(settings: dict[str, Any], packed: bool) -> None:
    model = with_random_weights(**settings)
    ours, video = prepare(model, pack=packed), torch.randn(2, 3, 6, 40, 56)
    kind = PackedLinear if packed and can_pack(torch.float32) else PlainLinear
    assert isinstance(ours.blocks[0].qkv, kind)
    for expected, output in zip(model(video, [30, 20, 10]), ours(video, [30, 20, 10]), strict=True):
        assert torch.equal(expected.kept, output.kept)
        assert expected.head == output.head
        assert relative(output.logits, expected.logits) < 1e-5
        assert relative(output.embedding, expected.embedding) < 1e-5
    tokens = model.forward_features(video)
    assert relative(ours.forward_features(video), tokens) < 1e-5
    attention = model.heads[1].pool.attention(tokens)
    assert relative(ours.heads[1].pool.attention(tokens), attention) < 1e-5


@torch.inference_mode()
def test_in_bf16_the_same_tokens_are_kept_and_the_output_is_close() -> None:
    model = with_random_weights()
    video = torch.randn(2, 3, 6, 40, 56)
    expected, output = model(video, 20), prepare(model, torch.bfloat16)(video, 20)
    assert torch.equal(expected.kept, output.kept)
    assert output.logits.dtype == torch.float32
    assert 0 < relative(output.logits, expected.logits) < 0.02


@torch.inference_mode()
def test_packed_clips_equal_single_ones() -> None:
    model = prepare(with_random_weights())
    videos = [torch.randn(3, 6, 40, 56), torch.randn(3, 4, 24, 24)]
    for video, output in zip(videos, model.forward_packed(videos, [20, 6]), strict=True):
        alone = model(video[None], output.kept.shape[1])
        assert relative(output.logits, alone.logits) < 1e-5


@pytest.mark.parametrize("pack", [True, False])
def test_the_network_stays_as_it_is(pack: bool) -> None:
    model = with_random_weights(drop_path=0.2).train()
    names = model.state_dict().keys()
    ours = prepare(model, pack=pack)
    assert not ours.training
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    video = torch.randn(1, 3, 4, 24, 24)
    before = ours(video).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(ours(video).logits, before)
    assert names == model.state_dict().keys()


def test_it_is_not_prepared_twice() -> None:
    ours = prepare(with_random_weights())
    assert isinstance(ours.blocks[0], InferenceBlock)
    with pytest.raises(ValueError, match="inference form already"):
        prepare(ours)
