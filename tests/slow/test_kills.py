"""Is a run ever lost? Each long command is interrupted again and again, and given once more.

Each command runs undisturbed first. Then, for each of SIGKILL, SIGTERM and SIGINT, it is interrupted at
moments that are drawn at random: at some time of its work, or in the middle of a write. The same command
again must give what the undisturbed one gave, file by file and tensor by tensor, leave no partial file, no
lock and no process behind, and print no traceback.

    pytest -m slow tests/slow/test_kills.py -s

``FLUXVIT_KILLS`` is the number of moments for each command and signal (3), ``FLUXVIT_KILLS_SEED`` their seed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.cli.command import parse
from fluxvit.cli.commands import COMMANDS
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.sharded_state import StateReader
from language import saved_encoder
from talking import tiny_language_model

CONFIGS = Path(__file__).parents[2] / "configs"
MOMENTS = int(os.environ.get("FLUXVIT_KILLS", "3"))
SEED = int(os.environ.get("FLUXVIT_KILLS_SEED", "0"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 300.0  # Seconds after which something that must happen has not.
GRACE = 10.0  # Seconds that processes of a killed run may outlive it.

# The demo measures which precision is faster; on a busy machine that may be another one from run to run.
LAUNCH_DEMO = (
    "import sys; from fluxvit.training import trainer; trainer.faster_precision = lambda device: 'fp32'; "
    "from fluxvit.cli import main; sys.exit(main(sys.argv[1:]))"
)
# What differs between any two runs: times, and what was measured with a clock.
VOLATILE = re.compile(r".*(second|time|date|latency|_per_s|wait|memory|warm|worker).*", re.IGNORECASE)

TINY = """
--model.name fluxvit_nano --grids.frames [4,7,2] --grids.sizes [16,25,8] --grids.min_tokens 4
--grids.max_tokens 30 --epochs 24 --warmup_epochs 1 --optim.batch_size 8 --data.workers 1 --device cpu
--optim.precision fp32 --data.cache '' --optim.save_seconds 0.1 --optim.log_every 1
--data.train {data}/train.jsonl --out {out}/run
"""
SMALL = """
--model.settings '{"embed_dim": 32, "depth": 1, "pool_dim": 16, "tubelet_size": 2, "budgets": [12, 8, 4]}'
"""

# ``{data}``, ``{model}``, ``{dual}`` and ``{language}`` are made once, ``{out}`` is each run's own folder.
CASES = {
    "data make": """
        data make motionworld {out}/mw --videos 48 --val 4 --test 4 --difficulty demo --workers 2
    """,
    "data shard": "data shard {data}/train.jsonl {out}/shards --size 30KB",
    "data check": "data check {data}/train.jsonl --out {out}/x.jsonl --deep --workers 2",
    "train": f"""
        train {CONFIGS}/motionworld_nano.yaml {TINY} {SMALL} --data.root '' --data.val {{data}}/val.jsonl
        --evaluation.grid 4x16 --evaluation.every_epochs 4 --data.cache {{out}}/cache --optim.ema 0.9
    """,
    "pretrain": f"""
        pretrain {CONFIGS}/pretrain/motionworld_nano.yaml {TINY} {SMALL} --teacher.kind fluxvit
        --teacher.source {{model}} --teacher.precision fp32
    """,
    "train-contrastive": f"""
        train-contrastive {CONFIGS}/contrastive/motionworld_nano.yaml {TINY} {SMALL} --model.init ''
        --images '' --val {{data}}/val.jsonl --evaluation.grid 4x16 --evaluation.every_epochs 8
        --text.source '' --text.tokenizer '' --text.kind words --text.width 32 --text.depth 1
        --text.context 40 --text.trained_blocks -1
    """,
    "train-chat": f"""
        train-chat {CONFIGS}/chat/motionworld_smollm2.yaml {TINY} --task.width 32 --task.queries 3
        --task.init '' --task.freeze_connector false --task.adapters.rank 0
        --language {{language}} --model.init {{model}}
    """,
    "probe": """
        probe {model} --train {data}/train.jsonl --val {data}/val.jsonl --epochs 40 --out {out}/probe
        --device cpu --workers 1
    """,
    "evaluate": """
        evaluate {model} {data}/train.jsonl --latency false --out {out}/results --report {out}/report
        --baselines random,uniform --batch_size 4 --device cpu
    """,
    "optimize": "optimize {model} {data}/train.jsonl --to {out}/copy --out {out}/log --device cpu",
    "index": "index {data}/train --db {out}/v.db --checkpoint {dual} --device cpu --seconds 0.3",
    "demo": """
        demo --out {out}/demo --videos 32 --val 4 --test 4 --epochs 4 --minutes 0 --workers 1 --device cpu
    """,
}
NEEDS = {"train-chat": "transformers", "evaluate": "matplotlib", "demo": "matplotlib"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data and models that the commands need."""
    root = tmp_path_factory.mktemp("given")
    data = make_dataset(
        root / "mw", MotionWorldConfig(24, 0, "demo", val=8, test=1), workers=1, progress=False
    )
    model = Checkpoint(
        small_model(16),
        grids=[SamplingGrid(8, 32, 32), SamplingGrid(4, 16, 16)],
        plans=[Plan(SamplingGrid(8, 24, 24), 24), Plan(SamplingGrid(8, 16, 32), 12)],
    )
    found = {
        "data": data,
        "model": model.save(root / "model"),
        "dual": saved_encoder(root / "dual"),
    }
    if find_spec("transformers"):
        found["language"] = tiny_language_model(root / "lm")
    return {name: str(path) for name, path in found.items()}


