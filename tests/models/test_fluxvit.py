from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fluxvit.flux.selection import Given
from fluxvit.models.attention import Packing, attention
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.embed import PositionTable, sincos_table
from fluxvit.models.fluxvit import FluxViT, create_model


def tiny(**overrides: object) -> FluxViT:
    """A small model with every parameter away from its initial value."""
    settings = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 4,
        "tubelet_size": 1,
        "table_shape": (4, 4, 4),
        "budgets": (24, 12, 6),
        "pool_dim": 16,
        "pool_heads": 2,
        "num_classes": 5,
    }
    torch.manual_seed(0)
    model = FluxViT(FluxViTConfig(**{**settings, **overrides})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODEL, TUBELET = tiny(), tiny(tubelet_size=2)


def clip(batch: int, t: int, h: int, w: int, model: FluxViT = MODEL, seed: int = 0) -> torch.Tensor:
    """Noise of ``t`` x ``h`` x ``w`` tokens."""
    p, tt = model.config.patch_size, model.config.tubelet_size
    return torch.randn(batch, 3, t * tt, h * p, w * p, generator=torch.Generator().manual_seed(seed))


shapes = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 5))


@given(shape=shapes, keep=st.integers(1, 200), tubelet=st.booleans())
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_any_grid_any_budget_alone_or_in_a_batch(
    shape: tuple[int, int, int], keep: int, tubelet: bool
) -> None:
    model = TUBELET if tubelet else MODEL
    pool = shape[0] * shape[1] * shape[2]
    # Two tokens of one frame lie equally far from their mean, but for rounding, which depends on the batch.
    assume(not (shape[0] == 1 and pool == 2))
    video = clip(3, *shape, model)
    out = model(video, budget=keep)
    assert out.logits.shape == (3, 5)
    if keep >= pool:
        assert out.kept is None
    else:
        assert out.kept.shape == (3, keep)
    alone = model(video[1:2], budget=keep)
    torch.testing.assert_close(alone.logits, out.logits[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.embedding, out.embedding[1:2], rtol=1e-4, atol=1e-5)


@given(shape=shapes)
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_keeping_all_equals_no_selection(shape: tuple[int, int, int]) -> None:
    video = clip(2, *shape)
    pool = shape[0] * shape[1] * shape[2]
    embeddings, token_shape = MODEL.patch_embed(video)
    everything = torch.arange(pool).expand(2, -1)
    kept_all = MODEL.encode(*MODEL.add_positions(embeddings, token_shape, [everything]))
    torch.testing.assert_close(kept_all, MODEL.forward_features(video), rtol=1e-5, atol=1e-5)
    assert torch.equal(MODEL(video, budget=pool).logits, MODEL(video).logits)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_packed_equals_dense(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(shapes, min_size=1, max_size=4))
    budgets = [data.draw(st.one_of(st.none(), st.integers(1, 40))) for _ in sizes]
    videos = [clip(1, *size, seed=i) for i, size in enumerate(sizes)]
    packed = MODEL.forward_packed([video[0] for video in videos], budgets)
    for video, budget, out in zip(videos, budgets, packed, strict=True):
        alone = MODEL(video, budget=budget)
        assert alone.head == out.head
        torch.testing.assert_close(out.logits, alone.logits, rtol=1e-4, atol=1e-5)
        assert (out.kept is None and alone.kept is None) or torch.equal(out.kept, alone.kept)


@torch.no_grad()
def test_order_of_kept_tokens_does_not_matter() -> None:
    video = clip(2, 6, 3, 4)
    embeddings, shape = MODEL.patch_embed(video)
    (kept,) = MODEL.select_indices(embeddings, [20])
    shuffled = kept[:, torch.randperm(20)]
    logits = [
        MODEL.forward_head(MODEL.encode(*MODEL.add_positions(embeddings, shape, [k])), 0)
        for k in (kept, shuffled)
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_several_budgets_equal_one_at_a_time() -> None:
    video = clip(2, 8, 3, 4)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = MODEL.patch_embed.register_forward_hook(count)
    outputs = MODEL(video, budget=[200, 24, 12, 5])
    handle.remove()
    assert calls == 1
    for budget, out in zip([200, 24, 12, 5], outputs, strict=True):
        alone = MODEL(video, budget=budget)
        torch.testing.assert_close(out.logits, alone.logits)
        assert out.head == alone.head


@pytest.mark.parametrize("selector", ["two_sided_pixels", "pixel_difference", "uniform", "tube"])
@pytest.mark.parametrize("budgets", [[24], [24, 12, 5], [5, 24, 12], [None, 12], [200, 24], []])
@torch.no_grad()
def test_selecting_before_the_embedding_gives_the_tokens_of_selecting_after(
    selector: str, budgets: list[int | None]
) -> None:
    video = clip(2, 8, 3, 4, TUBELET)
    pixels, shape = TUBELET.patch_embed.patchify(video)
    choices = TUBELET.select_indices(pixels, budgets, selector)
    embeddings, _ = TUBELET.patch_embed(video)
    outputs = TUBELET(video, budget=budgets, selector=selector)
    assert len(outputs) == len(budgets)
    for budget, kept, out in zip(budgets, choices, outputs, strict=True):
        assert (out.kept is None and kept is None) or torch.equal(out.kept, kept)
        tokens = TUBELET.encode(*TUBELET.add_positions(embeddings, shape, [kept]))
        for ours in (
            TUBELET.forward_features(video, budget, selector),
            TUBELET.forward_intermediates(video, budget=budget, selector=selector).tokens,
        ):
            torch.testing.assert_close(ours, tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out.logits, TUBELET.forward_head(tokens), rtol=1e-4, atol=1e-5)
        (packed,) = TUBELET.forward_packed([video[1]], [budget], selector=selector)
        torch.testing.assert_close(packed.logits, out.logits[1:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_only_kept_tokens_are_embedded_unless_embeddings_are_read() -> None:
    video = clip(2, 8, 3, 4)
    sizes: list[int] = []
    handle = MODEL.patch_embed.proj.register_forward_hook(lambda _, args, __: sizes.append(args[0].numel()))
    values = 2 * 3 * 4**2  # Of a token in both clips.
    for selector, budgets, tokens in (
        ("group_dynamic", [24, 12], 96),
        ("two_sided_pixels", [12, 24, 5], 24),
        ("random", [12], 12),
        ("two_sided_pixels", [12, None], 96),
    ):
        MODEL(video, budget=budgets, selector=selector)
        assert sizes == [tokens * values]
        sizes.clear()
    handle.remove()


def test_the_selector_sees_the_frames_of_tubelets() -> None:
    """A tubelet that changes inside is kept, not one that only differs from those before and after."""
    model = tiny(patch_size=4, tubelet_size=4)
    video = torch.zeros(1, 3, 20, 8, 8)
    video[:, :, 8:12, :4, :4] = 5
    video[:, :, 9, 4:, 4:] = 1
    assert model(video, 1, selector="two_sided_pixels").kept.tolist() == [[8]]
    assert model(video, 1, selector="moving_pixels").kept.tolist() == [[11]]


@torch.no_grad()
def test_given_scores_of_a_batch_that_is_embedded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxvit.models.fluxvit._VALUES_AT_ONCE", 1)
    video, scores = clip(3, 4, 4, 4), torch.rand(3, 4, 16)
    outs = MODEL(video, [20, 7], selector=Given(scores))
    for number in range(3):
        alone = MODEL(video[number : number + 1], [20, 7], selector=Given(scores[number : number + 1]))
        for out, single in zip(outs, alone, strict=True):
            assert torch.equal(out.kept[number : number + 1], single.kept)
            torch.testing.assert_close(out.logits[number : number + 1], single.logits, atol=1e-5, rtol=1e-4)


def test_gradients_flow_through_tokens_selected_by_their_pixels() -> None:
    model = tiny()
    sum(out.logits.sum() for out in model(clip(2, 8, 3, 4), [24, 6], selector="two_sided_pixels")).backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0


def test_pixels_are_scored_before_they_are_rounded() -> None:
    half = tiny().bfloat16()
    video = clip(1, 8, 3, 4)
    kept = half(video, budget=20, selector="two_sided_pixels").kept
    assert torch.equal(kept, MODEL(video, budget=20, selector="two_sided_pixels").kept)


def test_bf16_model_keeps_the_tokens_of_fp32() -> None:
    embeddings = torch.randn(2, 8, 9, 32).bfloat16()
    half = tiny().bfloat16()
    assert torch.equal(
        half.select_indices(embeddings, [30])[0], MODEL.select_indices(embeddings.float(), [30])[0]
    )
    assert half(clip(1, 4, 2, 2), budget=7).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("keep", "head"), [(1000, 0), (24, 0), (19, 0), (18, 0), (17, 1), (12, 1), (7, 2), (1, 2)]
)
def test_head_of_the_nearest_budget(keep: int, head: int) -> None:
    assert MODEL.config.nearest_head(keep) == head
    assert MODEL(clip(1, 7, 12, 12), budget=keep).head == head


def test_head_can_be_overridden() -> None:
    assert MODEL(clip(1, 4, 3, 3), budget=6, head=0).head == 0
    for wrong in (3, -1):
        with pytest.raises(ValueError, match="heads 0 to 2"):
            MODEL(clip(1, 4, 3, 3), head=wrong)
        with pytest.raises(ValueError, match="heads 0 to 2"):
            MODEL.forward_packed([clip(1, 4, 3, 3)[0]], [6], head=wrong)


def test_bad_inputs_name_the_cure() -> None:
    with pytest.raises(ValueError, match="4x4 pixels; resize or crop"):
        MODEL(torch.randn(1, 3, 4, 18, 16))
    with pytest.raises(ValueError, match=r"expected a video \[B, 3, T, H, W\]"):
        MODEL(torch.randn(3, 4, 16, 16))
    with pytest.raises(ValueError, match="normalize it first"):
        MODEL(torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="tubelets of 2 frames"):
        TUBELET(torch.randn(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match="budget: tokens is 0, expected an integer"):
        MODEL(clip(1, 2, 2, 2), budget=0)
    with pytest.raises(ValueError, match="fluxvit_small"):
        create_model("fluxvit_smal")
    with pytest.raises(ValueError, match="classes"):
        create_model("fluxvit_nano", classes=3)


def test_dense_attention_equals_a_plain_formula() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 8).double()
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(q, k, v), expected)


# Positions -----------------------------------------------------------------------------------------------


def test_sincos_golden_values() -> None:
    row = sincos_table((24, 18, 18), 384)[5, 3, 7]
    golden = {0: -0.958924, 48: 0.283662, 96: 0.656987, 168: 0.753902, 240: 0.14112, 312: -0.989992}
    golden |= {1: -0.833509, 97: -0.123412, 241: 0.481026}
    for channel, value in golden.items():
        assert row[channel].item() == pytest.approx(value, abs=1e-5)


@torch.no_grad()
def test_positions_follow_their_parameters_and_are_cached() -> None:
    table = PositionTable((4, 3, 3), 32, affine=True)
    first = table((2, 5, 4))[1]
    assert table((2, 5, 4))[1] is first
    table.shift.add_(1)
    torch.testing.assert_close(table((2, 5, 4))[1], first + 1)
    table.load_state_dict(PositionTable((4, 3, 3), 32, affine=True).state_dict())
    torch.testing.assert_close(table((2, 5, 4))[1], first)


def test_positions_of_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = tiny()
        assert torch.equal(model(clip(1, 2, 5, 4)).logits, MODEL(clip(1, 2, 5, 4)).logits)


def test_positions_of_transposed_grids_are_not_confused() -> None:
    """2 x 8 and 4 x 4 tokens have one count and must have different positions."""
    table = PositionTable((2, 4, 4), 32, affine=False)
    assert not torch.allclose(table((2, 2, 8))[1], table((2, 4, 4))[1])
    assert torch.equal(table((2, 4, 4))[1], table.grid.flatten(0, 2))


def test_positions_get_gradients_at_another_grid() -> None:
    model = tiny()
    model(clip(1, 6, 5, 3), budget=9).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.pos_embed.parameters())


# Tools of timm's vocabulary ------------------------------------------------------------------------------


@torch.no_grad()
def test_features_then_head_equal_forward() -> None:
    video = clip(2, 4, 3, 3)
    out = MODEL(video, budget=13)
    tokens = MODEL.forward_features(video, budget=13)
    assert torch.equal(MODEL.forward_head(tokens), out.logits)
    assert torch.equal(MODEL.forward_head(tokens, pre_logits=True), out.embedding)


@torch.no_grad()
def test_intermediates() -> None:
    video = clip(2, 4, 3, 3)
    result = MODEL.forward_intermediates(video, [0, -1], budget=13)
    assert torch.equal(result.layers[1], result.tokens)
    assert torch.equal(result.tokens, MODEL.forward_features(video, budget=13))
    assert result.shape == (4, 3, 3)
    assert torch.equal(result.kept, MODEL(video, budget=13).kept)
    with pytest.raises(ValueError, match="blocks 0 to 1"):
        MODEL.forward_intermediates(video, [2])
    with pytest.raises(ValueError, match="the last 3 blocks: this model has 2"):
        MODEL.forward_intermediates(video, 3)


def test_reset_classifier() -> None:
    model = tiny()
    model.reset_classifier(9)
    assert model(clip(1, 2, 2, 2)).logits.shape == (1, 9)
    assert model.num_classes == 9
    model.reset_classifier(0)
    assert model(clip(1, 2, 2, 2)).logits.shape == (1, 16)


@pytest.mark.parametrize("class_dim", [0, 8])
def test_reorder_classes(class_dim: int) -> None:
    model, video = tiny(num_classes=3, class_dim=class_dim).eval(), clip(2, 2, 2, 2)
    before = model(video, budget=[13, 4])
    model.reorder_classes([2, 0, 1])
    for old, new in zip(before, model(video, budget=[13, 4]), strict=True):
        assert torch.equal(new.logits, old.logits[:, [2, 0, 1]])
    with pytest.raises(ValueError, match="an order of 3 classes"):
        model.reorder_classes([0, 1, 1])


def test_reset_budgets_copies_the_nearest_heads() -> None:
    model = tiny(budgets=(8,))
    video = clip(2, 4, 4, 4)
    before = model(video, budget=8).logits
    model.reset_budgets((12, 8, 4))
    assert model.config.budgets == (12, 8, 4)
    for head in range(3):
        assert torch.equal(model(video, budget=8, head=head).logits, before)
    # Copies, not the same parameters.
    assert len({id(head.fc.weight) for head in model.heads}) == 3
    assert model.align(torch.ones(1, model.config.pool_dim), 2).norm().item() == pytest.approx(1)
    fresh = FluxViT(model.config)
    fresh.load_state_dict(model.state_dict())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_budgets((12, 8, 4))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="must fall"):
        model.reset_budgets((4, 8))


