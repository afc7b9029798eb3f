"""Which frames clips are made of, which clips batches, and what is said of files that cannot be read."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data import loader as loader_module
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import Augmentation, Clip, ClipDataset, ClipRequest
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.grid import SamplingGrid, legal_grids
from fluxvit.flux.plan import Plan
from fluxvit.video.base import VideoError
from fluxvit.video.sampling import ClipSampling
from fluxvit.video.writer import write_video

FRAMES, FPS = 24, 12
GRIDS = legal_grids(range(4, 14, 2), range(28, 84, 14), 16, 200)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 12 frames per second; frame n has the brightness 10 * n."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, [np.full((32, 48, 3), 10 * n, np.uint8) for n in range(FRAMES)], FPS, crf=0)
    return path


def manifest(*entries: Entry) -> Manifest:
    return Manifest(entries, ("x",), "digest")


def numbers(data: ClipDataset, request: ClipRequest) -> list[int]:
    """The numbers of the frames of a clip."""
    brightness = data[request].video.float().mean((0, 2, 3))
    return (brightness / 10).round().int().tolist()


def test_a_centred_clip_without_jitter_is_what_tests_see(film: Path) -> None:
    """As features from disk must be of the clip that a student sees."""
    grid = SamplingGrid(6, 24, 24)
    steady = ClipDataset(manifest(Entry(film, 0)), augmentation=Augmentation("center"), jitter=False)
    test = steady[ClipRequest(0, grid)].video
    assert all(torch.equal(steady[ClipRequest(0, grid, (seed,))].video, test) for seed in range(5))
    jittered = ClipDataset(manifest(Entry(film, 0)), augmentation=Augmentation("center"))
    assert len({str(numbers(jittered, ClipRequest(0, grid, (seed,)))) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="do not belong to the center crop"):
        Augmentation("center", crop_scale=(0.5, 1))


# Dense sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [
        (6, 2, [6, 8, 10, 12, 14, 16]),  # Twelve of 24 frames, in the middle.
        (8, 1, [8, 9, 10, 11, 12, 13, 14, 15]),
        (8, 4, [0, 4, 8, 12, 16, 20, 23, 23]),  # The window is longer than the video.
    ],
)
def test_dense_test_clips_lie_in_the_middle(
    film: Path, frames: int, stride: int, expected: list[int]
) -> None:
    data = ClipDataset(manifest(Entry(film, 0)), sampling=ClipSampling("dense", stride))
    assert numbers(data, ClipRequest(0, SamplingGrid(frames, 16, 16))) == expected


def test_dense_training_clips_keep_the_stride_and_lie_anywhere(film: Path) -> None:
    data = ClipDataset(manifest(Entry(film, 0)), sampling=ClipSampling("dense", 3))
    clips = [numbers(data, ClipRequest(0, SamplingGrid(4, 16, 16), (7, n))) for n in range(20)]
    assert all(np.diff(clip).tolist() == [3, 3, 3] for clip in clips)
    assert len({clip[0] for clip in clips}) > 5
    assert clips == [numbers(data, ClipRequest(0, SamplingGrid(4, 16, 16), (7, n))) for n in range(20)]


def test_a_stride_may_count_another_rate(film: Path) -> None:
    # Every fourth part of a second is every third frame; the segment starts at frame 12.
    data = ClipDataset(manifest(Entry(film, 0, start=1.0)), sampling=ClipSampling("dense", 1, 4))
    assert numbers(data, ClipRequest(0, SamplingGrid(4, 16, 16))) == [13, 16, 19, 22]


def test_dense_sampling_that_cannot_be(film: Path, tmp_path: Path) -> None:
    videos = manifest(Entry(film, 0))
    with pytest.raises(ValueError, match="dense sampling needs the video files"):
        ClipDataset(videos, FrameCache(tmp_path, videos, 8, 16), sampling=ClipSampling("dense"))
    with pytest.raises(ValueError, match="kind is 'denser', expected one of"):
        ClipSampling("denser")
    with pytest.raises(ValueError, match="stride"):
        ClipSampling("dense", 0)
    with pytest.raises(ValueError, match="order 'shuffled' takes frames from the whole video"):
        ClipDataset(videos, sampling=ClipSampling("dense"), order="shuffled")


# Files that cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_named_once(
    film: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    names = [film, tmp_path / "text.mp4", tmp_path / "gone.mp4", film, film]
    data = ClipDataset(manifest(*(Entry(path, 0) for path in names)))
    report = tmp_path / "run" / "replaced.jsonl"
    requests = list(TrainingBatches(5, [SamplingGrid(4, 16, 16)], 5, 3, 0))
    with caplog.at_level(logging.WARNING):
        replaced = [batch.replaced.sum().item() for batch in loader(data, requests, workers, report)]
    # The first of two broken files in a row is replaced by the third.
    assert replaced == [3, 3, 3]
    named = [json.loads(line)["error"] for line in report.read_text().splitlines()]
    assert sorted(error.split(": ")[0] for error in named) == sorted(map(str, names[1:3]))
    assert len(caplog.messages) == 2
    # A resumed run does not name them again.
    list(loader(data, requests, workers, report))
    assert len(report.read_text().splitlines()) == 2


def test_too_many_unreadable_files_in_a_row(tmp_path: Path) -> None:
    data = ClipDataset(manifest(*(Entry(tmp_path / f"{n}.mp4", 0) for n in range(9))), max_bad_clips=3)
    with pytest.raises(
        ValueError, match=r"4 videos in a row cannot be read, the last: .*4\.mp4: no such file"
    ):
        data[ClipRequest(1, SamplingGrid(4, 16, 16), (0,))]
    with pytest.raises(VideoError, match=r"1\.mp4"):
        data[ClipRequest(1, SamplingGrid(4, 16, 16))]


def test_batches_have_the_faults_of_all_clips(film: Path, tmp_path: Path) -> None:
    data = ClipDataset(manifest(Entry(tmp_path / "gone.mp4", 0), Entry(film, 0)))
    (batch,) = loader(data, [[ClipRequest(0, SamplingGrid(4, 16, 16), (0, n), 2) for n in range(2)]])
    assert batch.video.shape == (4, 3, 4, 16, 16)
    assert batch.item.tolist() == [1, 1, 1, 1]
    assert batch.faults == (f"{tmp_path / 'gone.mp4'}: no such file",)
    assert torch.equal(batch.replaced, torch.ones(4, dtype=torch.int64))


def test_an_error_in_a_worker_is_one_line_and_leaves_no_worker(film: Path, tmp_path: Path) -> None:
    data = ClipDataset(manifest(Entry(film, 0), Entry(tmp_path / "gone.mp4", 0)))
    requests = [[ClipRequest(item, SamplingGrid(4, 16, 16))] for item in (0, 1, 0)]
    with pytest.raises(VideoError) as caught:
        list(loader(data, requests, workers=2))
    assert str(caught.value) == f"{tmp_path / 'gone.mp4'}: no such file"
    assert not multiprocessing.active_children()


class Deadly(ClipDataset):
    """Its second video ends the process that reads it."""

    def __getitem__(self, request: ClipRequest) -> Clip:
        if request.item:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(request)


def test_a_worker_that_is_killed_leaves_no_other(film: Path) -> None:
    data = Deadly(manifest(Entry(film, 0), Entry(film, 0)))
    requests = [[ClipRequest(item, SamplingGrid(4, 16, 16))] for item in (0, 1, 0, 0)]
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal") as caught:
        list(loader(data, requests, workers=2))
    assert caught.value.__cause__ is None
    assert not multiprocessing.active_children()


_settle_worker = loader_module._settle_worker


def _settle_signalled_worker(number: int) -> None:
    for sent in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), sent)
    _settle_worker(number)


def test_workers_outlive_signals_from_their_first_moment_on(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_settle_worker", _settle_signalled_worker)
    data = ClipDataset(manifest(Entry(film, 0)))
    batches = list(loader(data, [[ClipRequest(0, SamplingGrid(4, 16, 16))]] * 3, workers=2))
    assert len(batches) == 3
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}


def test_workers_need_not_be_forked(film: Path) -> None:
    # Python 3.14 starts them by forkserver on Linux; macOS and Windows spawn them.
    former = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        data = ClipDataset(manifest(Entry(film, 0)))
        (batch,) = loader(data, [[ClipRequest(0, SamplingGrid(4, 16, 16))]], workers=1)
    finally:
        multiprocessing.set_start_method(former, force=True)
    assert torch.equal(batch.video[0], data[ClipRequest(0, SamplingGrid(4, 16, 16))].video)


HELD = """
import sys
from pathlib import Path
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.loader import loader
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.flux.grid import SamplingGrid

