"""Walks over trees with links, odd names and places that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxvit.data.formats.layout import videos_below
from fluxvit.data.formats.walk import LeftOut, walk


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(top: Path, left_out: LeftOut) -> list[str]:
    return [path.relative_to(top).as_posix() for path in videos_below(top, left_out)]


def test_folders_and_files_come_in_order_without_hidden_ones(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b/2.mp4", "b/1.mp4", "a/x.txt", ".c/d.mp4", "b/._1.mp4")))
    found = [(os.path.relpath(folder, tmp_path), *rest) for folder, *rest in walk(tmp_path, LeftOut())]
    assert found == [(".", ["a", "b"], []), ("a", [], ["x.txt"]), ("b", [], ["1.mp4", "2.mp4"])]


def test_loops_of_links_end_and_every_folder_is_entered_once(tmp_path: Path) -> None:
    touch(tmp_path / "z" / "1.mp4", tmp_path / "y" / "2.mp4")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "z" / "up").symlink_to("..")
    (tmp_path / "z" / "other").symlink_to("../y")
    (tmp_path / "y" / "other").symlink_to("../z")
    (tmp_path / "z" / "self").symlink_to("self")
    left_out = LeftOut()
    assert names(tmp_path, left_out) == ["a/1.mp4", "a/other/2.mp4"]
    assert left_out.broken == [str(tmp_path / "a" / "self")]
    assert len(left_out.again) == 4


def test_a_folder_may_hold_many_links_to_its_neighbours(tmp_path: Path) -> None:
    # Every order in which these could be gone through would be 16 factorial ways.
    for i in range(16):
        touch(tmp_path / str(i) / "x.mp4")
        for j in range(16):
            (tmp_path / str(i) / f"to{j}").symlink_to(f"../{j}")
    left_out = LeftOut()
    assert len(names(tmp_path, left_out)) == 16
    assert len(left_out.again) == 256


def test_links_to_files_are_files_and_broken_ones_are_kept_apart(tmp_path: Path) -> None:
    touch(tmp_path / "disk" / "1.mp4")
    top = tmp_path / "top"
    top.mkdir()
    (top / "b.mp4").symlink_to("../disk/1.mp4")
    (top / "c.mp4").symlink_to("../disk/2.mp4")
    (top / "part2").symlink_to("../other disk")
    left_out = LeftOut()
    assert names(top, left_out) == ["b.mp4"]
    assert left_out.notes == (f"left out 2 links that lead nowhere, such as {top / 'c.mp4'}",)
    assert left_out.may_hold(str(top / "part2" / "x.mp4"))
    assert not left_out.may_hold(str(top / "part20" / "x.mp4"))


@pytest.mark.skipif(os.name == "nt", reason="needs named pipes")
def test_pipes_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.mp4")
    assert names(tmp_path, LeftOut()) == []


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
        open(folder + b"/\xff.mp4", "wb").close()
    except OSError:
        pytest.skip("this file system takes Unicode only")
    (path,) = videos_below(tmp_path, LeftOut())
    assert path.is_file()
    assert os.fsencode(path).endswith(b"/caf\xe9/\xff.mp4")


def test_a_folder_that_cannot_be_read_does_not_end_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a" / "1.mp4", tmp_path / "b" / "2.mp4")
    scandir = os.scandir

    def locked(path: str) -> object:
        if os.fspath(path) == str(tmp_path / "a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    left_out = LeftOut()
    assert names(tmp_path, left_out) == ["b/2.mp4"]
    assert left_out.notes == (f"left out 1 folders or files that cannot be read, such as {tmp_path / 'a'}",)
    assert left_out.may_hold(str(tmp_path / "a" / "1.mp4"))