# Running and interrupting ---------------------------------------------------------------------------------


class Run:
    """A running command, in a process group of its own."""

    def __init__(self, command: list[str], screen: Path, cache: Path) -> None:
        self._screen = screen
        launch = ("-c", LAUNCH_DEMO) if command[0] == "demo" else ("-m", "fluxvit")
        own = {"OMP_NUM_THREADS": "1", "FLUXVIT_CACHE": str(cache), "PYTHONHASHSEED": "0"}
        with screen.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launch, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                start_new_session=True,
            )

    def screen(self) -> str:
        return self._screen.read_text(errors="replace")

    def finish(self, patience: float = PATIENCE) -> int | None:
        """The exit code; None if it is still running after so many seconds."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: int, group: bool) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def living(self) -> list[int]:
        """Processes of the group that are alive; those that nobody has reaped are dead."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue  # It ended while we looked.
            if int(group) == self.process.pid and state not in "ZX":
                found.append(int(path.parent.name))
        return found

    def vanishes(self) -> bool:
        """Whether all of its processes end within `GRACE` seconds; those that do not are killed."""
        end = time.monotonic() + GRACE
        while self.living():
            if time.monotonic() > end:
                self.send(signal.SIGKILL, group=True)
                return False
            time.sleep(0.02)
        return True


@dataclass(frozen=True)
class Moment:
    """When a run is interrupted.

    Args:
        number: Of the signal.
        group: It goes to all processes of the run, as that of Ctrl-C does; or to the first one alone.
        share: Part of the time that the undisturbed run took.
        in_write: From then on the first moment at which a file is being written.
    """

    number: signal.Signals
    group: bool
    share: float
    in_write: bool

    def __str__(self) -> str:
        place = f"{'in a write after ' * self.in_write}{100 * self.share:.0f} %"
        return f"{self.number.name} to {'all' if self.group else 'the first'}, {place}"


def moments(name: str) -> Iterator[Moment]:
    """What is done to a command: the same for the same seed."""
    draw = random.Random(f"{SEED} {name}")
    for number in SIGNALS:
        for i in range(MOMENTS):
            # Most of the first third is spent on importing.
            in_write = i % 3 == 0
            share = draw.uniform(0.05, 0.9) if in_write else draw.uniform(0.3, 1.0)
            yield Moment(number, draw.random() < 0.5, share, in_write)


def interrupt(run: Run, out: Path, moment: Moment, seconds: float) -> None:
    """Send the signal at its moment; the run may have ended before."""
    if run.finish(moment.share * seconds) is not None:
        return
    while moment.in_write and run.process.poll() is None and not being_written(out):
        time.sleep(0.0005)
    run.send(moment.number, moment.group)


def being_written(out: Path) -> list[str]:
    """Partial files and folders."""
    return [name for name in leftovers(out) if Path(name).name.startswith(".") and "partial" in name]


def leftovers(out: Path) -> list[str]:
    """Partial files and folders, locks and journals."""
    names = (path.relative_to(out) for path in out.rglob("*"))
    return sorted(str(n) for n in names if re.search(r"partial|\.old$|\.lock$|-journal$", n.name))


# Comparing ------------------------------------------------------------------------------------------------


