"""``fluxvit label`` and ``embed``: rows, interrupted runs, inputs of every kind, and Ray."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.cli import main
from fluxvit.deploy.bulk import job
from fluxvit.deploy.bulk.config import LabelConfig
from fluxvit.deploy.bulk.decoding import Part, Sampler, decode
from fluxvit.deploy.bulk.inputs import Item, list_inputs, open_item
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Plan
from fluxvit.utils.files import write_json_lines
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import SPARSE
from fluxvit.video.writer import write_video
from language import saved_encoder
from shades import GRID, shades

pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")
from pyarrow import parquet  # noqa: E402

SAMPLER = Sampler(SPARSE, (Plan(GRID, 6),))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Ten videos of different lengths, one of which is damaged."""
    folder, rng = tmp_path / "videos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(10):
        frames = rng.integers(0, 256, (8 + number, 32, 48, 3), np.uint8)
        write_video(folder / f"{number}.mp4", frames, 10)
    (folder / "4.mp4").write_bytes(b"not a video")
    return folder


def run(command: str, videos: object, out: Path, checkpoint: Path, *options: str) -> int:
    fixed = ("--device=cpu", "--budget=12", "--part=4", "--batch=3", f"--checkpoint={checkpoint}")
    return main([command, str(videos), f"--out={out}", *fixed, *options])


