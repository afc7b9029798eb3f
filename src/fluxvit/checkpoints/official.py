"""Official checkpoints: the authors' FluxViTs, InternVideo2's vision towers and MobileCLIP's text tower.

FluxViTs and towers are PyTorch files with the same names for the same layers. A tower is a FluxViT of one
budget without dual patch norms and GLPE; it can be used as it is, or as the start of a FluxViT.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxvit.checkpoints.folder import KeyReport, check_size, compare_keys
from fluxvit.checkpoints.weights import read_weights
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.text import TextConfig, TextTransformer
from fluxvit.utils.schema import located

# The authors' FluxViTs -----------------------------------------------------------------------------------

# Their names and ours. {i} stands for a number, {qkv} for one of the letters, {x} for any rest; the first
# line that fits decides. `from_official` handles the patch projection and the position table.
_NAMES = [
    ("cls_token", "cls_token"),
    ("gpe_proj.depthwise_conv.weight", "pos_embed.scale"),
    ("gpe_proj.depthwise_conv.bias", "pos_embed.shift"),
    ("patch_embed.{x}", "patch_embed.{x}"),
    ("blocks.{i}.attn.lpe.depthwise_conv.weight", "blocks.{i}.attn.local_scale"),
    ("blocks.{i}.attn.lpe.depthwise_conv.bias", "blocks.{i}.attn.local_shift"),
    ("blocks.{i}.{x}", "blocks.{i}.{x}"),
    ("clip_projector.{i}.norm1_{qkv}.{x}", "heads.{i}.pool.norm_{qkv}.{x}"),
    ("clip_projector.{i}.cross_attn.{qkv}_bias", "heads.{i}.pool.{qkv}.bias"),
    ("clip_projector.{i}.cross_attn.{qkv}.weight", "heads.{i}.pool.{qkv}.weight"),
    ("clip_projector.{i}.cross_attn.proj.{x}", "heads.{i}.pool.proj.{x}"),
    ("head.{i}.{x}", "heads.{i}.fc.{x}"),
    ("fc_norm.{x}", "head_norm.{x}"),
    ("final_clip_decoder_for_projs.{i}.head.{x}", "aligners.{i}.proj.{x}"),
    ("final_clip_decoder_for_projs.{i}.norm.{x}", "aligners.{i}.norm.{x}"),
]
_WILDCARDS = {"{i}": r"(?P<i>\d+)", "{qkv}": "(?P<qkv>[qkv])", "{x}": "(?P<x>.+)"}
# Position tables of the official sizes: rows without the class token -> (time, height, width).
_TABLES = {24 * 18 * 18: (24, 18, 18), 32 * 20 * 20: (32, 20, 20)}


def from_official(state: Mapping[str, Tensor], config: FluxViTConfig) -> dict[str, Tensor]:
    """Translate the authors' state dict to ours; names that have no counterpart are left as they are."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "patch_embed.proj.weight" and value.ndim == 5:
            ours[name] = value.permute(0, 2, 3, 4, 1).flatten(1)
        elif name == "pos_embed" and value.numel() == (1 + _volume(config)) * config.embed_dim:
            ours["pos_embed.cls"] = value[0, :1]
            ours["pos_embed.grid"] = value[0, 1:].unflatten(0, config.table_shape)
        else:
            # A vector of ours is a depth-wise convolution of kernel one in their code.
            affine = name.endswith("depthwise_conv.weight")
            ours[_rename(name, _NAMES)] = value.flatten() if affine else value
    return {name: value.contiguous() for name, value in ours.items()}


def _rename(name: str, table: list[tuple[str, str]]) -> str:
    for source, target in table:
        pattern = re.escape(source)
        for wildcard, expression in _WILDCARDS.items():
            pattern = pattern.replace(re.escape(wildcard), expression)
        match = re.fullmatch(pattern, name)
        if match:
            return target.format(**match.groupdict())
    return name


def _volume(config: FluxViTConfig) -> int:
    t, h, w = config.table_shape
    return t * h * w


def infer_official_config(state: Mapping[str, Tensor], activation: str = "gelu_tanh") -> FluxViTConfig:
    """The configuration of an official model (head width 64, pooling of 16 heads) from its tensors' shapes.

    Args:
        activation: Not visible in the shapes. The published weights were trained with tanh GELU.

    Raises:
        ValueError: The tensors are not a FluxViT's.
    """
    visible, rows = _visible(state, "a FluxViT of the authors")
    if rows not in _TABLES:
        raise ValueError(
            f"pos_embed has {rows} grid rows; the official sizes have {' or '.join(map(str, _TABLES))}"
        )
    return FluxViTConfig(
        num_heads=visible["embed_dim"] // 64, table_shape=_TABLES[rows], activation=activation, **visible
    )


