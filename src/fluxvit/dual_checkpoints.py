"""Checkpoints of dual encoders: a folder around that of the video side.

``video`` is an ordinary checkpoint folder, plans and all, that every command for videos alone takes, too.
Beside it lie ``language.safetensors``, ``tokenizer.json`` and ``language.json``, which tells what the text
tower is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fluxvit.checkpoints import CheckpointInfo, compare_keys, load_checkpoint, save_checkpoint
from fluxvit.data.texts import Texts
from fluxvit.files import atomic_folder, read_json, write_json
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.models.huggingface_text import remake_text
from fluxvit.models.text import TextConfig, TextTower, TextTransformer

FORMAT = 1
VIDEO, WEIGHTS, CONFIG, TOKENIZER = "video", "language.safetensors", "language.json", "tokenizer.json"


@dataclass
class DualInfo:
    """What a dual encoder must be used with.

    Args:
        video: The same of its video side.
        texts: Its tokenizer.
        provenance: Where the weights come from; free-form.
    """

    video: CheckpointInfo
    texts: Texts
    provenance: dict[str, Any] = field(default_factory=dict)


def is_dual(folder: str | Path) -> bool:
    """Whether a folder is a dual encoder's checkpoint."""
    return (Path(folder) / CONFIG).is_file()


def save_dual(folder: str | Path, encoder: DualEncoder, info: DualInfo) -> Path:
    """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

    Raises:
        ValueError: ``folder`` holds something else.
    """
    folder = Path(folder)
    known = {VIDEO, WEIGHTS, CONFIG, TOKENIZER}
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= known):
        raise ValueError(f"{folder} holds something else than a dual encoder; choose another folder")
    language = encoder.language
    state = {name: value.detach().cpu().contiguous() for name, value in language.state_dict().items()}
    with atomic_folder(folder) as partial:
        save_checkpoint(partial / VIDEO, encoder.video, info.video)
        safetensors.torch.save_file(state, partial / WEIGHTS)
        (partial / WEIGHTS).chmod(0o644)  # The library writes for the owner's eyes only.
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
        raise ValueError(f"{folder}: no dual encoder, which `fluxvit contrast` makes: it {kind}")
    video, video_info = load_checkpoint(folder / VIDEO, device)
    facts = read_json(folder / CONFIG)
    try:
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, this version of fluxvit reads {FORMAT}")
        least = facts["least_temperature"]
        # Not on the meta device: networks of transformers have buffers that no file tells.
        language = LanguageSide(_remake(facts["text"]), video.config.pool_dim, facts["dim"], 2 * least, least)
        context, provenance = facts["context"], facts["provenance"]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"missing key {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{folder}: bad {CONFIG}: {reason}") from error
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
        tokenizer = (folder / TOKENIZER).read_text(encoding="utf-8")
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged or not a safetensors file ({error})") from error
    except OSError as error:
        raise ValueError(f"{folder} is not complete: {error.filename} cannot be read") from error
    # Folders that were written with version 4 of transformers name a tower's tensors in this way.
    state = {name.replace("network.text_model.", "network."): value for name, value in state.items()}
    report = compare_keys(state, language)
    if not report.matches:
        raise ValueError(f"{folder}: {WEIGHTS} and {CONFIG} disagree: {report.summary}")
    language.load_state_dict(state)
    language.to(video.cls_token.device)
    try:
        texts = Texts.from_json(tokenizer, context)
    except ValueError as error:
        raise ValueError(f"{folder / TOKENIZER}: {error}") from error
    return DualEncoder(video, language).eval(), DualInfo(video_info, texts, provenance)


def _remake(description: dict[str, Any]) -> TextTower:
    if description["kind"] == "huggingface":
        return remake_text(description)
    return TextTransformer(TextConfig(**{k: v for k, v in description.items() if k != "kind"}))


def copy_language(language: LanguageSide, state: dict[str, Tensor]) -> LanguageSide:
    """Another one of the same shape, with the weights of ``state``."""
    least = language.least_temperature
    made = LanguageSide(
        _remake(language.text.describe()), language.video_proj.in_features, language.dim, 2 * least, least
    )
    made.load_state_dict(state)
    return made