def rows(out: Path, folder: str = "rows") -> list[dict[str, Any]]:
    return parquet.read_table(out / folder).to_pylist()


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_rows_are_what_predict_says(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("label", videos, out, checkpoint, "--top=2") == 2
    found = rows(out)
    assert [Path(row["path"]).name for row in found] == [f"{n}.mp4" for n in range(10) if n != 4]
    predict = Predictor(checkpoint, 12, device="cpu")
    for row in found:
        answer = predict(row["path"])
        top = answer.top(2)
        assert row["labels"] == [label for label, _ in top]
        np.testing.assert_allclose(row["scores"], [score for _, score in top], atol=1e-3)
        assert (row["label"], row["score"]) == (row["labels"][0], row["scores"][0])
        assert (row["tokens"], row["gflops"]) == (12, answer.spent.gmacs)
        assert (row["frames"], row["start"]) == (8, 0)
    assert found[9 - 1]["seconds"] == pytest.approx(1.7)
    (damaged,) = rows(out, "damaged")
    assert damaged["path"] == str(videos / "4.mp4")
    assert damaged["reason"].startswith("not a video")


def test_a_budget_per_second_follows_the_length(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert run("label", videos, out, checkpoint, "--budget=20/s") == 2
    predict, found = Predictor(checkpoint, Budget(tokens_per_s=20), device="cpu"), rows(out)
    for row in found:
        answer = predict(row["path"])
        assert (row["tokens"], row["gflops"]) == (answer.spent.tokens, answer.spent.gmacs)
        assert row["frames"] == len(answer.times)
        np.testing.assert_allclose(row["scores"], [score for _, score in answer.top(5)], atol=1e-3)
    assert len({row["tokens"] for row in found}) > 3
    assert run("label", videos, again, checkpoint, "--budget=20/s", "--models=2") == 2
    assert content(again) == content(out)


def test_vectors_are_those_of_the_network(videos: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("embed", videos, out, checkpoint) == 2
    predict = Predictor(checkpoint, 12, device="cpu")
    for row in rows(out)[:3]:
        np.testing.assert_allclose(row["embedding"], predict(row["path"]).embedding, rtol=0.02, atol=0.02)
    assert parquet.read_schema(out / "rows" / "part-000000.parquet").field("embedding").type.list_size == 16


def test_vectors_of_a_dual_encoder_and_a_lance_table(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    video, folder, out = shades(tmp_path / "a.mp4", 2), saved_encoder(tmp_path / "encoder"), tmp_path / "out"
    fixed = [f"--checkpoint={folder}", f"--grid={GRID}", "--budget=6", "--device=cpu", f"--out={out}"]
    assert main(["embed", str(video), *fixed, "--format=lance"]) == 0
    loaded = DualEncoderCheckpoint.load(folder)
    decoded = decode(Part(0, [Item(str(video))]), SAMPLER)
    clip = loaded.video.clip(decoded.clips[0].frames[0], GRID)
    with torch.inference_mode():
        vector = loaded.model.embed_video(clip, 6)[0].numpy()
    (row,) = rows(out)
    np.testing.assert_allclose(row["embedding"], vector, atol=1e-3)
    assert lance.dataset(out / "rows.lance").to_table().to_pylist() == [row]
    assert main(["label", str(video), *fixed]) == 2


def test_files_are_the_same_after_an_interruption_and_for_any_number_of_threads(
    videos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("label", videos, whole, checkpoint, "--workers=1", "--models=1") == 2
    write = job._write

    def write_one(folder: Path, result: job.Result) -> None:
        if (folder / "rows").exists():
            raise KeyboardInterrupt
        write(folder, result)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_write", write_one)
        assert run("label", videos, out, checkpoint) == 130
    assert len(list((out / "rows").iterdir())) == 1
    kept = (out / "rows" / "part-000000.parquet").stat().st_mtime_ns
    assert run("label", videos, out, checkpoint, "--workers=3", "--models=2") == 2
    assert (out / "rows" / "part-000000.parquet").stat().st_mtime_ns == kept
    assert content(out) == content(whole)


def test_a_part_of_damaged_videos_has_no_rows_and_may_be_read_again(
    videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, repaired = tmp_path / "out", (videos / "5.mp4").read_bytes()
    assert run("embed", videos, out, checkpoint, "--part=1") == 2
    assert parquet.read_table(out / "rows" / "part-000004.parquet").num_rows == 0
    (videos / "4.mp4").write_bytes(repaired)
    assert run("embed", videos, out, checkpoint, "--part=1") == 2
    assert run("embed", videos, out, checkpoint, "--part=1", "--retry") == 0
    assert len(rows(out)) == 10


def test_other_settings_are_refused(
    videos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("label", videos, out, checkpoint)
    for command, options, name in (
        ("label", ["--top=1"], "top"),
        ("label", ["--budget=6"], "budget"),
        ("label", ["--part=2"], "part"),
        ("embed", [], "command, top"),
        ("label", ["--checkpoint=fluxvit_nano_motionworld"], "checkpoint"),
    ):
        assert run(command, videos, out, checkpoint, *options) == 2
        assert f"holds results of other settings ({name}" in capsys.readouterr().err
    (videos / "9.mp4").unlink()
    assert run("label", videos, out, checkpoint) == 2
    assert "other settings (videos)" in capsys.readouterr().err


def test_inputs_of_every_kind(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(str(path) for path in videos.iterdir())
    assert [item.path for item in list_inputs([str(videos)])] == names
    assert [item.path for item in list_inputs([f"{videos}/[0-3].mp4", names[2], names[9]])] == [
        *names[:4],
        names[9],
    ]
    manifest = tmp_path / "list.jsonl"
    write_json_lines(manifest, [{"path": "videos/1.mp4", "start": 0.2, "end": 0.6}, {"path": "videos/1.mp4"}])
    assert list_inputs([str(manifest)]) == [Item(names[1]), Item(names[1], 0.2, 0.6)]
    monkeypatch.chdir(tmp_path)
    assert list_inputs(["videos/1.mp4"]) == [Item(names[1])]
    for wrong in ("nothing.mp4", "*.avi", str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"no such file|no videos in it"):
            list_inputs([wrong])


def test_segments_are_read_between_their_ends(videos: Path) -> None:
    part = Part(0, [Item(str(videos / "9.mp4"), 0.5, 1.0), Item(str(videos / "9.mp4"), 5.0, 6.0)])
    decoded = decode(part, SAMPLER)
    (clip,) = decoded.clips
    assert (clip.start, clip.seconds) == (0.5, 0.5)
    assert "segment" in decoded.damaged[0][1]


@pytest.fixture
def bucket(videos: Path) -> Iterator[str]:
    storage = fsspec.filesystem("memory")
    for path in videos.iterdir():
        storage.pipe(f"/bucket/videos/{path.name}", path.read_bytes())
    storage.pipe("/bucket/notes.txt", b"text")
    yield "memory://bucket"
    storage.rm("/bucket", recursive=True)


def test_object_stores_are_read_as_files_are(
    bucket: str, videos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    stored, local = tmp_path / "stored", tmp_path / "local"
    assert run("label", f"{bucket}/videos/", stored, checkpoint) == 2
    assert run("label", videos, local, checkpoint) == 2
    for folder in ("rows", "damaged"):
        pairs = zip(rows(stored, folder), rows(local, folder), strict=True)
        for row, expected in pairs:
            assert row.pop("path") == f"memory:///bucket/videos/{Path(expected.pop('path')).name}"
            assert row == expected
    assert len(list_inputs([f"{bucket}/*/[0-2].mp4"])) == 3


def test_what_a_store_lacks(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = f"{bucket}/videos/missing.mp4"
    list_inputs([missing])
    with pytest.raises(VideoError, match=r"cannot be fetched \(FileNotFoundError"), open_item(missing):
        pass
    for wrong, message in (
        ("memory://other/a.mp4", "there is no memory://other"),
        ("memory://other/*.mp4", "no videos there"),
        ("nosuch://bucket/a.mp4", "nosuch"),
        (f"{bucket}/list.jsonl", "copy it here"),
    ):
        with pytest.raises(ValueError, match=message):
            list_inputs([wrong])

    def denied(*_: object, **__: object) -> None:
        raise PermissionError("no credentials")

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "exists", denied)
        with pytest.raises(ValueError, match=r"cannot be read \(PermissionError: no credentials\)"):
            list_inputs([missing])


def test_web_servers_send_files_to_the_reader(videos: Path) -> None:
    pytest.importorskip("aiohttp")
    handler = partial(SimpleHTTPRequestHandler, directory=str(videos))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        items = list_inputs([f"{address}/3.mp4", f"{address}/none.mp4"])
        found, local = (decode(Part(0, part), SAMPLER) for part in (items, [Item(str(videos / "3.mp4"))]))
        server.shutdown()
    np.testing.assert_array_equal(found.clips[0].frames[0], local.clips[0].frames[0])
    ((path, reason),) = found.damaged
    assert path == f"{address}/none.mp4"
    assert reason.startswith("cannot be fetched (FileNotFoundError")


def test_missing_packages_are_named(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None if name != "pyarrow" else object())
    for options, cure in (({"engine": "ray"}, "ray"), ({"format": "lance"}, "lance")):
        with pytest.raises(ValueError, match=f"this needs {cure}: pip install 'fluxvit.{cure}.'"):
            job.run_bulk(LabelConfig(inputs=(str(videos),), **options))


def test_a_ray_cluster_that_does_not_answer(
    videos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert run("label", videos, tmp_path / "out", checkpoint, "--engine=ray", f"--address={address}") == 2
    assert f"--address {address}: no Ray cluster answers there" in capsys.readouterr().err


def test_ray_continues_what_the_local_engine_began(
    videos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("label", videos, whole, checkpoint) == 2
    assert run("label", videos, out, checkpoint) == 2
    for number in (1, 2):
        (out / "rows" / f"part-{number:06d}.parquet").unlink()
    ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    try:
        assert run("label", videos, out, checkpoint, "--engine=ray") == 2
        assert run("label", videos, out, checkpoint, "--engine=ray", "--models=2") == 2
        assert "--models 2: the Ray cluster has 2 CPUs and 0 GPUs" in capsys.readouterr().err
    finally:
        ray.shutdown()
    assert content(out) == content(whole)
    assert json.loads((out / "job.json").read_text())["plan"]["keep"] == 12
