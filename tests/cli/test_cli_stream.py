from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.video.sampling import ClipSampling


def test_stream(checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["stream", str(clip), "--checkpoint", str(checkpoint), "--budget", "12"]
    assert main([*arguments, "--window", "1", "--hop", "0.5", "--top", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(a["start"], a["end"], a["dropped"]) for a in answers] == [(0, 1, 0), (0.5, 1.5, 0), (1, 2, 0)]
    assert {(a["clip"], a["grid"], a["tokens"], len(a["top"])) for a in answers} == {
        (str(clip), "8x16x32", 12, 2)
    }
    assert "12 of 32 tokens of 8x16x32 in windows of 1 s every 0.5 s: 24 tokens" in err
    # Without a window: the whole of a short file.
    assert main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:4] == ["0.00", "to", "2.00", "s"]


def test_a_window_is_as_long_as_the_clips_of_dense_training(
    checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture
) -> None:
    found = Checkpoint.load(checkpoint)
    found.sampling = ClipSampling("dense", 2, 16)
    found.save(checkpoint)
    assert main(["stream", str(clip), "--checkpoint", str(checkpoint), "--budget", "12"]) == 0
    # Eight frames, an eighth of a second apart.
    assert capsys.readouterr().out.split()[:4] == ["0.00", "to", "1.00", "s"]


def test_token_rate(checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["stream", str(clip), "--checkpoint", str(checkpoint), "--json"]
    assert main([*arguments, "--window", "2", "--hop", "1", "--budget", "13/s"]) == 0
    (answer,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (answer["grid"], answer["tokens"]) == ("8x16x32", 13)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="a background job, which ignores Ctrl-C"
)
def test_answers_come_at_once_and_ctrl_c_ends_the_stream(checkpoint: Path) -> None:
    run = [sys.executable, "-m", "fluxvit", "stream", "-", "--live"]
    run += ["--checkpoint", str(checkpoint), "--window", "1"]
    with subprocess.Popen(
        run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"YUV4MPEG2 W16 H16 F8:1 C444\n" + 9 * (b"FRAME\n" + bytes(16 * 16 * 3)))
        process.stdin.flush()
        assert b"0.00 to 1.00 s" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # Its input is still open, so that only the signal can have ended it.
        assert process.wait(30) == 130
        assert b"interrupted" in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain", "x.mp4"], "--explain is unknown"),
        (["other.mp4"], "'other.mp4': unexpected"),
        (["--window", "9"], "before the first window of 9 s"),
        (["--window", "1", "--hop", "-1"], "hop is -1.0, expected a number above 0"),
        (["--window", "1", "--budget", "1/s"], "1 tokens a second: that is less than one token a hop"),
        (["--window", "nan"], "--window is 'nan', expected a finite number"),
        (["--live"], "a file waits"),
    ],
)
def test_bad_input(
    options: list[str], message: str, checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["stream", str(clip), *options, "--checkpoint", str(checkpoint)]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
