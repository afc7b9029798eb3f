"""Hostile files, made from good ones by seeds, and the commands that read them.

A :class:`Case` is a command line and a change of one file that it reads. :func:`run_case` runs it in this
process and says what is wrong with how the command took it: it must refuse in one line, with exit code 2, and
leave every file as it was. Values that happen to be allowed are counted apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fluxvit.cli import main
from good_files import inside

os.environ["HF_HUB_OFFLINE"] = "1"  # A changed name of a language model is not looked for on the hub.
SECONDS = 20
"""A command that takes longer hangs."""

_DEEP = "__deep__"  # Stands for JSON that is nested 100 000 times.
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1.5, 128.0, 10**6, 10**18, 10**400, -(10**30), 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "4", "\ud800", "\x1b[31m", "a\0b", "9" * 5000),
    *(
        [],
        [1],
        ["x"],
        [None],
        [[[]]],
        [1, 2, 3, 4],
        list(range(10**5, 0, -1)),
        {},
        {"a": 1},
        {"": None},
        _DEEP,
    ),
    *("../../../etc/passwd", "1000000x1000000", "4x0", "١x٢", "x" * 10**6),
]
WHOLE: list[bytes] = [
    *(b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe{}", b"<!DOCTYPE html><html></html>", b"\0" * 100),
    *(b"[" * 100_000, b'{"a":' * 100_000, b"[NaN]", b"{} {}", b"9" * 5000, bytes(range(256)), b"PK\x03\x04"),
]


@dataclass(frozen=True)
class Case:
    """A file that is changed, and the command that is to refuse it.

    Attributes:
        kind: What is changed, such as ``config.json``.
        name: What is done to it.
        change: Gets the folder with copies of all good files.
        command: Words of the command line; ``{}`` stands for that folder.
        refuse: Whether nothing but a refusal is right.
    """

    kind: str
    name: str
    change: Callable[[Path], None]
    command: tuple[str, ...]
    refuse: bool = False


# Cases -----------------------------------------------------------------------------------------------------

CHECKPOINT = (
    ("info", "model"),
    ("predict", "videos/0.mp4", "--checkpoint", "model", "--device", "cpu"),
    ("evaluate", "model", "list.jsonl", "--out", "out", "--latency=false", "--device", "cpu"),
)
DUAL = (
    ("zero-shot", "dual", "names.txt", "--out", "out"),
    ("search", "ball", "--db", "videos.db", "--checkpoint", "dual", "--device", "cpu"),
)
CHAT = (("chat", "videos/0.mp4", "what", "--checkpoint", "chat", "--limit", "1", "--device", "cpu"),)
MANIFEST = (
    ("evaluate", "model", "list.jsonl", "--out", "out", "--latency=false", "--device", "cpu"),
    ("data", "shard", "list.jsonl", "out"),
)
TRAIN = (("train",),)
DATABASE = (
    ("search", "ball", "--db", "videos.db", "--checkpoint", "dual", "--device", "cpu"),
    ("index", "videos", "--db", "videos.db", "--device", "cpu"),
)
JSON_FILES = {
    "model/config.json": CHECKPOINT,
    "model/plans.json": CHECKPOINT,
    "dual/language.json": DUAL,
    "dual/tokenizer.json": DUAL,
    "dual/video/config.json": DUAL,
    "chat/chat.json": CHAT,
}


def cases(seed: int, count: int) -> list[Case]:
    """``count`` cases of all kinds, the same for the same seed."""
    rng = random.Random(seed)
    makers = [
        *(_json_case, _json_case, _json_case, _manifest_case, _manifest_case, _database_case, _run_case),
        *(_tensors_case, _release_case),
    ]
    return [makers[i % len(makers)](rng, i) for i in range(count)]


def _json_case(rng: random.Random, number: int) -> Case:
    path = rng.choice([*JSON_FILES, "model/config.json", "model/plans.json"])
    command = rng.choice(JSON_FILES[path])
    if rng.random() < 0.15:
        content = rng.choice([w for w in WHOLE if not (w == b"[]" and "plans" in path)])
        return Case(path, f"whole {content[:20]!r}", lambda f: _write(f / path, content), command, True)
    seed = rng.random()

    def change(folder: Path) -> None:
        value = json.loads((folder / path).read_text())
        (folder / path).write_bytes(dumped(_mutated(value, random.Random(seed))))

    return Case(path, f"value {number} {seed}", change, command)


def _manifest_case(rng: random.Random, number: int) -> Case:
    command = rng.choice(MANIFEST)
    if rng.random() < 0.1:
        content = rng.choice(WHOLE)
        return Case(
            "manifest", f"whole {content[:20]!r}", lambda f: _write(f / "list.jsonl", content), command
        )
    seed = rng.random()

    def change(folder: Path) -> None:
        inner = random.Random(seed)
        lines = [json.loads(line) for line in (folder / "list.jsonl").read_text().splitlines()]
        place = inner.randrange(len(lines))
        lines[place] = _mutated(lines[place], inner)
        (folder / "list.jsonl").write_bytes(b"".join(dumped(line) + b"\n" for line in lines))

    return Case("manifest", f"value {number} {seed}", change, command)


def _database_case(rng: random.Random, number: int) -> Case:
    command = rng.choice(DATABASE)
    seed = rng.random()
    kind = rng.choice(["statement", "statement", "setting", "bytes", "whole", "foreign"])
    if kind == "whole":
        content = rng.choice([w for w in WHOLE if w])
        return Case(
            "database", f"whole {content[:20]!r}", lambda f: _write(f / "videos.db", content), command, True
        )
    if kind == "statement":
        statement = rng.choice(STATEMENTS)
        return Case("database", statement, lambda f: _execute(f / "videos.db", statement), command)
    if kind == "foreign":
        return Case("database", "foreign", _foreign, command, True)
    return Case("database", f"{kind} {number} {seed}", lambda f: _spoil(f / "videos.db", kind, seed), command)


STATEMENTS = [
    *("DROP TABLE settings", "DROP TABLE files", "DROP TABLE windows", "DELETE FROM settings"),
    "UPDATE settings SET value = 'x'",
    "UPDATE settings SET value = '[' || value",
    "UPDATE settings SET value = x'ff00ff'",
    "UPDATE settings SET value = 3",
    *(
        "UPDATE windows SET vector = x'00'",
        "UPDATE windows SET vector = 'text'",
        "UPDATE windows SET vector = 3",
    ),
    *("UPDATE windows SET start = 'x'", "UPDATE windows SET end = x'00'", "UPDATE windows SET start = 1e999"),
    *("UPDATE windows SET file = 999", "UPDATE files SET mark = x'00'"),
    *("UPDATE files SET modified = 'x'", "UPDATE files SET error = 3", "UPDATE files SET path = id"),
    *("ALTER TABLE windows RENAME COLUMN vector TO v", "ALTER TABLE files DROP COLUMN error"),
    *(
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 99",
        "CREATE TRIGGER t AFTER INSERT ON files BEGIN SELECT 1; END",
    ),
]


def _run_case(rng: random.Random, number: int) -> Case:
    seed = rng.random()
    if rng.random() < 0.1:
        content = rng.choice([*WHOLE, b'{"classes": 3}', b'{"classes": [1]}', b'{"classes": {}}'])
        return Case(
            "dataset.json", f"whole {content[:20]!r}", lambda f: _write(f / "dataset.json", content), TRAIN[0]
        )

    def change(folder: Path) -> None:
        inner = random.Random(seed)
        (state,) = (folder / "run").glob("state-*")
        kind = inner.choice(["whole", "cut", "value"])
        path = state / ("about.json" if kind == "value" else inner.choice([".metadata", "about.json"]))
        if kind == "whole":
            _write(path, inner.choice(WHOLE))
        elif kind == "cut":
            path.write_bytes(path.read_bytes()[: inner.randrange(path.stat().st_size)])
        else:
            about = json.loads(path.read_text())
            key = inner.choice(["step", "fingerprint", "precision", "skipped"])
            if inner.random() < 0.3:
                del about[key]
            else:
                about[key] = inner.choice([v for v in VALUES if v != _DEEP])
            path.write_text(json.dumps(about))

    return Case("state", f"value {number} {seed}", change, TRAIN[0])


def _tensors_case(rng: random.Random, number: int) -> Case:
    """A safetensors file: its header changed, its bytes, or its length."""
    path, command = rng.choice(
        [
            ("model/model.safetensors", ("info", "model")),
            ("dual/language.safetensors", DUAL[0]),
            ("chat/connector.safetensors", CHAT[0]),
        ]
    )
    if rng.random() < 0.2:
        content = rng.choice(WHOLE)
        return Case(path, f"whole {content[:20]!r}", lambda f: _write(f / path, content), command, True)
    seed = rng.random()

    def change(folder: Path) -> None:
        inner = random.Random(seed)
        content = (folder / path).read_bytes()
        size = int.from_bytes(content[:8], "little")
        kind = inner.choice(["header", "header", "cut", "length", "bytes"])
        if kind == "header":
            header = dumped(_mutated(json.loads(content[8 : 8 + size]), inner))
            content = len(header).to_bytes(8, "little") + header + content[8 + size :]
        elif kind == "cut":
            content = content[: inner.randrange(len(content))]
        elif kind == "length":
            content = (
                inner.choice([0, 1, size - 1, size + 1, 2**63, 2**64 - 1]).to_bytes(8, "little") + content[8:]
            )
        else:
            changed = bytearray(content)
            changed[inner.randrange(8 + size)] = inner.randrange(256)
            content = bytes(changed)
        (folder / path).write_bytes(content)

    return Case(path, f"value {number} {seed}", change, command)


class _Guest:
    """A class that no reader knows."""


def _release_case(rng: random.Random, number: int) -> Case:
    """A file of PyTorch's with a tower in it."""
    command = ("convert", "tower.pth", "out", *rng.choice([(), ("--exact",)]))
    if rng.random() < 0.2:
        content = rng.choice(WHOLE)
        return Case(
            "tower.pth", f"whole {content[:20]!r}", lambda f: _write(f / "tower.pth", content), command, True
        )
    seed = rng.random()

    def change(folder: Path) -> None:
        inner = random.Random(seed)
        path = folder / "tower.pth"
        content = torch.load(path, weights_only=True)
        kind = inner.choice(["tensor", "tensor", "tensor", "name", "key", "guest", "bytes", "cut", "huge"])
        if kind in ("bytes", "cut"):
            changed = bytearray(path.read_bytes())
            for _ in range(inner.choice([1, 10, 1000])):
                changed[inner.randrange(len(changed) if inner.random() < 0.5 else 4000)] = inner.randrange(
                    256
                )
            path.write_bytes(changed[: inner.randrange(len(changed))] if kind == "cut" else changed)
            return
        name = inner.choice(list(content["model"]))
        if kind == "tensor":
            shape = tuple(inner.randrange(0, 4) for _ in range(inner.randrange(6)))
            value = inner.choice([v for v in VALUES if v != _DEEP])
            content["model"][name] = inner.choice([value, torch.zeros(shape), content["model"][name].long()])
        elif kind == "name":
            content["model"][inner.choice(["", "blocks.99999999.x", "blocks.١.x", "x" * 10**5])] = torch.ones(
                1
            )
        elif kind == "key":
            content = {inner.choice(["modell", "optimizer", ""]): content["model"]}
        elif kind == "guest":
            content["guest"] = inner.choice([_Guest(), len, _Guest, np.array([_Guest()], object)])
        else:
            content["model"][name] = torch.zeros(1).expand(10**6, 10**5)
        torch.save(content, path)

    return Case("tower.pth", f"value {number} {seed}", change, command)


