"""Checkpoints of chat models.

The folder has ``connector.safetensors``, and ``chat.json`` with the shape of the connector and the source of
the language model, which is not copied. Its folder ``video`` is an ordinary checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.folder import (
    VIDEO,
    FolderCheckpoint,
    check_size,
    compare_keys,
    load_state,
    read_format,
    read_state,
)
from fluxvit.checkpoints.language_model import LanguageModel, load_language_model
from fluxvit.checkpoints.state_dicts import savable
from fluxvit.models.adapters import merge_adapters
from fluxvit.models.chat import Connector, ConnectorConfig, VideoChat
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import Name, convert, located
from fluxvit.utils.schema import load as load_json

_CONNECTOR, _ADAPTERS, _UP = "connector.", "adapters.", ".up.weight"


@dataclass
class ChatCheckpoint(FolderCheckpoint):
    """A chat model and everything that is needed to use it.

    Args:
        model: The network, which shares its FluxViT with ``video`` and its language model with ``language``.
        language: The language model and its tokenizer. A folder holds its source only.
        video: The video side, a checkpoint of its own.
        instruction: The system message of training.
        provenance: Origin of the weights; free-form.
        adapters: Adapters of the language model, as :func:`~fluxvit.models.adapters.merge_adapters` takes
            them. They are merged into the language model when a folder is read.
    """

    KIND: ClassVar[str] = "chat model"
    WEIGHTS: ClassVar[str] = "connector.safetensors"
    CONFIG: ClassVar[str] = "chat.json"
    OTHERS: ClassVar[frozenset[str]] = frozenset({VIDEO})

    model: VideoChat
    language: LanguageModel
    video: Checkpoint
    instruction: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, Tensor] = field(default_factory=dict)

    def prepared(self, precision: Precision = "auto") -> ChatCheckpoint:
        """This checkpoint with its video side in the inference form, as by :meth:`Checkpoint.prepared`."""
        video = self.video.prepared(precision)
        model = VideoChat(video.model, self.model.connector, self.model.language)
        return replace(self, model=model, video=video)

    def _content(self, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        connector = self.model.connector
        state = {f"{_CONNECTOR}{name}": value for name, value in connector.state_dict().items()}
        state |= {f"{_ADAPTERS}{name}": value for name, value in self.adapters.items()}
        return savable(state, what), {
            "connector": asdict(connector.config),
            "language": self.language.source,
            "instruction": self.instruction,
            "provenance": self.provenance,
        }

    def _save_others(self, folder: Path) -> None:
        self.video.save(folder / VIDEO)

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device | None = "cpu", *, language: str = ""
    ) -> ChatCheckpoint:
        """Read a checkpoint folder, and the language model that it names; all in eval mode.

        Args:
            device: Device of the model; None: the accelerator if there is one.
            language: Source of the language model, if it is not the one in the folder.

        Raises:
            ValueError: The folder is missing, incomplete or damaged, the language model cannot be loaded, or
                is another one.
        """
        folder = Path(folder)
        weights, where = folder / cls.WEIGHTS, str(folder / cls.CONFIG)
        state = _read_state(folder)
        facts = read_format(load_json(folder / cls.CONFIG), _ChatFile, where)
        config = convert(facts.connector, ConnectorConfig, where, "connector")
        check_size(config.parameters, state, f"{folder}: {cls.WEIGHTS} and {cls.CONFIG}")
        connector = Connector(config)
        source = language or facts.language
        video = Checkpoint.load(folder / VIDEO, device)
        model = load_language_model(source)
        if model.dim != config.out_dim:
            raise ValueError(
                f"{source}: its words are {model.dim} wide, and the connector of {folder} makes "
                f"{config.out_dim}; it was trained for {facts.language}"
            )
        adapters = {name: state.pop(name) for name in list(state) if name.startswith(_ADAPTERS)}
        adapters = {name.removeprefix(_ADAPTERS): value for name, value in adapters.items()}
        load_state(nn.ModuleDict({"connector": connector}), state, weights, cls.CONFIG)
        with located(f"{folder}: {cls.WEIGHTS}"):
            merge_adapters(model.network, adapters)
        chat = VideoChat(video.model, connector, model.network).to(video.device)
        chat.eval().requires_grad_(False)
        return cls(chat, model, video, facts.instruction, facts.provenance, adapters)


def _read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of the connector and the adapters.

    Raises:
        ValueError: It is not the folder of a chat model, or its weights are damaged.
    """
    if not ChatCheckpoint.is_in(folder):
        raise ValueError(f"{folder}: no chat model, which `fluxvit train-chat` makes")
    return read_state(folder / ChatCheckpoint.WEIGHTS)


def copy_connector(folder: str | Path, connector: Connector, video: FluxViT) -> None:
    """Copy the weights of the connector in a chat model's folder.

    Args:
        connector: The connector that gets the weights.
        video: The FluxViT that it reads; the one in the folder must have the same weights.

    Raises:
        ValueError: It is not the folder of a chat model, its connector has another shape, or its video side
            has other weights.
    """
    folder = Path(folder)
    state = {
        name.removeprefix(_CONNECTOR): value
        for name, value in _read_state(folder).items()
        if name.startswith(_CONNECTOR)
    }
    report = compare_keys(state, connector)
    if not report.matches:
        raise ValueError(
            f"{folder}: its connector has another shape than task.connector, task.queries, task.width and "
            f"the networks ask for: {report.summary}"
        )
    trained = Checkpoint.load(folder / VIDEO).model.state_dict()
    ours = {name: value for name, value in video.state_dict().items() if ".fc." not in name}
    if any(
        name not in trained or not torch.equal(value.cpu(), trained[name]) for name, value in ours.items()
    ):
        raise ValueError(
            f"{folder}: its connector was trained to read another video side; model.init must be "
            f"{folder / VIDEO}"
        )
    connector.load_state_dict(state)


def copy_adapters(folder: str | Path, adapters: nn.ModuleDict, scale: float) -> None:
    """Copy the adapters of the language model in a chat model's folder, if it has any.

    Args:
        adapters: The adapters that get the weights, from :func:`~fluxvit.models.adapters.add_adapters`.
        scale: Factor of their output.

    Raises:
        ValueError: It is not the folder of a chat model, or its adapters are of other layers or ranks.
    """
    state = {
        name.removeprefix(_ADAPTERS): value / scale if name.endswith(_UP) else value
        for name, value in _read_state(Path(folder)).items()
        if name.startswith(_ADAPTERS)
    }
    if not state:
        return
    if not compare_keys(state, adapters).matches:
        ranks = sorted({value.shape[1] for name, value in state.items() if name.endswith(_UP)})
        layers = sorted({name.removesuffix(_UP).split("/")[-1] for name in state if name.endswith(_UP)})
        raise ValueError(
            f"{folder}: its language model has adapters of rank {', '.join(map(str, ranks))} for "
            f"{', '.join(layers)}; set task.adapters.rank and task.adapters.layers to these"
        )
    adapters.load_state_dict(state)


class _ChatFile(msgspec.Struct):
    """``chat.json``. Unknown keys, as later versions may add them, are ignored."""

    connector: dict[str, Any]
    language: Name
    instruction: str
    provenance: dict[str, Any]