def _visible(state: Mapping[str, Tensor], what: str) -> tuple[dict[str, Any], int]:
    """The settings that are visible in a state dict with the authors' names, and the grid rows of its table.

    Raises:
        ValueError: Names or axes are missing, so that this is not ``what``.
    """
    try:
        dim, chans, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
        rows = state["pos_embed"].shape[1] - 1
        depth = 1 + max(int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", name) for name in state) if m)
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        pool_dim = state["clip_projector.0.cross_attn.proj.weight"].shape[0]
        if not dim:
            raise ValueError("patch_embed.proj.weight")
        classes = state["head.0.weight"].shape[0] if "head.0.weight" in state else 0
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"not {what}: {error} is missing or has another shape") from error
    visible = {
        "embed_dim": dim,
        "depth": depth,
        "mlp_ratio": hidden / dim,
        "patch_size": patch,
        "tubelet_size": tubelet,
        "in_chans": chans,
        "pool_dim": pool_dim,
        "num_classes": classes,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }
    return visible, rows


def convert_official(path: str | Path, *, activation: str = "gelu_tanh") -> tuple[FluxViT, KeyReport]:
    """Build our model from one of the authors' files.

    Args:
        path: Their ``.pth`` file, small or base.
        activation: ``gelu_tanh`` or ``gelu``.

    Returns:
        The model, in eval mode, and how the tensors fit it.

    Raises:
        ValueError: The file cannot be read, or its tensors do not match; the message lists them.
    """
    state = read_weights(path)
    with located(str(path)):
        config = infer_official_config(state, activation)
    return _build(path, config, state, "a FluxViT's")


def _build(
    path: str | Path, config: FluxViTConfig, state: Mapping[str, Tensor], what: str
) -> tuple[FluxViT, KeyReport]:
    """A model in eval mode with the tensors of a file under the authors' names, and how these fit."""
    with located(str(path)):
        check_size(config.parameters, state, "the tensors")
    state = from_official(state, config)
    with torch.device("meta"):
        model = FluxViT(config)
    report = compare_keys(state, model)
    if not config.num_classes:
        # Only a classifier reads it, and files without one lack it.
        report.missing = [name for name in report.missing if not name.startswith("head_norm.")]
    if not report.matches:
        raise ValueError(f"{path}: the tensors are not {what}: {report.summary}")
    initial = nn.LayerNorm(config.pool_dim).state_dict(prefix="head_norm.")
    # Copies: the file is mapped, and may change.
    state = initial | {name: value.to(torch.float32, copy=True) for name, value in state.items()}
    model.load_state_dict(state, assign=True)
    return model.eval(), report


# InternVideo2's towers -----------------------------------------------------------------------------------

# Parts of pre-training: decoders towards the teachers, with position tables of their own.
_BESIDE = re.compile(
    r"(clip_decoder|final_clip_decoder|mae_decoder)\..+"
    r"|(clip|mae)_pos_embed(_cls|_spatial|_temporal)?|(clip_)?img_pos_embed"
)
_PREFIX = "vision_encoder."  # In files that hold other towers too: stage 2 and CLIP.
_SIDE = 16  # Patches along a side of their grids, 224 pixels.
_HEADS = {384: 6, 768: 12, 1024: 16, 1408: 16, 3200: 25}  # S, B, L, 1B, 6B.
# The table that the authors give a FluxViT of that width.
_FLUX_TABLES = {384: (24, 18, 18), 768: (32, 20, 20)}

_OTHER_FUNCTION = (
    "THE MODEL DOES NOT COMPUTE THE SAME AS THE TOWER, since it has patch norms (--exact leaves them out): "
    "it must be trained before use"
)


def is_internvideo2(state: Mapping[str, Tensor]) -> bool:
    """Whether the state dict of a file holds an InternVideo2 tower, whose pooling has no number."""
    names = _vision_tower(state)[0]
    return any(name.startswith(("clip_projector.cross_attn.", "clip_projector.norm1_")) for name in names)


