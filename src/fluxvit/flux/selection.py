"""Selectors of the tokens to keep: the group-dynamic selector and its baselines.

A selector turns tokens ``[B, T, L, C]`` (T frames of L tokens) into scores ``[B, T, L]``, and splits the
frames into groups. :func:`select` then keeps the best tokens of each group. A token is represented by its
patch embedding (after the patch norm, before positions) or by its raw pixels; with pixels only the kept
tokens need to be embedded. No gradients pass through the choice, and only ``learned`` has parameters, which
are part of the model.

These rules apply where the paper is not specific or the authors' code differs:

* Exactly ``keep`` tokens stay. They are split evenly between the groups, and the remainder goes to the first
  groups (the authors' code rounds down in floating point and loses up to four tokens).
* Scores are computed in fp32 for every dtype of the tokens, and ties go to the lowest index, so that the
  same input always gives the same selection. In bf16 most distances tie.
* A group has at least two frames: four frames make two groups. An odd number of frames makes two groups,
  the first of which is one frame longer. Fewer than four frames make one group.
* A single frame has no motion. Its tokens are scored by their distance from the frame's mean token.
* The kept tokens for a smaller budget are a subset of those for a larger one. That holds for every selector
  here, because the scores do not depend on the budget and no group's share shrinks when the budget grows.

The functions import PyTorch themselves: the module must load quickly, because options list the selectors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_log = logging.getLogger(__name__)

Reads = Literal["embeddings", "pixels", "thumbnails", "nothing"]
"""What a selector reads. With ``thumbnails`` the model scores the tokens by its own network; with ``nothing``
the selector uses only the number and the positions of the tokens."""


class Selector(Protocol):
    """Scores tokens and divides frames into groups. Tokens with the highest scores are kept."""

    @property
    def reads(self) -> Reads:
        """Input of :meth:`scores`; with ``nothing`` the values of the tokens do not matter.

        A model embeds dropped tokens only for selectors that read ``embeddings``.
        """
        ...

    def scores(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[B, T, L, C]`` to fp32 scores ``[B, T, L]``.

        A model gives pixels as ``[B, T, L, F, V]``, V values in each of the F frames of a tubelet.
        """
        ...

    def groups(self, frames: int) -> tuple[int, ...]:
        """Numbers of frames of the contiguous groups, which share the budget evenly."""
        ...


