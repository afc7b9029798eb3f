"""The folder that holds a checkpoint of any kind.

A folder has a file of tensors and a JSON file that describes them. Folders of dual encoders and chat models
also hold their video side, a checkpoint of its own, in the folder ``video``.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fluxvit.checkpoints.state_dicts import strip_prefixes
from fluxvit.checkpoints.weights import read_tensors, write_tensors
from fluxvit.utils.files import atomic_folder, check_replaceable, write_json
from fluxvit.utils.schema import convert, shown

File = TypeVar("File")
FORMAT = 1
VIDEO = "video"
"""Name of the folder of the video side in the folder of a dual encoder or chat model."""


class FolderCheckpoint(ABC):
    """A model with everything that is needed to use it, which is kept in a folder."""

    KIND: ClassVar[str]
    """Name of this kind of checkpoint, for messages."""
    WEIGHTS: ClassVar[str]
    """Name of the file of tensors."""
    CONFIG: ClassVar[str]
    """Name of the JSON file that describes them; no other kind has a file of this name."""
    OTHERS: ClassVar[frozenset[str]]
    """Names of other files and folders that may lie beside these two."""

    @classmethod
    def is_in(cls, folder: str | Path) -> bool:
        """Whether a folder holds a checkpoint of this kind."""
        return (Path(folder) / cls.CONFIG).is_file()

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder; an older one of that name is replaced only when the new one is complete.

        Nothing is written that could not be read back.

        Raises:
            ValueError: ``folder`` holds something else, or the model has tensors that do not fit its
                description, have no content or are not finite numbers.
        """
        folder = Path(folder)
        check_replaceable(folder, {self.WEIGHTS, self.CONFIG, *self.OTHERS}, f"a {self.KIND}")
        tensors, facts = self._content(f"{folder} is not written")
        with atomic_folder(folder) as partial:
            write_tensors(partial / self.WEIGHTS, tensors)
            write_json(partial / self.CONFIG, {"format": FORMAT, **facts})
            self._save_others(partial)
        return folder

    @abstractmethod
    def _content(self, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors to write, and the values that describe them; errors begin with ``what``."""

    @abstractmethod
    def _save_others(self, folder: Path) -> None:
        """Write the other files into a new folder."""


def read_format(content: Any, kind: type[File], where: str) -> File:
    """The content of a file of a checkpoint, checked.

    A file of another version, which may have other keys, is refused before these are checked.

    Raises:
        ValueError: The content is no object, has another ``format``, or its values do not fit ``kind``.
    """
    values = convert(content, dict[str, Any], where)
    if "format" not in values:
        raise ValueError(f"{where}: format is missing")
    if values["format"] != FORMAT or isinstance(values["format"], (bool, float)):
        raise ValueError(f"{where}: format {shown(values['format'])}, this version of fluxvit reads {FORMAT}")
    return convert(content, kind, where)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, without the prefixes of wrappers.

    Raises:
        ValueError: The file cannot be read, or has integers or complex numbers, which are no weights.
    """
    state = strip_prefixes(read_tensors(path))
    for name, value in state.items():
        if value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(f"{path}: {name} is {value.dtype}; weights must be floating-point numbers")
    return state


def load_state(
    module: nn.Module, state: dict[str, Tensor], path: Path, config: str, *, assign: bool = False
) -> None:
    """Load tensors into a module.

    Args:
        path: The file of the tensors, for messages.
        config: The name of the file that describes the module, for messages.

    Raises:
        ValueError: The tensors do not fit the module.
    """
    report = compare_keys(state, module)
    if not report.matches:
        raise ValueError(f"{path.parent}: {path.name} and {config} disagree: {report.summary}")
    module.load_state_dict(state, assign=assign)


def check_size(parameters: int, state: Mapping[str, Tensor], what: str) -> None:
    """Raise a ValueError if a network would be far larger than its weights.

    Args:
        parameters: Approximate number of parameters of the network.
        state: The weights.
        what: Subject of the message: the files that disagree.
    """
    count = sum(value.numel() for value in state.values())
    if parameters > 2 * count + 1_000_000:
        raise ValueError(
            f"{what} disagree: a network of {parameters:,} parameters, and weights of {count:,} numbers"
        )


@dataclass
class KeyReport:
    """How the tensors of a file fit a model. ``mismatched`` lists (name, shape in file, shape in model)."""

    used: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def matches(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def summary(self) -> str:
        """The counts and the first names, in one line."""
        shapes = [
            f"{name}: {list(theirs)} in the file, {list(ours)} here" for name, theirs, ours in self.mismatched
        ]
        parts = [f"{len(self.used)} tensors used"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", shapes),
        ):
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {title}" + (f" ({some})" if names else ""))
        return ", ".join(parts)


def state_digest(state: Mapping[str, Tensor], facts: str = "") -> str:
    """16 hexadecimal digits that identify named tensors and the ``facts`` that belong to them."""
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        # As bytes: NumPy does not know every type.
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def compare_keys(state: Mapping[str, Tensor], model: torch.nn.Module) -> KeyReport:
    """Compare names and shapes of a state dict with a model's."""
    expected = model.state_dict()
    shared = [name for name in expected if name in state]
    mismatched = [
        (name, tuple(state[name].shape), tuple(expected[name].shape))
        for name in shared
        if state[name].shape != expected[name].shape
    ]
    bad = {name for name, _, _ in mismatched}
    return KeyReport(
        used=[name for name in shared if name not in bad],
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        mismatched=mismatched,
    )
