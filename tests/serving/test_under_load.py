"""Small versions of ``benchmarks/serving_load.py``: many clients, hostile uploads, damaged files, SIGTERM."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.writer import write_video
from running_server import Server, serving
from serving_load import LOST, drain, expected_scores, load, send_damaged, uploads

pytest.importorskip("fastapi")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="The benchmark is for Unix.")

BUDGETS = ("24", "12tokens", "0.001gflops")
LIMIT = 200_000


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The threads of a server and of the tests do not wait for one another on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = Checkpoint(small_model(), grids=[SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)])
    return str(made.save(tmp_path_factory.mktemp("served") / "checkpoint"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("clips") / "clip.mp4"
    data = []
    for _ in range(4):
        write_video(path, rng.integers(0, 256, (20, 32, 48, 3), dtype=np.uint8), 10)
        data.append(path.read_bytes())
    return data


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[Server]:
    with serving(folder, "--max_bytes", str(LIMIT), "--upload", "3", "--decoders", "1") as server:
        yield server


def test_many_clients_get_the_answers_that_each_gets_alone(server: Server, clips: list[bytes]) -> None:
    expected = expected_scores(server, clips, BUDGETS)
    result = load(server, clips, BUDGETS, expected, clients=20, seconds=1)
    assert set(result.statuses) == {200}
    assert result.answered >= 20
    assert all(result.times.values())
    assert result.different == 0


def test_hostile_uploads_are_answered_and_leave_nothing_behind(server: Server, clips: list[bytes]) -> None:
    uploads(server, clips[0], LIMIT, 1)
    before = server.leftovers
    assert uploads(server, clips[0], LIMIT, 4) == {
        "too long, declared": {413: 4},
        "too long, in chunks": {413: 4},
        "slow": {408: 4},
        "aborted, then one more": {200: 4},
        "gone before the answer, then one more": {200: 4},
    }
    for _ in range(50):  # Connections close a little later than they are answered.
        files, temporary = server.leftovers
        if files <= before[0] and temporary == 0:
            break
        time.sleep(0.1)
    assert files <= before[0]
    assert temporary == 0


def test_damaged_videos_are_answered_by_the_same_server(server: Server, clips: list[bytes]) -> None:
    statuses, _ = send_damaged(server, clips, 60, [b"", b"no video", clips[0]])
    assert set(statuses) == {200, 422}
    assert send_damaged(server, clips, 1, [clips[0]])[0] == {200: 1}


def test_sigterm_lets_accepted_requests_finish(server: Server, clips: list[bytes]) -> None:
    result = drain(server, clips, 30)  # This is the last test, because the server ends.
    assert result.before == {200: 30}
    assert set(result.after) <= {LOST, 503}
    assert result.code == 0