def split_frames(frames: int, groups: int) -> tuple[int, ...]:
    """Group sizes: ``groups`` groups if they divide the frames evenly, otherwise half as many, and so on.

    No group has fewer than two frames (unless there is only one); odd counts fall back to two uneven groups.
    """
    count = groups
    while count > 1 and (frames % count or frames // count < 2):
        count //= 2
    if count == 1 and groups > 1 and frames % 2 and frames >= 4:
        return frames - frames // 2, frames // 2
    return (frames // count,) * count


def share_budget(keep: int, capacities: Sequence[int]) -> list[int]:
    """Split ``keep`` evenly between groups up to their capacities; the remainder goes to the first groups."""
    assert 0 <= keep <= sum(capacities)
    shares = [0] * len(capacities)
    unfilled = list(range(len(capacities)))
    while unfilled:
        each, extra = divmod(keep, len(unfilled))
        full = [group for group in unfilled if capacities[group] <= each]
        if not full:
            for position, group in enumerate(unfilled):
                shares[group] = each + (position < extra)
            break
        for group in full:
            shares[group] = capacities[group]
            keep -= capacities[group]
            unfilled.remove(group)
    return shares


@dataclass(frozen=True)
class GroupDynamic:
    """Keeps the tokens that differ most from the frame before, in groups of frames (section 3, table 2).

    The first frame of a group has no frame before it in the group. It gets the scores of the second frame, as
    in the authors' code.

    Args:
        num_groups: Requested number of groups (4 in the paper).
        p: Order of the norm over channels (2 in the paper).
        reads: ``pixels`` compares raw tubelets, as run-length tokenization does (arXiv 2411.05222 keeps all
            tubelets that change by more than a threshold; here exactly K stay).

    Raises:
        ValueError: ``num_groups`` is below 1, or ``reads`` is neither embeddings nor pixels.
    """

    num_groups: int = 4
    p: float = 2.0
    reads: Reads = "embeddings"

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise ValueError(f"num_groups is {self.num_groups}; at least one group is needed")
        if self.reads not in ("embeddings", "pixels"):
            raise ValueError(f"reads {self.reads!r}: choose embeddings or pixels")

    def groups(self, frames: int) -> tuple[int, ...]:
        return split_frames(frames, self.num_groups)

    def scores(self, tokens: Tensor) -> Tensor:
        import torch

        x = tokens.detach().float().flatten(3)
        frames = x.shape[1]
        if frames == 1:
            return torch.linalg.vector_norm(x - x.mean(2, keepdim=True), self.p, dim=-1)
        change = torch.linalg.vector_norm(x[:, 1:] - x[:, :-1], self.p, dim=-1)
        # Slices are used because indexing with a Python list copies it to the device at every call.
        parts: list[Tensor] = []
        first = 0
        for size in self.groups(frames):
            parts += [change[:, first : first + 1], change[:, first : first + size - 1]]
            first += size
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class TwoSided(GroupDynamic):
    """Keeps the tokens that differ from both the frame before and the frame after.

    This selector is not in the paper. It takes the smaller of the two differences of each channel.
    Background that something has just left differs from the frame before but not from the frame after, and
    background that is about to be covered differs only from the frame after; what moves differs from both.
    (On pixels this is three-frame differencing, an old way to find moving objects.) The first and the last
    frame of the clip have only one neighbour. Frames are also compared across the borders of groups, which
    only share the budget. The arguments are those of :class:`GroupDynamic`.
    """

    def scores(self, tokens: Tensor) -> Tensor:
        import torch

        x = tokens.detach().float().flatten(3)
        if x.shape[1] == 1:
            return super().scores(tokens)
        change = (x[:, 1:] - x[:, :-1]).abs()
        smaller = torch.minimum(change[:, :-1], change[:, 1:])
        parts = (change[:, :1], smaller, change[:, -1:])
        return torch.cat([torch.linalg.vector_norm(part, self.p, dim=-1) for part in parts], dim=1)


@dataclass(frozen=True)
class MovingPixels(TwoSided):
    """Keeps the tubelets that differ from those before and after, and that also change inside.

    This selector is not in the paper. The score is that of :class:`TwoSided`, times the root of the norm of
    the differences between successive frames of the tubelet. What appears, stands still and vanishes has only
    the former, and what flickers between equal tubelets only the latter. (Without the root the choice was
    better still on one kind of videos at a sixteenth of the tokens, and worse on another.) Tubelets of one
    frame have no inside, and are scored by :class:`TwoSided` alone. The arguments are those of
    :class:`GroupDynamic`.
    """

    reads: Reads = "pixels"

    def scores(self, tokens: Tensor) -> Tensor:
        import torch

        scores = super().scores(tokens)
        if tokens.ndim < 5 or tokens.shape[3] == 1:
            return scores
        x = tokens.detach().float()
        inside = torch.linalg.vector_norm(x[..., 1:, :] - x[..., :-1, :], self.p, dim=(-2, -1))
        return scores * inside.sqrt()


@dataclass(frozen=True)
class Codec(TwoSided):
    """Keeps the tokens that move most by the motion vectors of the video's codec.

    This is the selector until a clip's motion is known; :meth:`given` makes the one for a clip. Without
    motion (codecs that export no vectors, frames in memory, tensors) it is ``two_sided_pixels``, which is
    logged once.
    """

    reads: Reads = "pixels"

    def scores(self, tokens: Tensor) -> Tensor:
        import torch

        if not torch.compiler.is_compiling():
            _log_no_motion()
        return super().scores(tokens)

    def given(self, motion: Tensor) -> Given:
        """The selector of clips with known motion, ``[B, T, L]`` or ``[B, T, h, w]``."""
        return Given(motion, self.num_groups)


@cache
def _log_no_motion() -> None:
    _log.warning(
        "selector codec: here are no motion vectors, which only predictions from files have, and only of "
        "codecs such as H.264 and MPEG-4; pixels are compared instead (two_sided_pixels)"
    )


@dataclass(frozen=True)
class Learned:
    """Keeps the tokens with the highest scores of the model's own network
    (:class:`~fluxvit.models.token_scorer.TokenScorer`), compared over the whole clip.

    The model turns its scores into the selector of a clip by :meth:`given`.
    """

    reads: ClassVar[Reads] = "thumbnails"

    def groups(self, frames: int) -> tuple[int, ...]:
        return (frames,)

    def scores(self, tokens: Tensor) -> Tensor:
        raise ValueError("selector learned: its network is part of a model; call the model instead")

    def given(self, scores: Tensor) -> Given:
        """The selector of clips with known scores ``[B, T, h, w]``."""
        return Given(scores, num_groups=1)


@dataclass(frozen=True, eq=False)
class Given:
    """Keeps the tokens with the highest of given scores, which are computed elsewhere.

    Args:
        values: Scores of all clips, ``[B, T, L]`` or ``[B, T, h, w]``.
        num_groups: Requested number of groups of frames.

    Raises (from ``scores``):
        ValueError: The clips have another number of tokens.
    """

    values: Tensor
    num_groups: int = 4
    reads: ClassVar[Reads] = "nothing"

    def groups(self, frames: int) -> tuple[int, ...]:
        return split_frames(frames, self.num_groups)

    def scores(self, tokens: Tensor) -> Tensor:
        values = self.values.detach().flatten(2).float()
        if values.shape != tokens.shape[:3]:
            raise ValueError(
                f"scores for {list(values.shape)} clips, frames and tokens do not fit a video that has "
                f"{list(tokens.shape[:3])}"
            )
        return values.to(tokens.device)


@dataclass(frozen=True)
class _Blind:
    """Base class of selectors that read nothing and treat the clip as one group."""

    reads: ClassVar[Reads] = "nothing"

    def groups(self, frames: int) -> tuple[int, ...]:
        return (frames,)


@dataclass(frozen=True)
class Tube(_Blind):
    """Keeps the same random positions in every frame, as in tube masking (table 2).

    Args:
        seed: Seed of the positions, which are then the same for every clip. None draws new positions for
            every clip and call from PyTorch's generator, for training.
    """

    seed: int | None = 0

    def scores(self, tokens: Tensor) -> Tensor:
        batch, frames, length, _ = tokens.shape
        # Ties go to the lowest index: a position that does not fit in all frames is kept in the first ones.
        return _random((batch, 1, length), self.seed, tokens.device).expand(-1, frames, -1)


@dataclass(frozen=True)
class Uniform(_Blind):
    """Keeps tokens that are spread evenly over the clip, by a golden-ratio sequence in raster order."""

    def scores(self, tokens: Tensor) -> Tensor:
        import torch

        batch, frames, length, _ = tokens.shape
        exact = "cpu" if tokens.device.type == "mps" else tokens.device  # MPS has no float64.
        order = torch.arange(frames * length, dtype=torch.float64, device=exact)
        spread = torch.frac(order * 0.6180339887498949).float().to(tokens.device)
        return (1 - spread).view(1, frames, length).expand(batch, -1, -1)


@dataclass(frozen=True)
class Random(_Blind):
    """Keeps random tokens; ``seed`` as in :class:`Tube`."""

    seed: int | None = 0

    def scores(self, tokens: Tensor) -> Tensor:
        return _random(tuple(tokens.shape[:3]), self.seed, tokens.device)


def _random(shape: tuple[int, ...], seed: int | None, device: torch.device) -> Tensor:
    import torch

    if seed is None:
        return torch.rand(shape, device=device)
    draw = _seeded.__wrapped__ if torch.compiler.is_compiling() else _seeded
    # One draw serves all clips, so that a clip's tokens do not depend on its batch.
    return draw(shape[1:], seed, device).expand(shape)


@lru_cache(maxsize=64)
def _seeded(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    import torch

    # The CPU draws, because generators differ between devices. The result is cached, because a copy stalls
    # the device.
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


SELECTORS: dict[str, Selector] = {
    "group_dynamic": GroupDynamic(),
    "group_dynamic_2": GroupDynamic(num_groups=2),
    "dynamic": GroupDynamic(num_groups=1),
    "pixel_difference": GroupDynamic(p=1.0, reads="pixels"),
    "two_sided": TwoSided(),
    "two_sided_pixels": TwoSided(reads="pixels"),
    "moving_pixels": MovingPixels(),
    "codec": Codec(),
    "learned": Learned(),
    "tube": Tube(),
    "uniform": Uniform(),
    "random": Random(),
}
"""The selectors by name; ``group_dynamic`` is the one of the paper (section 3.2)."""

if TYPE_CHECKING:
    SelectorName = str
else:
    SelectorName = Literal[tuple(SELECTORS)]
    """The type of options that name a selector."""


def get_selector(selector: str | Selector) -> Selector:
    """The selector with a name; a selector is returned as it is.

    Raises:
        ValueError: The name is unknown.
    """
    if not isinstance(selector, str):
        return selector
    if selector not in SELECTORS:
        raise ValueError(f"selector {selector!r} is unknown; choose one of {', '.join(SELECTORS)}")
    return SELECTORS[selector]


def keep_best(scores: Tensor, groups: Sequence[int], keep: int) -> Tensor:
    """Indices of the tokens with the highest scores in every group.

    Args:
        scores: fp32 ``[B, T, L]``.
        groups: Frames in each group, adding up to T.
        keep: Tokens to keep, 1 to T * L.

    Returns:
        int64 ``[B, keep]``: indices into the flattened T * L pool, ascending.
    """
    import torch

    length = scores.shape[2]
    capacities = [size * length for size in groups]
    picks, start = [], 0
    for share, capacity in zip(share_budget(keep, capacities), capacities, strict=True):
        picks.append(_topk_lowest_index(scores.flatten(1)[:, start : start + capacity], share) + start)
        start += capacity
    return torch.cat(picks, dim=1)


def _topk_lowest_index(scores: Tensor, k: int) -> Tensor:
    """Ascending indices of the highest scores. Ties go to the lowest index; plain ``topk`` leaves them open.

    All tokens above the k-th value are kept, and the first of those that equal it. The function uses only
    ``topk``, comparisons and a running sum, which can be exported with dynamic shapes.
    """
    import torch

    if k == 0:
        return scores.new_empty((scores.shape[0], 0), dtype=torch.long)
    threshold = scores.topk(k, dim=1).values[:, -1:]
    above, level = scores > threshold, scores == threshold
    room = k - above.sum(1, keepdim=True)
    stays = above | (level & (level.cumsum(1) <= room))
    # The keys are distinct: kept tokens have higher keys than dropped ones, and lower indices come first.
    index = torch.arange(scores.shape[1], device=scores.device)
    keys = stays * scores.shape[1] - index
    return keys.topk(k, dim=1).indices


def select(tokens: Tensor, keep: int, selector: str | Selector = "group_dynamic") -> Tensor:
    """Choose the tokens to keep.

    Args:
        tokens: What the selector reads, ``[B, T, L, C]``, in any float dtype. No gradient flows to it.
        keep: Tokens to keep, 1 to T * L.
        selector: A name of :data:`SELECTORS` or a selector.

    Returns:
        int64 ``[B, keep]``: indices into the flattened T * L pool, ascending and unique.

    Raises:
        ValueError: ``keep`` is out of range, or the selector is unknown.
    """
    return select_many(tokens, [keep], selector)[0]


def select_many(
    tokens: Tensor, keeps: Sequence[int], selector: str | Selector = "group_dynamic"
) -> list[Tensor]:
    """:func:`select` for several budgets; the scores are computed once.

    Raises:
        ValueError: See :func:`select`.
    """
    chooser = get_selector(selector)
    frames, length = tokens.shape[1], tokens.shape[2]
    for keep in keeps:
        if not 1 <= keep <= frames * length:
            raise ValueError(
                f"cannot keep {keep} of {frames * length} tokens; ask for 1 to {frames * length}"
            )
    scores = chooser.scores(tokens)
    return [keep_best(scores, chooser.groups(frames), keep) for keep in keeps]


def gather_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Gather tokens ``[B, K, C]`` from ``[B, N, C]`` by their indices ``[B, K]``."""
    return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
