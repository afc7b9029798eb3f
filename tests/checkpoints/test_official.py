"""Other people's files, faked with random weights: their names and shapes are written out here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.folder import compare_keys
from fluxvit.checkpoints.official import (
    convert_internvideo2,
    convert_official,
    from_official,
    infer_internvideo2_config,
    is_internvideo2,
    load_internvideo2,
    numbered_tower,
)
from fluxvit.checkpoints.weights import read_weights
from fluxvit.cli import main
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import FluxViT, create_model
from to_official import to_official
from towers import tower_shapes

# The authors' files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-size small model in the authors' format."""
    torch.manual_seed(1)
    model = create_model("fluxvit_small", layer_scale=0.1)
    path = tmp_path_factory.mktemp("release") / "fluxvit_s14.pth"
    content = {"module": to_official(model.state_dict(), model.config), "args": argparse.Namespace(lr=1.0)}
    torch.save(content, path)
    return path


def test_converted_full_size_model_runs_at_batch_one(released: Path, tmp_path: Path, capsys) -> None:
    assert main(["convert", str(released), str(tmp_path / "s"), "--activation", "gelu"]) == 0
    # 246 of the authors' tensors; ours keep the class token's position apart.
    assert "247 tensors used, 0 missing, 0 unexpected" in capsys.readouterr().out
    torch.manual_seed(1)
    original = create_model("fluxvit_small", layer_scale=0.1, activation="gelu").eval()
    info = Checkpoint.load(tmp_path / "s")
    model = info.model
    assert model.config.activation == "gelu"
    assert len(info.grids) == 41
    video = torch.randn(1, 3, 4, 56, 42)
    with torch.no_grad():
        torch.testing.assert_close(model(video, 30).logits, original(video, 30).logits)


def test_conversion_refuses_what_does_not_match(released: Path, tmp_path: Path) -> None:
    content = {"model": read_weights(released)}
    del content["model"]["blocks.3.norm1.weight"]
    content["model"]["surprise"] = torch.zeros(2)
    content["model"]["fc_norm.bias"] = torch.zeros(5)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="the tensors are not a FluxViT's") as error:
        convert_official(tmp_path / "odd.pth")
    for name in ("blocks.3.norm1.weight", "surprise", "head_norm.bias: [5] in the file, [768] here"):
        assert name in str(error.value)


