from __future__ import annotations

from dataclasses import replace

import pytest

from conftest import small_model
from fluxvit.evaluation.protocol import Protocol, head_of
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan

PROTOCOL = Protocol("d", "test.jsonl", 9, "4x3", "sparse", "just fits", "w", 0, "fp32", "some CPU")


def test_one_flat_row_lists_the_plans() -> None:
    plans = [Plan(SamplingGrid(8, 16, 16), 13), Plan(SamplingGrid(8, 16, 32), 6, 0, "tube")]
    row = PROTOCOL.flat(plans, small_model().config)
    assert row["grid"] == "8x16, 8x16x32"
    assert row["pool"] == "16, 32"
    assert row["keep"] == "13, 6"
    assert row["head"] == "1, 0"  # The one trained nearest, and the one that is asked for.
    assert row["selector"] == "group_dynamic, tube"
    assert all(isinstance(value, str | int) for value in row.values())


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"date": "2001-01-01"}, False),
        ({"manifest": "copy.jsonl"}, False),
        ({"data_digest": "e"}, True),
        ({"views": "1x1"}, True),
        ({"weights_digest": "v"}, True),
        ({"torch": "2.0"}, True),
    ],
)
def test_what_predictions_depend_on(change: dict, matters: bool) -> None:
    assert (replace(PROTOCOL, **change).facts != PROTOCOL.facts) == matters


def test_head() -> None:
    config = small_model().config
    assert [head_of(Plan(SamplingGrid(8, 16, 16), keep), config) for keep in (16, 11, 1)] == [1, 1, 2]
