"""Files that are whole or not there, leftovers of killed processes, and locks."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from fluxvit.utils import files
from fluxvit.utils.files import (
    atomic_folder,
    atomic_path,
    clear_leftovers,
    lock_file,
    lock_folder,
    read_json_lines,
    writer_tag,
)

HOST, PID = writer_tag().split("-")
DEAD = f"{HOST}-99999999"  # No system gives such a number.
ELSEWHERE = f"{'0' * 6 if HOST != '0' * 6 else '1' * 6}-{PID}"


@pytest.fixture(autouse=True)
def _forget_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_cleared", set())
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def touch(folder: Path, *found: str, age: float = 0.0) -> None:
    for name in found:
        (folder / name).write_text(name)
        os.utime(folder / name, (time.time() - age,) * 2)


def test_a_write_clears_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    living = f".b.{writer_tag()}.partial.mp4"
    touch(tmp_path, living, f".b.{DEAD}.partial.mp4", f".c.d.{DEAD}.partial")
    touch(tmp_path, f".a.{ELSEWHERE}.partial.mp4", ".a.partial.mp4", "b.5.partial", ".hidden")
    (tmp_path / f".best.{DEAD}.partial").mkdir()
    (tmp_path / f".best.{DEAD}.partial" / "weights").write_text("half")
    with atomic_path(tmp_path / "a.mp4") as partial:
        partial.write_text("whole")
    kept = [living, f".a.{ELSEWHERE}.partial.mp4", ".a.partial.mp4", "b.5.partial", ".hidden", "a.mp4"]
    assert names(tmp_path) == sorted(kept)


@pytest.mark.parametrize("writer", [ELSEWHERE, f"{HOST}-{PID}"])
def test_what_may_be_in_use_is_kept_for_a_day(tmp_path: Path, writer: str) -> None:
    for age, kept in ((3600, True), (25 * 3600, False)):
        touch(tmp_path, f".a.{writer}.partial", age=age)
        clear_leftovers(tmp_path)
        assert (names(tmp_path) != []) == kept


@pytest.mark.skipif(os.name == "nt", reason="there are no zombies")
def test_a_process_that_nobody_waited_for_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()  # To its end.
        touch(tmp_path, f".a.{HOST}-{process.pid}.partial")
        for _ in range(100):
            clear_leftovers(tmp_path)
            if not names(tmp_path):
                break
            time.sleep(0.05)
        assert names(tmp_path) == []


def test_a_lock_clears_what_other_machines_left(tmp_path: Path) -> None:
    # Who has the lock of the folder knows that nobody else writes there.
    touch(tmp_path, f".a.{ELSEWHERE}.partial", f".a.{writer_tag()}.partial")
    with lock_folder(tmp_path):
        assert names(tmp_path) == sorted([f".a.{writer_tag()}.partial", ".lock"])


def test_a_folder_being_written_is_as_old_as_its_newest_file(tmp_path: Path) -> None:
    folder = tmp_path / f".best.{ELSEWHERE}.partial"
    folder.mkdir()
    touch(folder, "weights")
    os.utime(folder, (0, 0))
    clear_leftovers(tmp_path)
    assert folder.exists()
    os.utime(folder / "weights", (0, 0))
    os.utime(folder, (0, 0))
    clear_leftovers(tmp_path)
    assert not folder.exists()


def test_a_folder_that_lost_its_name_gets_it_back(tmp_path: Path) -> None:
    for name in ("best", "last"):
        (tmp_path / f".{name}.{DEAD}.old").mkdir()
        touch(tmp_path / f".{name}.{DEAD}.old", "former")
    (tmp_path / "last").mkdir()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["best", "last"]
    assert (names(tmp_path / "best"), names(tmp_path / "last")) == (["former"], [])


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    touch(tmp_path / "folder", "former")
    touch(tmp_path, "file")

    def write_half(writing) -> None:
        with writing as partial:
            touch(tmp_path, str(partial / "half" if partial.is_dir() else partial))
            raise KeyboardInterrupt

    for writing in (atomic_folder(tmp_path / "folder"), atomic_path(tmp_path / "file")):
        with pytest.raises(KeyboardInterrupt):
            write_half(writing)
    assert (names(tmp_path), names(tmp_path / "folder")) == (["file", "folder"], ["former"])


def test_a_killed_writer_is_followed_by_a_clean_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from fluxvit.utils.files import atomic_folder, atomic_path\n"
        "with atomic_path(sys.argv[1] + '/a.tar') as p, atomic_folder(Path(sys.argv[1], 'b')) as q:\n"
        "    p.write_text('half'); (q / 'w').write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 2
    with atomic_path(tmp_path / "other.json") as partial:
        partial.write_text("{}")
    assert names(tmp_path) == ["other.json"]


# Locks ----------------------------------------------------------------------------------------------------


def hold(folder: Path, then: str) -> subprocess.Popen[str]:
    """A process that locks a folder, says so, and goes on."""
    code = (
        "import multiprocessing, os, sys, time; from fluxvit.utils.files import lock_folder\n"
        f"with lock_folder(sys.argv[1]):\n    {then}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_locked_folder_names_its_holder_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    process = hold(tmp_path / "run", "print('locked', flush=True); time.sleep(60)")
    with pytest.raises(ValueError, match=rf"run is being written by another run \(process {process.pid} on "):
        lock_folder(tmp_path / "run").__enter__()
    process.kill()
    process.wait()
    with lock_folder(tmp_path / "run"):
        pass
    assert names(tmp_path / "run") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_worker_does_not_hold_the_lock_of_a_dead_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 10.0)  # It may not have run yet.
    process = hold(
        tmp_path,
        "c = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); c.start()\n"
        "    print('locked', flush=True); print(c.pid, flush=True); time.sleep(60)",
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with lock_folder(tmp_path):
            os.kill(child, 0)  # It still lives.
    finally:
        os.kill(child, 9)


def test_a_lock_is_for_one_thread_and_may_be_taken_twice(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            lock_folder(tmp_path).__enter__()
        except ValueError as error:
            refused.append(str(error))

    with lock_folder(tmp_path), lock_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in refused[0]
    with lock_folder(tmp_path):
        pass


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad input"), lock_folder(tmp_path / "new" / "run"):
        raise ValueError("bad input")
    with lock_file(tmp_path / "also" / "new.jsonl"):
        assert names(tmp_path / "also") == [".new.jsonl.lock"]
    assert names(tmp_path) == []


def _lock_many(folder: str, count: int) -> int:
    """How often two processes were in a lock at once."""
    clashes = 0
    for _ in range(count):
        try:
            with lock_folder(folder):
                mark = Path(folder) / "inside"
                try:
                    mark.touch(exist_ok=False)
                except FileExistsError:
                    clashes += 1
                time.sleep(0.001)
                mark.unlink(missing_ok=True)
        except ValueError:
            continue
    return clashes


def test_a_lock_holds_while_others_come_and_go(tmp_path: Path) -> None:
    """The file of a lock is removed at its end: who opened it before must notice."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        assert pool.starmap(_lock_many, [(str(tmp_path), 100)] * 2) == [0, 0]


# Reading ---------------------------------------------------------------------------------------------------


class Row(msgspec.Struct):
    step: int
    mean: float = 0.0


def test_rows_that_do_not_fit_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        '{"step": 1}',
        '{"step": "2"}',
        "[]",
        "{}",
        "[" * 100_000,
        "9" * 5000,
        '{"st',
        '{"step": 3, "mean": 1}',
    ]
    path.write_text("\n".join(lines))
    assert read_json_lines(path, Row) == [{"step": 1}, {"step": 3, "mean": 1}]
    assert [len(row) for row in read_json_lines(path)] == [1, 1, 0, 2]


def test_an_error_while_writing_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as error, files.atomic_path(tmp_path / "x.txt"):
        raise OSError(28, "full")
    assert error.value.filename == str(tmp_path / "x.txt")