def test_weight_decay_names_exist_and_cover_positions() -> None:
    names = dict(MODEL.named_parameters())
    assert MODEL.no_weight_decay() <= set(names)
    decayed = {n for n, p in names.items() if p.ndim > 1} - MODEL.no_weight_decay()
    assert all(name.endswith("weight") for name in decayed)


def test_group_matcher_tells_stem_blocks_and_the_rest_apart() -> None:
    import re

    found = {
        name: [key for key, pattern in MODEL.group_matcher().items() if re.match(pattern, name)]
        for name, _ in MODEL.named_parameters()
    }
    for name, keys in found.items():
        part = name.split(".")[0]
        expected = (
            ["blocks"] if part == "blocks" else [] if part in ("heads", "head_norm", "aligners") else ["stem"]
        )
        assert keys == expected, name


def test_checkpointing_leaves_gradients_alone() -> None:
    plain, thrifty = tiny(), tiny()
    thrifty.set_grad_checkpointing()
    for model in (plain, thrifty):
        model(clip(2, 4, 3, 3), budget=11).logits.square().sum().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_export_with_a_fixed_budget_and_dynamic_batch() -> None:
    class Deployed(torch.nn.Module):
        def __init__(self, model: FluxViT) -> None:
            super().__init__()
            self.model = model

        def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out = self.model(video, budget=12)
            return out.logits, out.kept

    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Deployed(MODEL), (clip(2, 6, 5, 3),), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        video = clip(size, 6, 5, 3, seed=size)
        logits, kept = program.module()(video)
        out = MODEL(video, budget=12)
        assert torch.equal(kept, out.kept)
        torch.testing.assert_close(logits, out.logits)


