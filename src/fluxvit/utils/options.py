"""Options that several commands share. Imports no PyTorch.

The options of a command are the fields of a frozen dataclass, whose docstring is the help.
``fluxvit.cli.command`` turns it into a command line. Each room keeps its own in a module called ``config``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fluxvit.utils.schema import Workers

POSITIONAL: dict[str, Any] = {"positional": True}
"""Metadata of a field that may be given without its name."""

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The device of a command.

    Args:
        device: Device that runs the model, such as ``cuda``, ``cuda:1``, ``mps`` or ``cpu``; ``auto`` is the
            accelerator that PyTorch finds, or the CPU if there is none.
    """

    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DeviceOptions):
    """The device of a command that runs a trained network, and the precision.

    Args:
        precision: Number format in which the network multiplies: ``fp32``, ``bf16``, or ``auto`` for the
            faster of both on the device. Tokens are selected in fp32, so that the same ones are kept.
    """

    precision: Precision = "auto"


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(ModelOptions):
    """The options of a command that runs a trained network on many videos.

    Args:
        workers: Number of processes that decode videos; with 0 the main process decodes them itself.
    """

    workers: Workers = 0
