from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxvit.flux.merging import merge_tokens


@given(count=st.integers(1, 40), data=st.data())
@settings(max_examples=50, deadline=None)
def test_exactly_keep_tokens_whose_sizes_and_sum_are_those_of_all(count: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, count))
    tokens = torch.randn(2, count, 5, generator=torch.Generator().manual_seed(count))
    merged, sizes = merge_tokens(tokens, keep)
    assert merged.shape == (2, keep, 5)
    assert sizes.shape == (2, keep)
    assert sizes.min() >= 1
    assert sizes.sum(1).tolist() == [count, count]
    # Means weigh every original token alike, so their weighted sum stays.
    torch.testing.assert_close((merged * sizes[..., None]).sum(1), tokens.sum(1), rtol=1e-4, atol=1e-4)


def test_keeping_all_changes_nothing() -> None:
    tokens = torch.randn(2, 9, 4).bfloat16()
    merged, sizes = merge_tokens(tokens, 9)
    assert torch.equal(merged, tokens)
    assert (sizes == 1).all()


def test_constants_stay_constant() -> None:
    merged, _ = merge_tokens(torch.full((1, 50, 3), 0.7), 3)
    torch.testing.assert_close(merged, torch.full((1, 3, 3), 0.7))


def test_duplicates_merge_first_and_order_stays() -> None:
    tokens = torch.eye(6)[None].clone()
    tokens[0, 2] = tokens[0, 5]
    tokens[0, 1] = 3 * tokens[0, 4]  # Length does not matter to what is alike; it does to the mean.
    merged, sizes = merge_tokens(tokens, 4)
    assert sizes.tolist() == [[1, 2, 1, 2]]
    assert torch.equal(merged[0], torch.stack([tokens[0, 0], tokens[0, 1] * 2 / 3, *tokens[0, [3, 5]]]))


def test_a_clip_alone_is_merged_as_in_a_batch() -> None:
    tokens = torch.randn(3, 30, 8)
    torch.testing.assert_close(merge_tokens(tokens, 7)[0][1:2], merge_tokens(tokens[1:2], 7)[0])


def test_gradients_reach_every_token() -> None:
    tokens = torch.randn(1, 20, 4, requires_grad=True)
    merge_tokens(tokens, 3)[0].sum().backward()
    assert (tokens.grad != 0).all()


@pytest.mark.parametrize("keep", [0, 7])
def test_keep_out_of_range(keep: int) -> None:
    with pytest.raises(ValueError, match="cannot merge 6 tokens"):
        merge_tokens(torch.randn(1, 6, 2), keep)
