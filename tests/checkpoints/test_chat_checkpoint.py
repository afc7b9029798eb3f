from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import fluxvit
from fluxvit.checkpoints.chat import ChatCheckpoint
from talking import saved_chat

pytest.importorskip("transformers")


def test_it_comes_back_as_it_was_with_its_adapters(tmp_path: Path) -> None:
    folder = saved_chat(tmp_path)
    weights = folder / "connector.safetensors"
    state = safetensors.torch.load_file(weights)
    for part, shape in (("down", (2, 32)), ("up", (32, 2))):
        state[f"adapters.model/layers/0/self_attn/q_proj.{part}.weight"] = torch.randn(shape)
    safetensors.torch.save_file(state, weights)
    first = fluxvit.load(folder)
    assert isinstance(first, ChatCheckpoint)
    second = ChatCheckpoint.load(first.save(tmp_path / "copy"))
    assert second.instruction == "answer briefly"
    assert [plan.keep for plan in second.video.plans] == [24, 12]
    assert second.model.video is second.video.model
    assert second.model.language is second.language.network
    # The adapters are merged once, and stay separate in the folder.
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert safetensors.torch.load_file(tmp_path / "copy/connector.safetensors").keys() == state.keys()


def test_the_inference_form_sees_the_same(tmp_path: Path) -> None:
    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    prepared, video = loaded.prepared("fp32"), torch.randn(2, 3, 4, 16, 16)
    assert prepared.video.model is prepared.model.video
    with torch.inference_mode():
        expected = loaded.model.look([video], 6)
        assert torch.allclose(prepared.model.look([video], 6), expected, atol=1e-4)


def test_other_folders_are_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="no chat model, which `fluxvit train-chat` makes"):
        ChatCheckpoint.load(checkpoint)
    with pytest.raises(ValueError, match="holds something else than a chat model"):
        ChatCheckpoint.load(saved_chat(tmp_path)).save(checkpoint)
