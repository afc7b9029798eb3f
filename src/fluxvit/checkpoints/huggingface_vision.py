"""Teachers from networks of the ``transformers`` library, by folder or by name on the Hugging Face hub.

Each layer that they give is what leaves a block, through the network's own final norm. So DINOv2
(``get_intermediate_layers``) and V-JEPA 2 (``out_layers``) give theirs. It puts all layers on one scale, and
damps the few channels of a transformer that outgrow all others. Tokens of no patch (class, registers) are cut
off.

* CLIP, as in Unmasked Teacher: layers go on through the projection into the space shared with text, if the
  checkpoint has one. The pooled vector is the class token, projected likewise. Attention is the class token's
  over the patches in the last block, averaged over heads.
* DINOv2 and DINOv3: the pooled vector is the class token; attention as of CLIP.
* SigLIP and SigLIP 2: the pooled vector is that of the attention pooling; attention is the pooling's weights,
  averaged over heads.
* VideoMAE and V-JEPA 2: the pooled vector is the mean of the last layer; what stands for attention is the
  energy of what leaves the last block. A VideoMAE that was trained as a classifier has no final norm, so that
  its layers are raw.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fluxvit.checkpoints.hub import (
    blocks_of,
    check_source,
    explained,
    load_network,
    quiet,
    transformers_library,
)
from fluxvit.models.teachers import ImageTeacher, Maps, MapTeacher, Teacher, TokenShape, energy
from fluxvit.utils.schema import Finite, Positive, convert, load

CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Name of the attention function in the registry of transformers.
_ATTENTION = "fluxvit_class_attention"


class TransformerTeacher(ImageTeacher):
    """An image transformer of square patches.

    Args:
        network: Frozen, moved and cast in place.
        tower: The part of it that sees images; its first list of modules is the blocks.
        finish: What its patches go through after a block: the final norm, and what follows.
        prefix: Tokens ahead of the patches.
        patch: Side of a patch, in pixels.
        width: Channels of what ``finish`` and the pooling give.
        size: Side of the square frames that it sees; 0: its patches lie where the student's tokens do.

    Raises:
        ValueError: The size is no multiple of the patch.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        tower: nn.Module,
        finish: nn.Module,
        prefix: int,
        patch: int,
        width: int,
        size: int,
        **options: Any,
    ) -> None:
        _check_size(size, patch)
        self.blocks = blocks_of(tower)
        super().__init__(network, widths=[width] * len(self.blocks), pooled_width=width, **options)
        self.tower, self.finish, self.prefix, self.patch, self.size = tower, finish, prefix, patch, size

    def grid(self, shape: TokenShape) -> tuple[int, int, int]:
        if self.size:
            return shape[0], self.size, self.size
        return shape[0], shape[1] * self.patch, shape[2] * self.patch

    def _frames(self, images: Tensor, layers: list[int]) -> Maps:
        shape = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        with _outputs([self.blocks[i] for i in layers]) as outputs:
            pooled, attention = self._look(images)
        maps = [
            self.finish(_tokens(outputs[self.blocks[i]])[:, self.prefix :]).unflatten(1, shape)
            for i in layers
        ]
        return Maps(maps, pooled, attention[:, self.prefix :].unflatten(1, shape))

    @abstractmethod
    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors ``[N, P]`` of images, and the attention to all tokens ``[N, prefix + h0 * w0]``."""


class ClassTokenTeacher(TransformerTeacher):
    """An image transformer whose first token, the class token, represents the image."""

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network, **options)
        self._rows: list[Tensor] = []
        # Which of these attends differs between networks; see _register_attention.
        for module in self.blocks[-1].modules():
            module.class_rows = self._rows  # type: ignore[assignment]

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self._pool(images)
        return pooled, self._rows.pop()

    @abstractmethod
    def _pool(self, images: Tensor) -> Tensor:
        """The final class tokens ``[N, P]``."""


class ClipTeacher(ClassTokenTeacher):
    """The image tower of CLIP. Without a visual projection ``network.visual_projection`` is the identity."""

    def __init__(self, network: Any, config: Any, **options: Any) -> None:
        self.projection = network.visual_projection
        projected = isinstance(self.projection, nn.Linear)
        super().__init__(
            network,
            tower=network.vision_model,
            finish=nn.Sequential(network.vision_model.post_layernorm, self.projection),
            prefix=1,
            patch=config.patch_size,
            width=self.projection.out_features if projected else config.hidden_size,
            **options,
        )

    def _pool(self, images: Tensor) -> Tensor:
        return self.projection(self.tower(images, interpolate_pos_encoding=True).pooler_output)


class DinoTeacher(ClassTokenTeacher):
    """DINOv2, with and without registers, and the transformers of DINOv3."""

    def __init__(self, network: Any, config: Any, **options: Any) -> None:
        rope = getattr(network, "rope_embeddings", None)
        frequencies = None if rope is None else rope.inv_freq
        super().__init__(
            network,
            tower=network,
            finish=network.norm if rope is not None else network.layernorm,
            prefix=1 + getattr(config, "num_register_tokens", 0),
            patch=config.patch_size,
            width=config.hidden_size,
            **options,
        )
        if rope is not None:
            # In bf16 the angles of its positions would be wrong by up to 0.4 %.
            rope.inv_freq = frequencies

    def _pool(self, images: Tensor) -> Tensor:
        return self.tower(images).pooler_output


class SiglipTeacher(TransformerTeacher):
    """The image tower of SigLIP, and of SigLIP 2 at a fixed resolution.

    Raises:
        ValueError: It has no attention pooling.
    """

    def __init__(self, network: Any, config: Any, **options: Any) -> None:
        # Before transformers 5 the tower was a part of the network.
        tower = getattr(network, "vision_model", network)
        if not tower.use_head:
            raise ValueError(
                "this SigLIP has no attention pooling (vision_use_head), so no attention to give"
            )
        super().__init__(
            network,
            tower=tower,
            finish=tower.post_layernorm,
            prefix=0,
            patch=config.patch_size,
            width=config.hidden_size,
            **options,
        )
        self.pooling = tower.head.attention

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with _outputs([self.pooling]) as outputs:
            pooled = self._pool(images)
        _, weights = outputs[self.pooling]
        return pooled, weights[:, 0]

    def _pool(self, images: Tensor) -> Tensor:
        """What its attention pooling gives, ``[N, P]``."""
        return self.tower(images, interpolate_pos_encoding=True).pooler_output


class NaFlexTeacher(SiglipTeacher):
    """The image tower of SigLIP 2 for any resolution (NaFlex), which takes patches."""

    def _pool(self, images: Tensor) -> Tensor:
        p = self.patch
        patches = images.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1)
        shapes = torch.tensor([patches.shape[1:3]] * len(patches))
        return self.tower(patches.flatten(3).flatten(1, 2), None, shapes).pooler_output


class VideoTransformerTeacher(MapTeacher):
    """A video transformer of square frames, without a class token.

    The energy of the last block's output takes the place of attention. It is measured before the final norm,
    after which all tokens have about the same.

    Args:
        network: ``network(video)``, ``[B, T, 3, H, W]``, gives its ``last_hidden_state``; its first list of
            modules is the blocks.
        norm: The final norm.
        config: Its configuration.
        frames: Number of frames that it sees; 0: as many as make its token frames the student's.
        size: Side of these frames, in pixels.
    """

    def __init__(
        self, network: nn.Module, *, norm: nn.Module, config: Any, frames: int, size: int, **options: Any
    ) -> None:
        self.blocks = blocks_of(network)
        width = config.hidden_size
        super().__init__(network, widths=[width] * len(self.blocks), pooled_width=width, **options)
        self.norm, self.frames, self.size = norm, frames, size
        self.tubelet, self.patch = config.tubelet_size, config.patch_size

    def grid(self, shape: TokenShape) -> tuple[int, int, int]:
        return self.frames or shape[0] * self.tubelet, self.size, self.size

    def _maps(self, video: Tensor, layers: list[int]) -> Maps:
        shape = (video.shape[2] // self.tubelet, self.size // self.patch, self.size // self.patch)
        last = self.blocks[-1]
        with _outputs([last, *(self.blocks[i] for i in layers)]) as outputs:
            pooled = self.network(video.transpose(1, 2)).last_hidden_state.mean(1)
        maps = [self.norm(_tokens(outputs[self.blocks[i]])).unflatten(1, shape) for i in layers]
        return Maps(maps, pooled, energy(_tokens(outputs[last])).unflatten(1, shape))


class VideoMaeTeacher(VideoTransformerTeacher):
    """VideoMAE, whose positions are of one grid only.

    Raises:
        ValueError: A size other than its own is requested.
    """

    def __init__(self, network: Any, config: Any, size: int, **options: Any) -> None:
        if size not in (0, config.image_size):
            raise ValueError(
                f"size {size}: this VideoMAE sees frames of {config.image_size}; leave size at 0"
            )
        norm = nn.Identity() if network.layernorm is None else network.layernorm
        frames = config.num_frames
        super().__init__(network, norm=norm, config=config, frames=frames, size=config.image_size, **options)


class VJepa2Teacher(VideoTransformerTeacher):
    """The encoder of V-JEPA 2. Rotary positions let it see any number of frames, and any size that was set
    before it was built.
    """

    def __init__(self, network: Any, config: Any, size: int, **options: Any) -> None:
        encoder = network.encoder
        super().__init__(
            encoder, norm=encoder.layernorm, config=config, frames=0, size=config.crop_size, **options
        )


class _Family(NamedTuple):
    """The teacher of a model type, its network in transformers, and the published normalisation of pixels
    (mean and standard deviation).
    """

    teacher: type[Any]
    network: str
    pixels: tuple[Sequence[float], Sequence[float]]


_CLIP = _Family(ClipTeacher, "CLIPVisionModelWithProjection", CLIP_PIXELS)
_SIGLIP = _Family(SiglipTeacher, "SiglipVisionModel", SIGLIP_PIXELS)
_NAFLEX = _Family(NaFlexTeacher, "Siglip2VisionModel", SIGLIP_PIXELS)
FAMILIES = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "dinov2": _Family(DinoTeacher, "Dinov2Model", IMAGENET_PIXELS),
    "dinov2_with_registers": _Family(DinoTeacher, "Dinov2WithRegistersModel", IMAGENET_PIXELS),
    "dinov3_vit": _Family(DinoTeacher, "DINOv3ViTModel", IMAGENET_PIXELS),
    "videomae": _Family(VideoMaeTeacher, "VideoMAEModel", IMAGENET_PIXELS),
    "vjepa2": _Family(VJepa2Teacher, "VJEPA2Model", IMAGENET_PIXELS),
}


def huggingface_teacher(source: str, *, size: int = 0, dtype: torch.dtype = torch.bfloat16) -> Teacher:
    """A teacher from a network of transformers, on the CPU. No code that a checkpoint brings along is run.

    Args:
        source: A folder with ``config.json`` and weights, or a name on the Hugging Face hub. The teacher
            normalises pixels as a ``preprocessor_config.json`` there says, or else as its family does.
        size: Side of the square frames that it sees, in pixels. 0: of an image network what puts its patches
            where the student's tokens are; of a video network its own, the only one that suits VideoMAE.
        dtype: Type that it computes in.

    Raises:
        ValueError: transformers is not installed, there is no such folder or name, the internet cannot be
            reached, the type of model is not supported, weights are missing, or the size does not suit it.
    """
    transformers = transformers_library("teachers")
    with explained("teacher", source, tuple(FAMILIES)):
        check_source(source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise ValueError(f"networks of type {config.model_type!r} are not supported.")
    family = FAMILIES[config.model_type]
    vision = getattr(config, "vision_config", config)
    if config.model_type == "clip":
        # The tower's own is not always right.
        vision.projection_dim = config.projection_dim
    if config.model_type == "vjepa2" and size:
        _check_size(size, vision.patch_size)
        vision.crop_size = size
    with explained("teacher", source, tuple(FAMILIES)), quiet(transformers):
        network = _load(getattr(transformers, family.network), source, vision)
    mean, std = _pixels(transformers, source) or family.pixels
    return family.teacher(network, config=vision, size=size, mean=mean, std=std, dtype=dtype)


def _load(kind: Any, source: str, config: Any) -> nn.Module:
    """A network of a class of transformers; without a visual projection, where CLIP's lacks it.

    Raises:
        OSError: There are no weights.
        ValueError: Weights are missing.
    """
    _register_attention()
    network, missing = load_network(kind, source, config=config, attn_implementation=_ATTENTION)
    if "visual_projection.weight" in missing:
        network.visual_projection = nn.Identity()
        missing.remove("visual_projection.weight")
    # Mask tokens and V-JEPA 2's predictor are for pre-training.
    missing = {key for key in missing if not key.endswith("mask_token") and not key.startswith("predictor.")}
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, {min(missing)} among them.")
    return network


def _pixels(transformers: Any, source: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of pixels that a checkpoint's preprocessor says, if it says them."""
    # Read as JSON: the preprocessors themselves would want Pillow and torchvision.
    for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        try:
            path = transformers.utils.cached_file(source, name)
        except OSError:
            continue
        settings = convert(load(path), dict[str, Any], str(path))
        settings = settings.get("image_processor") or settings.get("video_processor") or settings
        if isinstance(settings, dict) and settings.get("image_mean") and settings.get("image_std"):
            mean = convert(settings["image_mean"], tuple[Finite, Finite, Finite], str(path), "image_mean")
            return mean, convert(
                settings["image_std"], tuple[Positive, Positive, Positive], str(path), "image_std"
            )
    return None


