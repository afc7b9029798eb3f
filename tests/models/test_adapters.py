from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from conftest import small_model
from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.language_model import load_language_model
from fluxvit.models.adapters import add_adapters, merge_adapters, merged_state
from fluxvit.models.fluxvit import FluxViT
from talking import saved_chat

pytest.importorskip("peft")
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def adapted_model(layers: tuple[str, ...] = LAYERS, *, trained: bool = True) -> tuple[FluxViT, nn.ModuleDict]:
    """A model with adapters that do something, as training leaves them, or new ones."""
    model = small_model()
    adapters = add_adapters(model, rank=3, alpha=6, layers=layers)
    for pair in adapters.values() if trained else ():
        nn.init.normal_(pair["up"].weight, std=0.3)
    return model, adapters


def test_new_adapters_change_nothing_and_are_all_that_is_trained() -> None:
    video = torch.randn(2, 3, 8, 16, 16)
    model, adapters = adapted_model(("attn.qkv", "mlp.fc2"), trained=False)
    outputs = model(video, [24, 12, 6])
    for ours, theirs in zip(outputs, small_model()(video, [24, 12, 6]), strict=True):
        assert torch.equal(ours.logits, theirs.logits)
    names = {f"blocks/{block}/{layer}" for block in (0, 1) for layer in ("attn/qkv", "mlp/fc2")}
    assert adapters.keys() == names
    sum(output.logits.square().sum() for output in outputs).backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in adapters.parameters()}


def test_merged_weights_equal_the_adapted_network() -> None:
    video = torch.randn(2, 3, 8, 16, 16)
    model, _ = adapted_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = small_model()
    merged.load_state_dict(merged_state(model, model.state_dict()))
    with torch.no_grad():
        for adapted, ours, plain in zip(
            *(network(video, [24, 12, 6]) for network in (model, merged, small_model())), strict=True
        ):
            assert (adapted.logits - plain.logits).abs().max() > 1e-2
            torch.testing.assert_close(ours.logits, adapted.logits, rtol=0, atol=1e-5)
    # Merging leaves what is trained as it is.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_chat_models_of_earlier_versions_keep_their_adapters(tmp_path: Path) -> None:
    """They ran each adapter beside its layer, and stored its two matrices under the path of the layer."""
    chat = saved_chat(tmp_path)
    language = load_language_model(str(tmp_path / "lm")).network
    file, generator = chat / "connector.safetensors", torch.Generator().manual_seed(5)
    state, hooks = safetensors.torch.load_file(file), []
    for path, layer in language.named_modules():
        if path.endswith(("q_proj", "v_proj")):
            down, up = (torch.randn(shape, generator=generator) / 4 for shape in ((2, 32), (32, 2)))
            name = f"adapters.{path.replace('.', '/')}"
            state |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
            hooks.append(layer.register_forward_hook(lambda _, x, y, d=down, u=up: y + x[0] @ d.t() @ u.t()))
    assert len(hooks) == 4
    safetensors.torch.save_file(state, file)
    loaded = ChatCheckpoint.load(chat)
    found, model = loaded.model, loaded.language
    words = found.embed_words(model.ids("what moves ?"))[None]
    with torch.no_grad():
        ours, theirs = (net(inputs_embeds=words).logits for net in (found.language, language))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        for hook in hooks:
            hook.remove()
        assert (language(inputs_embeds=words).logits - ours).abs().max() > 1e-2
    # An adapter of another language model.
    safetensors.torch.save_file({**state, f"{name}.up.weight": torch.ones(31, 2)}, file)
    with pytest.raises(ValueError, match=r"the adapter of model\.layers\.1.* does not fit Llama"):
        ChatCheckpoint.load(chat)


@pytest.mark.parametrize(
    "state",
    [
        {"1.up.weight": torch.ones(2, 1), "1.down.weight": torch.ones(1, 3)},
        {"0.up.weight": torch.ones(2, 1)},
        {"0.up.weight": torch.ones(2, 1), "0.down.weight": torch.ones(2, 3)},
        {"0.up.weight": torch.ones(3, 1), "0.down.weight": torch.ones(1, 3)},
        {"0.up.weight": torch.ones(2), "0.down.weight": torch.ones(2, 2, 3)},
        {"up.weight": torch.ones(2, 1), "down.weight": torch.ones(1, 3)},
    ],
)
def test_adapters_that_do_not_fit_are_refused(state: dict[str, torch.Tensor]) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    before = network[0].weight.clone()
    with pytest.raises(ValueError, match="does not fit Sequential"):
        merge_adapters(network, state)
    assert torch.equal(network[0].weight, before)


def test_layers_that_cannot_be_adapted_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for layers in (("attn.q_norm",), ("fc3",)):
        with pytest.raises(ValueError, match=f"FluxViT has no linear layers called {layers[0]}"):
            add_adapters(small_model(), 2, 2, layers)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'fluxvit\[lora\]'"):
        add_adapters(small_model(), 2, 2, LAYERS)
