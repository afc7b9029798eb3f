"""The saved state of a run, from which it goes on: a folder in the format of `torch.distributed.checkpoint`.

It can be read by any number of processes, sharded or not: tensors go by the names of the parameters they
belong to. There is always one complete state: a new one gets its name when it is written, and only then the
former one is removed.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from fluxvit.training.config import NetworkSettings
from fluxvit.training.ema import Ema
from fluxvit.training.recipes import MixingSettings
from fluxvit.training.sharded_state import StateReader, read_metadata
from fluxvit.utils.distributed import World
from fluxvit.utils.files import clear_leftovers, flush_to_disk, write_json
from fluxvit.utils.schema import Natural, convert, located
from fluxvit.utils.schema import load as load_json
from fluxvit.video.augment_settings import AugmentSettings

FORMER_STATE = "state.pt"  # Of former versions.
ABOUT = "about.json"
# Groups of settings of which former versions saved only those that were given.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "model.settings": asdict(NetworkSettings()),
    "augment": asdict(AugmentSettings()),
    "mixing": asdict(MixingSettings()),
}
_DIGESTS = {"data": "the digest of the training videos", "validation": "the digest of the validation videos"}
_FOLDER = re.compile(r"state-(\d+)")
_PARTIAL_FOLDER = re.compile(r"\.state-\d+\.partial")


@dataclass(frozen=True)
class Saved:
    """A saved state.

    Attributes:
        path: Its file or folder.
        about: All but the tensors: ``step`` and what else was saved with it.
        layout: Shape and type of each tensor.
    """

    path: Path
    about: dict[str, Any]
    layout: dict[str, tuple[torch.Size, torch.dtype]]

    @torch.no_grad()
    def read(self, targets: Mapping[str, Tensor]) -> None:
        """Read tensors into others of their shapes, shared out or not; all processes together.

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
        except CheckpointException as error:  # No Exception: `except Exception` would miss it.
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
        ValueError: It is damaged, or of another version.
    """
    if (old := folder / FORMER_STATE).exists():
        raise ValueError(f"{old} is of another version of fluxvit; choose another folder or remove it")
    # There are two when a crash came between writing one and removing the other.
    folders = _folders(folder)
    return _open_folder(folders[-1]) if folders else None


class _About(msgspec.Struct):
    """What is saved beside the tensors, as far as it is read again."""

    step: Natural
    fingerprint: dict[str, Any] = {}
    precision: Literal["fp32", "bf16"] = "fp32"
    skipped: Natural = 0


def _about(values: Any, path: Path) -> dict[str, Any]:
    with located(str(path)):
        convert(values, _About)
    return values


def _folders(folder: Path) -> list[Path]:
    """Folders of states, the newest last."""
    found = [path for path in folder.glob("state-*") if _FOLDER.fullmatch(path.name)]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("state-"))


def _open_folder(path: Path) -> Saved:
    about = _about(load_json(path / ABOUT), path / ABOUT)
    tensors = read_metadata(path).state_dict_metadata
    layout = {
        name: (entry.size, entry.properties.dtype)
        for name, entry in tensors.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    return Saved(path, about, layout)


def changed_settings(
    saved: Mapping[str, Any], given: Mapping[str, Any], *, free: Collection[str] = ()
) -> list[str]:
    """Which settings of two runs differ, in words: ``optim.batch_size was 32, is 64``.

    Settings that only one of them knows are not compared, for versions of fluxvit add some and drop some;
    but in the groups of `_DEFAULTS` a missing one has its default, and that may differ.

    Args:
        saved: Fingerprint of a saved run.
        given: Fingerprint of the run that continues from there.
        free: Names of settings that may differ.
    """
    return [text for name, text in _differences(_unpacked(saved), _unpacked(given)) if name not in free]


def _unpacked(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint with the settings themselves in place of texts of JSON that hold them."""
    found: dict[str, Any] = {}
    # Through JSON, which makes lists of tuples: that is how the state of a sharded run keeps them.
    for name, value in json.loads(json.dumps(fingerprint)).items():
        packed = isinstance(value, str) and value.startswith("{")
        name = _DIGESTS.get(name, name) if isinstance(value, str) else name
        found |= json.loads(value) if packed else {name: value}
    return found


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Names and descriptions of the settings that differ."""
    for key in sorted(old.keys() & new.keys()):
        name = prefix + key
        was, now = (_DEFAULTS.get(name) if group is None else group for group in (old[key], new[key]))
        if isinstance(was, dict) and isinstance(now, dict):
            defaults = _DEFAULTS.get(name, {})
            yield from _differences(defaults | was, defaults | now, f"{name}.")
        elif was != now:
            yield name, f"{name} was {_shown(was)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def save_state(folder: Path, about: dict[str, Any], tensors: dict[str, Tensor], world: World) -> None:
    """Save a state; the former one is removed afterwards. All processes together, and each writes its part.

    Args:
        about: Plain values; ``step`` among them.
        tensors: Tensors by name, shared out or not.

    Raises:
        OSError: It could not be written, in whatever process; raised in all. The former state is as it was.
    """
    failure: tuple[int, str] | None = None
    final = folder / f"state-{about['step']}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        with _alone_or_not():
            dcp.save(tensors, checkpoint_id=partial)  # Makes the folder, and flushes its files to the disk.
        if world.is_main:
            read_metadata(partial)  # Whether it can be read is seen now, not when it is needed.
            write_json(partial / ABOUT, about)
            former = [path for path in _folders(folder) if path != final]
            os.replace(partial, final)
            flush_to_disk(folder)
            _remove(former)
    except CheckpointException as error:  # No Exception: `except Exception` would miss it.
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
        raise OSError(number, f"the state of step {about['step']} could not be saved: {reason}", str(folder))


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
    # All processes of a run write it together, so that its name tells of none.
    _remove([path for path in folder.glob(".state-*.partial") if _PARTIAL_FOLDER.fullmatch(path.name)])


# Tensors of a run ----------------------------------------------------------------------------------------


def run_tensors(task: nn.Module, ema: Ema | None, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that make up a run, by name, in the memory in which they are."""
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
            # Moments are shared out like their parameter; the count of steps is not.
            moment = torch.zeros_like(like) if shape == like.shape else torch.zeros(shape, dtype=dtype)
            optimizer.state[parameters[name]][kind] = targets[key] = moment
    saved.read(targets)
