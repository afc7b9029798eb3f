"""Thousands of damaged videos through the reader, the check and the windows of the index, in one process.

``FLUXVIT_DAMAGED_VIDEOS`` sets how many, ``FLUXVIT_DAMAGED_SEED`` which;
``pytest -m slow -s`` prints figures.
Mutant n depends on the seed and n alone. Mutants that fail are kept in the folder ``FLUXVIT_DAMAGED_KEEP``.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from fluxvit.data.check import inspect_video
from fluxvit.deploy.search.windows import windows
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.reader import VideoError, open_video

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))

from clips import encode, numbered, save_image

MUTANTS = int(os.environ.get("FLUXVIT_DAMAGED_VIDEOS", "10000"))
SEED = int(os.environ.get("FLUXVIT_DAMAGED_SEED", "14"))
KEEP = os.environ.get("FLUXVIT_DAMAGED_KEEP")
LONGEST_CALL_S = 10.0
# Pages that FFmpeg's and NumPy's pools keep, measured after the first mutants have filled them.
RSS_GROWTH_MB = 200
WARM_UP = 200

# Part of the readable files of which frames may differ between ways of reading. Decoders keep what they have
# seen, and some damage only shows in what comes after it: nobody who jumps over it can know.
DIFFERENT = 0.02

GROUPS = {"g": "6"}
CLIPS = {
    "h264.mp4": {"options": {"g": "6", "bf": "2"}, "muxer": {"movflags": "faststart"}, "sound": True},
    "fragments.mp4": {"options": GROUPS, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "6", "bf": "2"}},
    "h264.mov": {"options": GROUPS},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "vp8.webm": {"codec": "libvpx", "options": {**GROUPS, "deadline": "realtime"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {**GROUPS, "deadline": "realtime", "cpu-used": "8"}},
    "h264.mkv": {"options": GROUPS},
    "ffv1.mkv": {"codec": "ffv1"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "6", "bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "h264.ts": {"options": GROUPS},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "6", "bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "6", "bf": "2"}},
    "flv1.flv": {"codec": "flv", "options": GROUPS},
    "h264.flv": {"options": GROUPS},
}
IMAGES = (".jpg", ".png", ".bmp")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_damaged_videos_are_read_alike_or_refused_in_one_line(tmp_path: Path) -> None:
    sources = [
        (name, encode(tmp_path / name, count=20, size=(64, 48), **how).read_bytes())
        for name, how in CLIPS.items()
    ]
    sources += [
        (f"image{suffix}", save_image(tmp_path / f"image{suffix}", numbered(5, 64, 48)).read_bytes())
        for suffix in IMAGES
    ]
    results: Counter[str] = Counter()
    faults: list[str] = []
    longest, warm = 0.0, 0.0
    for number in range(MUTANTS):
        name, data = sources[number % len(sources)]
        path = tmp_path / "mutants" / name
        target = path
        if path.suffix in IMAGES:
            # The folder is the video; its first image is whole.
            target = path.parent
            target.mkdir(exist_ok=True)
            (target / f"image0{path.suffix}").write_bytes(data)
            path = target / f"image1{path.suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutant(data, random.Random(f"{SEED} {number}")))
        started = time.monotonic()
        fault = None
        try:
            fault = _fault_in(target, random.Random(number), results)
            results["read"] += fault is None
        except VideoError as error:
            results["refused"] += 1
            if "\n" in str(error) or not str(error).startswith(str(target)):
                fault = f"message {error!r}"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        facts = inspect_video(target, deep=number % 3 == 0)
        results["check: usable" if facts["ok"] else "check: broken"] += 1
        if not facts["ok"] and _is_python(str(facts["error"])):
            fault = f"check: {facts['error']}"
        if fault is not None:
            faults.append(f"{number} {name}: {fault}")
            if KEEP:
                os.makedirs(KEEP, exist_ok=True)
                shutil.copy(path, f"{KEEP}/{number}-{path.name}")
        took = time.monotonic() - started
        longest = max(longest, took)
        if took > LONGEST_CALL_S:
            faults.append(f"{number} {name}: took {took:.1f} s")
        shutil.rmtree(tmp_path / "mutants")
        if number == WARM_UP:
            warm = _rss_mb()
        if number % 500 == 0:
            state = f"{len(faults)} faults, longest {longest:.2f} s, {_rss_mb():.0f} MB"
            print(f"{number}: {dict(results)}, {state}", flush=True)
    growth = _rss_mb() - warm if warm else 0.0
    print(f"seed {SEED}: {MUTANTS} mutants, {dict(results)}, longest {longest:.2f} s, {len(faults)} faults")
    print(f"memory: {warm:.0f} MB after {WARM_UP}, {growth:+.0f} MB at the end")
    assert not faults, "\n".join(faults[:50])
    assert growth < RSS_GROWTH_MB
    assert results["differ"] <= DIFFERENT * results["read"]


def _fault_in(path: Path, rng: random.Random, results: Counter[str]) -> str | None:
    """What is wrong with a video, None if nothing is; it is counted where ways of reading it differ."""
    with open_video(path) as reader:
        times, end = reader.times, reader.end
        if not (len(times) and np.isfinite(end) and (np.diff(times) > 0).all()):
            return f"times {times[:5]} ... {end}"
        chosen = times[sorted(rng.sample(range(len(times)), min(4, len(times))))]
        first, second = reader.read(chosen), reader.read(chosen)
    with open_video(path) as reader:
        complete = reader.read(times)
    with open_video(path) as reader:
        walked = np.stack(list(reader.walk(times)))
    twice = np.array_equal(first, second)
    same = np.array_equal(complete[np.searchsorted(times, chosen)], first)
    results["two reads differ"] += not twice
    results["differ"] += not (twice and same and np.array_equal(walked, complete))
    for window in windows(path, SamplingGrid(2, 32, 32), 1.0):
        if not 0 <= window.start < window.end:
            return f"window from {window.start} to {window.end}"
    return None


def _rss_mb() -> float:
    """Memory of this process."""
    return float(psutil.Process().memory_info().rss) / 2**20


def _is_python(reason: str) -> bool:
    """Whether the check gives an exception of Python's, which is for faults that nobody thought of."""
    return reason.partition(":")[0].endswith(("Error", "Exception")) or "cannot be decoded (" in reason


