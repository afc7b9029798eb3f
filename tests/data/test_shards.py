"""Videos in tar files: the same clips as from files, the layout of WebDataset, and damage that is named."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.cli import main
from fluxvit.data import shards
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Entry, Manifest, content_digest, read_manifest, write_manifest
from fluxvit.data.shards import ShardSummary, write_shards
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.tar_members import TarMember
from fluxvit.video.writer import write_video


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Six videos in folders, one of them with two segments, among them one that is known to be broken."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    entries = []
    for n in range(6):
        path = root / f"class.{n % 2}" / f"same name {n // 2}.mp4"
        write_video(path, rng.integers(0, 255, (12, 32, 48, 3), dtype=np.uint8), 12)
        entries.append(Entry(path, n % 2, duration=1.0, extra={"mood": "blue"}))
    entries.insert(3, Entry(root / "broken.mp4", 1, ok=False, error="cut short"))
    entries[1:2] = [Entry(entries[1].path, 1, start=s, end=s + 0.5) for s in (0.0, 0.5)]
    return Manifest(tuple(entries), ("x", "y"), content_digest(entries, root), "set", "train", root)


@pytest.fixture
def packed(files: Manifest, tmp_path: Path) -> ShardSummary:
    return pack(files, tmp_path)


def pack(files: Manifest, out: Path, **settings: object) -> ShardSummary:
    settings = {"max_bytes": 40_000, "progress": False, **settings}
    return write_shards(files, out, "train", **settings)  # type: ignore[arg-type]


def clips(manifest: Manifest, workers: int = 0) -> Iterator[torch.Tensor]:
    requests = TrainingBatches(len(manifest), [SamplingGrid(4, 28, 28)], 3, 4, 0)
    return (batch.video for batch in loader(ClipDataset(manifest), requests, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_from_shards_are_those_from_files(files: Manifest, packed: ShardSummary, workers: int) -> None:
    shards = read_manifest(packed.manifest)
    assert len(packed.shards) > 1
    assert {entry.path.name.split("#")[0] for entry in shards.readable().entries} == {
        path.name for path in packed.shards
    }
    pairs = list(zip(clips(files.readable()), clips(shards.readable(), workers), strict=True))
    assert len(pairs) == 4
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_manifest_tells_the_same(files: Manifest, packed: ShardSummary) -> None:
    shards = read_manifest(packed.manifest)
    assert shards.digest == files.digest == packed.digest
    assert (shards.labels, shards.name, shards.split) == (files.labels, files.name, files.split)
    for ours, theirs in zip(files.entries, shards.entries, strict=True):
        facts = ("label", "start", "end", "ok", "error", "duration")
        assert [getattr(ours, fact) for fact in facts] == [getattr(theirs, fact) for fact in facts]
        if ours.ok:
            assert theirs.extra.get("mood") == ours.extra.get("mood")
    assert packed.left_out == {files.root / "broken.mp4": "cut short"}
    assert f"left out: {files.root / 'broken.mp4'}: cut short" in str(packed)


def test_shards_follow_the_conventions_of_webdataset(files: Manifest, packed: ShardSummary) -> None:
    keys, records = [], []
    for path in packed.shards:
        assert path.stat().st_size <= 40_000
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for video, text in zip(members[::2], members[1::2], strict=True):
                key, _, suffix = video.name.partition(".")
                assert (suffix, text.name) == ("mp4", f"{key}.json")
                content = tar.extractfile(text)
                assert content is not None
                records.append(json.load(content))
                keys.append(key)
                data = tar.extractfile(video)
                assert data is not None
                assert data.read() == (files.root / records[-1]["path"]).read_bytes()
    assert len(set(keys)) == len(keys) == packed.videos == 6
    assert keys == sorted(keys)
    assert records[0]["class"] == "x"
    assert [part["start"] for part in records[1]["segments"]] == [0.0, 0.5]


def test_an_interrupted_run_goes_on(files: Manifest, packed: ShardSummary) -> None:
    before = {path: path.read_bytes() for path in packed.shards}
    text = packed.manifest.read_text()
    packed.shards[1].unlink()
    packed.manifest.unlink()
    times = packed.shards[0].stat().st_mtime_ns
    again = pack(files, packed.manifest.parent)
    assert again.kept == len(packed.shards) - 1
    assert packed.shards[0].stat().st_mtime_ns == times
    assert {path: path.read_bytes() for path in again.shards} == before
    assert packed.manifest.read_text() == text


def test_shards_of_another_run_are_not_touched(files: Manifest, packed: ShardSummary) -> None:
    out = packed.manifest.parent
    with pytest.raises(ValueError, match=r"train-000000\.tar is of a former run"):
        pack(files, out, max_bytes=1)
    entries = tuple(Entry(entry.path, 0) for entry in files.entries if entry.ok)
    other = Manifest(entries, (), "digest", root=files.root)
    with pytest.raises(ValueError, match=r"is of a former run"):
        pack(other, out)
    packed.shards[0].write_bytes(packed.shards[0].read_bytes()[:700])
    with pytest.raises(ValueError, match=r"train-000000\.tar: a damaged shard"):
        pack(files, out)


def test_a_video_that_has_changed_is_packed_anew(files: Manifest, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    shutil.copytree(files.root, root)
    entries = tuple(replace(e, path=root / e.path.relative_to(files.root)) for e in files.entries)
    mine, out = replace(files, entries=entries, root=root), tmp_path / "shards"
    first = pack(mine, out, max_bytes=1)
    video, facts = entries[0].path, os.stat(entries[0].path)
    data = bytearray(video.read_bytes())
    data[-1] ^= 1
    for changed in (data, data + b"longer"):
        video.write_bytes(changed)
        os.utime(video, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # As copying keeps it.
        again = pack(mine, out, max_bytes=1)
        assert again.kept == len(first.shards) - 1
        entry = read_manifest(again.manifest).entries[0]
        member = TarMember.parse(entry.path)
        assert member is not None
        assert member.open().read() == changed


def test_a_video_that_changes_while_it_is_packed_is_named(files: Manifest, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    shutil.copy(files.entries[0].path, video)
    size = video.stat().st_size

    class Changing(shards._Sample):
        times = iter((1, 2))

        def changed(self) -> int:
            return next(self.times)

    # One is shorter than a moment before, the other is written to while it is read.
    for sample in (shards._Sample(video, "0", size + 100, b"{}"), Changing(video, "0", size, b"{}")):
        with pytest.raises(OSError, match="changed while it was packed") as caught:
            shards._write_shard(tmp_path / "a.tar", [sample])
        assert caught.value.filename == str(video)
        assert not list(tmp_path.glob("*.tar"))


def test_a_foreign_tar_of_the_same_name_is_not_touched(files: Manifest, tmp_path: Path) -> None:
    sample = files.entries[0].path
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for name in ("00000000.mp4", "00000000.json"):
            header = tarfile.TarInfo(name)
            header.size = 2
            tar.addfile(header, io.BytesIO(b"[]"))
    before = (tmp_path / "train-000000.tar").read_bytes()
    with pytest.raises(ValueError, match="is of a former run with other videos"):
        pack(replace(files, entries=(Entry(sample, 0),)), tmp_path)
    assert (tmp_path / "train-000000.tar").read_bytes() == before


def test_shards_can_be_packed_anew(files: Manifest, packed: ShardSummary, tmp_path: Path) -> None:
    again = pack(read_manifest(packed.manifest), tmp_path / "other", max_bytes=1)
    assert len(again.shards) == again.videos == 6
    assert again.digest == files.digest


def test_what_cannot_be_packed_is_named(files: Manifest, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "empty.mp4").touch()
    names = ["images", "empty.mp4", "gone.mp4"]
    odd = [Entry(tmp_path / name, 0) for name in names]
    with pytest.raises(ValueError, match=r"none of the 3 videos can be packed, such as .*images: a folder"):
        pack(Manifest(tuple(odd), (), "digest", root=tmp_path), tmp_path / "out")
    entries = (*odd, files.entries[0])
    summary = pack(Manifest(entries, (), "digest", root=tmp_path), tmp_path / "out")
    assert summary.videos == 1
    assert [path.name for path in summary.left_out] == names
    assert [entry.error for entry in read_manifest(summary.manifest).entries] == [
        "a folder of images; only files go into shards",
        "the file is empty (0 bytes)",
        "missing",
        None,
    ]


# Damage ----------------------------------------------------------------------------------------------------


def test_damaged_shards_are_named_with_the_member(packed: ShardSummary) -> None:
    entries = read_manifest(packed.manifest).readable().entries
    first, last = entries[0].path, entries[-1].path
    shard = packed.shards[-1]
    name = re.escape(last.name)

    content = shard.read_bytes()
    member = TarMember.parse(last)
    assert member is not None
    shard.write_bytes(content[: member.offset + member.size // 2])
    with pytest.raises(VideoError, match=rf"{name}: the shard is cut short: it ends at byte"):
        open_video(last)
    shard.write_bytes(b"\0" * len(content))
    with pytest.raises(VideoError, match=rf"{name}: the shard holds something else at this position"):
        open_video(last)
    shard.write_bytes(content[: member.offset] + b"\7" * (len(content) - member.offset))
    with pytest.raises(VideoError, match=rf"{name}: not a video, or its header is damaged"):
        open_video(last)
    shard.unlink()
    with pytest.raises(VideoError, match=rf"{name}: no such shard"):
        open_video(last)
    open_video(first).close()


def test_shards_are_probed(packed: ShardSummary, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = packed.shards[-1]
    shard.write_bytes(shard.read_bytes()[:2000])
    out = tmp_path / "probed.jsonl"
    assert main(["data", "check", str(packed.manifest), "--out", str(out), "--workers", "1", "--deep"]) == 0
    assert "broken: the shard is cut short" in capsys.readouterr().out
    probed = read_manifest(out)
    assert {e.ok for e in probed.entries if shard.name in e.path.name} == {False}
    assert {e.codec for e in probed.entries if packed.shards[0].name in e.path.name} == {"h264"}


# Behind a URL ----------------------------------------------------------------------------------------------


def test_shards_behind_a_url(files: Manifest, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    summary = pack(files, tmp_path, url="memory://bucket/set")
    assert '"root": "memory://bucket/set"' in summary.manifest.read_text()
    remote = fsspec.filesystem("memory")
    for shard in summary.shards:
        remote.pipe(f"/bucket/set/{shard.name}", shard.read_bytes())
    shards = read_manifest(summary.manifest)
    assert shards.digest == files.digest
    pairs = zip(clips(files.readable()), clips(shards.readable()), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)

    # Written and read again, and by a root that is given.
    write_manifest(tmp_path / "copy.jsonl", shards)
    assert read_manifest(tmp_path / "copy.jsonl") == shards
    moved = read_manifest(tmp_path / "train.jsonl", root="memory://elsewhere")
    with pytest.raises(
        VideoError, match=r"^memory://elsewhere/train-000000.tar#.* cannot be fetched \(FileNot"
    ):
        open_video(moved.entries[0].path)
    remote.pipe(f"/elsewhere/{summary.shards[0].name}", summary.shards[0].read_bytes()[:3000])
    with pytest.raises(VideoError, match=r"000\.mp4: the shard is cut short: it ends at byte 3000"):
        open_video(moved.entries[0].path)


def test_servers_without_byte_ranges(
    files: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "cat_file", lambda self, path, start, end: bytes(100_000))
    summary = pack(files, tmp_path, url="memory://whole")
    with pytest.raises(
        VideoError, match=r"mp4: cannot be fetched: its server does not answer requests for a"
    ):
        open_video(read_manifest(summary.manifest).entries[0].path)


# The command -----------------------------------------------------------------------------------------------


def test_shard_command(files: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "val.jsonl"
    write_manifest(source, files)
    out = tmp_path / "shards"
    assert main(["data", "shard", str(source), str(out), "--size", "80kB"]) == 0
    printed = capsys.readouterr().out
    assert "6 videos in 2 shards" in printed
    assert "broken.mp4: cut short" in printed
    assert sorted(path.name for path in out.iterdir()) == ["val-000000.tar", "val-000001.tar", "val.jsonl"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "big"], "--size 'big': give a positive number of bytes"),
        (["--size", "0"], "--size '0': give a positive number of bytes"),
    ],
)
def test_shard_command_refuses(
    files: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    source = tmp_path / "val.jsonl"
    write_manifest(source, files)
    assert main(["data", "shard", str(source), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert main(["data", "shard", str(source), str(tmp_path)]) == 2
    assert "would be replaced" in capsys.readouterr().err