def _mutated(document: Any, rng: random.Random) -> Any:
    """A document with one value replaced, removed or added."""
    places = list(_places(document))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    if rng.random() < 0.15:
        del holder[key]
    elif rng.random() < 0.1 and isinstance(holder, dict):
        holder[rng.choice(["extra", "", "\x1b", "__class__"])] = rng.choice(VALUES)
    else:
        holder[key] = rng.choice(VALUES)
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = ()
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))[:8]
    for key, value in items:
        yield document, key
        yield from _places(value)


def dumped(document: Any) -> bytes:
    """JSON, with what the standard allows not."""
    return json.dumps(document).replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()


def _foreign(folder: Path) -> None:
    (folder / "videos.db").unlink()
    _execute(folder / "videos.db", "CREATE TABLE moz_places (id INTEGER, url TEXT)")


def _spoil(path: Path, kind: str, seed: float) -> None:
    rng = random.Random(seed)
    if kind == "bytes":
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 10, 100, 1000])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        return
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT name, value FROM settings").fetchall()
        name, text = rng.choice(rows)
        value = _mutated(json.loads(text), rng)
        database.execute("UPDATE settings SET value = ? WHERE name = ?", (dumped(value).decode(), name))
        database.commit()


# Running ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a command took a case: ``fault`` says what is wrong with that, and is empty if nothing is."""

    refused: bool
    line: str
    seconds: float
    fault: str


