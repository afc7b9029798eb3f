"""Classes by name: numbers the classes of one list of videos like those of another.

A class index means nothing without the list of names that it counts in, and every data set, split and
checkpoint has a list of its own. So wherever two of them meet, indices are carried over by name:

* Names are the same if they are equal, or if they differ only in case, spaces, underscores or punctuation and
  no other name is written so.
* Where only one side has names, the indices of the other are taken as they are if both have as many classes,
  and a warning says so. Otherwise it is an error.
* A class that videos use and the other side does not have is an error that names it.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from fluxvit.data.formats.layout import VideoList
from fluxvit.data.manifest import Entry, Manifest

_SHOWN = 5

_log = logging.getLogger(__name__)


def numbered_like(manifest: Manifest, names: Sequence[str], classes: int, data: str, other: str) -> Manifest:
    """A manifest whose class indices count in another list of classes.

    Args:
        names: The class names of the other side; empty if it has none.
        classes: How many classes the other side has.
        data: What the manifest is called in messages.
        other: What the other side is called in messages.

    Returns:
        The manifest itself if both number alike; its digest stays the same in any case.

    Raises:
        ValueError: Its videos use classes that the other side does not have, or only one side has names and
            the numbers of classes do not fit.
    """
    if list(manifest.labels) == list(names):
        return manifest
    if not manifest.labels or not names:
        _check_counts(manifest, names, classes, data, other)
        return replace(manifest, labels=tuple(names or manifest.labels))
    entries = _renumbered(manifest.entries, manifest.labels, names, data, other)
    _log.warning("%s: its classes are numbered as in %s, by name", data, other)
    return replace(manifest, entries=entries, labels=tuple(names))


def number_list(videos: VideoList, names: Sequence[str], data: str, other: str) -> VideoList:
    """A list of videos whose classes are named and numbered as in a file, for ``fluxvit data check``.

    Raises:
        ValueError: The videos use classes that are not in ``names``, or an index beyond them.
    """
    if not videos.labels:
        highest = max((number for entry in videos.entries for number in entry.classes), default=-1)
        if highest >= len(names):
            raise ValueError(f"{other}: {len(names)} class names, but {data} uses class {highest}")
        note = f"{data} numbers its classes; the numbers are taken to be those of {other}"
        return replace(videos, labels=tuple(names), notes=(*videos.notes, note))
    entries = _renumbered(videos.entries, videos.labels, names, data, other)
    return replace(videos, entries=entries, labels=tuple(names))


def match_names(theirs: Sequence[str], ours: Sequence[str], data: str, other: str) -> dict[int, int]:
    """Find each of the names ``theirs`` in the list ``ours``.

    Args:
        data, other: Names for messages of what has ``theirs`` and what has ``ours``.

    Returns:
        Index in ``ours`` by index in ``theirs``, without those that have none.

    Raises:
        ValueError: A name occurs twice in either list, so that it does not identify a class.
    """
    for names, where in ((theirs, data), (ours, other)):
        if twice := repeated(names):
            raise ValueError(
                f"{where}: several classes have the same name: {_listed(list(map(repr, twice)))}"
            )
    places = {name: number for number, name in enumerate(ours)}
    numbers = {number: places[name] for number, name in enumerate(theirs) if name in places}
    counts = Counter(map(_plain, ours))
    plain = {_plain(name): number for number, name in enumerate(ours) if counts[_plain(name)] == 1}
    taken = set(numbers.values())
    for number, name in enumerate(theirs):
        place = plain.get(_plain(name))
        if number not in numbers and place is not None and place not in taken:
            numbers[number] = place
            taken.add(place)
    return numbers


def repeated(names: Sequence[str]) -> list[str]:
    """The names that several classes have."""
    return [name for name, count in Counter(names).items() if count > 1]


def multi_hot(entries: Sequence[Entry], classes: int) -> np.ndarray:
    """The classes of videos as zeros and ones, float32 ``[N, classes]``."""
    rows = np.zeros((len(entries), classes), np.float32)
    for row, entry in zip(rows, entries, strict=True):
        row[list(entry.classes)] = 1
    return rows


def without_videos(classes: int, manifest: Manifest) -> list[int]:
    """The classes below ``classes`` of which a manifest has no video."""
    used = {number for entry in manifest.entries for number in entry.classes}
    return [number for number in range(classes) if number not in used]


def name_classes(numbers: Iterable[int], names: Sequence[str]) -> str:
    """Classes for a message: their names, or their indices where there are none; the first few of many."""
    return _listed([repr(names[i]) if i < len(names) else str(i) for i in numbers])


def _renumbered(
    entries: Sequence[Entry], theirs: Sequence[str], ours: Sequence[str], data: str, other: str
) -> tuple[Entry, ...]:
    """Videos whose class indices count in ``ours`` instead of ``theirs``.

    Raises:
        ValueError: They use classes that are not in ``ours``.
    """
    numbers = match_names(theirs, ours, data, other)
    used = Counter(number for entry in entries for number in entry.classes)
    if unknown := sorted(used.keys() - numbers.keys()):
        raise ValueError(
            f"{data} uses classes that {other} does not name: {name_classes(unknown, theirs)} "
            f"(videos: {sum(used[number] for number in unknown)}); {other} names {len(ours)}: "
            f"{_listed(list(map(repr, ours)))}"
        )
    return tuple(
        replace(entry, labels=tuple(sorted(numbers[number] for number in entry.labels)))
        if entry.labels is not None
        else replace(entry, label=numbers.get(entry.label, entry.label))
        for entry in entries
    )


def _check_counts(manifest: Manifest, names: Sequence[str], classes: int, data: str, other: str) -> None:
    """Raise unless indices without names can mean the same on both sides; log that they are taken so."""
    with_names, without = (other, data) if names else (data, other)
    named = len(names or manifest.labels)
    if names:
        classes = max((1 + number for entry in manifest.entries for number in entry.classes), default=named)
    if classes != named:
        raise ValueError(
            f"{without} numbers its classes without naming them, 0 to {classes - 1}, but {with_names} names "
            f"{named}, so that the two may differ; name them with: fluxvit data check --like"
        )
    _log.warning(
        "%s numbers its classes without naming them; the numbers are taken to be those of %s",
        without,
        with_names,
    )


def _plain(name: str) -> str:
    """A name without what people write differently: ``Apply Lipstick`` is ``apply_lipstick``."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", text) or text


def _listed(texts: Sequence[str]) -> str:
    rest = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(islice(texts, _SHOWN)) + rest
