"""Text towers from networks of the ``transformers`` library, by folder or by name on the Hugging Face hub.

How a text's tokens become one vector follows the checkpoint: what sentence-transformers writes beside it; the
last token of CLIP's text tower; SigLIP's own pooling, whose texts are padded to a fixed length that it sees.
All else is averaged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.checkpoints.hub import (
    blocks_of,
    check_source,
    explained,
    load_network,
    quiet,
    transformers_library,
)
from fluxvit.models.text import TextTower
from fluxvit.utils.schema import convert, load, shown

_MOST_LAYERS, _LARGEST_SIZE = 512, 1 << 24
POOLINGS = ("mean", "first", "last", "pooler")

# Two-tower checkpoints, of which one is taken: the class of it.
_TOWERS = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
    "siglip2_text_model": "Siglip2TextModel",
}


class HuggingFaceText(TextTower):
    """A text network of transformers.

    Args:
        network: Gives ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
        pooling: ``mean`` of all tokens, the ``first``, the ``last``, or the network's own ``pooler``.
        context: Most tokens of a text.
        pad: Pad texts to the context by this id, and show the padding to the network; None: do not.

    Raises:
        ValueError: The pooling is unknown.
    """

    def __init__(self, network: Any, pooling: str, context: int, pad: int | None = None) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        # Version 4 of transformers wraps a tower, version 5 does not; tensors have the same names in both.
        network = getattr(network, "text_model", network)
        self.network, self.pooling, self.pad = network, pooling, pad
        self.out_dim, self.context = network.config.hidden_size, context
        # What is not read must not wait for a gradient.
        if pooling != "pooler" and isinstance(getattr(network, "pooler", None), nn.Module):
            network.pooler = None

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        count = ids.shape[1]
        if count > self.context:
            raise ValueError(f"texts of {count} tokens for a context of {self.context}: cut them")
        places = torch.arange(count, device=ids.device)
        real = places < lengths[:, None]
        if self.pad is not None:
            ids = F.pad(ids.masked_fill(~real, self.pad), (0, self.context - count), value=self.pad)
            output = self.network(input_ids=ids)
        else:
            output = self.network(input_ids=ids, attention_mask=real.long())
        if self.pooling == "pooler":
            return output.pooler_output
        tokens = output.last_hidden_state
        if self.pooling == "first":
            return tokens[:, 0]
        if self.pooling == "last":
            return tokens[torch.arange(len(tokens), device=ids.device), lengths - 1]
        return (tokens * real[..., None]).sum(1) / lengths[:, None]

    def blocks_in_order(self) -> list[nn.Module]:
        return list(blocks_of(self.network))

    def stem(self) -> list[Tensor]:
        return [
            parameter
            for name, module in self.network.named_modules()
            if name.rpartition(".")[2] in ("embeddings", "embed_tokens", "wte", "wpe")
            for parameter in module.parameters()
        ]

    @property
    def vocab_size(self) -> int:
        return self.network.get_input_embeddings().num_embeddings

    def describe(self) -> dict[str, Any]:
        config = json.loads(self.network.config.to_json_string(use_diff=False))
        shape = {"pooling": self.pooling, "context": self.context, "pad": self.pad}
        return {"kind": "huggingface", "config": config, **shape}

    def no_weight_decay(self) -> set[str]:
        stem = {id(parameter) for parameter in self.stem()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in stem}


def huggingface_text(source: str, *, context: int = 0, pooling: str = "") -> HuggingFaceText:
    """A text tower from a network of transformers, on the CPU, in fp32. No code that a checkpoint brings
    along is run.

    Args:
        source: A folder with ``config.json`` and weights, or a name on the Hugging Face hub.
        context: Maximum number of tokens of a text; 0: as many as it has positions for, up to 512.
        pooling: Another than the checkpoint's own; see `HuggingFaceText`.

    Raises:
        ValueError: transformers is not installed, there is no such folder or name, the internet cannot be
            reached, or weights are missing.
    """
    transformers = _library()
    with explained("text tower", source), quiet(transformers):
        check_source(source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind, config = _network_class(transformers, config)
        network, missing = load_network(kind, source, config=config, dtype=torch.float32)
        missing = {key for key in missing if not key.startswith("pooler.")}
        if missing:
            raise ValueError(f"its weights lack {len(missing)} tensors, {min(missing)} among them.")
    longest = getattr(config, "max_position_embeddings", 512)
    padded = config.model_type.startswith("siglip")
    if not pooling:
        if padded:
            pooling = "pooler"
        elif config.model_type == "clip_text_model":
            pooling = "last"
        else:
            pooling = _stored_pooling(Path(source)) or "mean"
    # SigLIP's padding was seen in training: its length is the tower's own.
    context = longest if padded else min(context or 512, longest)
    return HuggingFaceText(network, pooling, context, _pad_id(config) if padded else None)


def remake_text(description: dict[str, Any]) -> HuggingFaceText:
    """A tower of the shape that :meth:`HuggingFaceText.describe` returned, with random weights.

    Raises:
        ValueError: transformers is not installed, or does not know such networks.
    """
    transformers = _library()
    _check_sizes(description["config"])
    try:
        config = transformers.AutoConfig.for_model(**description["config"])
        kind, config = _network_class(transformers, config)
        network = kind.from_config(config) if kind is transformers.AutoModel else kind(config)
    except Exception as error:  # A stranger's configuration can make the library fail in any way.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"transformers {transformers.__version__} knows no such text tower: {reason}"
        ) from error
    return HuggingFaceText(network, description["pooling"], description["context"], description["pad"])


def _check_sizes(config: dict[str, Any]) -> None:
    """Refuse sizes far beyond any text network, which would take hours or all memory to build.

    Raises:
        ValueError: There is one.
    """
    for name, value in config.items():
        most = _MOST_LAYERS if "layers" in name else _LARGEST_SIZE
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"config.{name} is {shown(value)}, expected an integer of at most {most}")
        if isinstance(value, dict):
            _check_sizes(value)


def _library() -> Any:
    transformers = transformers_library("text towers")
    for kind in ("Siglip", "Siglip2"):
        # Version 4 has these classes, but does not find them by the type that their files tell.
        config = getattr(transformers, f"{kind}TextConfig")
        if config.model_type not in transformers.CONFIG_MAPPING:
            transformers.AutoConfig.register(config.model_type, config)
    return transformers


def _network_class(transformers: Any, config: Any) -> tuple[Any, Any]:
    """The class that makes a network of a configuration, and the part of it that is about texts."""
    name = _TOWERS.get(config.model_type)
    if name is None:
        return transformers.AutoModel, config
    return getattr(transformers, name), getattr(config, "text_config", config)


def _pad_id(config: Any) -> int:
    return 0 if config.pad_token_id is None else config.pad_token_id


def _stored_pooling(folder: Path) -> str:
    """What sentence-transformers wrote about a checkpoint's pooling; empty if it did not."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return ""
    settings = convert(load(path), dict[str, Any], str(path))
    for key, pooling in (
        ("pooling_mode_cls_token", "first"),
        ("pooling_mode_lasttoken", "last"),
        ("pooling_mode_mean_tokens", "mean"),
    ):
        if settings.get(key):
            return pooling
    return ""
