from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import small_model
from fluxvit.models.fluxvit import create_model
from fluxvit.models.teachers import FluxViTTeacher, ImageTeacher, Maps, fit_clip, resample_maps
from fluxvit.training.recipes import TeacherSettings
from fluxvit.training.runs.pretrain import open_teacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def normalised(video: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (MEAN, STD))
    return (video - mean) / std


# FluxViT ---------------------------------------------------------------------------------------------------


def test_a_fluxvit_gives_what_it_computes() -> None:
    model = small_model(0)
    teacher = FluxViTTeacher(small_model(0), MEAN, STD, torch.float32)
    video = torch.rand(2, 3, 8, 24, 32)
    expected = model.forward_intermediates(normalised(video), [0, 1])
    found = teacher.features(video, (4, 3, 4), None, [0, -1])
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(ours, theirs)
    pooled = model.forward_head(expected.tokens, pre_logits=True)
    torch.testing.assert_close(found.pooled, pooled)
    assert teacher.class_token
    assert (teacher.depth, teacher.widths, teacher.pooled_width) == (2, (32, 32), 16)


def test_attention_is_what_pooling_weighs_tokens_by() -> None:
    """Seen from outside: the pooled vector is linear in the values, so a value's share is its weight."""
    pool = small_model(0).heads[0].pool
    pool.num_heads = 1
    tokens = torch.randn(2, 7, 32)
    values = []
    pool.v.register_forward_hook(lambda *args: values.append(args[2]))
    pool.proj = nn.Identity()
    mixed = pool(tokens)
    torch.testing.assert_close(mixed, torch.einsum("bn,bnc->bc", pool.attention(tokens), values[0]))


def test_tokens_that_are_not_kept_never_reach_its_blocks() -> None:
    teacher = FluxViTTeacher(small_model(0), MEAN, STD, torch.float32)
    seen = []
    teacher.network.blocks[0].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    kept = torch.tensor([[0, 5, 7], [1, 2, 30]])
    found = teacher.features(torch.rand(2, 3, 8, 24, 32), (4, 3, 4), kept, [0])
    assert seen == [1 + 3]
    assert found.layers[0].shape == (2, 4, 32)
    assert found.attention.shape == (2, 3)
    torch.testing.assert_close(found.attention.sum(1), torch.ones(2))


