"""A tiny language model with a chat template, and a chat model around it, for the tests that need one."""

from __future__ import annotations

from pathlib import Path

import torch

from conftest import small_model
from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.language_model import load_language_model
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.chat import Connector, ConnectorConfig, VideoChat

WORDS = [
    "[UNK]",
    "<system>",
    "<user>",
    "<assistant>",
    "<end>",
    "what",
    "moves",
    "which",
    "way",
    "does",
    "it",
    "go",
    "the",
    "ball",
    "cube",
    "left",
    "right",
    "answer",
    "briefly",
    "to",
    "?",
    ".",
]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_language_model(folder: Path, width: int = 32) -> Path:
    """A random Llama of two layers over a few words, as a folder of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    library = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, unk_token="[UNK]", eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=WORDS.index("<end>"),
    )
    network = LlamaForCausalLM(config)
    for parameter in network.parameters():  # Sharper than it starts, so that answers differ.
        parameter.data *= 3 if parameter.ndim > 1 else 1
    network.save_pretrained(folder)
    return folder


def saved_chat(folder: Path, kind: str = "query") -> Path:
    """A chat model beside its language model, which lies in ``folder/lm``."""
    language = load_language_model(str(tiny_language_model(folder / "lm")))
    torch.manual_seed(4)
    config = ConnectorConfig(32, 16, 32, kind, queries=5, width=16, num_heads=2, scale=0.5)
    video = Checkpoint(
        small_model(0),
        grids=[SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)],
        plans=[Plan(SamplingGrid(8, 24, 24), 24), Plan(SamplingGrid(8, 16, 32), 12)],
    )
    model = VideoChat(video.model, Connector(config), language.network)
    return ChatCheckpoint(model, language, video, "answer briefly").save(folder / "chat")
