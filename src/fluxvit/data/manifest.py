"""The checked list of videos of a data set, in one ``.jsonl`` file.

The first line may be a header, every other line is a video::

    {"manifest": 1, "name": "ssv2", "split": "val", "root": "videos", "classes": ["Approaching ...", ...],
     "videos": 24777, "broken": 1, "digest": "5f0c..."}
    {"path": "78687.webm", "label": 42, "captions": ["holding potato next to ..."], "frames": 48, "fps": 12.0,
     "width": 427, "height": 240, "duration": 4.0, "rotation": 0, "codec": "vp9", "ok": true, "noflip": true}
    {"path": "12.webm", "label": 7, "ok": false, "error": "missing", "noflip": true}

One file, not a list and a description beside it: it is replaced in one step, and the parts cannot be
separated. Without a header the file is a plain list, such as MotionWorld's. Only ``path`` is required; keys
that this module does not know are kept when a manifest is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from fluxvit.utils.files import atomic_path
from fluxvit.utils.schema import Finite, Natural, NotNegative, convert, load, parse, shown
from fluxvit.video.base import VideoError
from fluxvit.video.tar_members import is_url, with_scheme

VERSION = 1
NO_LABEL = -1
MOST_CLASSES = 10_000_000
"""All class indices are smaller."""
MOST_SECONDS = 1e9
"""The largest time in a video, in seconds."""

# Negative times are kept, so that the check can call such videos broken.
_Seconds = Annotated[float, Meta(ge=-MOST_SECONDS, le=MOST_SECONDS)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A video, or a segment of one.

    Attributes:
        path: The file or the folder of frames.
        label: Class index; `NO_LABEL` if it has none, or may have several.
        captions: Sentences that describe it.
        start: Second at which the segment starts; None: the beginning.
        end: Second at which the segment ends; None: the end of the video.
        frames: Frames of the whole file, like ``duration``.
        fps: Average frames per second.
        width: Pixels as displayed.
        height: Pixels as displayed.
        duration: Seconds.
        rotation: Clockwise degrees that frames are turned for display.
        codec: Name of the codec, such as ``h264``; for a folder of images their suffix.
        ok: False if it is known to be unreadable.
        error: The reason, if ``ok`` is False.
        noflip: True if it must never be mirrored, because left and right matter.
        source: The data set that it comes from, in a mixture of several.
        original: Its path in the data set, if ``path`` is a place in a shard; the digest covers this one.
        labels: Indices, in ascending order, of all classes that it shows, which may be none; None: it has one
            class at most, ``label``.
        extra: What else the manifest says about it.
    """

    path: Path
    label: int = NO_LABEL
    captions: tuple[str, ...] = ()
    start: _Seconds | None = None
    end: _Seconds | None = None
    frames: Natural | None = None
    fps: NotNegative | None = None
    width: Natural | None = None
    height: Natural | None = None
    duration: Finite | None = None
    rotation: Annotated[int, Meta(ge=-360, le=360)] | None = None
    codec: str | None = None
    ok: bool = True
    error: str | None = None
    noflip: bool = False
    source: str | None = None
    original: str | None = None
    labels: tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[int, ...]:
        """Indices of the classes that it shows, whether it has one or several; empty if none is known."""
        if self.labels is not None:
            return self.labels
        return (self.label,) if self.label != NO_LABEL else ()

    def span(self, length: float) -> tuple[float, float]:
        """Seconds at which the segment starts and ends in a video of ``length`` seconds.

        Raises:
            VideoError: The segment lies outside of the video.
        """
        start, end = self.start or 0.0, length if self.end is None else min(self.end, length)
        if not 0 <= start < end:
            reason = f"its segment from {start:g} s on lies outside of the video, which ends at {length:g} s"
            raise VideoError.of(self.path, reason)
        return start, end


