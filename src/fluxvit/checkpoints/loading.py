"""Checkpoints of every kind."""

from __future__ import annotations

from pathlib import Path

import torch

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.checkpoint import Checkpoint, pretrained_names
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.config import PRESETS
from fluxvit.models.fluxvit import create_model


def load(
    folder: str | Path, device: str | torch.device | None = "cpu"
) -> Checkpoint | DualEncoderCheckpoint | ChatCheckpoint:
    """Read a checkpoint folder; the model is in eval mode.

    Args:
        folder: A folder of any kind, or the name of a checkpoint of the package.
        device: Device of the model; None: the accelerator if there is one.

    Returns:
        A :class:`~fluxvit.Checkpoint` for classifiers and pre-trained models, a
        :class:`~fluxvit.DualEncoderCheckpoint` or a :class:`~fluxvit.ChatCheckpoint`. All of them have
        ``model`` and ``save``; the last two also have ``video``, the checkpoint of their video side.

    Raises:
        ValueError: The folder is missing, incomplete or damaged, or there is no such device; the message
            names the problem.
    """
    if DualEncoderCheckpoint.is_in(folder):
        return DualEncoderCheckpoint.load(folder, device)
    if ChatCheckpoint.is_in(folder):
        return ChatCheckpoint.load(folder, device)
    return Checkpoint.load(folder, device)


def load_encoder(
    folder: str | Path, device: str | torch.device | None = "cpu"
) -> Checkpoint | DualEncoderCheckpoint:
    """Read what embeds videos: a checkpoint, a dual encoder, or the video side of a chat model; see `load`.

    Both have ``video``, ``embed``, ``embedding_dim``, ``digest`` and ``prepared``.
    """
    loaded = load(folder, device)
    return loaded.video if isinstance(loaded, ChatCheckpoint) else loaded


def load_or_create(name: str, device: str | torch.device = "cpu") -> Checkpoint:
    """A checkpoint, of any kind its video side, or a network of a named size with random weights.

    Args:
        name: A folder, the name of a checkpoint of the package, or a size such as ``fluxvit_small``.

    Raises:
        ValueError: It is none of them, or the folder cannot be read.
    """
    if name in PRESETS:
        with torch.device(device):
            model = create_model(name).eval()
        side = 16 * model.config.patch_size
        return Checkpoint(model, grids=[SamplingGrid(16, side, side)])
    if not Path(name).exists() and name not in pretrained_names():
        names = ", ".join([*PRESETS, *pretrained_names()])
        raise ValueError(f"{name} is neither a checkpoint folder nor one of {names}")
    loaded = load(name, device)
    return loaded if isinstance(loaded, Checkpoint) else loaded.video
