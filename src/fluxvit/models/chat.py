"""A frozen FluxViT, a frozen causal language model, and the trained connector between them (paper, table 10).

The connector turns the tokens of a video into vectors that take the place of words in a prompt. Tokens carry
their positions in the video, since their number varies with grid and budget.

Shapes: B videos, K kept tokens, C channels of the FluxViT, P of its pooled vector, N vectors of a video for
the language model, D its width, L tokens of text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.flux.selection import Selector
from fluxvit.models.config import MAX_PARAMETERS, Heads, Width
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.schema import NotNegative, check

CONNECTORS = ("mlp", "query")
_FREQUENCIES = 6


@dataclass(frozen=True)
class ConnectorConfig:
    """Shape of a `Connector`.

    Args:
        dim: Width C of the tokens.
        pooled_dim: Width P of the pooled vector.
        out_dim: Width D of the language model.
        kind: ``mlp`` gives one vector for the pooled vector, followed by one for each token, N = K + 1.
            ``query`` makes N queries of the pooled vector, which attend to the tokens.
        queries: Number of queries N of the kind ``query``.
        width: Hidden width.
        num_heads: Attention heads of the kind ``query``.
        scale: Initial standard deviation of the output, which should be that of the word embeddings.

    Raises:
        ValueError: A value has another type, is out of range, or does not fit the others.
    """

    dim: Width
    pooled_dim: Width
    out_dim: Width
    kind: str = "query"
    queries: Annotated[int, Meta(ge=1, le=1 << 16)] = 16
    width: Width = 256
    num_heads: Heads = 4
    scale: NotNegative = 1.0

    def __post_init__(self) -> None:
        check(self)
        if self.kind not in CONNECTORS:
            raise ValueError(f"connector {self.kind!r}: choose {' or '.join(CONNECTORS)}")
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(f"the settings describe a connector of {self.parameters:.3g} parameters")
        if self.width % self.num_heads:
            raise ValueError(f"connector width {self.width} is no multiple of {self.num_heads} heads")

    @property
    def parameters(self) -> int:
        """Approximate number of parameters of the connector, counted without building it."""
        pooled = self.pooled_dim * self.width * (self.queries if self.kind == "query" else 1)
        return pooled + self.width * (self.dim + 36 + 8 * self.width + 4 * self.out_dim)


class Connector(nn.Module):
    """Turns any number of tokens of a FluxViT, and its pooled vector, into input of a language model.

    Args:
        config: Shape of the connector.
    """

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.norm = nn.LayerNorm(config.dim)
        self.embed = nn.Linear(config.dim, width)
        self.place = nn.Linear(6 * _FREQUENCIES, width)
        self.norm_pooled = nn.LayerNorm(config.pooled_dim)
        if config.kind == "mlp":
            self.pooled = nn.Linear(config.pooled_dim, width)
        else:
            self.pooled = nn.Linear(config.pooled_dim, config.queries * width)
            self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
            self.norm_tokens, self.norm_queries = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attend = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.norm_hidden = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, config.out_dim)
        self.norm_out = nn.LayerNorm(config.out_dim)
        nn.init.constant_(self.norm_out.weight, config.scale)

    def forward(self, tokens: Tensor, positions: Tensor, pooled: Tensor) -> Tensor:
        """Tokens to ``[B, N, D]``.

        Args:
            tokens: ``[B, K, C]``, without class token.
            positions: ``[B, K, 3]``, the middle of each token in time, height and width, from 0 to 1.
            pooled: ``[B, P]``.
        """
        x = self.embed(self.norm(tokens)) + self.place(fourier(positions).to(tokens.dtype))
        summary = self.pooled(self.norm_pooled(pooled)).unflatten(1, (-1, self.config.width))
        if self.config.kind == "mlp":
            x = torch.cat([summary.to(x.dtype), x], dim=1)
        else:
            x = self.norm_tokens(x)
            queries = summary.to(x.dtype) + self.queries
            x = queries + self.attend(self.norm_queries(queries), x, x, need_weights=False)[0]
        return self.norm_out(self.fc2(F.gelu(self.fc1(self.norm_hidden(x)))))

    @torch.no_grad()
    def start_as_words(self, words: Tensor) -> None:
        """Give the initial vectors the mean and the spread of word embeddings ``[V, D]``."""
        self.norm_out.bias.copy_(words.mean(0))
        self.norm_out.weight.fill_(float(words.std(0).mean()))

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {"queries"}


def fourier(positions: Tensor) -> Tensor:
    """Sines and cosines with 1/2, 1, 2, ... periods of positions ``[..., 3]`` from 0 to 1: ``[..., 36]``."""
    angles = positions[..., None] * torch.pi * 2.0 ** torch.arange(_FREQUENCIES, device=positions.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def word_scores(seen: Tensor, table: Tensor, words: Tensor) -> Tensor:
    """How well vectors of videos say texts, by late interaction as in ColBERT, fp32 ``[B, Q, C]``.

    The score of a text is the mean over its words of the largest cosine with a vector of the video; it is
    -inf for a text without words.

    Args:
        seen: ``[B, N, D]``, the vectors.
        table: ``[V, D]``, word embeddings.
        words: int64 ``[B, Q, C, W]``, the words of C texts for each of Q questions, as rows of the table, and
            -1 for padding.
    """
    cosines = F.normalize(seen.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T
    real = words >= 0
    said = cosines.amax(1).gather(1, words.clamp(min=0).flatten(1)).view_as(words).masked_fill(~real, 0)
    count = real.sum(-1)
    return (said.sum(-1) / count.clamp(min=1)).masked_fill(count == 0, -torch.inf)


def token_positions(kept: Tensor | None, shape: tuple[int, int, int], batch: int) -> Tensor:
    """Positions of tokens for a `Connector`, fp32 ``[B, K, 3]``.

    Args:
        kept: int64 ``[B, K]`` indices into the pool; None: all of it.
        shape: The pool's (t, h, w).
    """
    t, h, w = shape
    if kept is None:
        kept = torch.arange(t * h * w).expand(batch, -1)
    parts = (kept // (h * w), kept // w % h, kept % w)
    return torch.stack([(part + 0.5) / size for part, size in zip(parts, shape, strict=True)], dim=-1)


class VideoChat(nn.Module):
    """A language model that answers questions about videos.

    Args:
        video: A frozen FluxViT; its classifier is not used.
        connector: The connector, which is trained.
        language: A causal language model of transformers, frozen except for what its owner made trainable.
    """

    def __init__(self, video: FluxViT, connector: Connector, language: Any) -> None:
        super().__init__()
        self.video, self.connector, self.language = video, connector, language

    def look(
        self,
        clips: Sequence[Tensor],
        budget: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> Tensor:
        """Encode videos for the language model: ``[B, N, D]``.

        Args:
            clips: One or several clips of each video, ``[B, 3, T, H, W]`` each, in the order of their times;
                the tokens of all go to the connector together, with the mean of their pooled vectors.
            budget: Tokens of each clip.
            selector: Chooses the tokens that are kept.

        Raises:
            ValueError: See :meth:`FluxViT.forward`.
        """
        tokens, positions, pooled = [], [], []
        for number, clip in enumerate(clips):
            ((sample, kept),), shape = self.video.select_tokens(clip, [budget], selector)
            encoded = self.video.encode(sample)
            tokens.append(encoded[:, 1:])
            pooled.append(self.video.forward_head(encoded, pre_logits=True))
            position = token_positions(kept, shape, len(clip)).to(clip.device)
            position[..., 0] = (number + position[..., 0]) / len(clips)
            positions.append(position)
        mean = torch.stack(pooled).mean(0)
        return self.connector(torch.cat(tokens, dim=1), torch.cat(positions, dim=1), mean)

    def embed_words(self, ids: Tensor) -> Tensor:
        """Token ids ``[...]`` as the language model embeds them, ``[..., D]``."""
        return self.language.get_input_embeddings()(ids)

    def log_probabilities(
        self, before: Tensor, seen: Tensor | None, ids: Tensor, target: Tensor, groups: Tensor | None = None
    ) -> Tensor:
        """Log-probability of each target token, fp32 ``[B, L]``; 0 for the others.

        Args:
            before: int64 ``[P]``, the prompt before the video.
            seen: ``[B, N, D]`` from :meth:`look`; None: no video at all.
            ids: int64 ``[B, L]``, the tokens after the video: questions and answers of one or more turns,
                padded at the end.
            target: bool ``[B, L]``, whether a token is part of an answer.
            groups: int64 ``[B, L]``, attention groups. A token attends to the prompt, to the video, and to
                the tokens before it in its group. None: to all tokens before it.
        """
        batch, length = ids.shape
        words = self.embed_words(torch.cat([before.expand(batch, -1), ids], dim=1))
        head, tail = words[:, : len(before)], words[:, len(before) :]
        parts = [head, tail] if seen is None else [head, seen.to(words.dtype), tail]
        x = torch.cat(parts, dim=1)
        # The targets first, then other positions, so that every row has the same number.
        positions = target.long().argsort(dim=1, descending=True, stable=True)[:, : int(target.sum(1).max())]
        start = x.shape[1] - length
        # Padding comes last and needs no mask.
        options = {} if groups is None else _independent(groups, start, x.dtype)
        # A token is predicted at the position before it.
        with _only_at(self.language.get_output_embeddings(), (start + positions - 1).clamp(min=0)):
            logits = self.language(inputs_embeds=x, use_cache=False, **options).logits
        likely = logits.float().log_softmax(-1).gather(2, ids.gather(1, positions)[..., None])[..., 0]
        return likely.new_zeros(batch, length).scatter(1, positions, likely).masked_fill(~target, 0)

    @torch.no_grad()
    def generate(
        self,
        embeddings: Tensor,
        cache: Any,
        *,
        stop: Sequence[int],
        limit: int = 256,
        temperature: float = 0.0,
    ) -> Iterator[int]:
        """Token ids of an answer, one by one.

        Args:
            embeddings: ``[1, L, D]``, the new input; the earlier conversation is in the cache.
            cache: A cache of transformers, which is extended, so that the next call continues from here.
            stop: Ids that end an answer; they are not yielded, but are added to the cache.
            limit: Maximum number of tokens.
            temperature: 0 takes the likeliest token; higher values sample from PyTorch's generator.
        """
        for _ in range(limit):
            logits = self.extend(embeddings, cache)[0, -1].float()
            if temperature > 0:
                token = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                token = logits.argmax(keepdim=True)
            embeddings = self.embed_words(token[None])
            if token.item() in stop:
                break
            yield int(token)
        # The last token also belongs to the conversation.
        self.extend(embeddings, cache)

    def extend(self, embeddings: Tensor, cache: Any) -> Tensor:
        """Run the language model over embedded words ``[1, L, D]`` and add them to the cache.

        Returns:
            Logits of the next token, ``[1, 1, vocabulary]``.
        """
        options = {_cache_option(self.language): cache}
        return self.language(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1, **options).logits


def _independent(groups: Tensor, start: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Position ids and attention mask for independent groups ``[B, L]``.

    Tokens of different groups do not attend to each other, and each group comes right after the ``start``
    tokens before all of them.
    """
    batch, length = groups.shape
    together = (groups[:, :, None] == groups[:, None, :]).tril()
    position_ids = torch.arange(start, device=groups.device).expand(batch, -1)
    position_ids = torch.cat([position_ids, start - 1 + together.sum(2)], dim=1)
    visible = torch.ones(batch, start + length, start + length, dtype=torch.bool, device=groups.device).tril()
    visible[:, start:, start:] = together
    mask = torch.zeros(visible.shape, dtype=dtype, device=groups.device)
    return {
        "position_ids": position_ids,
        "attention_mask": mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None],
    }


@contextmanager
def _only_at(layer: nn.Module, positions: Tensor) -> Iterator[None]:
    """Apply a layer over ``[B, L, D]`` at some positions ``[B, A]`` only.

    The logits of a large vocabulary take most of the time and memory of a small language model.
    """

    def pick(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        (x,) = inputs
        return (x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1])),)

    hook = layer.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def _cache_option(network: Any) -> str:
    """The argument name of earlier keys and values in the forward pass of a language model."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