def infer_internvideo2_config(state: Mapping[str, Tensor], activation: str = "gelu_tanh") -> FluxViTConfig:
    """The configuration of a tower (S, B, L, 1B, 6B) from its tensors' shapes: one budget, all tokens of its
    own grid, which is T x 224 x 224 pixels.

    Args:
        state: The state dict of a file.
        activation: Not visible in the shapes. The published weights were trained with tanh GELU.

    Raises:
        ValueError: The tensors are not an InternVideo2 tower's.
    """
    visible, rows = _visible(numbered_tower(state), "an InternVideo2 tower")
    frames, rest = divmod(rows, _SIDE**2)
    if rest or not frames:
        raise ValueError(
            f"pos_embed has {rows} grid rows; InternVideo2 has {_SIDE**2} for each of its frames"
        )
    width = visible["embed_dim"]
    return FluxViTConfig(
        num_heads=_HEADS.get(width, width // 64),
        table_shape=(frames, _SIDE, _SIDE),
        budgets=(rows,),
        activation=activation,
        dual_patch_norm=False,
        global_position=False,
        local_position=False,
        **visible,
    )


def numbered_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower in an InternVideo2 file, under the authors' names for a FluxViT of one head.

    Other towers and the decoders of pre-training are left out; separate position tables become a joint one.
    """
    tower = _joint_table(_vision_tower(state)[0])
    return {re.sub(r"^(clip_projector|head)\.", r"\1.0.", name): value for name, value in tower.items()}


def _vision_tower(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The vision tower alone, and the names that were left out."""
    several = any(name.startswith(_PREFIX) for name in state)
    tower, dropped = {}, []
    for name, value in state.items():
        inner = name.removeprefix(_PREFIX)
        if (several and inner == name) or _BESIDE.fullmatch(inner):
            dropped.append(inner)
        else:
            tower[inner] = value
    return tower, dropped


def _joint_table(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate position tables ``[1, 1, C]``, ``[1, 256, C]``, ``[1, T, C]`` as one ``[1, 1 + T * 256, C]``;
    tables of other shapes are left as they are.
    """
    names = [f"pos_embed_{part}" for part in ("cls", "spatial", "temporal")]
    if "pos_embed" in tower or any(name not in tower for name in names):
        return tower
    cls, spatial, temporal = (tower[name] for name in names)
    shapes, dim = (cls.shape, spatial.shape), cls.shape[-1]
    if shapes != ((1, 1, dim), (1, _SIDE**2, dim)) or temporal.shape != (1, temporal.shape[1], dim):
        return tower
    grid = (temporal[:, :, None] + spatial[:, None]).flatten(1, 2)
    return {name: value for name, value in tower.items() if name not in names} | {
        "pos_embed": torch.cat([cls, grid], dim=1)
    }


def load_internvideo2(path: str | Path, *, activation: str = "gelu_tanh") -> FluxViT:
    """The vision tower of an InternVideo2 file as it is, in eval mode: a teacher.

    If the file has no classifier, ``head_norm`` alone is untrained.

    Args:
        path: Fine-tuned, distilled, pre-trained, stage-2 or CLIP weights that hold the whole tower.
        activation: ``gelu_tanh`` or ``gelu``.

    Raises:
        ValueError: The file cannot be read, or its tensors are not exactly a tower's; the message lists them.
    """
    return _load_tower(path, read_weights(path), activation)[0]


def _load_tower(path: str | Path, theirs: Mapping[str, Tensor], activation: str) -> tuple[FluxViT, KeyReport]:
    with located(str(path)):
        config = infer_internvideo2_config(theirs, activation)
    return _build(path, config, numbered_tower(theirs), "an InternVideo2 tower's")


def convert_internvideo2(
    path: str | Path,
    *,
    exact: bool = False,
    budgets: Sequence[int] = (3072, 2048, 1024),
    activation: str = "gelu_tanh",
) -> tuple[FluxViT, str]:
    """A FluxViT that starts from an InternVideo2 tower.

    Every budget's head is a copy of the tower's pooling and classifier; aligners start fresh. The position
    table is resampled to the size that the authors' FluxViT of that width has (other widths keep theirs), and
    the global and local position terms change nothing yet. The dual patch norms do, whatever their weights:
    the model must be trained before use.

    Args:
        path: A file as in :func:`load_internvideo2`.
        exact: Leave out the patch norms and GLPE and keep the position table, so that each head computes what
            the tower does.
        budgets: Token budgets that get a head each, largest first.
        activation: ``gelu_tanh`` or ``gelu``.

    Returns:
        The model, in eval mode, and a report of what became of the tower, for people.

    Raises:
        ValueError: The file cannot be read, its tensors are not exactly a tower's, or the budgets do not fall
            or are none.
    """
    theirs = read_weights(path)
    model, keys = _load_tower(path, theirs, activation)
    table = _by(model.config.table_shape)
    model.reset_budgets(budgets)
    if not exact:
        model = _with_flux_parts(model)
    config = model.config
    counts = Counter(name.split(".")[0] for name in _vision_tower(theirs)[1])
    dropped = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "nothing"
    resampled = f"resampled, {table} to {_by(config.table_shape)} (linear in time, bicubic in space)"
    fresh = ["aligners"] * (len(config.budgets) > 1) + ["head_norm"] * (not config.num_classes)
    lines = [
        keys.summary,
        f"dropped: {dropped}",
        f"pooling and classifier: copied to the heads of {', '.join(map(str, config.budgets))} tokens",
        f"position table: {f'kept, {table}' if _by(config.table_shape) == table else resampled}",
        f"at their initial values: {' and '.join(fresh) or 'nothing'}",
        "the model computes the same as the tower" if exact else _OTHER_FUNCTION,
    ]
    return model.eval(), "\n".join(lines)


def _by(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


@torch.no_grad()
def _with_flux_parts(tower: FluxViT) -> FluxViT:
    """A FluxViT with a tower's weights; of its other parts only the patch norms change the output."""
    config = replace(
        tower.config,
        table_shape=_FLUX_TABLES.get(tower.config.embed_dim, tower.config.table_shape),
        dual_patch_norm=True,
        global_position=True,
        local_position=True,
    )
    with torch.device("meta"):
        model = FluxViT(config)
    state = tower.state_dict()
    _, rows = tower.pos_embed(config.table_shape)
    state["pos_embed.grid"] = rows.unflatten(0, config.table_shape).clone()
    for name, tensor in model.state_dict().items():
        if name not in state:
            # The local term is added to the attention's output; the usual scale of 1 would add the values.
            value = 0.0 if name.endswith((".local_scale", ".local_shift", "pos_embed.shift")) else 1.0
            state[name] = torch.full(tensor.shape, value)
    model.load_state_dict(state, assign=True)
    return model


# MobileCLIP's text tower -----------------------------------------------------------------------------------

_TEXT_NAMES = [
    ("embedding_layer.weight", "tokens.weight"),
    ("positional_embedding.pos_embed.pos_embed", "positions"),
    ("transformer.{i}.pre_norm_mha.0.{x}", "blocks.{i}.norm1.{x}"),
    ("transformer.{i}.pre_norm_mha.1.qkv_proj.{x}", "blocks.{i}.qkv.{x}"),
    ("transformer.{i}.pre_norm_mha.1.out_proj.{x}", "blocks.{i}.proj.{x}"),
    ("transformer.{i}.pre_norm_ffn.0.{x}", "blocks.{i}.norm2.{x}"),
    ("transformer.{i}.pre_norm_ffn.1.{x}", "blocks.{i}.fc1.{x}"),
    ("transformer.{i}.pre_norm_ffn.4.{x}", "blocks.{i}.fc2.{x}"),
    ("final_layer_norm.{x}", "norm.{x}"),
    ("projection_layer", "proj.weight"),
]


def text_tower(state: Mapping[str, Tensor]) -> TextTransformer:
    """The text tower in a state dict of MobileCLIP-B, or of an InternVideo2-CLIP that contains one.

    The tensors determine its shape; as in MobileCLIP, heads are 64 wide.

    Raises:
        ValueError: A tensor is missing, left over, or of another shape.
    """
    # Beside an image tower its names have a prefix.
    theirs = {name.partition("text_encoder.")[2]: value for name, value in state.items()}
    theirs.pop("", None)
    ours = {_rename(name, _TEXT_NAMES): value for name, value in (theirs or state).items()}
    for name in ("tokens.weight", "positions", "proj.weight"):
        if name not in ours:
            source = next(source for source, target in _TEXT_NAMES if target == name)
            raise ValueError(f"no {source} among {len(state)} tensors: not a text tower of MobileCLIP's kind")
    if ours["tokens.weight"].ndim != 2 or ours["proj.weight"].ndim != 2 or ours["positions"].ndim < 2:
        raise ValueError("embeddings, positions or projection have other axes than MobileCLIP's")
    ours["positions"] = ours["positions"].flatten(0, -2)
    ours["proj.weight"] = ours["proj.weight"].t()
    vocabulary, dim = ours["tokens.weight"].shape
    config = TextConfig(
        vocabulary,
        len(ours["positions"]),
        dim,
        depth=1 + max((int(n.split(".")[1]) for n in ours if n.startswith("blocks.")), default=-1),
        num_heads=max(1, dim // 64),
        out_dim=len(ours["proj.weight"]),
    )
    with torch.device("meta"):
        tower = TextTransformer(config)
    report = compare_keys(ours, tower)
    if not report.matches:
        raise ValueError(f"the tensors are not a text tower of MobileCLIP's kind: {report.summary}")
    copies = {name: value.to(torch.float32, copy=True).contiguous() for name, value in ours.items()}
    tower.load_state_dict(copies, assign=True)
    return tower
