"""Recall and ranks, against a reading of their definitions in plain Python."""

from __future__ import annotations

import random
from statistics import mean, median

import pytest
import torch

from fluxvit.evaluation.language.recall import answers_of, recall, right_videos


def plain_rank(row: list[float], right: set[int]) -> int:
    """Sort with wrong ones first among equals; the place of the first right one."""
    order = sorted(range(len(row)), key=lambda index: (-row[index], index in right))
    return next(place for place, index in enumerate(order, start=1) if index in right)


@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_those_of_a_sorted_list(seed: int) -> None:
    draw = random.Random(seed)
    queries, candidates = draw.choice([(7, 5), (300, 40), (40, 300)])
    # Few values: ties everywhere.
    matrix = [[draw.randrange(6) / 8 for _ in range(candidates)] for _ in range(queries)]
    belongs = [draw.sample(range(candidates), draw.randint(1, 3)) for _ in range(queries)]
    ranks = [plain_rank(row, set(right)) for row, right in zip(matrix, belongs, strict=True)]
    found = recall(torch.tensor(matrix), belongs)
    assert found.ranks.tolist() == ranks
    assert found.record["mean_rank"] == pytest.approx(mean(ranks))
    assert found.record["median_rank"] == pytest.approx(median(ranks))
    for count in (1, 5, 10):
        assert found.at(count) == pytest.approx(sum(rank <= count for rank in ranks) / queries)


def test_an_encoder_that_tells_nothing_apart_finds_nothing() -> None:
    found = recall(torch.ones(4, 20), [[0], [3], [7], [19]])
    assert found.at(10) == 0
    assert found.record["median_rank"] == 20


def test_several_captions_of_a_video_do_not_stand_in_each_others_way() -> None:
    captions = [[0], [0], [1]]  # Each one's video.
    videos = answers_of(captions, 2)
    assert videos == [[0, 1], [2]]
    found = recall(torch.tensor([[0.7, 0.9, 0.8], [0.5, 0.6, 0.6]]), videos)
    assert found.ranks.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("belongs", "message"),
    [([[0]], "1 lists"), ([[0], []], "query 1"), ([[0], [3]], r"0\.\.2"), ([[0], [1]], "not a number")],
)
def test_what_cannot_be_ranked_is_named(belongs: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall(torch.tensor([[1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]]), belongs)


def test_equal_captions_of_several_videos_are_all_right() -> None:
    captions = [["A red ball."], ["a  red BALL."], ["a blue ball.", "a red ball."], ["a cube"]]
    belongs = right_videos(captions)
    assert belongs == [[0, 1, 2], [0, 1, 2], [2], [0, 1, 2], [3]]
    # A perfect encoder, for which the videos of one caption look alike.
    texts = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    videos = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]])
    assert recall(texts @ videos.T, belongs).at(1) == 1
    assert recall(videos @ texts.T, answers_of(belongs, 4)).at(1) == 1
    alone = [[0], [1], [2], [2], [3]]
    assert recall(texts @ videos.T, alone).at(1) < 1


@pytest.mark.parametrize("seed", range(4))
def test_right_videos_are_those_of_a_plain_search(seed: int) -> None:
    draw = random.Random(seed)
    captions = [[draw.choice("abcde") for _ in range(draw.randint(0, 3))] for _ in range(12)]
    expected = [
        [number for number, others in enumerate(captions) if caption in others]
        for row in captions
        for caption in row
    ]
    assert right_videos(captions) == expected
