from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from colours import GRID, INFO, Colours, backbone, dataset

from fluxvit.data.loader import epoch_batches
from fluxvit.evaluation.probing import features
from fluxvit.evaluation.probing.features import cached_features
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import NotFiniteError
from fluxvit.video.base import VideoError
from fluxvit.video.transforms import normalize


def test_features_are_what_the_model_computes(tmp_path: Path) -> None:
    frozen, data = backbone(), dataset(3)
    rows = cached_features(frozen, data, tmp_path)
    clips = torch.stack([data[request].video for request in epoch_batches(3, GRID, 3)[0]])
    with torch.no_grad():
        video = normalize(clips, INFO.mean, INFO.std)
        tokens = frozen.checkpoint.model.forward_features(video, 6)
        torch.testing.assert_close(rows["pooled"], frozen.checkpoint.model(video, 6).embedding)
        torch.testing.assert_close(rows["mean"], torch.nn.functional.layer_norm(tokens, (32,)).mean(1))


def test_features_are_computed_once_for_each_backbone_plan_and_data(tmp_path: Path) -> None:
    source = Colours()
    first = cached_features(backbone(), dataset(4, source), tmp_path)
    again = cached_features(backbone(), dataset(4, source), tmp_path)
    assert source.reads == 4
    assert torch.equal(first["pooled"], again["pooled"])
    for other, digest in (
        (backbone(keep=12), "digest"),
        (backbone(digest="others"), "digest"),
        (replace(backbone(), plan=Plan(GRID, 6, 0)), "digest"),
        (backbone(), "other videos"),
        (replace(backbone(), checkpoint=INFO.prepared("fp32")), "digest"),
        (replace(backbone(), checkpoint=INFO.prepared("bf16")), "digest"),
    ):
        before = source.reads
        cached_features(other, dataset(4, source, digest), tmp_path)
        assert source.reads == before + 4


@pytest.mark.parametrize("torn", [0, 5])
def test_interrupted_features_go_on(torn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_CLIPS_AT_ONCE", 2)
    expected = cached_features(backbone(), dataset(7), tmp_path / "undisturbed")
    with pytest.raises(VideoError, match=r"^5\.mp4: broken$"):
        cached_features(backbone(), dataset(7, Colours(fails_at=5)), tmp_path / "cache")
    (partial,) = (tmp_path / "cache").glob("*.partial")
    assert not list((tmp_path / "cache").glob("*.features"))
    with partial.open("ab") as file:  # Killed amid a row.
        file.write(b"\xff" * torn)
    source = Colours()
    rows = cached_features(backbone(), dataset(7, source), tmp_path / "cache")
    assert source.reads == 3  # Four of seven were there.
    for name in ("pooled", "mean"):
        assert torch.equal(rows[name], expected[name])


def test_errors_of_workers_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"^1\.mp4: broken$"):
        cached_features(backbone(), dataset(2, Colours(fails_at=1)), tmp_path, workers=1)


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = backbone()
    with torch.no_grad():
        broken.checkpoint.model.cls_token.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="features: the network's output is not finite"):
        cached_features(broken, dataset(2), tmp_path)