def test_drop_path_keeps_the_mean_and_treats_clips_apart() -> None:
    drop_path = tiny(drop_path=0.5).train().blocks[-1].drop_path
    dense = drop_path(torch.ones(4000, 2, 1))
    assert dense.mean().item() == pytest.approx(1, abs=0.1)
    assert set(dense.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dense[:, 0], dense[:, 1])
    packed = drop_path(torch.ones(1, 2000 * 5, 1), Packing.of([2, 3] * 2000, torch.device("cpu")))
    assert packed.mean().item() == pytest.approx(1, abs=0.1)
    assert all(len(clip.unique()) == 1 for clip in packed.split([2, 3] * 2000, dim=1))


def test_training_in_bf16_on_a_cpu_attends_in_fp32() -> None:
    q, k, v = torch.randn(3, 2, 2, 9, 16).bfloat16()
    expected = torch.softmax(q.float() @ k.float().transpose(2, 3) / 4, -1) @ v.float()
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(q.requires_grad_(), k, v)
    assert torch.equal(out, attention(q.float(), k.float(), v.float()).bfloat16())
    torch.testing.assert_close(out.float(), expected, rtol=0.005, atol=0.005)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the native kernel is for CUDA only")
def test_native_packed_attention_equals_one_sequence_after_the_other() -> None:
    here, there = (Packing.of([5, 17, 1], torch.device(device)) for device in ("cpu", "cuda"))
    q, k, v = torch.randn(3, 1, 2, 23, 64)
    native = attention(*(t.cuda().bfloat16() for t in (q, k, v)), there)
    torch.testing.assert_close(native.float().cpu(), attention(q, k, v, here), rtol=0.05, atol=0.05)


def test_clips_of_absurd_size_are_refused_before_anything_is_allocated() -> None:
    model = create_model("fluxvit_small", depth=1)
    with pytest.raises(ValueError, match=r"more than the limit of \d+; use fewer frames"):
        model(torch.zeros(1).expand(1, 3, 8, 8000, 8000))
