"""Paths of videos in shards. What reading them gives is tested in tests/data/test_shards.py."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fluxvit.video.base import VideoError
from fluxvit.video.reader import open_video
from fluxvit.video.tar_members import TarMember, Window, is_url, may_exist, with_scheme


def test_paths_of_members() -> None:
    member = TarMember.parse(Path("a#b/x-000001.tar#1536+20#00000017.mp4"))
    assert member == TarMember("a#b/x-000001.tar", 1536, 20, "00000017.mp4")
    assert TarMember.parse(str(member)) == member
    for other in ("x.tar", "x.tar#a.mp4", "x.tar#1+2", "x.zip#1+2#a.mp4", "x.tar#1+-2#a.mp4", "a.mp4"):
        assert TarMember.parse(other) is None


def test_a_path_keeps_its_url() -> None:
    path = Path("s3://bucket/set") / "x.tar#512+9#1.mp4"
    member = TarMember.parse(path)
    assert member is not None
    assert member.tar == "s3://bucket/set/x.tar"
    assert with_scheme(path) == str(member)
    assert [is_url(name) for name in ("gs://b", "/data/a:/b", "a/b", "C:/a", "C:\\a")] == [True] + [False] * 4


def test_windows_are_files_of_their_own() -> None:
    outer = io.BytesIO(bytes(range(100)))
    window = io.BufferedReader(Window(outer, 10, 20, "x"))
    assert window.read() == bytes(range(10, 30))
    assert window.seek(-5, io.SEEK_END) == 15
    assert window.read(99) == bytes(range(25, 30))
    assert window.seek(40) == 40
    assert window.read(1) == b""
    window.seek(3)
    assert window.read(2) == bytes([13, 14])
    window.close()
    assert outer.closed


@pytest.mark.parametrize("path", ["x.tar#0+9#a.mp4", "x.tar#512+0#a.mp4"])
def test_places_that_no_member_has(path: str) -> None:
    with pytest.raises(VideoError, match="the manifest names no bytes of a member"):
        open_video(path)


def test_what_may_exist(tmp_path: Path) -> None:
    (tmp_path / "x.tar").touch()
    names = ("x.tar#512+9#a.mp4", "y.tar#512+9#a.mp4", "a.mp4")
    assert [may_exist(tmp_path / name) for name in names] == [True, False, False]
    assert may_exist(Path("s3://bucket/x.tar#512+9#a.mp4"))
