"""CLIP's image tower from the ``transformers`` library as a teacher, as in Unmasked Teacher.

Each layer that it gives is the output of a block, after the network's final norm and the projection into the
space shared with text, if the checkpoint has one. The pooled vector is the class token, projected likewise.
Attention is the class token's over the patches in the last block, averaged over heads.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fluxvit.checkpoints.hub import blocks_of, check_source, explained, quiet, transformers_library
from fluxvit.models.teachers import ImageTeacher, Maps, Teacher, TokenShape
from fluxvit.utils.schema import Finite, Positive, convert, load

CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
TYPES = ("clip", "clip_vision_model")

# Name of the attention function in the registry of transformers.
_ATTENTION = "fluxvit_class_attention"


class ClipTeacher(ImageTeacher):
    """The image tower of CLIP.

    Args:
        network: A ``CLIPVisionModelWithProjection``; frozen, moved and cast in place. Its
            ``visual_projection`` is the identity if there is no projection.
        config: Configuration of the tower.
        size: Side of the square frames that it sees; 0: its patches lie where the student's tokens do.

    Raises:
        ValueError: The size is no multiple of the patch.
    """

    def __init__(self, network: Any, config: Any, size: int, **options: Any) -> None:
        self.tower, self.projection = network.vision_model, network.visual_projection
        self.patch, self.size = config.patch_size, size
        if size < 0 or size % self.patch:
            lower = size // self.patch * self.patch
            sides = " or ".join(str(side) for side in (lower, lower + self.patch) if side > 0)
            raise ValueError(
                f"size {size} is no multiple of the teacher's patch, {self.patch}: take {sides or self.patch}"
            )
        self.blocks = blocks_of(self.tower)
        projected = isinstance(self.projection, nn.Linear)
        width = self.projection.out_features if projected else config.hidden_size
        super().__init__(network, widths=[width] * len(self.blocks), pooled_width=width, **options)
        self._rows: list[Tensor] = []
        # Which of these modules attends differs between versions; see _register_attention.
        for module in self.blocks[-1].modules():
            module.class_rows = self._rows  # type: ignore[assignment]

    def grid(self, shape: TokenShape) -> tuple[int, int, int]:
        if self.size:
            return shape[0], self.size, self.size
        return shape[0], shape[1] * self.patch, shape[2] * self.patch

    def _frames(self, images: Tensor, layers: list[int]) -> Maps:
        shape = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        with _outputs([self.blocks[i] for i in layers]) as outputs:
            pooled = self.projection(self.tower(images, interpolate_pos_encoding=True).pooler_output)
        maps = [
            self.projection(self.tower.post_layernorm(outputs[self.blocks[i]][:, 1:])).unflatten(1, shape)
            for i in layers
        ]
        return Maps(maps, pooled, self._rows.pop()[:, 1:].unflatten(1, shape))


def huggingface_teacher(source: str, *, size: int = 0, dtype: torch.dtype = torch.bfloat16) -> Teacher:
    """A CLIP teacher from a network of transformers, on the CPU. No code that a checkpoint contains is run.

    Args:
        source: A folder with ``config.json`` and weights, or a name on the Hugging Face hub. The teacher
            normalises pixels as a ``preprocessor_config.json`` there says, or else as CLIP does.
        size: Side of the square frames that it sees, in pixels. With 0 its patches lie where the student's
            tokens are.
        dtype: Number format in which it computes.

    Raises:
        ValueError: transformers is not installed, there is no such folder or name, the internet cannot be
            reached, the network is no CLIP, weights are missing, or the size does not suit it.
    """
    transformers = transformers_library("teachers")
    with explained("teacher", source, TYPES):
        check_source(source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.model_type not in TYPES:
            raise ValueError(f"networks of type {config.model_type!r} are not supported.")
    vision = getattr(config, "vision_config", config)
    if config.model_type == "clip":
        # The tower's own is not always right.
        vision.projection_dim = config.projection_dim
    with explained("teacher", source, TYPES), quiet(transformers):
        network = _load(transformers.CLIPVisionModelWithProjection, source, vision)
    mean, std = _pixels(transformers, source) or CLIP_PIXELS
    return ClipTeacher(network, vision, size, mean=mean, std=std, dtype=dtype)


def _load(kind: Any, source: str, config: Any) -> nn.Module:
    """The network; without a visual projection, where the weights lack it.

    Raises:
        OSError: There are no weights.
        ValueError: Weights are missing.
    """
    _register_attention()
    options = {"config": config, "attn_implementation": _ATTENTION, "output_loading_info": True}
    network, report = kind.from_pretrained(source, **options)
    if any(f"vision_model.{key}" in report["missing_keys"] for key in report["unexpected_keys"]):
        # Version 5 of transformers writes a single tower without this prefix.
        names = {r"^(?!vision_model\.|visual_projection|text_projection)(.+)": r"vision_model.\1"}
        network, report = kind.from_pretrained(source, key_mapping=names, **options)
    missing = set(report["missing_keys"])
    if "visual_projection.weight" in missing:
        network.visual_projection = nn.Identity()
        missing.remove("visual_projection.weight")
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, {min(missing)} among them.")
    return network


def _pixels(transformers: Any, source: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation of pixels in a checkpoint's preprocessor, if it has them."""
    # Read as JSON: the preprocessors themselves need Pillow and torchvision.
    for name in ("processor_config.json", "preprocessor_config.json"):
        try:
            path = transformers.utils.cached_file(source, name)
        except OSError:
            continue
        settings = convert(load(path), dict[str, Any], str(path))
        settings = settings.get("image_processor") or settings
        if isinstance(settings, dict) and settings.get("image_mean") and settings.get("image_std"):
            mean = convert(settings["image_mean"], tuple[Finite, Finite, Finite], str(path), "image_mean")
            std = convert(settings["image_std"], tuple[Positive, Positive, Positive], str(path), "image_std")
            return mean, std
    return None


def _register_attention() -> None:
    """Register an attention with transformers that is its ``sdpa``, and also gives modules with
    ``class_rows`` the weights ``[N, L]`` of their first token, fp32, averaged over heads.

    The library's own option computes the weights of all tokens in all blocks.
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
def _outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """The last outputs of modules while the context is open."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        # Some versions of the library give a tuple.
        outputs[module] = output[0] if isinstance(output, tuple) else output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