class _Hang(BaseException):
    pass


def run_case(case: Case, good: Path, folder: Path) -> Outcome:
    """Run a case in a new copy of the good files."""
    shutil.copytree(good, folder)
    case.change(folder)
    words = json.loads((good / "recipe.json").read_text()) if case.command == ("train",) else [*case.command]
    before = listing(folder)
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    fault = ""

    def hang(*_: Any) -> None:
        raise _Hang

    former = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    start = time.monotonic()
    try:
        with inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except _Hang:
        fault = f"took more than {SECONDS} s"
    except BaseException as error:
        fault = f"traceback: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    seconds = time.monotonic() - start
    lines = [
        line for line in err.getvalue().split("\n") if line and not line.startswith("fluxvit: running on ")
    ]
    line = lines[-1] if lines else ""
    refused = code not in (0, 1)
    if not fault and refused:
        if code != 2:
            fault = f"exit code {code}: {line}"
        elif len(lines) != 1 or not line.startswith("fluxvit: "):
            fault = f"{len(lines)} lines: {lines[:3]}"
        elif not line.isprintable():
            fault = f"control characters: {line!r}"
        elif len(line) > 1000:
            fault = f"a line of {len(line)} characters"
        elif any(word in line for word in ("Traceback", "NoneType", "'int' object", "unsupported operand")):
            fault = f"Python's words: {line}"
        elif listing(folder) != before:
            fault = f"files changed: {_difference(before, listing(folder))}; {line}"
    if not fault and not refused and case.refuse:
        fault = f"accepted, with exit code {code}"
    return Outcome(refused, line, seconds, fault)


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, with what is in it. Locks, which are empty, do not count."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith((".lock", "-wal", "-shm"))
    }


def _difference(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
