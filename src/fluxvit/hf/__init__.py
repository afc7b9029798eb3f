"""FluxViT in Hugging Face's transformers, which needs the extra ``hf``.

Importing this package registers the models with the Auto classes. A folder that ``save_pretrained`` writes
is a checkpoint folder of fluxvit, too, and ``from_pretrained`` reads folders that fluxvit has written.
"""

from __future__ import annotations

try:
    from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification
except ImportError as error:
    raise ImportError("fluxvit.hf needs the package transformers: pip install 'fluxvit[hf]'") from error

from fluxvit.hf.configuration import FluxViTConfig
from fluxvit.hf.modeling import FluxViTForVideoClassification, FluxViTModel, FluxViTPreTrainedModel
from fluxvit.hf.processing import FluxViTVideoProcessor

__all__ = [
    "FluxViTConfig",
    "FluxViTForVideoClassification",
    "FluxViTModel",
    "FluxViTPreTrainedModel",
    "FluxViTVideoProcessor",
]

# exist_ok: modules are imported again where a notebook reloads them.
AutoConfig.register("fluxvit", FluxViTConfig, exist_ok=True)
AutoModel.register(FluxViTConfig, FluxViTModel, exist_ok=True)
AutoModelForVideoClassification.register(FluxViTConfig, FluxViTForVideoClassification, exist_ok=True)
