"""What comes from files is shown to people, not obeyed by their terminals."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli import main
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.terminal import json_line, printable, say

HOSTILE = "a\x1b]0;title\x07b\x9b31m\u202ec\nd\te\x00f\x7f"
SHOWN = r"a\x1b]0;title\x07b\x9b31m\u202ec\nd\te\x00f\x7f"


def obeyed(text: str) -> set[str]:
    """Characters that a terminal would obey, line breaks aside."""
    return set(text) & {chr(i) for i in (*range(32), *range(127, 160), 0x202E, 0x2028)} - {"\n"}


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("x\u2028\u2066y\ud800") == r"x\u2028\u2066y\ud800"
    assert printable(os.fsdecode(b"caf\xe9.mp4")) == r"caf\xe9.mp4"
    plain = "Kätzchen 猫 👩\u200d🚀 [red] C:\\n é"
    assert printable(plain) == plain
    assert printable("a\n\x1b\tb", keep="\n\t") == "a\n\\x1b\tb"


def test_say_keeps_lines(capsys: pytest.CaptureFixture) -> None:
    say("one\n\x1b[2Jtwo")
    say("three", error=True, end="")
    assert tuple(capsys.readouterr()) == ("one\n\\x1b[2Jtwo\n", "three")


def test_json_holds_the_text_itself(capsys: pytest.CaptureFixture) -> None:
    line = json_line({"label": HOSTILE + "é\ud800"})
    assert json.loads(line) == {"label": HOSTILE + "é\ud800"}
    assert not obeyed(line)
    assert "\n" not in line
    assert "é" in line


def hostile_checkpoint(folder: Path) -> Path:
    labels = [f"{HOSTILE} {i}" for i in range(5)]
    grids = [SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)]
    return Checkpoint(small_model(), labels=labels, grids=grids).save(folder)


def test_labels_and_names_of_a_prediction(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = str(hostile_checkpoint(tmp_path / "checkpoint"))
    odd = str(clip.rename(clip.with_name("x\x1b[31m\ny.mp4")))
    assert main(["predict", odd, "--checkpoint", checkpoint, "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert not obeyed("".join(lines))
    assert r"x\x1b[31m\ny.mp4" in lines[0]
    assert SHOWN in lines[1]
    assert main(["predict", odd, "--checkpoint", checkpoint, "--json"]) == 0
    out = capsys.readouterr().out
    assert not obeyed(out)
    assert json.loads(out)["clip"] == odd
    assert json.loads(out)["top"][0]["label"].startswith(HOSTILE)
    assert main(["predict", odd + "nothing", "--checkpoint", checkpoint]) == 2
    err = capsys.readouterr().err
    assert not obeyed(err)
    assert err.count("\n") == len([line for line in err.splitlines() if line.startswith("fluxvit: ")])


@pytest.mark.parametrize("argument", ["no\x1b[2Jcommand", "info"])
def test_errors_are_one_printable_line(argument: str, capsys: pytest.CaptureFixture) -> None:
    assert main([argument, "x\x1b]0;y\x07\nz"]) == 2
    error = capsys.readouterr().err
    assert not obeyed(error)
    assert error.count("\n") == 1


def test_log_records_are_shown(capsys: pytest.CaptureFixture) -> None:
    main(["info", "fluxvit_nano"])
    logging.getLogger("fluxvit.somewhere").warning("%s: cannot be read", HOSTILE)
    assert capsys.readouterr().err == f"fluxvit: {SHOWN}: cannot be read\n"


def test_names_that_the_terminal_cannot_show_do_not_end_a_command(tmp_path: Path, clip: Path) -> None:
    odd = os.fsencode(clip.parent) + "/ü".encode() + b"\xe9.mp4"
    os.rename(clip, odd)
    result = subprocess.run(
        [sys.executable, "-m", "fluxvit", "predict", odd, "--device", "cpu"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (result.returncode, b"\\xfc\\xe9.mp4" in result.stdout) == (0, True), result.stderr


def test_reports_are_well_formed(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"manifest": 1, "classes": [f"{HOSTILE} {i}" for i in range(5)]}]
    rows += [{"path": clip.name, "label": i % 5} for i in range(6)]
    manifest = clip.parent / "test.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoint = str(hostile_checkpoint(tmp_path / "checkpoint"))
    options = ["--out", str(tmp_path / "out"), "--report", str(tmp_path / "report"), "--latency=false"]
    assert main(["evaluate", checkpoint, str(manifest), *options]) == 0
    assert not obeyed(capsys.readouterr().out)
    drawings = list((tmp_path / "report").glob("*.svg"))
    assert drawings
    for path in drawings:
        ElementTree.parse(path)
    (page,) = (tmp_path / "report").glob("*.html")
    text = page.read_text(encoding="utf-8")
    assert not obeyed(text)
    for svg in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0].replace("xlink:", "") + "</svg>")