def _register_attention() -> None:
    """Name to transformers an attention that is its ``sdpa``, but gives the modules that have ``class_rows``
    one more: the weights ``[N, L]`` of their first token, fp32, averaged over heads.

    To ask transformers itself for weights would cost those of all tokens in all blocks.
    """
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> Any:
        rows: Any = getattr(module, "class_rows", None)
        if rows is not None:
            scores = query[:, :, :1].float() @ key.float().transpose(2, 3) * query.shape[-1] ** -0.5
            rows.append(scores.softmax(-1).mean(1)[:, 0])
        return functions["sdpa"](module, query, key, value, *rest, **options)

    functions.register(_ATTENTION, attend)


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """What modules have given last, while the context is open."""
    found: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        found[module] = output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tokens(output: Any) -> Tensor:
    """The tokens of a block's output, which is a tuple in some networks and versions."""
    return output[0] if isinstance(output, tuple) else output


def _check_size(size: int, patch: int) -> None:
    """Raises ValueError if the side of a frame does not divide into patches."""
    if size < 0 or size % patch:
        lower = size // patch * patch
        sides = " or ".join(str(side) for side in (lower, lower + patch) if side > 0)
        raise ValueError(f"size {size} is no multiple of the teacher's patch, {patch}: take {sides or patch}")
