"""Options of ``fluxvit convert``. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fluxvit.utils.options import POSITIONAL
from fluxvit.utils.schema import Count, check


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a .pth file of the FluxViT authors (small or base) or of InternVideo2 into a checkpoint folder.

    Args:
        source: The .pth file. Its tensors tell which of the two it is.
        out: Checkpoint folder to write.
        activation: Activation of the MLPs. The published weights were trained with ``gelu_tanh``.
        labels: Text file of class names, one on each line in the order of the classes, with or without their
            indices.
        exact: Keep the outputs of InternVideo2, by leaving out the parts of FluxViT that would change them.
        budgets: Token budgets of a converted InternVideo2, each of which gets a head (default:
            3072,2048,1024).
    """

    source: str = field(metadata=POSITIONAL)
    out: str = field(metadata=POSITIONAL)
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    labels: str = ""
    exact: bool = False
    budgets: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        check(self)
