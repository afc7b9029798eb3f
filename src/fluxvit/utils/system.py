"""The machine: its processor, its accelerator, and what this process may use of them."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from fluxvit.utils.schema import convert, plain

if TYPE_CHECKING:
    import torch

_Processes = Annotated[int, Meta(ge=1, le=1024)]
_log = logging.getLogger(__name__)
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class Stopped(Exception):
    """A run was interrupted by a signal; everything is saved."""


def usable_cores() -> int:
    """CPU cores that this process may use; containers and schedulers often grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes(workers: int | None) -> int:
    """Number of processes to start: ``workers``, or one for each usable core if that is None.

    Raises:
        ValueError: It is not an integer from 1 to 1024.
    """
    return usable_cores() if workers is None else convert(plain(workers), _Processes, key="workers")


def memory_bytes() -> int | None:
    """Bytes of memory that this process may use, within the limit of its container; None if unknown."""
    limits = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):  # Not on this system, or "max".
            continue
    if hasattr(os, "sysconf"):  # Not on Windows.
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def processor_name() -> str:
    """The CPU's name, or its architecture if the system does not give the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # Not on macOS and Windows.
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The name of the accelerator, or of the processor where PyTorch does not name the accelerator."""
    import torch

    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).get_device_name(device)
    return processor_name()


def environment(device: torch.device | str) -> dict[str, str]:
    """The versions of the software and the device, to store with a result."""
    import torch

    from fluxvit import __version__

    return {
        "fluxvit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(torch.device(device)),
    }


def cpu_instructions() -> dict[str, bool]:
    """Whether this CPU has each of the instructions on which the speed of a network depends most."""
    import torch

    kinds = {
        "AVX2": "_is_avx2_supported",
        "AVX512": "_is_avx512_supported",
        "AVX512-VNNI": "_is_vnni_supported",
        "AVX512-BF16": "_is_avx512_bf16_supported",
        "AMX": "_is_amx_tile_supported",
    }
    # These functions are not public, and older versions of PyTorch lack some.
    return {kind: bool(getattr(torch.cpu, name, lambda: False)()) for kind, name in kinds.items()}


def usable_device(name: str | int | torch.device | None = None) -> torch.device:
    """The device of a name such as ``cuda``, ``cuda:1``, ``mps`` or ``cpu``.

    Args:
        name: None and ``auto`` mean the accelerator (CUDA, ROCm, XPU, MPS) if PyTorch can use one, else the
            CPU.

    Raises:
        ValueError: There is no such device on this machine; the message says what there is.
    """
    import torch

    if name in (None, "auto"):
        return torch.device(_accelerator()[0])
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device {name!r} is unknown; use cpu, or an accelerator such as cuda:1") from None
    kind, why = _accelerator()
    if device.type == "cpu":
        count = 1
    elif device.type == kind:
        count = torch.accelerator.device_count()
    else:
        there = f"use {kind} or cpu" if kind != "cpu" else "use cpu"
        raise ValueError(f"device {device}: {why or 'this PyTorch can use no such device'}; {there}")
    if (device.index or 0) >= count:
        last = f"{device.type}:{count - 1}" if count > 1 else device.type
        raise ValueError(
            f"device {device}: there {'are' if count > 1 else 'is'} {count} of that kind; use {last}"
        )
    return device


@functools.cache
def log_device(device: torch.device) -> None:
    """Log once which device is used, and why it is the CPU if an accelerator is expected."""
    why = _accelerator()[1]
    reason = f" ({why})" if why and device.type == "cpu" else ""
    _log.info("running on %s, %s%s", device, device_name(device), reason)


@functools.cache
def _accelerator() -> tuple[str, str]:
    """The type of the accelerator, and an empty string. Without one: ``cpu``, and the reason why an
    accelerator that should be there cannot be used, if there is one.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        # PyTorch warns once, and at length, about a driver that it cannot use.
        warnings.simplefilter("always")
        if torch.accelerator.is_available():
            device = torch.accelerator.current_accelerator()
            assert device is not None, "it is available"
            return device.type, ""
    built = (torch.version.cuda and f"CUDA {torch.version.cuda}") or (torch.version.hip and "ROCm")
    if built:
        messages = [str(warning.message).removeprefix("CUDA initialization: ") for warning in caught]
        reason = messages[0].split(" (")[0].split(". ")[0] if messages else "it finds no GPU"
        return "cpu", f"PyTorch {torch.__version__} is built for {built}, but {reason}"
    if _NVIDIA_DRIVER.exists():
        return "cpu", f"PyTorch {torch.__version__} is built without CUDA, though there is an NVIDIA GPU"
    return "cpu", ""


HELD_BACK = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Start worker processes inside, which are not interrupted before they are ready for signals.

    They inherit the blocked signals. Each calls :func:`let_signals_in` when it is ready.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where there are no such signals.
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def let_signals_in() -> None:
    """In a worker process: receive the signals that were held back."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def follow_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end when it ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    let_signals_in()
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in worker processes only"
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
