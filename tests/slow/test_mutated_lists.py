"""Thousands of damaged lists and annotations through the reader of data sets.

``FLUXVIT_MUTATED_LISTS`` sets how many, ``FLUXVIT_MUTATED_SEED`` which; ``pytest -m slow -s`` prints figures.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from fluxvit.data.formats.registry import FORMATS, read_source

MUTANTS = int(os.environ.get("FLUXVIT_MUTATED_LISTS", "10000"))
SEED = int(os.environ.get("FLUXVIT_MUTATED_SEED", "14"))

TURNS = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "That."}]
MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": [{"text": "That."}]}]
LISTS = (
    "path,label\na.mp4,0\nb.mp4,1\n",
    ',path,class,split\n0,a.mp4,"x, y",train\n1,b.mp4,z,val\n',
    "path\tlabel\tlabel_name\na.mp4\t0\tx\nb.mp4\t1\ty\n",
    "a.mp4 0\nb.mp4 1\n",
    "a.mp4\tjump high\nb.mp4\trun\n",
    "k710,a.mp4,9,1,2,0\nssv2,b.mp4,9,-1,-1,-1\n",
    "path,start,end,label\na.mp4,1,2,0\nb.mp4,-1,-1,1\n",
    "label,youtube_id,time_start,time_end,split\njump,a,0,10,train\n",
    "key,vid_key,video_id,sentence\n0,1,video1,A cat\n",
    "filepath;title\na.mp4;A cat, asleep\n",
    "id,script,actions\na,Cooks.,c001 11.90 21.20;c000 0.00 12.60\n",
)
ANNOTATIONS = (
    [{"video": "a.mp4", "caption": "x"}, {"image": "b.mp4", "caption": ["x", "y"]}],
    [{"video": "a.mp4", "conversations": TURNS}, {"video": ["b.mp4"], "conversations": TURNS}],
    [{"videos": ["a.mp4"], "messages": MESSAGES}],
    [{"video": "a.mp4", "QA": [{"i": "", "q": "What?", "a": "That."}]}],
    [{"video": "a.mp4", "question": "What?", "answer": "a", "candidates": ["a", "b"]}],
    [{"video": "a.mp4", "description": "x", "times": [[0, 1]]}],
    [{"id": "a", "label": "x", "template": "Doing [something]"}],
    {"v_a": {"timestamps": [[0, 1]], "sentences": ["x"]}},
    {"database": {"a": {"subset": "training", "recipe_type": 1, "class": "c"}}},
)
PIECES = (
    *(mark.encode() for mark in ",;\t|\"'\n\r #[]{}:\\"),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\x1b[31m", b"\\ud800", b"\\u0000"),
    *(b"null", b"NaN", b"1e999", b"-1", b"true", b"9" * 30, b"[]", b"{}"),
    *(b'"video"', b"a.mp4", b"path", b"label"),
)

VALUES = (None, True, -1, 1.5, 10**30, "", " ", "x", "a.mp4", "\0", "\ud800", [], {}, [None], [[1]], {"x": 1})

# A message with one of these was not written for the people who read it.
PYTHONS_WORDS = re.compile(
    r"has no attribute|not iterable|not subscriptable|unsupported operand|indices must be|invalid literal|"
    r"codec can't|to unpack|could not convert|shorter than|longer than"
)


def with_odd_values(value: object, rng: random.Random) -> object:
    """A copy of JSON in which few values are left out or replaced by others."""
    if rng.random() < 0.08:
        return rng.choice(VALUES)
    if isinstance(value, list):
        return [with_odd_values(each, rng) for each in value if rng.random() > 0.04]
    if isinstance(value, dict):
        return {key: with_odd_values(each, rng) for key, each in value.items() if rng.random() > 0.04}
    return value


def mutated(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at, other = rng.randint(0, len(data)), rng.randint(0, len(data))
        kind = rng.random()
        if kind < 0.4:
            data[at:at] = rng.choice(PIECES)
        elif kind < 0.6:
            del data[at : at + rng.randint(1, 10)]
        elif kind < 0.75:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.85:
            del data[at:]
        else:
            data[at:at] = data[min(at, other) : max(at, other)][:200]
    return bytes(data)


@pytest.mark.slow
def test_damaged_lists_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    for name in ("a.mp4", "b.mp4", "v_a.mp4", "video1.mp4"):
        (tmp_path / name).touch()
    counts: Counter[str] = Counter()
    faults, longest = [], 0.0
    for number in range(MUTANTS):
        if rng.random() < 0.5:
            name, text = "train.csv", rng.choice(LISTS)
        else:
            name, content = rng.choice(("train.json", "train.jsonl")), rng.choice(ANNOTATIONS)
            text = json.dumps(with_odd_values(content, rng) if rng.random() < 0.5 else content)
        file = tmp_path / name
        file.write_bytes(mutated(bytearray(text.encode(rng.choice(("utf-8", "utf-8", "utf-16")))), rng))
        format = rng.choice(("auto", "auto", "auto", *FORMATS)) if rng.random() < 0.3 else "auto"
        start = time.perf_counter()
        try:
            videos = read_source(file, format, split=rng.choice((None, "train")))
            counts["read"] += 1
            lines = list(videos.notes)
        except ValueError as error:
            counts["refused"] += 1
            lines = [str(error)]
            if PYTHONS_WORDS.search(lines[0]):
                faults.append(f"{number} {format}: {lines[0]} {file.read_bytes()[:300]!r}")
        except Exception as error:
            faults.append(f"{number} {format}: {type(error).__name__} {error} {file.read_bytes()[:300]!r}")
            lines = []
        longest = max(longest, time.perf_counter() - start)
        if any("\n" in line for line in lines):
            faults.append(f"{number} {format}: more than one line: {lines}")
    print(f"\nseed {SEED}: {MUTANTS} lists, {dict(counts)}, {len(faults)} faults, longest {longest:.2f} s")
    assert not faults, "\n".join(faults[:20])
    assert longest < 10
    assert counts["read"] > MUTANTS // 10
