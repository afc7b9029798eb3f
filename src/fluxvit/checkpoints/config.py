"""Options of ``fluxvit convert``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fluxvit.utils.options import POSITIONAL
from fluxvit.utils.schema import Count, check


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a .pth file, the authors' (FluxViT small or base) or InternVideo2's, into a checkpoint folder.

    Args:
        source: The .pth file. Its tensors determine its kind.
        out: Checkpoint folder to write.
        activation: Activation of the MLPs. The published weights were trained with ``gelu_tanh``.
        labels: File of class names in the order of the classes, one per line or with indices.
        exact: Leave out the parts of a FluxViT that would change the output of an InternVideo2.
        budgets: Token budgets that get a head each in a converted InternVideo2 (default: 3072,2048,1024).
    """

    source: str = field(metadata=POSITIONAL)
    out: str = field(metadata=POSITIONAL)
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    labels: str = ""
    exact: bool = False
    budgets: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        check(self)
