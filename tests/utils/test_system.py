from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fluxvit.cli import main
from fluxvit.cli.commands import COMMANDS
from fluxvit.deploy.predictor import Predictor
from fluxvit.utils import system as machine
from fluxvit.utils.distributed import join_world
from fluxvit.utils.system import log_device, signals_held_back, usable_device


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that has two devices of type ``meta``: PyTorch computes shapes there, on any computer."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    machine._accelerator.cache_clear()
    yield
    machine._accelerator.cache_clear()


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(machine, "_NVIDIA_DRIVER", Path("there is no driver"))
    machine._accelerator.cache_clear()
    yield
    machine._accelerator.cache_clear()


@pytest.mark.usefixtures("accelerator")
def test_the_accelerator_is_the_default_everywhere(checkpoint: Path) -> None:
    assert usable_device() == torch.device("meta")
    predictor = Predictor(checkpoint)
    assert predictor.device.type == predictor.model.cls_token.device.type == "meta"
    assert join_world().device.type == "meta"
    assert (
        usable_device("cpu").type == Predictor(checkpoint, device="cpu").model.cls_token.device.type == "cpu"
    )


@pytest.mark.usefixtures("no_accelerator")
def test_the_cpu_is_the_default_without_an_accelerator(checkpoint: Path) -> None:
    assert usable_device().type == Predictor(checkpoint).device.type == join_world().device.type == "cpu"


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meta:2", "there are 2 of that kind; use meta:1"),
        ("cpu:1", "there is 1 of that kind; use cpu"),
        ("cuda", "this PyTorch can use no such device; use meta or cpu"),
        ("gpu", "device 'gpu' is unknown; use cpu, or an accelerator such as cuda:1"),
        ("", "is unknown"),
    ],
)
def test_devices_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        usable_device(name)


@pytest.mark.usefixtures("no_accelerator")
def test_why_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver is too old (found 11040). Update it", stacklevel=1
        )
        return False

    assert machine._accelerator() == ("cpu", "")
    driver = tmp_path / "version"
    driver.write_text("NVRM version")
    monkeypatch.setattr(machine, "_NVIDIA_DRIVER", driver)
    machine._accelerator.cache_clear()
    assert "is built without CUDA, though there is an NVIDIA GPU" in machine._accelerator()[1]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    machine._accelerator.cache_clear()
    assert machine._accelerator()[1].endswith("is built for CUDA 13.0, but it finds no GPU")
    monkeypatch.setattr(torch.accelerator, "is_available", refuse)
    machine._accelerator.cache_clear()
    assert machine._accelerator()[1].endswith("is built for CUDA 13.0, but The NVIDIA driver is too old")
    with pytest.raises(ValueError, match=r"device cuda: PyTorch .* driver is too old; use cpu"):
        usable_device("cuda")


def test_the_device_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_device(torch.device("cpu"))
        log_device(torch.device("cpu"))
    (line,) = caplog.messages
    assert line.startswith("running on cpu, ")


def test_commands_say_which_device(checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["predict", str(clip), "--checkpoint", str(checkpoint), "--json", "--device", "cpu"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["clip"] == str(clip)
    assert [line for line in printed.err.splitlines() if line.startswith("fluxvit: running on cpu")]
    # A mistake is still one line.
    assert main([*command, "--grid", "0x0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_command_that_runs_a_model_has_the_same_option(capsys: pytest.CaptureFixture) -> None:
    for name in COMMANDS:
        if name in ("convert", "export", "info") or name.startswith("data"):
            continue
        assert main([name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        rule = "auto is the accelerator that PyTorch finds, or the CPU if there is none. (default: auto)"
        assert rule in shown, name


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no such signals")
def test_worker_processes_start_without_being_interrupted() -> None:
    code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    with signals_held_back():
        held = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SIGINT" in held.stdout
    assert "SIGTERM" in held.stdout
    let_in = "from fluxvit.utils.system import let_signals_in; let_signals_in(); "
    with signals_held_back():
        free = subprocess.run(
            [sys.executable, "-c", let_in + code], capture_output=True, text=True, check=True
        )
    assert free.stdout == "[]\n"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
