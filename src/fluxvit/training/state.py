"""The saved state of a run, from which it goes on: a folder in the format of `torch.distributed.checkpoint`.

Any number of processes can read it, sharded or not: tensors go by the names of the parameters they belong to.
There is always one complete state: a new one gets its name when it is written, and only then the former one
is removed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from fluxvit.training.ema import Ema
from fluxvit.training.sharded_state import StateReader, read_metadata
from fluxvit.utils.distributed import World
from fluxvit.utils.files import clear_leftovers, flush_to_disk, write_json
from fluxvit.utils.schema import Natural, read

ABOUT = "about.json"
_FOLDER = re.compile(r"state-(\d+)")
_PARTIAL_FOLDER = re.compile(r"\.state-\d+\.partial")


class About(msgspec.Struct):
    """Everything in a state but the tensors.

    Attributes:
        step: Steps taken.
        fingerprint: Identifies the run, in values that JSON knows.
        precision: Number format of the run; a run that goes on does not choose it again.
        skipped: Steps that were skipped.
    """

    step: Natural
    fingerprint: dict[str, Any] = {}
    precision: Literal["fp32", "bf16"] = "fp32"
    skipped: Natural = 0


@dataclass(frozen=True)
class Saved:
    """A saved state.

    Attributes:
        path: Its folder.
        about: Everything but the tensors.
        layout: Shape and type of each tensor.
    """

    path: Path
    about: About
    layout: dict[str, tuple[torch.Size, torch.dtype]]

    @torch.no_grad()
    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Read tensors into others of their shapes, sharded or not; all processes together.

        Raises:
            ValueError: There are others in the state, or it is damaged.
        """
        for name, target in targets.items():
            if name not in self.layout or self.layout[name][0] != target.shape:
                there = list(self.layout[name][0]) if name in self.layout else "missing"
                raise ValueError(
                    f"{self.path} is of another model: {name} is {list(target.shape)} here, {there} there; "
                    "remove it to start anew, or choose another folder"
                )
        try:
            with _alone_or_not():
                dcp.load(dict(targets), storage_reader=StateReader(self.path))
        except CheckpointException as error:  # It is no Exception: `except Exception` would miss it.
            reason = " ".join(str(next(iter(error.failures.values()))[0]).split())[:200]
            raise ValueError(f"{self.path} is damaged ({reason}); remove it to start anew") from error


@contextmanager
def _alone_or_not() -> Iterator[None]:
    """Silence PyTorch's warning that a process reads or writes alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")
        yield


def find_state(folder: Path) -> Saved | None:
    """The newest state in a folder, or None.

    Raises:
        ValueError: It is damaged.
    """
    # There are two when a crash came between writing one and removing the other.
    folders = _folders(folder)
    if not folders:
        return None
    path = folders[-1]
    about = read(path / ABOUT, About)
    tensors: Any = read_metadata(path).state_dict_metadata
    layout = {name: (entry.size, entry.properties.dtype) for name, entry in tensors.items()}
    return Saved(path, about, layout)


def _folders(folder: Path) -> list[Path]:
    """Folders of states, the newest last."""
    found = [path for path in folder.glob("state-*") if _FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("state-")))


def changed_settings(
    saved: Mapping[str, Any], given: Mapping[str, Any], *, free: Collection[str] = ()
) -> list[str]:
    """The settings of two runs that differ, in words: ``optim.batch_size was 32, is 64``.

    Settings that only one of them knows are not compared, because versions of fluxvit add some and drop some.

    Args:
        saved: Fingerprint of a saved run.
        given: Fingerprint of the run that continues from there.
        free: Names of settings that may differ.
    """
    # Through JSON, which makes lists of tuples, as in the state.
    pairs = _differences(saved, json.loads(json.dumps(given)))
    return [f"{name} was {_shown(was)}, is {_shown(now)}" for name, was, now in pairs if name not in free]


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of the settings that differ."""
    for key in sorted(old.keys() & new.keys()):
        was, now = old[key], new[key]
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{prefix}{key}.")
        elif was != now:
            yield prefix + key, was, now


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def save_state(folder: Path, about: About, tensors: dict[str, Tensor], world: World) -> None:
    """Save a state; the former one is removed afterwards. All processes together, and each writes its part.

    Args:
        about: Everything but the tensors.
        tensors: Tensors by name, sharded or not.

    Raises:
        OSError: A process could not write its part; raised in all. The former state is as it was.
    """
    failure: tuple[int, str] | None = None
    final = folder / f"state-{about.step}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        with _alone_or_not():
            dcp.save(tensors, checkpoint_id=partial)  # Makes the folder, and flushes its files to the disk.
        if world.is_main:
            read_metadata(partial)  # A state that cannot be read must show now, not when it is needed.
            write_json(partial / ABOUT, msgspec.to_builtins(about))
            former = [path for path in _folders(folder) if path != final]
            os.replace(partial, final)
            flush_to_disk(folder)
            _remove(former)
    except CheckpointException as error:  # It is no Exception: `except Exception` would miss it.
        failure = max(_reason(reason) for reason, _ in error.failures.values())
    except ValueError as error:
        failure = errno.EIO, str(error)
    except (OSError, RuntimeError) as error:
        failure = _reason(error)
    finally:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
    failures = [found for found in world.gather(failure) if found]
    if failures:
        number, reason = failures[0]
        raise OSError(number, f"the state of step {about.step} could not be saved: {reason}", str(folder))


def _reason(error: BaseException) -> tuple[int, str]:
    """Number and text of the system's error behind ``error``; PyTorch hides it behind one of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if cause is None:
        return errno.EIO, " ".join(f"{error} (is the disk full?)".split())
    return cause.errno or errno.EIO, cause.strerror or str(cause)


def _remove(folders: list[Path]) -> None:
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Clear what a killed run left of unfinished writes in its folder, which this process has locked."""
    clear_leftovers(folder, locked=True)
    # All processes of a run write such a folder together, so that no process is in its name.
    _remove([path for path in folder.glob(".state-*.partial") if _PARTIAL_FOLDER.fullmatch(path.name)])


def run_tensors(task: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that make up a run, by name. They are not copied."""
    tensors = {f"task/{name}": value for name, value in task.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema/{name}": value for name, value in ema.weights.items()}
    for name, parameter in task.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{kind}"] = value
    return tensors


def restore_tensors(saved: Saved, task: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer) -> None:
    """Bring a run's tensors back to what :func:`run_tensors` gave when ``saved`` was saved.

    Raises:
        ValueError: The state is of another model, or damaged.
    """
    targets = run_tensors(task, ema, optimizer)
    parameters = dict(task.named_parameters())
    for key, (shape, dtype) in saved.layout.items():
        if key.startswith("optimizer/"):
            name, _, kind = key.removeprefix("optimizer/").rpartition("/")
            if name not in parameters:
                raise ValueError(
                    f"{saved.path} is of another model, which has a parameter {name}; remove it to start "
                    "anew, or choose another folder"
                )
            like = parameters[name].detach()
            # Moments are sharded like their parameter; the count of steps is not.
            moment = (
                torch.zeros_like(like)
                if shape == like.shape
                else torch.zeros(shape, dtype=dtype, device=like.device)
            )
            optimizer.state[parameters[name]][kind] = targets[key] = moment
    saved.read(targets)
