"""A CLIP teacher gives what the network of transformers computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.huggingface_vision import CLIP_PIXELS, huggingface_teacher
from fluxvit.models.teachers import resample_maps

transformers = pytest.importorskip("transformers")

BLOCKS, WIDTH, PATCH = 3, 32, 4
# Of the student's pool: three dimensions that differ, and a height and width that positions do not have.
SHAPE = (3, 5, 2)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "patch_size": PATCH,
    "image_size": 16,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


class Expected(NamedTuple):
    """Of N images: ``layers`` ``[N, L, D]``, ``pooled`` ``[N, P]`` and ``attention`` ``[N, L]``."""

    layers: list[Tensor]
    pooled: Tensor
    attention: Tensor


def normed(norm: Any, out: Any, prefix: int = 0) -> list[Tensor]:
    return [norm(layer[:, prefix:]) for layer in out.hidden_states[1:]]


def asked(network: Any, *inputs: Tensor, **options: Any) -> Any:
    blocks = next(module for module in network.modules() if isinstance(module, torch.nn.ModuleList))
    left: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: left.append(out[0] if isinstance(out, tuple) else out))
        for block in blocks
    ]
    out = network(*inputs, output_hidden_states=True, output_attentions=True, **options)
    for hook in hooks:
        hook.remove()
    if transformers.__version__ < "5":
        # In version 4 the last one has gone through the final norm.
        out.hidden_states = (None, *left)
    return out


def clip(model: Any, images: Tensor) -> Expected:
    out = asked(model.vision_model, images, interpolate_pos_encoding=True)
    layers = [model.visual_projection(x) for x in normed(model.vision_model.post_layernorm, out, 1)]
    pooled = model.visual_projection(out.pooler_output)
    return Expected(layers, pooled, out.attentions[-1][:, :, 0, 1:].mean(1))


def clip_tower(model: Any, images: Tensor) -> Expected:
    out = asked(model, images, interpolate_pos_encoding=True)
    layers = normed(getattr(model, "vision_model", model).post_layernorm, out, 1)
    return Expected(layers, out.pooler_output, out.attentions[-1][:, :, 0, 1:].mean(1))


class Case(NamedTuple):
    """``model`` builds a network; ``expected`` runs it on images."""

    model: Callable[[], Any]
    expected: Callable[[Any, Tensor], Expected]
    width: int = WIDTH


def make(kind: str, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))


def make_tower() -> Any:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VIT))


TEXT_CLIP = {**TEXT, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1}
CASES = {
    "clip": Case(
        make("CLIP", text_config=TEXT_CLIP, vision_config={**VIT, "projection_dim": 7}, projection_dim=24),
        clip,
        24,
    ),
    "clip_vision_model": Case(make_tower, clip_tower),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, str]]:
    """A network of a case, all its parameters random, with eager attention; and a folder that it is in."""
    made: dict[str, tuple[Any, str]] = {}

    def save(name: str) -> tuple[Any, str]:
        if name not in made:
            torch.manual_seed(0)
            model = CASES[name].model().eval().requires_grad_(False)
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            settings = {"image_mean": MEAN, "image_std": STD}
            (folder / "preprocessor_config.json").write_text(json.dumps(settings))
            model.set_attn_implementation("eager")
            made[name] = model, str(folder)
        return made[name]

    return save


def noise(frames: int, height: int, width: int) -> Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def normalised(video: Tensor) -> Tensor:
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (MEAN, STD))
    return (video - mean) / std


def check(found: Any, layers: list[Tensor], pooled: Tensor, attention: Tensor) -> None:
    """The expected are maps of the student's grid."""
    for layer, reference in zip(found.layers, layers, strict=True):
        torch.testing.assert_close(layer, reference.flatten(1, 3), rtol=1e-5, atol=1e-5)
        assert not layer.requires_grad
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    attention = attention.flatten(1)
    attention = attention / attention.sum(1, keepdim=True)
    torch.testing.assert_close(found.attention, attention, rtol=1e-4, atol=1e-6)


def maps(layer: Tensor, *shape: int) -> Tensor:
    """Tokens ``[N, L, ...]`` of frames or clips as maps of two clips."""
    return layer.reshape(2, *shape, *layer.shape[2:])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [0, 24])