film = Path(sys.argv[1])
request = ClipRequest(0, SamplingGrid(4, 16, 16))
clips = iter(loader(ClipDataset(Manifest((Entry(film, 0),), ("x",), "digest")), [[request]] * 9, workers=2))
next(clips)
"""


def test_a_program_that_ends_in_the_middle_of_an_epoch_does_not_wait_for_its_workers(film: Path) -> None:
    # Python would wait for ever: the limit is far beyond what it takes.
    done = subprocess.run([sys.executable, "-c", HELD, film], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_evaluation_that_is_left_keeps_no_worker(film: Path) -> None:
    def leave() -> None:
        raise KeyError("left")

    caught = None
    try:
        predict_plans(
            Checkpoint(small_model()),
            ClipDataset(manifest(*[Entry(film, 0)] * 4)),
            [Plan(SamplingGrid(4, 16, 16), 4)],
            batch_size=1,
            workers=1,
            after_batch=leave,
        )
    except KeyError as error:
        caught = error  # Its frames live on.
    assert caught is not None
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [-1, 10**30])
def test_numbers_of_workers_that_no_machine_starts_are_refused(workers: int) -> None:
    with pytest.raises(ValueError, match=r"workers is .*, expected an integer from 0 to 1024"):
        loader([], [], workers)
