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

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.folder import (
    check_numbers,
    check_replaceable,
    check_size,
    compare_keys,
    load_weights,
    read_format,
    read_weights,
)
from fluxvit.checkpoints.language_model import LanguageModel, load_language_model
from fluxvit.checkpoints.state_dicts import savable
from fluxvit.checkpoints.weights import tensor_shapes, write_tensors
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
        video: Its video side, a checkpoint of its own.
        language: Where the language model is; see
            :func:`~fluxvit.checkpoints.language_model.load_language_model`.
        instruction: What it was told to be in training.
        provenance: Where the weights come from; free-form.
    """

    video: Checkpoint
    language: str
    instruction: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)


def save_chat(folder: str | Path, config: ConnectorConfig, state: dict[str, Tensor], info: ChatInfo) -> Path:
    """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

    Args:
        state: The connector's tensors (``connector.``...) and, if the language model has adapters, theirs
            (``adapters.``...) as :func:`~fluxvit.models.adapters.merge_adapters` takes them.

    Raises:
        ValueError: ``folder`` holds something else, or a tensor has no content or is not finite.
    """
    folder = Path(folder)
    check_replaceable(folder, {VIDEO, WEIGHTS, CONFIG}, "chat model")
    tensors = savable(state, f"{folder} is not written")
    with atomic_folder(folder) as partial:
        info.video.save(partial / VIDEO)
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
    facts = read_format(load_json(folder / CONFIG), FORMAT, _ChatFile, where)
    config = convert(facts.connector, ConnectorConfig, where, "connector")
    shapes = tensor_shapes(folder / WEIGHTS)
    check_size(config.parameters, shapes, f"{folder}: {WEIGHTS} and {CONFIG}")
    connector = Connector(config)
    source = language or facts.language
    state = read_weights(folder / WEIGHTS)
    check_numbers(state, folder / WEIGHTS)
    video = Checkpoint.load(folder / VIDEO, device)
    model = load_language_model(source)
    if model.dim != connector.config.out_dim:
        raise ValueError(
            f"{source}: its words are {model.dim} wide, and the connector of {folder} makes "
            f"{connector.config.out_dim}; it was trained for {facts.language}"
        )
    adapters = {name: state.pop(name) for name in list(state) if name.startswith(_ADAPTERS)}
    parts = nn.ModuleDict({"connector": connector})
    load_weights(parts, state, folder / WEIGHTS, CONFIG)
    with located(f"{folder}: {WEIGHTS}"):
        merge_adapters(model.network, {name.removeprefix(_ADAPTERS): x for name, x in adapters.items()})
    chat = VideoChat(video.model, connector, model.network).to(video.device)
    chat.eval().requires_grad_(False)
    return chat, model, ChatInfo(video, source, facts.instruction, facts.provenance)


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
    tensors = read_weights(folder / WEIGHTS)
    check_numbers(tensors, folder / WEIGHTS)
    state = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    report = compare_keys(state, connector)
    if not report.matches:
        raise ValueError(
            f"{folder}: its connector has another shape than task.connector, task.queries, task.width and "
            f"the networks ask for: {report.summary}"
        )
    theirs = Checkpoint.load(folder / VIDEO).model.state_dict()
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
