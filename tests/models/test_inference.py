"""The inference form computes what the network computes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.inference import can_pack, form, prepare
from fluxvit.models.openvino_blocks import OpenVINOBlocks


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


KINDS = ("packed", "prepared", "openvino")
SETTINGS = (
    {},
    {"qk_norm": False},
    {"local_position": False},
    {"qkv_bias": True},
    {"activation": "gelu"},
    {"dual_patch_norm": False, "class_dim": 16},
)


def prepared(model: FluxViT, kind: str, dtype: torch.dtype = torch.float32) -> FluxViT:
    if kind == "openvino":
        pytest.importorskip("openvino")
    if kind == "packed" and not can_pack(dtype):
        pytest.skip("this PyTorch packs no matrices")
    ours = prepare(model, dtype, "openvino" if kind == "openvino" else "torch", pack=kind == "packed")
    assert form(ours) == f"{kind} {str(dtype).removeprefix('torch.')}"
    return ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
@torch.inference_mode()
def test_in_fp32_it_differs_by_rounding_only(settings: dict[str, Any], kind: str) -> None:
    model = with_random_weights(**settings)
    ours, video = prepared(model, kind), torch.randn(2, 3, 6, 40, 56)
    for expected, output in zip(model(video, [30, 20, 10]), ours(video, [30, 20, 10]), strict=True):
        assert torch.equal(expected.kept, output.kept)
        assert expected.head == output.head
        assert relative(output.logits, expected.logits) < 1e-5
        assert relative(output.embedding, expected.embedding) < 1e-5
    tokens, layers, *_ = model.forward_intermediates(video, (0, -1, -2))
    our_tokens, our_layers, *_ = ours.forward_intermediates(video, (0, -1, -2))
    for ours_, theirs in zip((our_tokens, *our_layers), (tokens, *layers), strict=True):
        assert relative(ours_, theirs) < 1e-5
    attention = model.heads[1].pool.attention(tokens)
    assert relative(ours.heads[1].pool.attention(tokens), attention) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_in_bf16_the_same_tokens_are_kept_and_the_output_is_close(kind: str) -> None:
    model = with_random_weights()
    video = torch.randn(2, 3, 6, 40, 56)
    expected, output = model(video, 20), prepared(model, kind, torch.bfloat16)(video, 20)
    assert torch.equal(expected.kept, output.kept)
    assert output.logits.dtype == torch.float32
    assert 0 <= relative(output.logits, expected.logits) < 0.02


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_packed_clips_equal_single_ones(kind: str) -> None:
    model = prepared(with_random_weights(), kind)
    videos = [torch.randn(3, 6, 40, 56), torch.randn(3, 4, 24, 24)]
    for video, output in zip(videos, model.forward_packed(videos, [20, 6]), strict=True):
        alone = model(video[None], output.kept.shape[1])
        assert relative(output.logits, alone.logits) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_stays_as_it_is(kind: str) -> None:
    model = with_random_weights(drop_path=0.2).train()
    names = model.state_dict().keys()
    ours = prepared(model, kind)
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


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_not_prepared_twice(kind: str) -> None:
    ours = prepared(with_random_weights(), kind)
    with pytest.raises(ValueError, match="inference form already"):
        prepare(ours)


@torch.inference_mode()
def test_openvino_compiles_few_graphs_however_many_shapes_it_sees() -> None:
    model = with_random_weights()
    ours, video = prepared(model, "openvino"), torch.randn(1, 3, 6, 40, 56)
    blocks = ours.blocks
    assert isinstance(blocks, OpenVINOBlocks)
    first = {budget: ours(video, budget).logits for budget in range(1, 30)}
    for budget, logits in first.items():
        assert relative(logits, model(video, budget).logits) < 1e-5
        assert torch.equal(ours(video, budget).logits, logits)
    assert len(blocks._requests) == 4


@torch.inference_mode()
def test_openvino_serves_several_threads() -> None:
    model = with_random_weights()
    ours, videos = prepared(model, "openvino"), torch.randn(12, 1, 3, 6, 40, 56)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda video: ours(video, 20).logits.clone(), videos))
    for video, logits in zip(videos, outputs, strict=True):
        assert relative(logits, model(video, 20).logits) < 1e-5


@torch.inference_mode()
def test_openvino_refuses_to_run_in_a_fork_in_which_it_would_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = prepared(with_random_weights(), "openvino")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="forked process: start processes with 'spawn'"):
        ours(torch.randn(1, 3, 6, 40, 56))


def test_a_backend_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        elsewhere = create_model("fluxvit_nano")
    with pytest.raises(ValueError, match="openvino runs on a CPU, not on meta"):
        prepare(elsewhere, backend="openvino")
    monkeypatch.setattr("fluxvit.models.inference.has_openvino", lambda: False)
    model = with_random_weights()
    with pytest.raises(ValueError, match=r"not installed: pip install 'fluxvit\[openvino\]'"):
        prepare(model, backend="openvino")
    assert not form(prepare(model)).startswith("openvino")


@torch.inference_mode()
def test_a_batch_that_is_embedded_in_parts_equals_its_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    model, videos = with_random_weights(), torch.randn(5, 3, 6, 40, 56)
    whole = model(videos, [30, 300])
    monkeypatch.setattr("fluxvit.models.fluxvit._VALUES_AT_ONCE", 2 * videos[0].numel())
    for expected, output in zip(whole, model(videos, [30, 300]), strict=True):
        assert relative(output.logits, expected.logits) < 1e-6
        assert output.kept is None if expected.kept is None else torch.equal(output.kept, expected.kept)


def test_signals_arrive_after_networks_were_dropped() -> None:
    pytest.importorskip("openvino")
    code = """
import os, signal, torch
from fluxvit.models.fluxvit import create_model
from fluxvit.models.inference import prepare

signal.signal(signal.SIGUSR1, lambda *_: print("received"))
networks = [prepare(create_model("fluxvit_nano"), backend="openvino") for _ in range(2)]
for network in networks:
    network(torch.zeros(1, 3, 4, 16, 16))
del network, networks[0]
del networks
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "received\n"), done.stderr