def test_image_networks(name: str, size: int, saved: Callable[[str], tuple[Any, str]]) -> None:
    model, folder = saved(name)
    teacher = huggingface_teacher(folder, size=size, dtype=torch.float32)
    assert teacher.widths == (CASES[name].width,) * BLOCKS
    assert teacher.pooled_width == CASES[name].width
    assert not teacher.class_token
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    grid = teacher.grid(SHAPE)
    assert grid == (3, size or 5 * PATCH, size or 2 * PATCH)

    video = noise(*grid)
    found = teacher.features(video, SHAPE, layers=range(BLOCKS))
    frames = normalised(video).transpose(1, 2).flatten(0, 1)
    expected = CASES[name].expected(model, frames)
    own = (grid[0], grid[1] // PATCH, grid[2] // PATCH)
    layers = [resample_maps(maps(x, *own), SHAPE[1:]) for x in expected.layers]
    # All frames count alike.
    attention = maps(expected.attention / expected.attention.sum(1, keepdim=True), *own)
    attention = resample_maps(attention[..., None], SHAPE[1:])
    check(found, layers, maps(expected.pooled[:, None], 3).mean(1), attention)


@pytest.mark.parametrize("name", CASES)
def test_bf16_and_kept_tokens(name: str, saved: Callable[[str], tuple[Any, str]]) -> None:
    _, folder = saved(name)
    exact, teacher = huggingface_teacher(folder, dtype=torch.float32), huggingface_teacher(folder)
    video, kept = noise(6, 24, 24), torch.tensor([[0, 7, 12], [3, 4, 29]])
    found, reference = (x.features(video, SHAPE, kept, layers=[-1, 0, -1]) for x in (teacher, exact))
    assert all(layer.dtype == torch.bfloat16 for layer in found.layers)
    assert torch.equal(found.layers[0], found.layers[2])
    assert found.attention.dtype == torch.float32
    torch.testing.assert_close(found.attention.sum(1), torch.ones(2))
    whole = exact.features(video, SHAPE)
    torch.testing.assert_close(
        reference.layers[0], whole.layers[0].gather(1, kept[..., None].expand(-1, -1, exact.widths[-1]))
    )
    for layer, other in zip(found.layers, reference.layers, strict=True):
        assert F.cosine_similarity(layer.float(), other, dim=-1).min() > 0.995
    torch.testing.assert_close(found.attention, reference.attention, rtol=0.1, atol=0.01)


def test_pixels_are_normalised_as_for_clip_where_the_folder_says_nothing(tmp_path: Path) -> None:
    make_tower().save_pretrained(tmp_path)
    teacher = huggingface_teacher(str(tmp_path))
    assert (teacher.mean, teacher.std) == CLIP_PIXELS
    # As transformers 5 saves it.
    settings = {"image_processor": {"image_mean": MEAN, "image_std": STD}}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    teacher = huggingface_teacher(str(tmp_path))
    assert (teacher.mean, teacher.std) == (MEAN, STD)


def test_sizes_that_do_not_suit(saved: Callable[[str], tuple[Any, str]]) -> None:
    with pytest.raises(ValueError, match="size 18 is no multiple of the teacher's patch, 4: take 16 or 20"):
        huggingface_teacher(saved("clip")[1], size=18)
    with pytest.raises(ValueError, match="size 2 is no multiple of the teacher's patch, 4: take 4"):
        huggingface_teacher(saved("clip")[1], size=2)


def test_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str | Path, reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as caught:
            huggingface_teacher(str(source))
        assert str(source) in str(caught.value)
        assert "Give a folder" in str(caught.value)
        assert "clip_vision_model" in str(caught.value)

    refused(tmp_path / "nowhere", "there is no such folder")
    refused(tmp_path, "config.json")
    transformers.ViTConfig(**VIT).save_pretrained(tmp_path)
    refused(tmp_path, "networks of type 'vit' are not supported")
    transformers.CLIPVisionConfig(**VIT).save_pretrained(tmp_path)
    refused(tmp_path, "safetensors")
    make_tower().save_pretrained(tmp_path)
    transformers.CLIPVisionConfig(**{**VIT, "num_hidden_layers": 4}).save_pretrained(tmp_path)
    refused(tmp_path, "its weights lack 16 tensors")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    refused("somebody/network", "couldn't connect to the hub. Give a folder .* hf download")


def rename_tower(folder: Path, change: Callable[[str], str]) -> None:
    """Rename the tensors of a saved tower."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({change(name): value for name, value in tensors.items()}, file, {"format": "pt"})


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_towers_of_every_version_of_the_library(tmp_path: Path, prefix: str) -> None:
    # Version 4 writes a tower's tensors as vision_model.x, version 5 as x.
    model = make_tower()
    model.save_pretrained(tmp_path)
    rename_tower(tmp_path, lambda name: prefix + name.removeprefix("vision_model."))
    teacher = huggingface_teacher(str(tmp_path), dtype=torch.float32)
    saved = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    loaded = {name.removeprefix("vision_model."): v for name, v in teacher.network.state_dict().items()}
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in saved.items())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'fluxvit\[huggingface\]'"):
        huggingface_teacher("openai/clip-vit-base-patch16")
