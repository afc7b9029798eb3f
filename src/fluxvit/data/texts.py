"""Turns sentences into token ids with the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxvit.checkpoints.hub import check_source, explained, transformers_library

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN, END = "[PAD]", "[UNK]", "[END]"


class Texts:
    """Turns texts into token ids. Long texts are cut, but keep the tokens that end a text.

    Args:
        tokenizer: A tokenizer of the ``tokenizers`` library.
        context: Maximum number of tokens of a text.
    """

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._tokenizer, self.context = tokenizer, context
        tokenizer.no_padding()
        tokenizer.enable_truncation(context)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._tokenizer.get_vocab_size()

    @property
    def largest_id(self) -> int:
        """The largest token id; the ids may have gaps."""
        return max(self._tokenizer.get_vocab().values(), default=-1)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 ``[B, N]``, 0 behind a text's end, and lengths int64 ``[B]``.

        Raises:
            ValueError: A text is empty, or the tokenizer makes nothing of it.
        """
        if not all(text.strip() for text in texts):
            raise ValueError("a text is empty; leave it out")
        try:
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        except Exception as error:  # The library raises plain exceptions.
            raise ValueError(f"the tokenizer cannot read the texts: {error}") from error
        if not all(rows):
            raise ValueError(f"the tokenizer makes no tokens of {texts[[*map(bool, rows)].index(False)]!r}")
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return ids, lengths

    def to_json(self) -> str:
        """The tokenizer as text, for :meth:`from_json`."""
        return self._tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str, context: int) -> Texts:
        """The tokenizer of a ``tokenizer.json``.

        Raises:
            ValueError: It is damaged, or tokenizers is not installed.
        """
        try:
            return cls(_tokenizers().Tokenizer.from_str(text), context)
        except Exception as error:  # The library raises plain exceptions.
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"the tokenizer cannot be read: {error}") from error

    @classmethod
    def of_words(cls, captions: Iterable[str], context: int, size: int = 8192) -> Texts:
        """A tokenizer of the ``size`` most frequent words in captions, which ignores case.

        Raises:
            ValueError: tokenizers is not installed.
        """
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = library.normalizers.Sequence(
            [library.normalizers.NFKC(), library.normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
        trainer = library.trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=[PAD, UNKNOWN, END], show_progress=False
        )
        tokenizer.train_from_iterator(captions, trainer)
        end = tokenizer.token_to_id(END)
        tokenizer.post_processor = library.processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, end)]
        )
        return cls(tokenizer, context)

    @classmethod
    def of_hub(cls, source: str, context: int) -> Texts:
        """The tokenizer of a folder or a name on the Hugging Face hub.

        Raises:
            ValueError: transformers is not installed, or there is no such tokenizer.
        """
        transformers = transformers_library("tokenizers")
        with explained("tokenizer", source):
            check_source(source)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            if not hasattr(tokenizer, "backend_tokenizer"):
                raise ValueError("it is none of the tokenizers library.")
            # A copy, because truncation and padding are changed.
            return cls.from_json(tokenizer.backend_tokenizer.to_str(), context)


def caption_number(caption: str) -> int:
    """A 63-bit hash of a caption that ignores case and the amount of white space."""
    digest = hashlib.blake2b(plain_caption(caption).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def plain_caption(caption: str) -> str:
    """A caption in lower case, with single spaces."""
    return " ".join(caption.casefold().split())


def reversed_captions(caption: str, opposites: Sequence[Mapping[str, str]]) -> list[str]:
    """A caption with some of its words replaced by their opposites, in lower case.

    Args:
        opposites: Groups of opposite words, in either order, such as ``{"left": "right"}`` and
            ``{"up": "down", "rises": "sinks"}``. All words of a group are replaced at once.

    Returns:
        One caption for each group that occurs in it.
    """
    plain = plain_caption(caption)
    return [text for group in opposites if (text := _swapped(plain, group)) != plain]


def _swapped(text: str, group: Mapping[str, str]) -> str:
    words = {one.casefold(): other for pair in group.items() for one, other in (pair, pair[::-1])}
    # Longer ones first: "comes closer" before "closer".
    pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", lambda match: words[match[0]], text)


def _tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
        import tokenizers.trainers
    except ImportError:
        raise ValueError("texts need the package tokenizers: pip install 'fluxvit[huggingface]'") from None
    return tokenizers
