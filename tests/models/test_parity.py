"""Agreement with the authors' own model, run on a CPU (unfused, fp32, erf GELU)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fluxvit.checkpoints.folder import compare_keys
from fluxvit.checkpoints.official import from_official
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT, create_model
from to_official import to_official

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEP = json.loads((FIXTURES / "multi_budget_step.json").read_text())
CASES = json.loads((FIXTURES / "tiny_cases.json").read_text())


@pytest.fixture(scope="module")
def model() -> FluxViT:
    facts = json.loads((FIXTURES / "tiny_config.json").read_text())
    side = facts["img_size"] // facts["patch_size"]
    config = FluxViTConfig(
        embed_dim=facts["embed_dim"],
        depth=facts["depth"],
        num_heads=facts["num_heads"],
        table_shape=(facts["num_frames"], side, side),
        pool_dim=facts["clip_embed_dim"],
        pool_heads=facts["attn_pool_num_heads"],
        num_classes=facts["num_classes"],
        activation="gelu",
        budgets=STEP["budgets"],
    )
    model = FluxViT(config).eval()
    state = from_official(load_file(FIXTURES / "tiny_weights.safetensors"), config)
    assert compare_keys(state, model).matches
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "tiny_cases.safetensors")


def kept_of(dropped: torch.Tensor) -> torch.Tensor:
    return torch.stack([row.logical_not().nonzero().flatten() for row in dropped.bool()])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_case(name: str, model: FluxViT, tensors: dict[str, torch.Tensor]) -> None:
    case = CASES[name]
    video = tensors[f"{name}.video"].float() / 96 - 0.75
    if f"{name}.patch_embed" in tensors:
        embeddings, _ = model.patch_embed(video)
        torch.testing.assert_close(embeddings, tensors[f"{name}.patch_embed"], rtol=0, atol=1e-5)
    out = model(video, budget=case["keep"], head=case["head"])
    if case["keep"] is None:
        assert out.kept is None
    else:
        assert torch.equal(out.kept, kept_of(tensors[f"{name}.mask_dropped"]))
    torch.testing.assert_close(out.logits, tensors[f"{name}.logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.embedding, tensors[f"{name}.pooled"], rtol=0, atol=1e-5)
    for i in (0, 1):
        aligned = model.align(out.embedding, head=i + 1)
        torch.testing.assert_close(aligned, tensors[f"{name}.aligned{i}"], rtol=0, atol=1e-5)


def test_tolerance_tells_a_wrong_activation(model: FluxViT, tensors: dict[str, torch.Tensor]) -> None:
    wrong = FluxViT(FluxViTConfig.from_dict({**model.config.to_dict(), "activation": "gelu_tanh"})).eval()
    wrong.load_state_dict(model.state_dict())
    with torch.no_grad():
        out = wrong(tensors["native.video"].float() / 96 - 0.75, head=0)
    assert (out.logits - tensors["native.logits"]).abs().max() > 5e-5


def test_multi_budget_step(model: FluxViT) -> None:
    expected = load_file(FIXTURES / "multi_budget_step.safetensors")
    outputs = model(expected["video"].float() / 96 - 0.75, budget=STEP["budgets"])
    assert [out.head for out in outputs] == STEP["heads"]
    for i, out in enumerate(outputs):
        assert torch.equal(out.kept, kept_of(expected[f"mask_dropped{i}"]))
        torch.testing.assert_close(out.logits, expected[f"logits{i}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].embedding, expected["pooled0"], rtol=0, atol=1e-5)

    classification = [-(expected["target"] * out.logits.log_softmax(-1)).sum(-1).mean() for out in outputs]
    anchor = F.normalize(outputs[0].embedding.detach(), dim=-1)
    alignment = [F.smooth_l1_loss(model.align(out.embedding, out.head), anchor) for out in outputs[1:]]
    loss = sum(classification) + sum(alignment)
    assert [x.item() for x in classification] == pytest.approx(STEP["classification_losses"], abs=1e-5)
    assert [x.item() for x in alignment] == pytest.approx(STEP["alignment_losses"], abs=1e-5)
    assert loss.item() == pytest.approx(STEP["loss"], abs=1e-5)

    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    gradients = to_official(ours, model.config)
    for name in (key.removeprefix("grad.") for key in expected if key.startswith("grad.")):
        theirs = expected[f"grad.{name}"]
        torch.testing.assert_close(gradients[name], theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())
    norms = torch.stack([gradients[name].norm() for name in STEP["grad_norm_keys"]])
    torch.testing.assert_close(norms, expected["grad_norms"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", ["small", "base"])
def test_state_dict_shapes_both_ways(size: str) -> None:
    published = json.loads((FIXTURES / "state_dict_keys.json").read_text())[f"fluxvit_{size}_patch14"]
    with torch.device("meta"):
        model = create_model(f"fluxvit_{size}")
    theirs = to_official(model.state_dict(), model.config)
    assert {k: list(v.shape) for k, v in theirs.items()} == {k: v[0] for k, v in published.items()}
    empty = {k: torch.empty(v[0], device="meta") for k, v in published.items()}
    assert compare_keys(from_official(empty, model.config), model).matches
