"""Cameras and addresses that fail and come back; `live_server` is the camera."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread, Timer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clips import number_of
from live_server import HTTPCamera, LiveServer, RTSPCamera

from fluxvit.cli import main
from fluxvit.utils.terminal import mask_credentials, printable
from fluxvit.video import connection, stream
from fluxvit.video.base import VideoError
from fluxvit.video.stream import FrameSource, open_stream

PERIOD = 0.04


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(stream, "_LONGEST_DELAY_S", 0.2)


@pytest.fixture
def http() -> Iterator[HTTPCamera]:
    with HTTPCamera() as camera:
        yield camera


def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.01)


def restart(camera: LiveServer) -> None:
    camera.stop()
    Timer(0.3, camera.start).start()


def parts_of(source: FrameSource, failures: list[Callable[[], None]], frames: int = 8) -> list[list[int]]:
    """The numbers in each part. Failures come after some frames of a part; after the last one it ends."""
    parts, starts, due = [], [], [*failures, source.close]
    for part in source.parts(PERIOD):
        numbers: list[int] = []
        for image in part.images:
            numbers.append(number_of(image))
            if len(numbers) == frames:
                due.pop(0)()
        parts.append(numbers)
        starts.append(part.start)
        assert (part.gap > 0) == (len(parts) > 1)
    assert not due
    assert starts[0] == 0
    assert all(np.diff(starts) > 0)
    return parts


@pytest.mark.parametrize("path", ["live.mjpg", "live.ts", "rtsp"])
def test_a_lost_stream_comes_back(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fluxvit")
    with RTSPCamera(pace=4) if path == "rtsp" else HTTPCamera(pace=4) as camera:
        source = open_stream(camera.url(path.replace("rtsp", "live")), live=True, reconnect=60)
        parts = parts_of(source, [camera.drop, lambda: restart(camera)])
    assert len(parts) == 3
    for numbers in parts:
        # The frames of a part follow one another. The last frame may be shown twice.
        assert set(np.diff(numbers[:-1]) % 256) == {1}
    losses = [record.getMessage() for record in caplog.records if "tried again" in record.message]
    returns = [record.getMessage() for record in caplog.records if "back after" in record.message]
    assert (len(losses), len(returns)) == (2, 2)
    assert losses[0].startswith(f"{source.name}: ")


def test_a_stream_that_stalls_is_lost(http: HTTPCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    source = open_stream(http.url("live.mjpg"), live=True, reconnect=60)

    def stall() -> None:
        http.stalled.set()
        Timer(2.0, http.stalled.clear).start()

    first, *_, last = parts_of(source, [stall])
    assert set(np.diff(first[:-1]) % 256) == set(np.diff(last[:-1]) % 256) == {1}


def test_a_stream_that_does_not_come_back(http: HTTPCamera) -> None:
    source = open_stream(http.url("live.mjpg"), live=True, reconnect=0.3)
    images = source.sample(PERIOD)
    assert next(images).shape == (96, 128, 3)
    http.stop()
    with pytest.raises(VideoError, match=r"did not come back within 0\.3 seconds; cannot be opened"):
        list(images)


def test_without_reconnect_a_loss_is_the_end(http: HTTPCamera) -> None:
    images = open_stream(http.url("live.mjpg"), live=True).sample(PERIOD)
    next(images)
    http.drop()
    with pytest.raises(VideoError, match="broke off"):
        list(images)
    assert http.connections == 1


def test_leaving_does_not_wait_for_a_lost_stream(http: HTTPCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_FIRST_DELAY_S", 600.0)
    source = open_stream(http.url("live.mjpg"), live=True, reconnect=1e6)
    images = source.sample(PERIOD)
    next(images)
    http.stop()
    Timer(0.5, source.close).start()
    list(images)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "Server returned 404 Not Found"),
        ("page.html", "the address of a video, not of a page"),
        ("mute", "nothing came for 0.5 seconds"),
        ("rtsp://{}/nothing", "Server returned 404 Not Found"),
        ("rtsp://ann:secret@{}/private", "401 Unauthorized"),
        ("http://ann:secret@127.0.0.1:9/live?token=secret", "Connection refused"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems say it in other words")
def test_what_is_no_stream_is_an_error_at_once(
    path: str, message: str, http: HTTPCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    with RTSPCamera() as rtsp:
        address = path.format(f"127.0.0.1:{rtsp.port}") if "://" in path else http.url(path)
        with pytest.raises(VideoError, match=message) as caught:
            open_stream(address, live=True, reconnect=60)
    assert "secret" not in str(caught.value)


def test_a_stream_that_has_moved(http: HTTPCamera) -> None:
    assert len(parts_of(open_stream(http.url("moved"), live=True), [])) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://ann:w@rd@host:554/x?channel=1: ended", "rtsp://***@host:554/x?channel=1: ended"),
        ("rtsp://ann:with/slash@host/x", "rtsp://***@host/x"),
        ("http://host/cgi?user=ann&pwd=word&channel=2", "http://host/cgi?user=***&pwd=***&channel=2"),
        ('{"clip": "http://a:b@h/?token=c", "n": 1}', '{"clip": "http://***@h/?token=***", "n": 1}'),
        ("http://host:80/live/@channel", "http://host:80/live/@channel"),
        ("http://[::1]:80/x and a@b.c", "http://[::1]:80/x and a@b.c"),
    ],
)
def test_credentials_are_masked(text: str, shown: str) -> None:
    assert mask_credentials(text) == printable(text) == shown


# A receiver that is too slow ------------------------------------------------------------------------------


def packet(size: int = 100, key: bool = False) -> Any:
    return SimpleNamespace(size=size, is_keyframe=key)


def test_packets_that_wait_too_long_give_way_to_a_newer_key_frame() -> None:
    backlog = connection._Backlog()
    for count in range(100):  # 25 a second, and a key frame every ten.
        backlog.add(packet(key=count % 10 == 0), count / 25)
        arrived = [time for _, time in backlog.waiting]
        assert arrived[-1] - arrived[0] <= 1
        assert backlog.waiting[0][0].is_keyframe
    assert arrived[-1] == 99 / 25


def test_without_a_newer_key_frame_packets_are_dropped_until_one_comes() -> None:
    backlog = connection._Backlog()
    for count in range(80):
        backlog.add(packet(key=count in (0, 60)), count / 25)
    assert [arrived for _, arrived in backlog.waiting] == [count / 25 for count in range(60, 80)]
    # A stream that marks no key frames goes on in the end.
    backlog.waiting.clear()
    for count in range(80, 80 + 25 * 12):
        backlog.add(packet(), count / 25)
    assert backlog.waiting


def test_packets_that_wait_are_limited_in_bytes() -> None:
    backlog = connection._Backlog()
    for _ in range(99):
        backlog.add(packet(size=1 << 23, key=True), 0.0)
        assert len(backlog.waiting) <= 4
    backlog.add(packet(size=1 << 30, key=True), 0.0)
    assert len(backlog.waiting) == 1


def test_frames_are_dropped_rather_than_late(http: HTTPCamera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_MOST_BEHIND_S", 0.1)
    source = open_stream(http.url("live.mjpg"), live=True)
    images = source.sample(PERIOD)
    first = number_of(next(images))
    wait_until(lambda: http.number >= first + 40)  # A receiver that does something else.
    later = [number_of(next(images)) for _ in range(45)]
    assert later[-1] >= first + 40
    assert len(set(later)) < 40
    source.close()


# The command ----------------------------------------------------------------------------------------------


def test_the_command_goes_on_after_losses(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    with RTSPCamera(pace=4) as camera:

        def fail() -> None:
            for failure in (camera.drop, camera.drop, camera.stop):
                before = camera.number
                wait_until(lambda before=before: camera.number > before + 100)
                failure()

        Thread(target=fail, daemon=True).start()
        address = camera.url("private", "ann:word@")
        arguments = [address, "--checkpoint", str(checkpoint), "--budget=12", "--window=0.32", "--json"]
        assert main(["stream", *arguments, "--reconnect=1"]) == 2
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert len([answer for answer in answers if answer["gap"]]) == 2
    assert all(np.diff([answer["start"] for answer in answers]) > 0)
    assert all(answer["lag"] >= 0 for answer in answers)
    assert {answer["clip"] for answer in answers} == {address.replace("ann:word", "***")}
    assert (err.count("it is tried again"), err.count("back after")) == (3, 2)
    assert "did not come back within 1 seconds" in err.splitlines()[-1]
    assert "word" not in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="a background job, which ignores Ctrl-C"
)
@pytest.mark.parametrize("path", ["mute", "live.mjpg"])
def test_ctrl_c_ends_waiting(
    path: str,
    http: HTTPCamera,
    checkpoint: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt() -> None:
        if path == "mute":  # While it connects for the first time.
            wait_until(lambda: http.connections)
        else:  # While it waits for the stream to come back.
            wait_until(lambda: http.number > 80)
            http.stop()
            wait_until(lambda: "tried again" in caplog.text)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    arguments = ["--live", "--checkpoint", str(checkpoint), "--budget=12", "--window=0.32"]
    assert main(["stream", http.url(path), *arguments]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "fluxvit: interrupted"
