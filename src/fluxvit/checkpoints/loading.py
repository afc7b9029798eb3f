"""Checkpoints of every kind."""

from __future__ import annotations

from pathlib import Path

import torch

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint


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