@pytest.mark.parametrize("grid", [(8, 24, 24), (4, 32, 16)])
def test_its_tokens_lie_where_the_students_do(grid: tuple[int, int, int]) -> None:
    """A student of smaller patches, and of every frame: the clip is enlarged, and frames repeat."""
    teacher = FluxViTTeacher(small_model(0), MEAN, STD, torch.float32)
    assert teacher.grid((8, 6, 6)) == (16, 48, 48)
    frames, height, width = grid
    found = teacher.features(torch.rand(1, 3, *grid), (frames, height // 4, width // 4))
    assert found.layers[0].shape == (1, 1 + frames * height * width // 16, 32)


def test_bf16_is_close_to_fp32() -> None:
    video = torch.rand(2, 3, 8, 24, 24)
    exact, rough = (
        FluxViTTeacher(small_model(0), MEAN, STD, dtype).features(video, (4, 3, 3))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.layers[0].dtype == torch.bfloat16
    assert rough.attention.dtype == torch.float32
    similarity = torch.cosine_similarity(rough.layers[0].float(), exact.layers[0], dim=-1)
    assert similarity.min() > 0.999


def test_autocast_and_training_mode_of_others_do_not_reach_it() -> None:
    teacher = FluxViTTeacher(create_model("fluxvit_nano", drop_path=0.9), MEAN, STD, torch.float32)
    video = torch.rand(2, 3, 4, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = [teacher.features(video, (2, 2, 2)).pooled for _ in range(2)]
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)
    assert not found[0].requires_grad


@pytest.mark.parametrize("layer", [2, -3])
def test_layers_that_are_not_there(layer: int) -> None:
    teacher = FluxViTTeacher(small_model(0), MEAN, STD)
    with pytest.raises(ValueError, match=r"has layers 0 to 1"):
        teacher.features(torch.rand(1, 3, 2, 8, 8), (1, 1, 1), None, [layer])


# Maps ------------------------------------------------------------------------------------------------------


class ColourTeacher(ImageTeacher):
    """Its map is the colour of every 4x4 pixels."""

    def __init__(self) -> None:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        super().__init__(nn.AvgPool2d(4), widths=[3], pooled_width=3, mean=mean, std=std, dtype=torch.float32)

    def grid(self, shape):
        return shape[0], 16, 16

    def _frames(self, images, layers):
        found = self.network(images).permute(0, 2, 3, 1)
        return Maps([found] * len(layers), found.mean((1, 2)), found.float().square().sum(-1))


def test_maps_lie_where_the_students_tokens_do() -> None:
    """Every frame and place has a colour of its own, and each token gets that of its place."""
    colours = torch.rand(2, 3, 4, 4, 4)
    video = colours.repeat_interleave(4, 3).repeat_interleave(4, 4)
    found = ColourTeacher().features(video, (4, 4, 4))
    torch.testing.assert_close(found.layers[0], colours.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found.pooled, colours.mean((2, 3, 4)))
    kept = torch.tensor([[0, 17, 63], [5, 6, 40]])
    some = ColourTeacher().features(video, (4, 4, 4), kept)
    for clip in range(2):
        torch.testing.assert_close(some.layers[0][clip], found.layers[0][clip, kept[clip]])
        share = found.attention[clip, kept[clip]]
        torch.testing.assert_close(some.attention[clip], share / share.sum())


def test_every_frame_has_the_same_share_of_the_attention() -> None:
    video = torch.rand(1, 3, 4, 16, 16) * torch.tensor([0.1, 1, 0.5, 0.2]).view(4, 1, 1)
    attention = ColourTeacher().features(video, (4, 4, 4)).attention
    torch.testing.assert_close(attention.view(4, 16).sum(1), torch.full((4,), 0.25))


def test_other_lattices_are_interpolated() -> None:
    """A brightness that rises evenly along every axis does so on any lattice."""
    axes = torch.meshgrid(torch.linspace(0, 1, 6), torch.linspace(0, 1, 6), indexing="ij")
    maps = torch.stack(axes, dim=-1)[None, None].expand(1, 2, -1, -1, -1)
    assert resample_maps(maps, (6, 6)) is maps
    for size in ((3, 3), (12, 9), (6, 4)):
        found = resample_maps(maps, size)
        assert found.shape == (1, 2, *size, 2)
        for axis, steps in enumerate(size):
            values = found[0, 0, ..., axis].movedim(axis, 0)
            assert (values - values.mean(1, keepdim=True)).abs().max() < 1e-5
            middle = (torch.arange(steps) + 0.5) / steps
            inner = (middle > 0.2) & (middle < 0.8)
            expected = (middle * 6 - 0.5) / 5
            torch.testing.assert_close(values.mean(1)[inner], expected[inner], atol=0.04, rtol=0)


def test_clips_are_fitted() -> None:
    ramp = torch.arange(8.0).view(1, 1, 8, 1, 1).expand(2, 3, 8, 6, 6) / 8
    frames = [round(8 * float(x)) for x in fit_clip(ramp, 4, (6, 6))[0, 0, :, 0, 0]]
    assert frames == [1, 3, 5, 7]  # The second of each two, in the middle of both.
    frames = [round(8 * float(x)) for x in fit_clip(ramp, 16, (6, 6))[0, 0, :, 0, 0]]
    assert frames == [i // 2 for i in range(16)]
    noise = torch.rand(1, 3, 2, 9, 7)
    assert fit_clip(noise, 2, (9, 7)) is noise
    large = fit_clip(noise, 2, (18, 21))
    assert large.shape == (1, 3, 2, 18, 21)
    assert 0 <= large.min() <= large.max() <= 1  # Bicubic overshoots.


# Those that files bring ------------------------------------------------------------------------------------


def test_a_checkpoint_teaches_at_its_own_normalisation(checkpoint) -> None:
    teacher = open_teacher(TeacherSettings("fluxvit", str(checkpoint), precision="fp32"))
    assert teacher.depth == 2
    with pytest.raises(ValueError, match="sees clips at the size of the student's tokens"):
        open_teacher(TeacherSettings("fluxvit", str(checkpoint), size=224))


def test_teachers_that_are_not_there(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        open_teacher(TeacherSettings("internvideo2", str(tmp_path / "none.pt")))
    with pytest.raises(ValueError, match="no such checkpoint folder"):
        open_teacher(TeacherSettings("fluxvit", str(tmp_path / "none")))