@dataclass(frozen=True)
class Manifest:
    """A split of a data set. ``digest`` identifies its videos and labels in results.

    Attributes:
        entries: The videos, the broken ones among them.
        labels: Class names; empty if they are unknown.
        digest: See `content_digest`.
        name: Name of the data set, empty if unknown.
        split: Name of the split, empty if unknown.
        root: The folder that holds the videos.
    """

    entries: tuple[Entry, ...]
    labels: tuple[str, ...]
    digest: str
    name: str = ""
    split: str = ""
    root: Path = Path()

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def multi_label(self) -> bool:
        """Whether its videos may show several classes at once."""
        return any(entry.labels is not None for entry in self.entries)

    def readable(self) -> Manifest:
        """The same without the videos that are known to be broken.

        Its digest is marked, since caches and results number the videos of what they were made from.

        Raises:
            ValueError: All of them are broken.
        """
        entries = tuple(entry for entry in self.entries if entry.ok)
        if not entries:
            raise ValueError(f"all {len(self)} videos of the manifest are broken: {self.entries[0].error}")
        if len(entries) == len(self):
            return self
        return replace(self, entries=entries, digest=f"{self.digest}-readable")


def read_manifest(path: str | Path, target: str | None = "label", root: str | Path | None = None) -> Manifest:
    """Read a manifest.

    Args:
        target: The key of the class index; None: labels are optional. In place of ``label`` a video may have
            ``labels``, a list of class indices. Class names are those of the header, or of the
            ``dataset.json`` that ``fluxvit data make`` leaves beside the manifest.
        root: The folder that the paths are relative to; default: the one named by the header, else the
            manifest's own.

    Raises:
        ValueError: The file is missing or empty, a line is not of the form above (the message names it), or
            some videos have ``label`` and others ``labels``.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such manifest")
    header = _Header()
    base = Path(root) if root is not None else path.parent
    entries = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = _record(line)
                    if number == 1 and "manifest" in record:
                        header = _header(record)
                        base = base if root is not None else _joined(path.parent, header.root)
                    else:
                        entries.append(_entry(record, base, target))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a UTF-8 text file") from None
    if not entries:
        raise ValueError(f"{path}: no videos are listed")
    labels = tuple(header.classes) if target in (None, "label") else ()
    labels = labels or _made_names(path.parent, target)
    highest = max((number for entry in entries for number in entry.classes), default=-1)
    if len({entry.labels is None for entry in entries if entry.classes or entry.labels is not None}) > 1:
        raise ValueError(f"{path}: some videos have a label and others labels; give all of them labels")
    if labels and highest >= len(labels):
        raise ValueError(f"{path}: class {highest} is used, but there are {len(labels)} class names")
    return Manifest(tuple(entries), labels, content_digest(entries, base), header.name, header.split, base)


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write a manifest; it appears complete or not at all.

    Paths are written relative to ``manifest.root``. That is written relative to the manifest if it lies below
    its folder, so that both can be moved together, and else as an absolute path or URL.
    """
    path, root = Path(path).absolute(), manifest.root
    header = {
        "manifest": VERSION,
        "name": manifest.name,
        "split": manifest.split,
        "root": with_scheme(root) if is_url(root) else _relative(root.absolute(), path.parent),
        "classes": manifest.labels,
        "videos": len(manifest),
        "broken": sum(not entry.ok for entry in manifest.entries),
        "digest": manifest.digest,
    }
    # A name that is not Unicode has surrogates, which are written as JSON escapes.
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.write(json.dumps(header, ensure_ascii=False) + "\n")
        for entry in manifest.entries:
            out.write(json.dumps(to_record(entry, manifest.root), ensure_ascii=False) + "\n")


def content_digest(entries: Iterable[Entry], root: Path) -> str:
    """16 hexadecimal digits that are equal if two manifests lead to the same results.

    It covers what a result depends on: paths relative to ``root``, labels, captions, segments, which videos
    are readable, which may not be flipped, and their order, which decides the batches. Where the folder lies,
    whether the videos were put into shards and what headers say about the files makes no difference.
    """
    digest = hashlib.sha256()
    for e in entries:
        label = e.label if e.labels is None else e.labels
        facts = [e.original or _relative(e.path, root), label, e.captions, e.start, e.end, e.ok, e.noflip]
        digest.update(json.dumps(facts).encode() + b"\n")
    return digest.hexdigest()[:16]


def shared_videos(one: Manifest, other: Manifest) -> list[str]:
    """Files of the videos, or segments of videos, that two manifests both list, sorted."""

    def videos(manifest: Manifest) -> set[tuple[str, float | None, float | None]]:
        # Resolved, because the same path may be written in several ways.
        return {(os.path.realpath(entry.path), entry.start, entry.end) for entry in manifest.entries}

    return sorted(path for path, *_ in videos(one) & videos(other))


