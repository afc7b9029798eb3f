from __future__ import annotations

import pytest

from fluxvit.flux.grid import SamplingGrid, draw_grid, legal_grids

PAPER = (
    "8x224 8x252 10x224 10x252 12x196 12x224 12x252 14x196 14x224 "
    "16x168 16x196 16x224 18x168 18x196 20x168 20x196 22x168 24x168"
)
RELEASE = {
    6: (280, 308, 336),
    8: (224, 252, 280, 308, 336),
    10: (224, 252, 280, 308, 336),
    12: (196, 224, 252, 280, 308),
    14: (196, 224, 252, 280),
    16: (168, 196, 224, 252),
    18: (168, 196, 224, 252),
    20: (168, 196, 224),
    22: (140, 168, 196, 224),
    24: (140, 168, 196, 224),
}


def test_the_papers_18_grids() -> None:
    assert legal_grids(range(4, 26, 2), range(168, 280, 28), 2048, 4096) == tuple(
        SamplingGrid.parse(text) for text in PAPER.split()
    )


def test_the_releases_41_grids() -> None:
    grids = legal_grids(range(6, 26, 2), range(112, 364, 28), 2048, 6144)
    assert len(grids) == 41
    assert set(grids) == {SamplingGrid(t, s, s) for t, sizes in RELEASE.items() for s in sizes}


def test_no_legal_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="widen"):
        legal_grids([2], [56], 2048, 4096)


def test_draws_depend_on_seed_and_step_only_and_cover_all_grids() -> None:
    grids = legal_grids(range(4, 26, 2), range(168, 280, 28), 2048, 4096)
    draws = [draw_grid(grids, 7, step) for step in range(1000)]
    assert draws[500:] == [draw_grid(grids, 7, step) for step in range(500, 1000)]
    assert set(draws) == set(grids)
    counts = [draws.count(grid) for grid in grids]
    assert max(counts) < 2.5 * min(counts)
    assert draws != [draw_grid(grids, 8, step) for step in range(1000)]


@pytest.mark.parametrize("text", ["16x224", "4x56x112"])
def test_parse_round_trip(text: str) -> None:
    assert str(SamplingGrid.parse(text)) == text


@pytest.mark.parametrize("text", ["", "16", "16x", "0x224", "x224", "16*224", "-4x224"])
def test_parse_errors_name_the_input(text: str) -> None:
    with pytest.raises(ValueError, match="grid"):
        SamplingGrid.parse(text)


def test_token_shape_says_what_does_not_fit() -> None:
    assert SamplingGrid(8, 224, 112).token_shape(14, 2) == (4, 16, 8)
    with pytest.raises(ValueError, match=r"width 100 is not a multiple of 14; use 98 or 112"):
        SamplingGrid(8, 224, 100).tokens()
    with pytest.raises(ValueError, match="frames 7"):
        SamplingGrid(7, 224, 224).tokens(14, 2)


def test_a_pool_beyond_all_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="frames is 100000, expected an integer from 1 to 16384"):
        SamplingGrid.parse("100000x8")
    with pytest.raises(
        ValueError, match="grid 16384x32: its pool has 262144 tokens, more than the limit of 131072"
    ):
        SamplingGrid.parse("16384x32").tokens(8, 1)
    with pytest.raises(ValueError, match="its pool has 1562500000 tokens"):
        SamplingGrid.parse("1000x10000").tokens(8, 1)
    assert SamplingGrid(512, 224, 224).tokens(14) == 1 << 17
    monkeypatch.setenv("FLUXVIT_MAX_POOL", "262144")
    assert SamplingGrid.parse("16384x32").tokens(8, 1) == 262144
    monkeypatch.setenv("FLUXVIT_MAX_POOL", "lots")
    with pytest.raises(ValueError, match="FLUXVIT_MAX_POOL=lots"):
        SamplingGrid.parse("8x8").tokens(8, 2)
