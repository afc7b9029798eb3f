"""Options that several commands share. Imports no PyTorch.

The options of a command are the fields of a frozen dataclass, whose docstring is the help.
``fluxvit.cli.command`` turns it into a command line. Each room keeps its own in a module called ``config``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxvit.utils.schema import Workers

POSITIONAL: dict[str, Any] = {"positional": True}
"""Metadata of a field that may be given without its name."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The device of a command.

    Args:
        device: Device that runs the model, such as ``cuda``, ``cuda:1``, ``mps`` or ``cpu``; ``auto`` is the
            accelerator that PyTorch finds, or the CPU if there is none.
    """

    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(DeviceOptions):
    """The device of a command that reads many videos, and the processes that decode them.

    Args:
        workers: Number of processes that decode videos; with 0 the main process decodes them itself.
    """

    workers: Workers = 0