def mutant(data: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file."""
    return rng.choice(MUTATIONS)(bytearray(data), rng)


def _flip(data: bytearray, rng: random.Random) -> bytes:
    """Flip bits in 1 to 20 places, of the first bytes or of all."""
    end = rng.choice((min(200, len(data)), len(data)))
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def _blank(data: bytearray, rng: random.Random) -> bytes:
    """Overwrite a piece with zeros, ones or noise."""
    start = rng.randrange(len(data))
    size = min(rng.randint(1, 400), len(data) - start)
    data[start : start + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
    return bytes(data)


def _splice(data: bytearray, rng: random.Random) -> bytes:
    """Move one piece over another place, so that lengths no longer fit."""
    start, size = rng.randrange(len(data)), rng.randint(1, 2000)
    piece = data[start : start + size]
    at = rng.randrange(len(data))
    data[at : at + rng.randint(0, len(piece))] = piece
    return bytes(data)


def _duplicate(data: bytearray, rng: random.Random) -> bytes:
    """Repeat a piece; the whole file one time in three, as joined recordings do."""
    if rng.random() < 1 / 3:
        return bytes(data + data)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 4000))
    return bytes(data[:end] + data[start:])


def _remove(data: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 1500)]
    return bytes(data)


def _inflate(data: bytearray, rng: random.Random) -> bytes:
    """Overwrite 1 to 8 bytes with an extreme number, of a size, a count or a time."""
    size = rng.choice((1, 2, 4, 8))
    extremes = (0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1), (1 << (8 * size - 1)) - 1)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, min(rng.choice((300, 2000, len(data))), len(data) - size)))
        data[at : at + size] = rng.choice(extremes).to_bytes(size, rng.choice(("big", "little")))
    return bytes(data)


_BOXES = (b"moov", b"trak", b"stts", b"stsz", b"stsc", b"stco", b"ctts", b"elst", b"mvhd", b"mdhd", b"tkhd")
_BOXES += (b"trun", b"tfdt", b"avcC", b"strh", b"strf", b"idx1", b"movi", b"LIST", b"IHDR", b"IDAT")
# EBML: segment, cluster, block, time stamp, pixel width and height, duration, time scale.
_BOXES += (
    b"\x18\x53\x80\x67",
    b"\x1f\x43\xb6\x75",
    b"\xa3",
    b"\xe7",
    b"\xb0",
    b"\xba",
    b"\x44\x89",
    b"\x2a\xd7\xb1",
)
# MPEG: pack, sequence header, group.
_BOXES += (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x00\x00\x01\xb8")


def _box(data: bytearray, rng: random.Random) -> bytes:
    """Overwrite a number near the name of a box, a chunk or an element."""
    found = [(name, data.find(name)) for name in _BOXES]
    found = [(name, at) for name, at in found if at >= 0]
    if not found:
        return _inflate(data, rng)
    name, at = rng.choice(found)
    start = max(0, rng.choice((at - 4, at + len(name), at + len(name) + 4, at + len(name) + 8)))
    number = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", rng.randbytes(4)))
    data[start : start + 4] = number
    return bytes(data)


MUTATIONS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _flip, _cut, _blank, _splice, _duplicate, _remove, _inflate, _box,
)  # fmt: skip
