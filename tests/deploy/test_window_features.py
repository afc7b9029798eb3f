"""``fluxvit features``: rows for windows, resumed runs, damaged files and wrong inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT
from fluxvit.cli import main
from fluxvit.deploy import feature_files, features
from fluxvit.deploy.features import FeatureExtractor
from fluxvit.deploy.search.index import Embedder, choose_settings
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.budget import Budget
from fluxvit.video.writer import write_video
from language import saved_encoder
from shades import GRID, shades


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    rng = np.random.default_rng(0)
    write_video(path, (rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(60)), 10)
    return path


def test_rows_are_the_networks_embeddings_of_the_windows(video: Path) -> None:
    extract = FeatureExtractor(DEFAULT_CHECKPOINT, 36, window=2, stride=0.5, batch=3, device="cpu")
    spans, rows, _ = extract(video)
    np.testing.assert_allclose(spans[:, 0], np.arange(len(spans)) * 0.5)
    np.testing.assert_allclose(spans[:9, 1] - spans[:9, 0], 2)
    assert rows.dtype == np.float32
    plan, checkpoint = extract.plan, extract._video
    cut = list(windows(video, plan.grid, 2, shots=False, stride=0.5))
    assert len(cut) == len(rows)
    for window, row in zip(cut, rows, strict=True):
        clip = checkpoint.normalize(window.video)[None]
        with torch.inference_mode():
            expected = checkpoint.model(clip, plan.keep, plan.head, plan.selector).embedding[0]
        np.testing.assert_allclose(row, expected.numpy(), rtol=0.02, atol=0.02)


def test_rows_of_a_dual_encoder_are_those_of_index(tmp_path: Path) -> None:
    path, folder = shades(tmp_path / "a.mp4", 5), saved_encoder(tmp_path / "encoder")
    settings = choose_settings(str(folder), Budget(tokens=6), GRID, 2.0, False)
    spans, vectors = Embedder(settings, "cpu", "fp32").embed_file(path)
    extract = FeatureExtractor(folder, 6, GRID, window=2, device="cpu", precision="fp32")
    our_spans, rows, _ = extract(path)
    np.testing.assert_array_equal(our_spans, spans)
    np.testing.assert_array_equal(rows, vectors)


@pytest.mark.parametrize("stride", [0.3, 0.7, 1.0, 2.0])
def test_windows_keep_their_stride(video: Path, stride: float) -> None:
    extract = FeatureExtractor(DEFAULT_CHECKPOINT, 18, window=2, stride=stride, device="cpu")
    starts = extract(video).spans[:, 0]
    np.testing.assert_allclose(starts, np.arange(len(starts)) * stride, atol=1e-6)
    assert 6 - starts[-1] <= 2 + stride


def test_a_short_video_has_one_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", (rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(5)), 10)
    spans, rows, _ = FeatureExtractor(DEFAULT_CHECKPOINT, 18, window=2, device="cpu")(tmp_path / "a.mp4")
    assert (spans.tolist(), len(rows)) == ([[0.0, pytest.approx(0.5)]], 1)


def run(videos: Path, out: Path, *options: str) -> int:
    fixed = ("--window=2", "--budget=18", "--device=cpu", "--precision=fp32")
    return main(["features", str(videos), "--out", str(out), *fixed, *options])


def test_a_run_goes_on_after_damaged_videos_and_where_it_stopped(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mp4"):
        (folder / name).write_bytes(video.read_bytes())
    (folder / "c.mp4").write_bytes(b"not a video")
    finished: list[feature_files._RowFile] = []
    finish = feature_files._RowFile.finish

    def finish_two(file: feature_files._RowFile) -> None:
        if len(finished) == 2:  # The features and the spans of the first video.
            raise KeyboardInterrupt
        finished.append(file)
        finish(file)

    with monkeypatch.context() as patch:
        patch.setattr(feature_files._RowFile, "finish", finish_two)
        with pytest.raises(KeyboardInterrupt):
            features.run_features(_config(folder, out))
    assert sorted(path.name for path in out.rglob("*.npy")) == ["a.npy", "a.spans.npy"]
    before = (out / "a.npy").stat().st_mtime_ns
    assert run(folder, out) == 2
    said = capsys.readouterr()
    assert "c.mp4" in said.err
    assert "1 videos, 1 were there already" in said.out
    assert (out / "a.npy").stat().st_mtime_ns == before
    np.testing.assert_array_equal(np.load(out / "a.npy"), np.load(out / "sub" / "b.npy"))
    assert np.load(out / "a.spans.npy").shape == (len(np.load(out / "a.npy")), 2)
    assert json.loads((out / "features.json").read_text())["window_s"] == 2


def test_rows_do_not_depend_on_the_videos_before(video: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seconds in (2, 3, 4, 5):  # Batches of other sizes, which come first.
        frames = (rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(10 * seconds))
        write_video(tmp_path / f"{seconds}.mp4", frames, 10)
    extract = FeatureExtractor(DEFAULT_CHECKPOINT, 18, window=2, stride=1, device="cpu")
    for seconds in (5, 4, 3, 2):
        extract(tmp_path / f"{seconds}.mp4")
    other = FeatureExtractor(DEFAULT_CHECKPOINT, 18, window=2, stride=1, device="cpu")
    np.testing.assert_array_equal(extract(video).rows, other(video).rows)


def test_features_of_tokens_and_of_layers(video: Path, tmp_path: Path) -> None:
    options = ("--stride=1", "--batch=2", f"--checkpoint={DEFAULT_CHECKPOINT}")
    assert run(video, tmp_path / "tokens", "--tokens=true", "--layers=0,-1", *options) == 0
    assert run(video, tmp_path / "means", "--layers=0,-1", *options) == 0
    tokens, kept, spans = (
        np.load(tmp_path / "tokens" / f"long{kind}.npy") for kind in ("", ".kept", ".spans")
    )
    assert (tokens.dtype, kept.dtype) == (np.float32, np.int64)
    assert tokens.shape[:2] == kept.shape == (len(spans), 18)
    np.testing.assert_allclose(np.load(tmp_path / "means" / "long.npy"), tokens.mean(1), atol=1e-5)
    extract = FeatureExtractor(DEFAULT_CHECKPOINT, 18, window=2, stride=1, device="cpu", precision="fp32")
    window = list(windows(video, extract.plan.grid, 2, shots=False, stride=1))[2]
    clip = extract._video.normalize(window.video)[None]
    with torch.inference_mode():
        out = extract._video.model.forward_intermediates(clip, [0, -1], 18)
    np.testing.assert_array_equal(kept[2], out.kept[0].numpy())
    expected = torch.cat(out.layers, -1)[0, 1:].numpy()
    np.testing.assert_allclose(tokens[2], expected, atol=1e-3)


@pytest.mark.parametrize("tokens", [False, True])
def test_parquet_holds_the_same(tokens: bool, video: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    options = (f"--tokens={str(tokens).lower()}", "--stride=1", "--batch=2")
    assert run(video, tmp_path / "npy", *options) == 0
    for _ in range(2):  # The second run finds everything done.
        assert run(video, tmp_path / "parquet", "--format=parquet", *options) == 0
    table = parquet.read_table(tmp_path / "parquet" / "long.parquet").to_pydict()
    rows, spans = (np.load(tmp_path / "npy" / f"long{kind}.npy") for kind in ("", ".spans"))
    np.testing.assert_array_equal(table["feature"], rows.reshape(-1, rows.shape[-1]))
    each = len(table["start"]) // len(spans)
    assert table["start"][::each] == spans[:, 0].tolist()
    if tokens:
        assert table["token"] == np.load(tmp_path / "npy" / "long.kept.npy").reshape(-1).tolist()


def test_tokens_of_a_complete_pool(video: Path) -> None:
    extract = FeatureExtractor(DEFAULT_CHECKPOINT, 128, window=2, stride=2, tokens=True, device="cpu")
    features = extract(video)
    np.testing.assert_array_equal(features.kept, np.tile(np.arange(128), (len(features.spans), 1)))
    with pytest.raises(ValueError, match="layer 99 does not exist; this model has layers 0 to"):
        FeatureExtractor(DEFAULT_CHECKPOINT, layers=[99], device="cpu")


def _config(folder: Path, out: Path) -> features.FeaturesConfig:
    return features.FeaturesConfig(
        videos=(str(folder),),
        out=str(out),
        window=2,
        budget=Budget(tokens=18),
        device="cpu",
        precision="fp32",
    )


def test_wrong_inputs(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(video, out) == 0
    for videos, options, message in (
        (video, ["--stride=3"], "stride 3 s is longer than the window of 2 s"),
        (video, ["--stride=0.5"], "holds features of other settings (stride_s)"),
        (tmp_path / "out", [], "no videos in it"),
        (video, ["--checkpoint=nothing"], "nothing"),
    ):
        assert run(videos, out, *options) == 2
        assert message in capsys.readouterr().err
    assert main(["features", str(video), str(video), "--out", str(out), "--device=cpu"]) == 2
    assert "would both be written to long;" in capsys.readouterr().err


def test_a_budget_per_second_is_that_of_a_stride() -> None:
    rate = Budget(tokens_per_s=36)
    assert FeatureExtractor(DEFAULT_CHECKPOINT, rate, window=2, stride=0.5, device="cpu").plan.keep == 18
    assert FeatureExtractor(DEFAULT_CHECKPOINT, rate, device="cpu").plan.keep == 72  # Half of 4 seconds.
    with pytest.raises(ValueError, match=r"0\.02 s of video get 0\.72 tokens"):
        FeatureExtractor(DEFAULT_CHECKPOINT, rate, window=2, stride=0.02, device="cpu")
