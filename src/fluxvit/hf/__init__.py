"""FluxViT in Hugging Face's transformers, which needs the extra ``hf``.

Importing this package registers the models with the Auto classes. A folder that ``save_pretrained`` writes
is a checkpoint folder of fluxvit, too, and ``from_pretrained`` reads folders that fluxvit has written.

What is for sentence-transformers and mteb needs the extra ``mteb`` and is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification

    # Its name in `transformers` itself needs torchvision; the pipeline takes it from here.
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    from fluxvit.hf.configuration import FluxViTConfig  # Older ones lack what it imports.
except ImportError as error:
    raise ImportError("fluxvit.hf needs transformers 5 or newer: pip install 'fluxvit[hf]'") from error

from fluxvit.hf.modeling import FluxViTForVideoClassification, FluxViTModel, FluxViTPreTrainedModel
from fluxvit.hf.processing import FluxViTVideoProcessor

if TYPE_CHECKING:
    from fluxvit.hf.mteb import MTEBEncoder
    from fluxvit.hf.sentence_transformers import DualEncoderModule, sentence_transformer

_HOMES = {
    "DualEncoderModule": "fluxvit.hf.sentence_transformers",
    "MTEBEncoder": "fluxvit.hf.mteb",
    "sentence_transformer": "fluxvit.hf.sentence_transformers",
}

__all__ = [
    "DualEncoderModule",
    "FluxViTConfig",
    "FluxViTForVideoClassification",
    "FluxViTModel",
    "FluxViTPreTrainedModel",
    "FluxViTVideoProcessor",
    "MTEBEncoder",
    "sentence_transformer",
]

# exist_ok: modules are imported again where a notebook reloads them.
AutoConfig.register("fluxvit", FluxViTConfig, exist_ok=True)
AutoModel.register(FluxViTConfig, FluxViTModel, exist_ok=True)
AutoModelForVideoClassification.register(FluxViTConfig, FluxViTForVideoClassification, exist_ok=True)
AutoVideoProcessor.register(FluxViTConfig, FluxViTVideoProcessor, exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fluxvit.hf' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
