"""Text towers from networks of the ``transformers`` library, by folder or by name on the Hugging Face hub.

A file of sentence-transformers beside a checkpoint tells how the tokens of a text become one vector.
Without it they are averaged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxvit.checkpoints.hub import blocks_of, check_source, explained, quiet, transformers_library
from fluxvit.models.text import TextTower
from fluxvit.utils.schema import convert, load, shown

_MOST_LAYERS, _LARGEST_SIZE = 512, 1 << 24
POOLINGS = ("mean", "first", "last")


class HuggingFaceText(TextTower):
    """A text network of transformers.

    Args:
        network: Gives ``last_hidden_state`` for ``input_ids`` and ``attention_mask``.
        pooling: ``mean`` of all tokens, the ``first``, or the ``last``.
        context: Maximum number of tokens of a text.

    Raises:
        ValueError: The pooling is unknown.
    """

    def __init__(self, network: Any, pooling: str, context: int) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.network, self.pooling = network, pooling
        self.out_dim, self.context = network.config.hidden_size, context
        # Data parallelism waits for the gradient of every parameter, and nothing reads the pooler.
        if isinstance(getattr(network, "pooler", None), nn.Module):
            network.pooler = None

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        count = ids.shape[1]
        if count > self.context:
            raise ValueError(f"texts of {count} tokens for a context of {self.context}: cut them")
        real = torch.arange(count, device=ids.device) < lengths[:, None]
        tokens = self.network(input_ids=ids, attention_mask=real.long()).last_hidden_state
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
        return {"kind": "huggingface", "config": config, "pooling": self.pooling, "context": self.context}

    def no_weight_decay(self) -> set[str]:
        stem = {id(parameter) for parameter in self.stem()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in stem}


def huggingface_text(source: str, *, context: int = 0) -> HuggingFaceText:
    """A text tower from a network of transformers, on the CPU, in fp32. No code that a checkpoint brings
    along is run.

    Args:
        source: A folder with ``config.json`` and weights, or a name on the Hugging Face hub.
        context: Maximum number of tokens of a text; 0: the number of its positions, up to 512.

    Raises:
        ValueError: transformers is not installed, there is no such folder or name, the internet cannot be
            reached, or weights are missing.
    """
    transformers = transformers_library("text towers")
    with explained("text tower", source), quiet(transformers):
        check_source(source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if hasattr(config, "text_config") or hasattr(config, "vision_config"):
            raise ValueError(f"a {config.model_type} has several towers, which are not supported.")
        network, report = transformers.AutoModel.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
        missing = {key for key in report["missing_keys"] if not key.startswith("pooler.")}
        if missing:
            raise ValueError(f"its weights lack {len(missing)} tensors, {min(missing)} among them.")
    longest = getattr(config, "max_position_embeddings", 512)
    return HuggingFaceText(network, _stored_pooling(Path(source)), min(context or 512, longest))


def remake_text(description: dict[str, Any]) -> HuggingFaceText:
    """A tower of the shape that :meth:`HuggingFaceText.describe` returned, with random weights.

    Raises:
        ValueError: transformers is not installed, or does not know such networks.
    """
    transformers = transformers_library("text towers")
    _check_sizes(description["config"])
    try:
        config = transformers.AutoConfig.for_model(**description["config"])
        network = transformers.AutoModel.from_config(config)
    except Exception as error:  # A stranger's configuration can make the library fail in any way.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"transformers {transformers.__version__} knows no such text tower: {reason}"
        ) from error
    return HuggingFaceText(network, description["pooling"], description["context"])


def _check_sizes(config: dict[str, Any]) -> None:
    """Raise a ValueError for sizes far beyond any text network, which would take hours or all memory."""
    for name, value in config.items():
        most = _MOST_LAYERS if "layers" in name else _LARGEST_SIZE
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"config.{name} is {shown(value)}, expected an integer of at most {most}")
        if isinstance(value, dict):
            _check_sizes(value)


def _stored_pooling(folder: Path) -> str:
    """The pooling in the file that sentence-transformers writes; without it, the mean."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    settings = convert(load(path), dict[str, Any], str(path))
    for key, pooling in (
        ("pooling_mode_cls_token", "first"),
        ("pooling_mode_lasttoken", "last"),
        ("pooling_mode_mean_tokens", "mean"),
    ):
        if settings.get(key):
            return pooling
    return "mean"
