from __future__ import annotations

from itertools import accumulate, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxvit.flux.selection import (
    SELECTORS,
    Given,
    GroupDynamic,
    Random,
    Tube,
    TwoSided,
    gather_tokens,
    keep_best,
    select,
    select_many,
    share_budget,
    split_frames,
)

NAMES = sorted(name for name in SELECTORS if name != "learned")  # Its network is part of a model.


@st.composite
def pools(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Embeddings of any small shape, often with many ties, and a number of tokens to keep."""
    batch, frames, length = draw(st.integers(1, 3)), draw(st.integers(1, 13)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
    x = torch.randn(batch, frames, length, 4, generator=generator)
    if draw(st.booleans()):
        x = x.round()
    return x, draw(st.integers(1, frames * length))


@pytest.mark.parametrize("name", NAMES)
@given(pool=pools())
@settings(max_examples=60, deadline=None)
def test_keeps_exactly_k_sorted_unique_in_range(name: str, pool: tuple[torch.Tensor, int]) -> None:
    x, keep = pool
    kept = select(x, keep, name)
    assert kept.shape == (x.shape[0], keep)
    assert (kept[:, 1:] > kept[:, :-1]).all()
    assert kept.min() >= 0
    assert kept.max() < x.shape[1] * x.shape[2]


@pytest.mark.parametrize("name", NAMES)
@given(pool=pools(), smaller=st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_smaller_budget_keeps_a_subset(name: str, pool: tuple[torch.Tensor, int], smaller: float) -> None:
    x, keep = pool
    large, small = select_many(x, [keep, max(1, int(keep * smaller))], name)
    for a, b in zip(large, small, strict=True):
        assert set(b.tolist()) <= set(a.tolist())


@pytest.mark.parametrize("name", NAMES)
@given(pool=pools())
@settings(max_examples=30, deadline=None)
def test_a_clip_alone_keeps_what_it_keeps_in_a_batch(name: str, pool: tuple[torch.Tensor, int]) -> None:
    x, keep = pool
    assert torch.equal(select(x, keep, name)[-1:], select(x[-1:], keep, name))


@given(pool=pools())
@settings(max_examples=60, deadline=None)
def test_group_dynamic_against_plain_loops(pool: tuple[torch.Tensor, int]) -> None:
    x, keep = pool
    batch, frames, length, _ = x.shape
    groups = split_frames(frames, 4)
    shares = share_budget(keep, [size * length for size in groups])
    for b in range(batch):
        score: list[float] = []
        for t, i in product(range(frames), range(length)):
            if frames == 1:
                gap = x[b, 0, i] - x[b, 0].mean(0)
            else:
                now = max(t, 1 + max(first for first in accumulate(groups, initial=0) if first <= t))
                gap = x[b, now, i] - x[b, now - 1, i]
            score.append(torch.linalg.vector_norm(gap).item())
        kept, start = select(x, keep)[b].tolist(), 0
        for size, share in zip(groups, shares, strict=True):
            places = range(start * length, (start + size) * length)
            # Compared are scores: tokens whose scores differ in the last bit may change places.
            best = sorted((score[place] for place in places), reverse=True)[:share]
            ours = sorted((score[place] for place in kept if place in places), reverse=True)
            assert ours == pytest.approx(best, abs=1e-5)
            start += size


def test_ties_go_to_the_lowest_index() -> None:
    still = torch.ones(2, 4, 6, 3)
    assert select(still, 5, "dynamic").tolist() == [[0, 1, 2, 3, 4]] * 2
    # Four frames make two groups; the odd token goes to the first.
    assert select(still, 5).tolist() == [[0, 1, 2, 12, 13]] * 2


def test_scores_are_fp32_whatever_the_dtype() -> None:
    x = torch.randn(1, 8, 50, 32).bfloat16()
    assert GroupDynamic().scores(x).dtype == torch.float32
    assert torch.equal(select(x, 77), select(x.float(), 77))
    # In bf16 most distances would tie.
    assert len(GroupDynamic().scores(x).unique()) > 150


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_passes(name: str) -> None:
    x = torch.randn(1, 4, 3, 2, requires_grad=True)
    assert not SELECTORS[name].scores(x).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_one_frame(name: str) -> None:
    x = torch.zeros(1, 1, 6, 2)
    x[0, 0, 4] = 1
    kept = select(x, 1, name)
    assert kept.shape == (1, 1)
    # Whatever looks at tokens keeps the one that stands out.
    assert kept.item() == 4 or SELECTORS[name].reads == "nothing"


def test_what_reads_nothing_does_not_depend_on_the_tokens() -> None:
    x = torch.randn(1, 8, 12, 3)
    for name in NAMES:
        same = torch.equal(select(x, 20, name), select(torch.zeros_like(x), 20, name))
        assert same == (SELECTORS[name].reads == "nothing")


def test_pixel_difference_is_the_mean_absolute_difference_from_the_tubelet_before() -> None:
    x = torch.randn(2, 8, 6, 5)
    change = (x[:, 1:] - x[:, :-1]).abs().mean(-1)
    expected = change[:, [0, 0, 2, 2, 4, 4, 6, 6]]
    assert torch.equal(select(x, 17, "pixel_difference"), keep_best(expected, (2, 2, 2, 2), 17))


def test_two_sided_against_plain_loops() -> None:
    x = torch.randn(2, 5, 6, 3)
    scores = torch.empty(2, 5, 6)
    for b in range(2):
        for t in range(5):
            for i in range(6):
                others = [x[b, u, i] for u in (t - 1, t + 1) if 0 <= u < 5]
                squares = [min((x[b, t, i, c] - other[c]) ** 2 for other in others) for c in range(3)]
                scores[b, t, i] = sum(squares) ** 0.5
    torch.testing.assert_close(TwoSided().scores(x), scores)
    for name in ("two_sided", "two_sided_pixels"):
        assert torch.equal(select(x, 11, name), keep_best(scores, (3, 2), 11))


def test_moving_pixels_against_plain_loops() -> None:
    x = torch.randn(1, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    outside = SELECTORS["two_sided_pixels"].scores(x.flatten(3))
    expected = torch.zeros(1, 5, 3)
    for t, i in product(range(5), range(3)):
        inside = sum(((x[0, t, i, f] - x[0, t, i, f - 1]) ** 2).sum() for f in (1, 2, 3))
        expected[0, t, i] = outside[0, t, i] * inside**0.25
    torch.testing.assert_close(SELECTORS["moving_pixels"].scores(x), expected)


def test_moving_pixels_of_single_frames_are_two_sided() -> None:
    x = torch.randn(2, 6, 5, 1, 12)
    assert torch.equal(select(x, 9, "moving_pixels"), select(x.flatten(3), 9, "two_sided_pixels"))


def test_two_sided_drops_background_that_something_has_left() -> None:
    """Something passes over an even background, one position a frame."""
    x = torch.eye(6)[None, ..., None]
    inner = [[t, t] for t in range(4)]
    assert TwoSided().scores(x)[0, 1:-1, 1:-1].nonzero().tolist() == inner
    assert len(GroupDynamic().scores(x)[0, 1:-1, 1:-1].nonzero()) > 4
    # The first and the last frame have one neighbour.
    assert TwoSided().scores(x)[0, [0, -1]].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("reads", ["nothing", "tokens"])
def test_group_dynamic_reads_embeddings_or_pixels(reads: str) -> None:
    with pytest.raises(ValueError, match="embeddings or pixels"):
        GroupDynamic(reads=reads)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frames", "sizes"),
    [
        (1, (1,)),
        (2, (2,)),
        (3, (3,)),
        (4, (2, 2)),
        (5, (3, 2)),
        (6, (3, 3)),
        (8, (2, 2, 2, 2)),
        (9, (5, 4)),
        (10, (5, 5)),
        (12, (3, 3, 3, 3)),
    ],
)
def test_groups_have_two_frames_at_least(frames: int, sizes: tuple[int, ...]) -> None:
    assert split_frames(frames, 4) == sizes


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.data())
def test_budget_is_shared_evenly_up_to_capacity(capacities: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, sum(capacities)))
    shares = share_budget(keep, capacities)
    assert sum(shares) == keep
    assert all(share <= capacity for share, capacity in zip(shares, capacities, strict=True))
    unfilled = [share for share, capacity in zip(shares, capacities, strict=True) if share < capacity]
    assert max(shares) <= min(unfilled, default=max(shares)) + 1


def test_every_group_is_covered() -> None:
    x = torch.zeros(1, 16, 10, 4)
    x[:, 3] += 100  # A burst in the first group must not take all tokens.
    frames_kept = select(x, 16)[0] // 10
    assert torch.bincount(frames_kept // 4, minlength=4).tolist() == [4, 4, 4, 4]
    assert (select(x, 10, "dynamic")[0] // 10).unique().tolist() == [3]


def test_tube_keeps_the_same_positions_in_every_frame() -> None:
    kept = select(torch.randn(1, 6, 20, 4), 6 * 5, "tube")[0]
    rows = [set((kept[kept // 20 == t] % 20).tolist()) for t in range(6)]
    assert all(row == rows[0] for row in rows)
    assert len(rows[0]) == 5


def test_random_choices_are_fixed_by_a_seed_or_fresh() -> None:
    x = torch.randn(2, 4, 20, 3)
    for kind in (Random, Tube):
        assert torch.equal(select(x, 30, kind(3)), select(x, 30, kind(3)))
        assert not torch.equal(select(x, 30, kind(3)), select(x, 30, kind(4)))
        torch.manual_seed(0)
        first, second = select(x, 30, kind(None)), select(x, 30, kind(None))
        assert not torch.equal(first, second)
        assert not torch.equal(first[0], first[1])
        torch.manual_seed(0)
        assert torch.equal(select(x, 30, kind(None)), first)


def test_uniform_covers_space_and_time_evenly() -> None:
    kept = select(torch.randn(1, 8, 64, 4), 128, "uniform")[0]
    assert torch.bincount(kept // 64, minlength=8).float().std() < 2
    assert torch.bincount(kept % 64 // 8, minlength=8).float().std() < 3


@pytest.mark.parametrize("keep", [0, -1, 25])
def test_budget_out_of_range(keep: int) -> None:
    with pytest.raises(ValueError, match="of 24 tokens"):
        select(torch.randn(1, 4, 6, 2), keep)


def test_unknown_selector_lists_the_known() -> None:
    with pytest.raises(ValueError, match="group_dynamic"):
        select(torch.randn(1, 4, 6, 2), 3, "dinamic")


def test_exports_with_dynamic_batch_and_length() -> None:
    class Chooser(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return select(x, 50)

    dynamic = {0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("length", min=16, max=400)}
    program = torch.export.export(Chooser(), (torch.randn(2, 8, 25, 8),), dynamic_shapes=(dynamic,))
    for shape in ((3, 8, 36, 8), (1, 8, 100, 8)):
        x = torch.randn(shape)
        assert torch.equal(program.module()(x), select(x, 50))


def test_keep_best_of_given_scores() -> None:
    scores = torch.tensor([[[1.0, 5.0], [2.0, 5.0], [9.0, 0.0]]])
    assert keep_best(scores, (2, 1), 3).tolist() == [[1, 3, 4]]


def test_gathered_tokens_are_those_of_the_indices() -> None:
    tokens = torch.arange(12.0).view(2, 3, 2)
    assert gather_tokens(tokens, torch.tensor([[2], [0]])).tolist() == [[[4.0, 5.0]], [[6.0, 7.0]]]


def test_given_scores_choose_the_tokens() -> None:
    """The best of each group are kept, whatever the tokens are; a map ``[B, T, h, w]`` is one of tokens."""
    scores = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(0))
    kept = select(torch.zeros(2, 4, 6, 3), 4, Given(scores))
    for clip, indices in zip(scores.flatten(1), kept, strict=True):
        best = sorted([*clip[:12].topk(2).indices.tolist(), *(12 + clip[12:].topk(2).indices).tolist()])
        assert indices.tolist() == best
    assert torch.equal(select(torch.zeros(2, 4, 6, 3), 4, Given(scores.view(2, 4, 2, 3))), kept)
    with pytest.raises(ValueError, match=r"\[2, 4, 6\] .* \[1, 4, 6\]"):
        select(torch.zeros(1, 4, 6, 3), 4, Given(scores))
