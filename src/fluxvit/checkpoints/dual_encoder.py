"""Checkpoints of dual encoders: a folder around that of the video side.

``video`` is an ordinary checkpoint folder, plans and all, that every command for videos alone takes, too.
Beside it lie ``language.safetensors``, ``tokenizer.json`` and ``language.json``, which tells what the text
tower is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.folder import (
    check_replaceable,
    check_size,
    load_weights,
    read_format,
    read_weights,
)
from fluxvit.checkpoints.huggingface_text import remake_text
from fluxvit.checkpoints.state_dicts import bare, savable
from fluxvit.checkpoints.weights import tensor_shapes, write_tensors
from fluxvit.data.texts import Texts
from fluxvit.models.config import Width
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.models.text import TextConfig, TextTower, TextTransformer
from fluxvit.utils.files import atomic_folder, write_json
from fluxvit.utils.schema import Natural, convert, located, shown
from fluxvit.utils.schema import load as load_json

FORMAT = 1
VIDEO, WEIGHTS, CONFIG, TOKENIZER = "video", "language.safetensors", "language.json", "tokenizer.json"


@dataclass
class DualInfo:
    """What a dual encoder must be used with.

    Args:
        video: Its video side, a checkpoint of its own.
        texts: Its tokenizer.
        provenance: Where the weights come from; free-form.
    """

    video: Checkpoint
    texts: Texts
    provenance: dict[str, Any] = field(default_factory=dict)


def is_dual(folder: str | Path) -> bool:
    """Whether a folder is a dual encoder's checkpoint."""
    return (Path(folder) / CONFIG).is_file()


def save_dual(folder: str | Path, encoder: nn.Module, info: DualInfo) -> Path:
    """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

    Args:
        encoder: A DualEncoder, or one in a wrapper, as in
            :func:`~fluxvit.checkpoints.checkpoint.Checkpoint`.

    Raises:
        ValueError: ``folder`` holds something else, or a tensor has no content or is not finite.
    """
    folder, network = Path(folder), bare(encoder, DualEncoder)
    check_replaceable(folder, {VIDEO, WEIGHTS, CONFIG, TOKENIZER}, "dual encoder")
    language = bare(network.language, LanguageSide)
    state = savable(language.state_dict(), f"{folder} is not written")
    with atomic_folder(folder) as partial:
        replace(info.video, model=network.video).save(partial / VIDEO)
        write_tensors(partial / WEIGHTS, state)
        (partial / TOKENIZER).write_text(info.texts.to_json(), encoding="utf-8")
        write_json(
            partial / CONFIG,
            {
                "format": FORMAT,
                "dim": language.dim,
                "least_temperature": language.least_temperature,
                "context": info.texts.context,
                "text": language.text.describe(),
                "provenance": info.provenance,
            },
        )
    return folder


def load_dual(folder: str | Path, device: str | torch.device = "cpu") -> tuple[DualEncoder, DualInfo]:
    """Read a checkpoint folder; the encoder is in eval mode.

    Raises:
        ValueError: The folder is missing, incomplete or damaged, or there is no such device; the message says
            which.
    """
    folder = Path(folder)
    if not is_dual(folder):
        kind = "is a checkpoint without texts" if (folder / "config.json").is_file() else "is none"
        raise ValueError(f"{folder}: no dual encoder, which `fluxvit train-contrastive` makes: it {kind}")
    video = Checkpoint.load(folder / VIDEO, device)
    where = str(folder / CONFIG)
    facts = read_format(load_json(folder / CONFIG), FORMAT, _LanguageFile, where)
    try:
        tokenizer = (folder / TOKENIZER).read_text(encoding="utf-8")
        shapes = tensor_shapes(folder / WEIGHTS)
    except OSError as error:
        raise ValueError(f"{folder} is not complete: {error.filename} cannot be read") from error
    except UnicodeDecodeError:
        raise ValueError(f"{folder / TOKENIZER}: not UTF-8 text") from None
    with located(where, "text"):
        check_size(_parameters(facts.text), shapes, f"{WEIGHTS} and {CONFIG}")
        tower = _remake(facts.text)
    least = facts.least_temperature
    # Not on the meta device: networks of transformers have buffers that no file tells.
    language = LanguageSide(tower, video.model.config.pool_dim, facts.dim, 2 * least, least)
    state = read_weights(folder / WEIGHTS)
    # Folders that were written with version 4 of transformers name a tower's tensors in this way.
    state = {name.replace("network.text_model.", "network."): value for name, value in state.items()}
    load_weights(language, state, folder / WEIGHTS, CONFIG)
    language.to(video.device)
    try:
        texts = Texts.from_json(tokenizer, facts.context)
    except ValueError as error:
        raise ValueError(f"{folder / TOKENIZER}: {error}") from error
    rows = language.text.vocab_size
    if texts.largest_id >= rows:
        raise ValueError(
            f"{folder}: {TOKENIZER} has token ids up to {texts.largest_id}, and the text tower knows {rows}"
        )
    return DualEncoder(video.model, language).eval(), DualInfo(video, texts, facts.provenance)


class _LanguageFile(msgspec.Struct):
    """``language.json``. Keys of later versions are passed over."""

    dim: Width
    least_temperature: Annotated[float, Meta(gt=0, le=100)]
    context: Annotated[int, Meta(ge=1, le=1 << 20)]
    text: dict[str, Any]
    provenance: dict[str, Any]


class _HuggingFaceText(msgspec.Struct):
    """A text tower of transformers in ``language.json``."""

    config: dict[str, Any]
    pooling: str
    context: Annotated[int, Meta(ge=1, le=1 << 20)]
    pad: Natural | None = None


def _remake(description: dict[str, Any]) -> TextTower:
    if description.get("kind") == "huggingface":
        return remake_text(description)
    return TextTransformer(_text_config(description))


def _text_config(description: dict[str, Any]) -> TextConfig:
    if description.get("kind") != "transformer":
        raise ValueError(f"kind is {shown(description.get('kind'))}, expected 'transformer' or 'huggingface'")
    return convert({k: v for k, v in description.items() if k != "kind"}, TextConfig)


def _parameters(description: dict[str, Any]) -> int:
    """Parameters of a text tower, counted before it takes memory."""
    if description.get("kind") != "huggingface":
        return _text_config(description).parameters
    convert(description, _HuggingFaceText)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in remake_text(description).parameters())


def copy_language(language: LanguageSide, state: dict[str, Tensor]) -> LanguageSide:
    """Another one of the same shape, with the weights of ``state``."""
    least = language.least_temperature
    made = LanguageSide(
        _remake(language.text.describe()), language.video_proj.in_features, language.dim, 2 * least, least
    )
    made.load_state_dict(state)
    return made
