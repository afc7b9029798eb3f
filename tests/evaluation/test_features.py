from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import GRID, INFO, Colours, backbone, dataset

from fluxvit.data.loader import epoch_batches
from fluxvit.evaluation import features
from fluxvit.evaluation.features import cached_features
from fluxvit.flux.plan import Plan
from fluxvit.video.base import VideoError
from fluxvit.video.transforms import normalize


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_features_are_what_the_model_computes(kind: str, tmp_path: Path) -> None:
    frozen, data = backbone(kind), dataset(3)
    rows = torch.from_numpy(np.array(cached_features(frozen, data, tmp_path))).float()
    clips = torch.stack([data[request].video for request in epoch_batches(3, GRID, 3)[0]])
    with torch.no_grad():
        video = normalize(clips, INFO.mean, INFO.std)
        tokens = frozen.checkpoint.model.forward_features(video, 6)
        if kind == "attentive":
            torch.testing.assert_close(rows, tokens, rtol=2e-3, atol=2e-3)
        else:
            torch.testing.assert_close(rows[:, :16], frozen.checkpoint.model(video, 6).embedding)
            torch.testing.assert_close(rows[:, 16:], torch.nn.functional.layer_norm(tokens, (32,)).mean(1))


def test_features_are_computed_once_for_each_backbone_plan_and_data(tmp_path: Path) -> None:
    source = Colours()
    first = cached_features(backbone("linear"), dataset(4, source), tmp_path)
    again = cached_features(backbone("linear"), dataset(4, source), tmp_path)
    assert source.reads == 4
    np.testing.assert_array_equal(first, again)
    for other, digest in (
        (backbone("linear", keep=12), "digest"),
        (backbone("attentive"), "digest"),
        (backbone("linear", digest="others"), "digest"),
        (replace(backbone("linear"), selector="uniform"), "digest"),
        (replace(backbone("linear"), plan=Plan(GRID, 6, 0)), "digest"),
        (backbone("linear"), "other videos"),
    ):
        before = source.reads
        cached_features(other, dataset(4, source, digest), tmp_path)
        assert source.reads == before + 4


@pytest.mark.parametrize("torn", [0, 5])
def test_interrupted_features_go_on(torn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_CLIPS_AT_ONCE", 2)
    expected = np.array(cached_features(backbone("attentive"), dataset(7), tmp_path / "undisturbed"))
    with pytest.raises(VideoError, match=r"^5\.mp4: broken$"):
        cached_features(backbone("attentive"), dataset(7, Colours(fails_at=5)), tmp_path / "cache")
    (partial,) = (tmp_path / "cache").glob("*.partial")
    assert not list((tmp_path / "cache").glob("*.features"))
    with partial.open("ab") as file:  # Killed amid a row.
        file.write(b"\xff" * torn)
    source = Colours()
    rows = cached_features(backbone("attentive"), dataset(7, source), tmp_path / "cache")
    assert source.reads == 3  # Four of seven were there.
    np.testing.assert_array_equal(rows, expected)


def test_errors_of_workers_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"^1\.mp4: broken$"):
        cached_features(backbone("linear"), dataset(2, Colours(fails_at=1)), tmp_path, workers=1)


def test_features_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = backbone("attentive")
    with torch.no_grad():
        large.checkpoint.model.cls_token.fill_(1e6)
    with pytest.raises(ValueError, match=r"0\.mp4: its features are not finite in float16"):
        cached_features(large, dataset(2), tmp_path / "a")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match="use a smaller budget"):
        cached_features(backbone("attentive"), dataset(2), tmp_path / "b")
