"""Checkpoints of chat models: video side, connector, and the name of the language model, in a folder.

The language model itself is not copied: it stays where it is, and is named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fluxvit.checkpoints.folder import (
    CheckpointInfo,
    check_format,
    check_numbers,
    check_size,
    compare_keys,
    load_checkpoint,
    save_checkpoint,
)
from fluxvit.checkpoints.language_model import LanguageModel, load_language_model
from fluxvit.checkpoints.state_dicts import savable, strip_prefixes
from fluxvit.checkpoints.weights import read_tensors, tensor_shapes, write_tensors
from fluxvit.models.adapters import merge_adapters
from fluxvit.models.chat import Connector, ConnectorConfig, VideoChat
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.files import atomic_folder, write_json
from fluxvit.utils.schema import Name, convert, located
from fluxvit.utils.schema import load as load_json

FORMAT = 1
VIDEO, WEIGHTS, CONFIG = "video", "connector.safetensors", "chat.json"
_ADAPTERS = "adapters."


@dataclass
class ChatInfo:
    """What a chat model must be used with.

    Args:
        video: The same of its video side.
        language: Where the language model is; see
            :func:`~fluxvit.checkpoints.language_model.load_language_model`.
        instruction: What it was told to be in training.
        provenance: Where the weights come from; free-form.
    """

    video: CheckpointInfo
    language: str
    instruction: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def save_chat(
    folder: str | Path, video: FluxViT, config: ConnectorConfig, state: dict[str, Tensor], info: ChatInfo
) -> Path:
    """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

    Args:
        state: The connector's tensors (``connector.``...) and, if the language model has adapters, theirs
            (``adapters.``...) as :func:`~fluxvit.models.adapters.merge_adapters` takes them.

    Raises:
        ValueError: ``folder`` holds something else, or a tensor has no content or is not finite.
    """
    folder = Path(folder)
    if folder.exists() and not (
        folder.is_dir() and {path.name for path in folder.iterdir()} <= {VIDEO, WEIGHTS, CONFIG}
    ):
        raise ValueError(f"{folder} holds something else than a chat model; choose another folder")
    tensors = savable(state, f"{folder} is not written")
    with atomic_folder(folder) as partial:
        save_checkpoint(partial / VIDEO, video, info.video)
        write_tensors(partial / WEIGHTS, tensors)
        write_json(
            partial / CONFIG,
            {
                "format": FORMAT,
                "connector": asdict(config),
                "language": info.language,
                "instruction": info.instruction,
                "provenance": info.provenance,
            },
        )
    return folder


def load_chat(
    folder: str | Path, language: str = "", device: str | torch.device = "cpu"
) -> tuple[VideoChat, LanguageModel, ChatInfo]:
    """Read a checkpoint folder, and the language model that it names; all in eval mode.

    Args:
        language: Where the language model is now, if not where the folder says.

    Raises:
        ValueError: The folder is missing, incomplete or damaged, the language model cannot be loaded, or is
            another one.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no chat model, which `fluxvit train-chat` makes")
    where = str(folder / CONFIG)
    content = load_json(folder / CONFIG)
    check_format(content, FORMAT, where)
    facts = convert(content, _ChatFile, where)
    config = convert(facts.connector, ConnectorConfig, where, "connector")
    shapes = tensor_shapes(folder / WEIGHTS)
    check_size(config.parameters, shapes, f"{folder}: {WEIGHTS} and {CONFIG}")
    connector = Connector(config)
    source = language or facts.language
    state = _weights(folder)
    video, video_info = load_checkpoint(folder / VIDEO, device)
    model = load_language_model(source)
    if model.dim != connector.config.out_dim:
        raise ValueError(
            f"{source}: its words are {model.dim} wide, and the connector of {folder} makes "
            f"{connector.config.out_dim}; it was trained for {facts.language}"
        )
    adapters = {name: state.pop(name) for name in list(state) if name.startswith(_ADAPTERS)}
    parts = nn.ModuleDict({"connector": connector})
    report = compare_keys(state, parts)
    if not report.matches:
        raise ValueError(f"{folder}: {WEIGHTS} and {CONFIG} disagree: {report.summary}")
    parts.load_state_dict(state)
    with located(f"{folder}: {WEIGHTS}"):
        merge_adapters(model.network, {name.removeprefix(_ADAPTERS): x for name, x in adapters.items()})
    chat = VideoChat(video, connector, model.network).to(video.cls_token.device)
    chat.eval().requires_grad_(False)
    return chat, model, ChatInfo(video_info, source, facts.instruction, facts.provenance)


def copy_connector(folder: str | Path, connector: Connector, video: FluxViT) -> None:
    """Give a connector the weights of a chat model's.

    Args:
        video: What it is to read, which must be what it has been trained to read.

    Raises:
        ValueError: It is not the folder of a chat model, its connector has another shape, or its video side
            has other weights.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: no chat model, which `fluxvit train-chat` makes")
    prefix = "connector."
    state = {name.removeprefix(prefix): x for name, x in _weights(folder).items() if name.startswith(prefix)}
    report = compare_keys(state, connector)
    if not report.matches:
        raise ValueError(
            f"{folder}: its connector has another shape than task.connector, task.queries, task.width and "
            f"the networks ask for: {report.summary}"
        )
    theirs = load_checkpoint(folder / VIDEO)[0].state_dict()
    ours = {name: value for name, value in video.state_dict().items() if ".fc." not in name}
    if any(name not in theirs or not torch.equal(value.cpu(), theirs[name]) for name, value in ours.items()):
        raise ValueError(
            f"{folder}: its connector was trained to read another video side; model.init must be "
            f"{folder / VIDEO}"
        )
    connector.load_state_dict(state)


class _ChatFile(msgspec.Struct):
    """``chat.json``. Keys of later versions are passed over."""

    connector: dict[str, Any]
    language: Name
    instruction: str
    provenance: dict[str, Any]


def _weights(folder: Path) -> dict[str, Tensor]:
    state = strip_prefixes(read_tensors(folder / WEIGHTS))
    check_numbers(state, folder / WEIGHTS)
    return state
