from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fluxvit.cli import COMMANDS, main
from fluxvit.video.writer import write_video


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str) -> None:
    # In a process of its own: some commands return from printing help, the parsers exit.
    run = [sys.executable, "-m", "fluxvit", command, "--help"]
    assert (
        f"usage: fluxvit {command}" in subprocess.run(run, check=True, capture_output=True, text=True).stdout
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fluxvit.cli import main; main(['--help']);\n"
        "main(['predict', '--help'])\n"
        "assert not {'torch', 'numpy', 'av', 'matplotlib'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_module_and_command_are_the_same() -> None:
    run = [sys.executable, "-m", "fluxvit", "--version"]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout.startswith("fluxvit 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predikt"], "did you mean predict?"),
        (["info", "fluxvit_huge"], "fluxvit_small"),
        (["info", "fluxvit_small", "--tokens", "many"], "each an integer"),
        (["convert", "missing.pth", "out"], "no such file"),
        (["data", "make", "kinetics"], "motionworld"),
        (
            ["data", "make", "motionworld", "{tmp}/x", "--videos", "0"],
            "videos is 0, expected an integer from 1",
        ),
        (["data", "make", "motionworld", "{tmp}/x", "--difficulty", "brutal"], "brutal"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([a.format(tmp=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unknown_option(capsys: pytest.CaptureFixture) -> None:
    assert main(["predict", "x.mp4", "--checkpoint", "c", "--budjet", "3"]) == 2
    assert "--budjet is unknown; did you mean --budget?" in capsys.readouterr().err


def test_predict(checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["predict", str(clip), "--checkpoint", str(checkpoint), "--budget", "12"]
    assert main([*arguments, "--top", "2", "--json", "--explain", str(tmp_path / "why.mp4")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["top"]) == 2
    assert answer["tokens"] == 12
    assert answer["grid"] == "8x16x32"
    assert (tmp_path / "why.mp4").stat().st_size > 0
    assert main(arguments) == 0
    assert "12 of 32 tokens of 8x16x32" in capsys.readouterr().out


def test_explain_never_overwrites_the_clip(
    checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture
) -> None:
    before = clip.read_bytes()
    assert main(["predict", str(clip), "--checkpoint", str(checkpoint), "--explain", str(clip)]) == 2
    assert "the clip itself" in capsys.readouterr().err
    assert clip.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "expected an integer of at least 1"),
        (["--budget", "many"], "give tokens (1024)"),
        (["--grid", "8x30"], "height 30 is not a multiple of 8; use 24 or 32"),
        (["--grid", "8"], "neither FRAMESxSIZE"),
        (["--top", "0"], "top is 0, expected an integer of at least 1"),
        (["--explain", "out.txt"], "must end in .mp4"),
        (["--checkpoint", "nowhere"], "no such checkpoint folder"),
        (["--device", "banana"], "device 'banana' is unknown"),
    ],
)
def test_predict_refuses_nonsense(
    options: list[str], message: str, checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["predict", str(clip), "--checkpoint", str(checkpoint), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_predict_survives_bad_clips(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    one = tmp_path / "one.mp4"
    write_video(one, [np.zeros((48, 64, 3), np.uint8)], 25)
    clips = [str(path) for path in (tmp_path / "missing.mp4", text, cut, clip, one)]
    assert main(["predict", *clips, "--checkpoint", str(checkpoint), "--budget", "36"]) == 2
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    for error, name in zip(errors, ("missing.mp4", "text.mp4", "cut.mp4", "running on"), strict=True):
        assert name in error
    assert captured.out.count("36 of 36 tokens") == 2


def test_info_prints_the_papers_costs(capsys: pytest.CaptureFixture) -> None:
    assert main(["info", "fluxvit_base"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    published = {row[0]: float(row[2]) for row in rows if len(row) == 5 and row[0].isdigit()}
    for tokens, macs in {"512": 49, "1024": 108, "2048": 255, "3072": 440}.items():
        assert published[tokens] == pytest.approx(macs, rel=0.01)


def test_info_of_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["info", str(checkpoint), "--tokens", "6,500", "--grid", "8x24"]) == 0
    out = capsys.readouterr().out
    assert "5 classes" in out
    assert "500       36  (the grid has fewer tokens)" in out


def test_make_motionworld(tmp_path: Path) -> None:
    arguments = ["--videos", "2", "--val", "1", "--test", "1", "--difficulty", "demo", "--workers", "1"]
    assert main(["data", "make", "motionworld", str(tmp_path / "mw"), *arguments]) == 0
    assert len(list((tmp_path / "mw").rglob("*.mp4"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{clip}", "--checkpoint", ""], "--checkpoint is empty"),
        (["predict", "", "--checkpoint", "{checkpoint}"], "clips is empty"),
        (["index", "", "--db", "{out}"], "folder is empty"),
        (["search", "ball", "--db", ""], "--db is empty"),
        (["train", "--out", ""], "out is empty"),
        (["info", "{checkpoint}/config.json"], "config.json is a file; a checkpoint is a folder"),
        (
            ["info", "{run}"],
            "run is not a checkpoint: it has no config.json; the folder of a run holds one: ",
        ),
        (["convert", "{clip}", "{clip}/x"], "clip.mp4: not a PyTorch file"),
        (["index", "{run}", "--db", "{clip}/x.db"], "clip.mp4: a file is where a folder must be"),
    ],
)
def test_places_that_are_no_places(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "run" / "last").mkdir(parents=True)
    places = {"checkpoint": checkpoint, "clip": clip, "out": tmp_path / "out.db", "run": tmp_path / "run"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fluxvit: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.db").exists()