@dataclass
class Campaign:
    """One command, its undisturbed result, and what came of interrupting it."""

    name: str
    command: list[str]
    out: Path
    reference: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("struck", "in write", "late"), 0))

    def start(self, screen: str) -> Run:
        self.out.mkdir(exist_ok=True)
        return Run(self.command, self.out.with_name(screen), self.out.with_name("cache"))

    def run_undisturbed(self) -> None:
        start = time.monotonic()
        run = self.start("reference.txt")
        assert run.finish() == 0, run.screen()
        self.seconds = time.monotonic() - start
        assert not leftovers(self.out)
        self.reference = contents(self.out)
        shutil.rmtree(self.out)

    def disturb(self, moment: Moment) -> None:
        for _ in range(4):
            run = self.start("first.txt")
            interrupt(run, self.out, moment, self.seconds)
            code = run.finish(60)
            if code != 0:
                break
            # The run was faster than the undisturbed one and has come to its end: an earlier moment.
            shutil.rmtree(self.out)
            moment = replace(moment, share=0.7 * moment.share)
        struck = being_written(self.out)
        found = []
        if code is None:
            found.append("it did not end within 60 s of the signal")
        if not run.vanishes():
            found.append(f"processes outlive it by {GRACE:.0f} s")
        if code == 1 or (code == 130 and "Traceback" in run.screen()):
            found.append(f"exit code {code}: {run.screen()[-600:]}")
        self.figures["late" if code == 0 else "in write" if struck else "struck"] += 1
        again = self.start("second.txt")
        last = again.finish()
        if last != 0:
            found.append(f"the second run ends with {last}: {again.screen()[-600:]}")
            again.send(signal.SIGKILL, group=True)
        found += [f"left over: {name}" for name in leftovers(self.out)]
        found += differences(self.reference, contents(self.out))
        shutil.rmtree(self.out)
        print(
            f"{self.name:11} {moment!s:44} code {code!s:4} {len(struck)} partial  {found or 'good'}",
            flush=True,
        )
        self.faults += [f"{moment}: {fault}" for fault in found]


def contents(out: Path) -> dict[str, Any]:
    """What is in each file, as far as it must be the same whenever the command is given."""
    return {str(path.relative_to(out)): _content(path) for path in sorted(out.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    readers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": load_file,
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".npz": lambda path: dict(np.load(path)),
        ".json": lambda path: _lasting(json.loads(path.read_text())),
        ".jsonl": lambda path: [_lasting(json.loads(line)) for line in path.read_text().splitlines()],
        ".db": _rows,
        # They show dates and times.
        ".html": lambda path: "",
        ".svg": lambda path: "",
        ".png": lambda path: "",
    }
    if path.name == ".metadata":  # It also holds a random name and the place where the state was written.
        return replace(StateReader(path.parent).read_metadata(), storage_meta=None)
    return readers.get(path.suffix, Path.read_bytes)(path)


def _lasting(value: Any) -> Any:
    """A value of JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: _lasting(child) for key, child in value.items() if not VOLATILE.fullmatch(key)}
    return [_lasting(child) for child in value] if isinstance(value, list) else value


def _rows(path: Path) -> list[tuple[Any, ...]]:
    query = "SELECT path, mark, error, start, end, vector FROM files LEFT JOIN windows ON file = files.id"
    with closing(sqlite3.connect(path)) as sql:
        return sorted(sql.execute(query).fetchall())


def differences(reference: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Files that are in one only, or differ."""
    found = [f"missing: {name}" for name in reference.keys() - other.keys()]
    found += [f"too many: {name}" for name in other.keys() - reference.keys()]
    for name in sorted(reference.keys() & other.keys()):
        found += [f"{name}{place} differs" for place in list(_unequal(reference[name], other[name]))[:3]]
    return found


def _unequal(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Places of values that are not the same, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from _unequal(a[key], b[key], f"{place}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from _unequal(*pair, f"{place}/{i}")
    elif torch.is_tensor(a) and torch.is_tensor(b):
        if a.dtype != b.dtype or not torch.equal(a, b):
            yield place
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.tobytes() != b.tobytes():
            yield place
    elif type(a) is not type(b) or a != b:
        yield place


def command_of(name: str, places: dict[str, str]) -> list[str]:
    """The arguments of a case with its places filled in."""
    return [
        re.sub(r"\{(data|model|dual|language|out)\}", lambda match: places[match[1]], argument)
        for argument in shlex.split(CASES[name])
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_commands_are_those_of_today(name: str) -> None:
    words = command_of(name, dict.fromkeys(("data", "model", "dual", "language", "out"), "x"))
    known = (" ".join(words[:count]) for count in (3, 2, 1))
    command = next(one for one in known if one in COMMANDS)
    module, config = COMMANDS[command].config.split(":")
    parse(command, getattr(import_module(module), config), words[len(command.split()) :])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_same_command_again_gives_the_undisturbed_result(
    name: str, given: dict[str, str], tmp_path: Path
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    command = command_of(name, {**given, "out": str(tmp_path / "out")})
    campaign = Campaign(name, command, tmp_path / "out")
    campaign.run_undisturbed()
    print(f"\n{name}: {campaign.seconds:.1f} s undisturbed, {len(campaign.reference)} files", flush=True)
    for moment in moments(name):
        campaign.disturb(moment)
    print(f"{name}: {campaign.figures}, {len(campaign.faults)} faults", flush=True)
    assert not campaign.faults, "\n".join(campaign.faults)
