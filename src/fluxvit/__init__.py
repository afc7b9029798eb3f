"""Budget-adaptive video transformers: train once, deploy at any token, GFLOPs or latency budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fluxvit.checkpoints.chat import ChatCheckpoint
    from fluxvit.checkpoints.checkpoint import Checkpoint
    from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
    from fluxvit.checkpoints.loading import load
    from fluxvit.deploy.predictor import Predictor
    from fluxvit.flux.budget import Budget
    from fluxvit.flux.grid import SamplingGrid
    from fluxvit.flux.plan import Plan
    from fluxvit.models.config import FluxViTConfig
    from fluxvit.models.fluxvit import FluxViT, create_model

# Names are imported when first used: printing help must not wait for PyTorch.
_HOMES = {
    "Budget": "fluxvit.flux.budget",
    "ChatCheckpoint": "fluxvit.checkpoints.chat",
    "Checkpoint": "fluxvit.checkpoints.checkpoint",
    "DualEncoderCheckpoint": "fluxvit.checkpoints.dual_encoder",
    "FluxViT": "fluxvit.models.fluxvit",
    "FluxViTConfig": "fluxvit.models.config",
    "Plan": "fluxvit.flux.plan",
    "Predictor": "fluxvit.deploy.predictor",
    "SamplingGrid": "fluxvit.flux.grid",
    "create_model": "fluxvit.models.fluxvit",
    "load": "fluxvit.checkpoints.loading",
}

__all__ = [
    "Budget",
    "ChatCheckpoint",
    "Checkpoint",
    "DualEncoderCheckpoint",
    "FluxViT",
    "FluxViTConfig",
    "Plan",
    "Predictor",
    "SamplingGrid",
    "create_model",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fluxvit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