def test_conversion_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    torch.save(
        {"patch_embed.proj.weight": torch.zeros(1), "pos_embed": torch.zeros(1)}, tmp_path / "flat.pth"
    )
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in [
        ("text.pth", "not a PyTorch file"),
        ("flat.pth", "not a FluxViT"),
        ("other.pth", "not a FluxViT"),
        ("list.pth", "holds no state dict"),
        ("missing.pth", "no such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert_official(tmp_path / name)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    with pytest.raises(ValueError, match="could run code"):
        convert_official(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


# InternVideo2's files --------------------------------------------------------------------------------------


def distilled_extras(width: int, frames: int = 8, teacher: int = 1408) -> dict[str, tuple[int, ...]]:
    """What a distilled tower's file holds besides."""
    shapes: dict[str, tuple[int, ...]] = {"clip_pos_embed": (1, 1 + frames * 256, width)}
    for decoder, inner, outer in [
        *((f"clip_decoder.{i}", width, teacher) for i in range(6)),
        ("final_clip_decoder", 768, 768),
    ]:
        shapes |= {
            f"{decoder}.head.0.weight": (inner, inner),
            f"{decoder}.head.0.bias": (inner,),
            f"{decoder}.head.2.weight": (outer, inner),
            f"{decoder}.head.2.bias": (outer,),
            f"{decoder}.norm.weight": (outer,),
            f"{decoder}.norm.bias": (outer,),
        }
    return shapes


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random tensors, strong enough that every one of them is seen in the result."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in shapes.items():
        about = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        std = 0.3 if len(shape) == 1 else 0.1
        tensors[name] = about + std * torch.randn(shape, generator=generator)
    return tensors


def separated(state: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The same file with separate position tables, and its joint one made to be their sum."""
    width = state["cls_token"].shape[-1]
    parts = drawn(
        {
            "pos_embed_cls": (1, 1, width),
            "pos_embed_spatial": (1, 256, width),
            "pos_embed_temporal": (1, frames, width),
        }
    )
    rows = [
        parts["pos_embed_spatial"][0, place] + parts["pos_embed_temporal"][0, frame]
        for frame in range(frames)
        for place in range(256)
    ]
    state["pos_embed"] = torch.cat([parts["pos_embed_cls"], torch.stack(rows)[None]], dim=1)
    return {name: value for name, value in state.items() if name != "pos_embed"} | parts


@torch.no_grad()
def reference(state: Mapping[str, Tensor], video: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """A tower's tokens and pooled vector, written down from its description, with its own names."""

    def layer(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    x = F.conv3d(video, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(1, 14, 14))
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    i = 0
    while f"blocks.{i}.norm1.weight" in state:
        block = f"blocks.{i}"
        q, k, v = layer(rms(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        mixed = attend(rms(q, f"{block}.attn.q_norm"), rms(k, f"{block}.attn.k_norm"), v, heads)
        x = x + layer(mixed, f"{block}.attn.proj") * state[f"{block}.ls1.gamma"]
        hidden = F.gelu(layer(rms(x, f"{block}.norm2"), f"{block}.mlp.fc1"), approximate="tanh")
        x = x + layer(hidden, f"{block}.mlp.fc2") * state[f"{block}.ls2.gamma"]
        i += 1

    def pooling(x: Tensor, name: str) -> Tensor:
        norm = f"clip_projector.norm1_{name}"
        x = F.layer_norm(x, x.shape[-1:], state[f"{norm}.weight"], state[f"{norm}.bias"])
        return layer(x, f"clip_projector.cross_attn.{name}") + state[f"clip_projector.cross_attn.{name}_bias"]

    query = x.mean(1, keepdim=True)
    pooled = attend(pooling(query, "q"), pooling(x, "k"), pooling(x, "v"), 16)
    return x, layer(pooled, "clip_projector.cross_attn.proj")[:, 0]


def classified(state: Mapping[str, Tensor], pooled: Tensor) -> Tensor:
    normed = F.layer_norm(pooled, (768,), state["fc_norm.weight"], state["fc_norm.bias"])
    return F.linear(normed, state["head.weight"], state["head.bias"])


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def tuned() -> dict[str, Tensor]:
    """A small tower with a classifier."""
    return drawn(tower_shapes(64, 2, 192, classes=5))


@pytest.fixture(scope="module")
def tuned_file(tuned: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("iv2") / "ft.pth", {"module": tuned, "args": argparse.Namespace()})


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randn(1, 3, 8, 224, 224, generator=torch.Generator().manual_seed(4))


def test_tower_computes_what_internvideo2_does(
    tuned: dict[str, Tensor], tuned_file: Path, video: Tensor
) -> None:
    tower = load_internvideo2(tuned_file)
    assert not tower.training
    config = tower.config
    assert not any((config.dual_patch_norm, config.global_position, config.local_position))
    assert (config.table_shape, config.budgets, config.num_heads) == ((8, 16, 16), (2048,), 1)
    assert (config.activation, config.mlp_ratio, config.num_classes) == ("gelu_tanh", 3, 5)
    tokens, pooled = reference(tuned, video, heads=1)
    with torch.no_grad():
        torch.testing.assert_close(tower.forward_features(video), tokens, rtol=1e-4, atol=1e-4)
        out = tower(video)
    torch.testing.assert_close(out.embedding, pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.logits, classified(tuned, pooled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flat", "backbone", "separate", "stage2"])
def test_files_of_four_frames(kind: str, video: Tensor, tmp_path: Path) -> None:
    """Distilled, separate position tables, and a tower among others, in half precision."""
    state = drawn(tower_shapes(64, 2, 256, frames=4))
    content: dict[str, object] = {}
    if kind == "flat":
        content = {**state, **drawn(distilled_extras(64, frames=4, teacher=48))}
    elif kind == "backbone":
        content = {"model": {f"backbone.{name}": value for name, value in state.items()}}
    elif kind == "separate":
        beside = drawn({"clip_pos_embed_temporal": (1, 4, 64), "mae_pos_embed_spatial": (1, 256, 64)})
        content = {"model": separated(state, 4) | beside | drawn({"mae_decoder.0.head.0.weight": (64, 64)})}
    else:
        state = {name: value.bfloat16().float() for name, value in state.items()}
        beside = drawn({"img_pos_embed": (1, 257, 64), "clip_img_pos_embed": (1, 257, 64)})
        content = {f"vision_encoder.{name}": value.bfloat16() for name, value in (state | beside).items()}
        content |= drawn({"text_encoder.blocks.7.norm1.weight": (9,), "cls_token": (1, 1, 9)})
        content = {"module": content | {"temp": torch.tensor(0.07)}}
    path = saved(tmp_path / "it.pth", content)
    assert is_internvideo2(read_weights(path))
    tower = load_internvideo2(path)
    assert (tower.config.table_shape, tower.config.budgets, tower.num_classes) == ((4, 16, 16), (1024,), 0)
    assert {p.dtype for p in tower.parameters()} == {torch.float32}
    with torch.no_grad():
        out = tower(video[:, :, ::2])
    pooled = reference(state, video[:, :, ::2], heads=1)[1]
    torch.testing.assert_close(out.embedding, pooled, rtol=1e-4, atol=1e-4)
    # There is no classifier to read the norm before it: it is a fresh one.
    torch.testing.assert_close(out.logits, F.layer_norm(pooled, (768,)), rtol=1e-4, atol=1e-4)
    report = convert_internvideo2(path, exact=True)[1]
    dropped = {
        "flat": "clip_pos_embed (1), clip_decoder (36), final_clip_decoder (6)",
        "backbone": "nothing",
        "separate": "clip_pos_embed_temporal (1), mae_pos_embed_spatial (1), mae_decoder (1)",
        "stage2": "img_pos_embed (1), clip_img_pos_embed (1), text_encoder (1), cls_token (1), temp (1)",
    }
    assert f"dropped: {dropped[kind]}\n" in str(report)
    assert "initial values: aligners and head_norm" in str(report)


def test_every_tensor_comes_back(tuned: dict[str, Tensor]) -> None:
    config = infer_internvideo2_config(tuned)
    back = to_official(from_official(numbered_tower(tuned), config), config)
    assert len(back) == len(tuned)
    for name, value in back.items():
        assert torch.equal(
            value, tuned[name.replace("projector.0.", "projector.").replace("head.0.", "head.")]
        )


def test_exact_conversion_computes_what_the_tower_does(tuned_file: Path, video: Tensor) -> None:
    tower = load_internvideo2(tuned_file)
    model, report = convert_internvideo2(tuned_file, exact=True, budgets=(96, 48))
    assert model.config == replace(tower.config, budgets=(96, 48))
    video = video[:, :, :4, :112, :112]
    with torch.no_grad():
        for budget in (None, 96, 48):
            wanted = tower(video, budget)
            out = model(video, budget)
            assert out.head == (1 if budget == 48 else 0)
            torch.testing.assert_close(out.embedding, wanted.embedding)
            torch.testing.assert_close(out.logits, wanted.logits)
        assert model.align(out.embedding, head=1).shape == (1, 768)
    model.train()(video, 48).logits.sum().backward()
    assert model.heads[1].fc.weight.grad is not None
    assert "copied to the heads of 96, 48 tokens" in str(report)
    assert "computes the same as the tower" in str(report)


def test_only_the_patch_norms_change_what_a_tower_computes(tuned_file: Path) -> None:
    tower = load_internvideo2(tuned_file)
    model, report = convert_internvideo2(tuned_file)
    assert model.config.budgets == (3072, 2048, 1024)
    for name, value in model.state_dict().items():
        if name.endswith(("local_scale", "local_shift", "pos_embed.shift")):
            assert not value.any(), name
        if name in ("patch_embed.norm_before.weight", "patch_embed.norm.weight", "pos_embed.scale"):
            assert torch.equal(value, torch.ones_like(value)), name
    embeddings = torch.randn(1, 6, 100, 64)
    with torch.no_grad():
        for kept in (None, torch.arange(0, 600, 7)[None]):
            wanted = tower.encode(*tower.add_positions(embeddings, (6, 10, 10), [kept]))
            tokens = model.encode(*model.add_positions(embeddings, (6, 10, 10), [kept]))
            torch.testing.assert_close(tokens, wanted)
            for head in range(3):
                torch.testing.assert_close(model.forward_head(tokens, head), tower.forward_head(wanted, 0))
        clip = torch.randn(1, 3, 4, 112, 112)
        assert not torch.allclose(model(clip).logits, tower(clip).logits, atol=0.1)
    assert all(p.requires_grad for p in model.parameters())
    assert "must be trained before use" in str(report)
    assert "position table: kept, 8x16x16" in str(report)


@pytest.mark.parametrize(("width", "shape"), [(384, (24, 18, 18)), (768, (32, 20, 20))])
def test_position_table_is_resampled_to_the_released_size(
    width: int, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    state = drawn(tower_shapes(width, 1, 2 * width))
    model, report = convert_internvideo2(saved(tmp_path / "it.pth", state))
    assert (model.config.table_shape, model.config.num_heads) == (shape, width // 64)
    assert torch.equal(model.pos_embed.cls, state["pos_embed"][0, :1])
    table = state["pos_embed"][:, 1:].unflatten(1, (8, 16, 16)).permute(0, 4, 1, 2, 3)
    channels = table[0, :3]
    rows = F.interpolate(channels.flatten(2).transpose(1, 2), size=shape[0], mode="linear")
    planes = rows.transpose(1, 2).unflatten(2, (16, 16))
    planes = F.interpolate(planes, size=shape[1:], mode="bicubic")
    torch.testing.assert_close(model.pos_embed.grid.detach()[..., :3].permute(3, 0, 1, 2), planes)
    assert f"resampled, 8x16x16 to {'x'.join(map(str, shape))}" in str(report)


def test_files_that_do_not_fit_are_refused(tuned: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(tuned)
    del state["blocks.1.norm1.weight"]
    del state["fc_norm.weight"]
    state["surprise"] = torch.zeros(2)
    state["gpe_proj.depthwise_conv.bias"] = torch.zeros(64)
    state["blocks.0.ls1.gamma"] = torch.zeros(7)
    path = saved(tmp_path / "odd.pth", state)
    for read in (load_internvideo2, convert_internvideo2):
        with pytest.raises(ValueError, match="not an InternVideo2 tower's") as error:
            read(path)
        assert "\n" not in str(error.value)
        for line in (
            "2 missing (",
            "blocks.1.norm1.weight",
            "head_norm.weight",
            "2 unexpected (",
            "surprise",
            "pos_embed.shift",
            "blocks.0.ls1.gamma: [7] in the file, [64] here",
        ):
            assert line in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pos_embed": (1, 1 + 4 * 196, 64)}, "784 grid rows; InternVideo2 has 256"),
        ({"pos_embed": (1, 1, 64)}, "0 grid rows"),
        ({"pos_embed": (5,)}, "not an InternVideo2 tower"),
        ({"pos_embed": None, "pos_embed_cls": (1, 1, 64)}, "'pos_embed' is missing"),
        ({"patch_embed.proj.weight": None}, "'patch_embed.proj.weight' is missing"),
    ],
)
def test_shapes_that_are_no_tower(
    change: dict[str, tuple[int, ...] | None], reason: str, tuned: dict[str, Tensor], tmp_path: Path
) -> None:
    state = dict(tuned)
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=reason):
        load_internvideo2(saved(tmp_path / "odd.pth", state))


def empty(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def on_meta(state: Mapping[str, Tensor]) -> FluxViT:
    with torch.device("meta"):
        return FluxViT(infer_internvideo2_config(state))


@pytest.mark.parametrize(("width", "parameters"), [(384, 23_591_366), (768, 89_986_502)])
def test_fine_tuned_sizes(width: int, parameters: int) -> None:
    state = empty(tower_shapes(width, 12, 4 * width, classes=710))
    assert (len(state), sum(value.numel() for value in state.values())) == (178, parameters)
    model = on_meta(state)
    report = compare_keys(from_official(numbered_tower(state), model.config), model)
    # Ours keep the class token's position apart.
    assert report.matches
    assert len(report.used) == 179
    assert sum(p.numel() for p in model.parameters()) == parameters
    distilled = tower_shapes(width, 12, 4 * width) | distilled_extras(width)
    assert len(distilled) == 217
    total = sum(torch.Size(shape).numel() for shape in distilled.values())
    assert round(total / 1e6, 2) == {384: 29.17, 768: 102.25}[width]


def test_teacher_of_1b() -> None:
    width, hidden, depth = 1408, 6144, 40
    state = empty(tower_shapes(width, depth, hidden))
    model = on_meta(state)
    assert (model.config.num_heads, model.config.table_shape) == (16, (8, 16, 16))
    report = compare_keys(from_official(numbered_tower(state), model.config), model)
    assert (report.missing, report.unexpected) == (["head_norm.weight", "head_norm.bias"], [])
    assert report.mismatched == []
    # Attention 4 C^2 + C, MLP 2 C H + C + H, and six vectors: norms, those of queries and keys, layer scales.
    block = 4 * width**2 + 2 * width * hidden + 8 * width + hidden
    pool = 3 * (width**2 + 3 * width) + 768 * width + 768
    table = width * (1 + 8 * 256)
    patches = width * (3 * 14 * 14 + 1)
    parameters = depth * block + pool + table + patches + width
    assert sum(value.numel() for value in state.values()) == parameters
    assert sum(p.numel() for p in model.parameters()) == parameters + 2 * 768
    assert parameters == pytest.approx(1.02e9, rel=0.01)


def test_convert_command_tells_the_kinds_apart(tuned_file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne")
    labels = ["--labels", str(tmp_path / "names.txt")]
    assert main(["convert", str(tuned_file), str(tmp_path / "start"), "--budgets", "512,256", *labels]) == 0
    assert "must be trained before use" in capsys.readouterr().out
    info = Checkpoint.load(tmp_path / "start")
    model = info.model
    assert (model.config.budgets, model.config.dual_patch_norm) == ((512, 256), True)
    assert (info.labels, len(info.grids)) == (list("abcde"), 18)
    assert main(["convert", str(tuned_file), str(tmp_path / "same"), "--exact", "--activation", "gelu"]) == 0
    info = Checkpoint.load(tmp_path / "same")
    model = info.model
    assert (model.config.budgets, model.config.dual_patch_norm) == ((3072, 2048, 1024), False)
    assert model.config.activation == "gelu"
    assert info.grids == [SamplingGrid(8, 224, 224)]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("flux", ["--exact"], "--exact is for InternVideo2's files"),
        ("flux", ["--budgets", "2048"], "--budgets is for InternVideo2's files"),
        ("tower", ["--budgets", "many"], "each an integer"),
        ("tower", ["--budgets", "512,1024"], "must fall"),
    ],
)
def test_options_of_the_other_kind(
    kind: str, options: list[str], message: str, tuned_file: Path, tmp_path: Path, capsys
) -> None:
    source = tuned_file
    if kind == "flux":
        source = saved(tmp_path / "flux.pth", {"clip_projector.0.cross_attn.proj.weight": torch.zeros(1)})
    assert main(["convert", str(source), str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