def _made_names(folder: Path, target: str | None) -> tuple[str, ...]:
    """Class names from the ``dataset.json`` of a generated data set; empty if there is none."""
    facts = folder / "dataset.json"
    if not facts.is_file():
        return ()
    names = convert(load(facts), dict[str, Any], str(facts))
    keys = {"label": ("motion_classes", "classes"), "object": ("object_classes",)}.get(target or "label", ())
    key = next((key for key in keys if key in names), None)
    return () if key is None else tuple(convert(names[key], list[str], str(facts), key))


class _Header(msgspec.Struct):
    """The keys of the first line that are read."""

    name: str = ""
    split: str = ""
    root: str = ""
    classes: list[str] = []


_WRITTEN = (
    *("start", "end", "duration", "fps", "frames", "width", "height", "rotation"),
    *("codec", "error", "source", "original"),
)
_FACTS = (*_WRITTEN, "ok", "noflip")
_KNOWN_KEYS = frozenset((*_FACTS, "path", "label", "labels", "caption", "captions"))

_TYPES = get_type_hints(Entry, include_extras=True)
_Facts = msgspec.defstruct("_Facts", [(name, _TYPES[name], None) for name in _FACTS])
"""What a line says of a video besides its path, its labels and its captions, with the types of `Entry`."""


def _record(line: str) -> dict[str, Any]:
    try:
        record = parse(line, surrogates=True)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f'a list entry must be an object, such as {{"path": ...}}, not {line.strip()[:40]}')
    return record


def _header(record: dict[str, Any]) -> _Header:
    if type(record["manifest"]) is not int or record["manifest"] != VERSION:
        version = shown(record["manifest"])
        raise ValueError(f"a manifest of version {version}; this fluxvit reads version {VERSION}")
    return convert(record, _Header)


def _entry(record: dict[str, Any], root: Path, target: str | None) -> Entry:
    key = target or "label"
    several = record.get("labels") if key == "label" else None
    for needed in ("path",) if target is None or several is not None else ("path", target):
        if needed not in record:
            raise ValueError(f"no key {needed!r}")
    name = record["path"]
    if not isinstance(name, str) or not 0 < len(name) < 1 << 16 or "\0" in name:
        raise ValueError(f"path is {shown(name)}, not the name of a file")
    label = record.get(key, NO_LABEL)
    if type(label) is not int or (label < 0 and key in record) or label >= MOST_CLASSES:
        raise ValueError(f"{key} is {shown(label)}, not a class index")
    if several is not None:
        if not isinstance(several, list) or not all(
            type(number) is int and 0 <= number < MOST_CLASSES for number in several
        ):
            raise ValueError(f"labels are {shown(several)}, not a list of class indices")
        if label != NO_LABEL:
            raise ValueError("a video has either label, one class index, or labels, a list of them")
    labels = None if several is None else tuple(sorted(set(several)))
    captions = record.get("captions", [record["caption"]] if "caption" in record else [])
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"captions are {shown(captions)}, not a list of sentences")
    known = {name: record[name] for name in _FACTS if record.get(name) is not None}
    convert(known, _Facts)
    extra = {key: value for key, value in record.items() if key not in _KNOWN_KEYS}
    return Entry(_joined(root, name), label, tuple(captions), **known, labels=labels, extra=extra)


def to_record(entry: Entry, root: Path) -> dict[str, Any]:
    """An entry as a line of a manifest, with its path relative to ``root``."""
    record: dict[str, Any] = {"path": _relative(entry.path, root)}
    if entry.label != NO_LABEL:
        record["label"] = entry.label
    if entry.labels is not None:
        record["labels"] = entry.labels
    if entry.captions:
        record["captions"] = entry.captions
    for key in _WRITTEN:
        if (value := getattr(entry, key)) is not None:
            record[key] = value
    record["ok"] = entry.ok
    if entry.noflip:
        record["noflip"] = True
    return {**record, **entry.extra}


def _joined(folder: Path, name: str) -> Path:
    return Path(name) if is_url(name) else folder / name


def _relative(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder`` if it lies below it, with forward slashes on every system."""
    # As text: a million calls of pathlib's own test take a quarter of a minute.
    name, parent = path.as_posix(), folder.as_posix()
    return "." if name == parent else name.removeprefix(parent.rstrip("/") + "/")
