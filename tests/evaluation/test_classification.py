"""The loop over a data set: plans, views, and clips that cannot be read."""

from __future__ import annotations

import pytest
import torch
from colours import GRID, INFO, Colours, dataset

from fluxvit.data.dataset import ClipRequest
from fluxvit.evaluation.classification import Predictions, predict_plans
from fluxvit.evaluation.config import Views
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.video.base import VideoError


def test_plans_predicted_together_are_as_if_alone() -> None:
    source = Colours()
    plans = [Plan(GRID, 6), Plan(GRID, 12, 0, "tube"), Plan(GRID, 3), Plan(GRID, 6, 2, "tube")]
    plans.insert(1, Plan(SamplingGrid(4, 24, 24), 9))
    together = predict_plans(INFO, dataset(5, source), plans, batch_size=2)
    assert source.reads == 10  # Once for each grid.
    for plan, result in zip(plans, together, strict=True):
        (alone,) = predict_plans(INFO, dataset(5), [plan])
        assert torch.allclose(result.logits, alone.logits, atol=1e-5)


def test_views_are_averaged_as_probabilities() -> None:
    data = dataset(3)
    (result,) = predict_plans(INFO, data, [Plan(GRID, 6)], views=Views(2, 2), batch_size=2, indices=[2, 0])
    for row, item in enumerate((2, 0)):
        clips = data[ClipRequest(item, GRID, views=Views(2, 2))].video
        with torch.inference_mode():
            logits = INFO.model(INFO.normalize(clips), 6).logits
        assert torch.allclose(result.logits[row].exp(), logits.softmax(-1).mean(0), atol=1e-5)
    assert result.labels.tolist() == [2, 0]


@pytest.mark.parametrize("views", [Views(), Views(2, 3)])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_clip_is_named_and_wrong_and_moves_no_other(views: Views, workers: int) -> None:
    common = {"views": views, "batch_size": 3, "workers": workers}
    indices = [3, 1, 4, 0]
    (whole,) = predict_plans(INFO, dataset(5), [Plan(GRID, 6)], indices=indices, **common)
    broken = dataset(5, Colours(fails_at=4))
    (result,) = predict_plans(INFO, broken, [Plan(GRID, 6)], indices=indices, tolerant=True, **common)
    assert result.unreadable == {2: "broken"}
    assert result.logits[2].isnan().all()
    good = [0, 1, 3]
    assert torch.equal(result.logits[good], whole.logits[good])
    assert torch.equal(result.labels, whole.labels)
    with pytest.raises(VideoError, match=r"4\.mp4: broken"):
        predict_plans(INFO, broken, [Plan(GRID, 6)], indices=indices, **common)


def test_what_is_not_a_number_is_wrong() -> None:
    """The largest of what are no numbers is class 0 to PyTorch."""
    logits = torch.tensor([[torch.nan, torch.nan], [1.0, 0.0]])
    assert Predictions(logits, torch.tensor([0, 0])).score.correct == 1


def test_checkpoints_predict_in_the_form_that_they_are_in() -> None:
    data = dataset(2)
    plain, full, low = (
        predict_plans(checkpoint, data, [Plan(GRID, 6)])[0].logits
        for checkpoint in (INFO, INFO.prepared("fp32"), INFO.prepared("bf16"))
    )
    assert low.dtype == torch.float32
    assert torch.allclose(full, plain, atol=1e-5)
    assert not torch.equal(low, full)
    assert torch.allclose(low, full, atol=0.05)
