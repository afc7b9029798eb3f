"""The list of videos of a data set: one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A labelled video; ``path`` is absolute."""

    path: Path
    label: int


@dataclass(frozen=True)
class Manifest:
    """A split of a data set. ``digest`` identifies its videos and labels in results."""

    entries: tuple[Entry, ...]
    labels: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.entries)


def read_manifest(path: str | Path, target: str = "label", labels: tuple[str, ...] = ()) -> Manifest:
    """Read a ``.jsonl`` file whose lines have a ``path`` (relative to the file) and a class index.

    Args:
        target: The key of the class index.
        labels: Class names, if known.

    Raises:
        ValueError: The file is missing or empty, or a line is not of that form; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest")
    text = path.read_text(encoding="utf-8")
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            label = record[target]
            if type(label) is not int or label < 0:
                raise ValueError(f"{target} is {label!r}, not a class index")
            entries.append(Entry(path.parent / record["path"], label))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: {reason}") from error
    if not entries:
        raise ValueError(f"{path}: no videos are listed")
    highest = max(entry.label for entry in entries)
    if labels and highest >= len(labels):
        raise ValueError(f"{path}: class {highest} is used, but there are {len(labels)} class names")
    return Manifest(tuple(entries), labels, hashlib.sha256(f"{target}\n{text}".encode()).hexdigest()[:16])


def read_motionworld(folder: str | Path, split: str, target: str = "motion") -> Manifest:
    """A split of a MotionWorld.

    Args:
        target: ``motion`` (told by time alone) or ``object`` (told by appearance alone).

    Raises:
        ValueError: The folder is not a complete MotionWorld, or the target is unknown.
    """
    folder = Path(folder)
    keys = {"motion": ("label", "motion_classes"), "object": ("object", "object_classes")}
    if target not in keys:
        raise ValueError(f"target {target!r}: a MotionWorld has {' and '.join(keys)}")
    if not (folder / "dataset.json").is_file():
        raise ValueError(
            f"{folder} is not a complete MotionWorld; make it with: fluxvit data make motionworld"
        )
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    key, names = keys[target]
    return read_manifest(folder / f"{split}.jsonl", key, tuple(facts[names]))
