"""Is a training run ever lost? Kills one again and again and compares what it ends with.

Trains a nano model once undisturbed, then the same run in other folders: one is killed (SIGKILL to all its
processes) at random moments and in the middle of writes, and goes on by the same command each time; one is
asked to stop (SIGTERM, Ctrl-C), or loses its main process alone. All must end with the same weights, state
and logs, bit by bit, and leave no files or processes behind. Exit code 1 if anything differs.

    OMP_NUM_THREADS=1 python benchmarks/kill_and_resume.py --out runs/kills --kills 10
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fluxvit.data.motionworld import MotionWorldConfig, make_motionworld
from fluxvit.demo import environment
from fluxvit.files import write_json

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "motionworld_nano.yaml"
VIDEOS, BATCH = 64, 8
PATIENCE = 300.0  # Seconds after which something that must happen has not.
GRACE = 10.0  # Seconds that a stop may take, and workers may outlive their parent.
# What a line of a log must repeat; times and memory differ from run to run.
COMPARED = re.compile(r"step|mean|loss.*|accuracy.*")


@dataclass
class Campaign:
    """What is run, and where."""

    out: Path
    epochs: int
    threads: int

    @property
    def steps(self) -> int:
        return self.epochs * VIDEOS // BATCH

    @property
    def validated(self) -> int:
        """Step of the first validation; the second is the last step."""
        return self.steps // 2

    def start(self, name: str, cache: str = "cache") -> Run:
        """Start training, or go on, in the folder of that name."""
        data = self.out / "data"
        settings = {
            "data.train": data / "train.jsonl",
            "data.val": data / "val.jsonl",
            "data.cache": self.out / cache,
            "data.workers": 2,
            "model.settings": '{"drop_path": 0.1}',
            "epochs": self.epochs,
            "optim.batch_size": BATCH,
            "optim.save_seconds": 0.5,
            "optim.ema": 0.99,
            "optim.precision": "fp32",
            "evaluation.every_epochs": self.epochs / 2,
            "device": "cpu",
            "out": self.out / name,
        }
        command = [sys.executable, "-m", "fluxvit", "train", str(RECIPE)]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        return Run(command, self.out / name, self.steps, self.threads)


class Run:
    """A running training: a process group of its own, and what it shows."""

    def __init__(self, command: list[str], folder: Path, steps: int, threads: int) -> None:
        self.folder, self.steps = folder, steps
        folder.mkdir(parents=True, exist_ok=True)
        # Only the progress bar tells single steps; rich hides it from files unless forced to show it.
        shown = {"FORCE_COLOR": "1", "COLUMNS": "200", "OMP_NUM_THREADS": str(threads)}
        self._screen = folder.with_name(f"{folder.name}.screen.txt")
        with self._screen.open("wb") as screen:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                env={**os.environ, **shown},
                start_new_session=True,
            )
        atexit.register(self._clear)
        self._step = re.compile(rf"Training.*? (\d+)/{steps}\b")

    def screen(self) -> str:
        """The last that was shown."""
        with self._screen.open("rb") as screen:
            screen.seek(max(0, self._screen.stat().st_size - 20_000))
            return screen.read().decode(errors="replace")

    def step(self) -> int:
        """Steps shown as taken; -1 before the first. The bar lags behind by up to a tenth of a second."""
        shown = self._step.findall(self.screen())
        return int(shown[-1]) if shown else -1

    def first_step(self) -> int:
        """Steps shown as taken when stepping began."""
        with self._screen.open("rb") as screen:
            shown = self._step.search(screen.read(20_000).decode(errors="replace"))
        return int(shown[1]) if shown else -1

    def validating(self) -> bool:
        frame = self.screen().rpartition("Training")[2]
        return "Validating" in frame

    def wait_for(self, what: Callable[[], bool], pause: float = 0.02) -> bool:
        """Wait until ``what`` holds; False if the run ended before."""
        end = time.monotonic() + PATIENCE
        while not what():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"waited {PATIENCE:.0f} s for nothing:\n{self.screen()[-2000:]}")
            time.sleep(pause)
        return True

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

    def seconds_to_vanish(self, limit: float) -> float | None:
        """How long processes of the group still live; None: longer than ``limit``."""
        start = time.monotonic()
        while self.living():
            if time.monotonic() - start > limit:
                return None
            time.sleep(0.02)
        return time.monotonic() - start

    def kill(self, *, only_main: bool = False) -> None:
        """SIGKILL to the group, or to the process that was started."""
        (os.kill if only_main else os.killpg)(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _clear(self) -> None:
        """A campaign that is itself cut off leaves nothing running."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self) -> int:
        """Let it end; returns the exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def saved_step(folder: Path) -> int:
    """Where a run in ``folder`` would go on."""
    path = folder / "state.pt"
    return torch.load(path, weights_only=True, mmap=True)["step"] if path.exists() else 0


def partial_files(folder: Path) -> list[Path]:
    """What unfinished writes left behind: see ``fluxvit.files.atomic_path`` and ``save_checkpoint``."""
    names = [*folder.glob(".*.partial*"), *folder.glob(".*.old")]
    return sorted(names)


def shared_memory() -> set[str]:
    """Blocks of shared memory of torch: they are named after the process that made them."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("torch_*")} if folder.is_dir() else set()


# The undisturbed run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A point of a run: so many seconds after ``step`` was shown, however fast the machine is today."""

    step: int
    offset: float


def run_reference(campaign: Campaign) -> tuple[list[tuple[float, int]], float]:
    """Train undisturbed; returns when each step was shown first, and all seconds of stepping and saving."""
    run = campaign.start("reference")
    run.wait_for(lambda: run.step() >= 0)
    start, curve = time.monotonic(), [(0.0, run.step())]
    while run.process.poll() is None:
        step = run.step()
        if step > curve[-1][1]:
            curve.append((time.monotonic() - start, step))
        time.sleep(0.02)
    if run.finish():
        raise RuntimeError(f"the undisturbed run failed:\n{run.screen()}")
    return curve, time.monotonic() - start


def moment(curve: list[tuple[float, int]], second: float) -> Moment:
    """The point of the run that the undisturbed one had reached after so many seconds of stepping."""
    time_of_step, step = max(entry for entry in curve if entry[0] <= second)
    return Moment(step, second - time_of_step)


# Killing --------------------------------------------------------------------------------------------------


@dataclass
class Kill:
    """One SIGKILL to the whole group.

    Args:
        when: Not before.
        aim: ``moment``, or what must be being written: ``state``, ``best``, ``last``, or
            ``state after validation``.
        fraction: Of a state, how much must have been written.
    """

    when: Moment
    aim: str
    fraction: float = 0.0


@dataclass
class KillRow:
    """What a kill did."""

    aim: str
    step: int
    validating: bool
    in_write: list[str]
    resumed_from: int
    living_after: int
    faults: list[str] = field(default_factory=list)


def draw_kills(
    campaign: Campaign, curve: list[tuple[float, int]], seconds: float, count: int, in_write: int, seed: int
) -> list[Kill]:
    """``count`` moments, ``in_write`` of them moved to the next write of the state; and three special."""
    draw = random.Random(seed)
    times = [draw.uniform(0, seconds) for _ in range(count)]
    # One that is to strike a write needs one after it: of the late ones there may be none.
    early = sorted(range(count), key=lambda i: times[i])[: max(in_write, count * 3 // 4)]
    writes = set(draw.sample(early, in_write))
    kills = []
    for i, second in enumerate(times):
        aim, fraction = ("state", draw.uniform(0, 0.8)) if i in writes else ("moment", 0.0)
        kills.append(Kill(moment(curve, second), aim, fraction))
    # A checkpoint's folder; then the state that would have remembered that the validation is done.
    kills.append(Kill(Moment(campaign.validated, -2), "best"))
    kills.append(Kill(Moment(campaign.validated, -1), "state after validation"))
    kills.append(Kill(Moment(campaign.steps, 1e9), "last"))
    return sorted(kills, key=lambda kill: (kill.when.step, kill.when.offset))


def kill_once(campaign: Campaign, name: str, kill: Kill) -> KillRow | None:
    """Start or resume, kill at the moment; None if the run came to its end before."""
    before = saved_step(campaign.out / name)
    run = campaign.start(name)
    # With the last state saved there are no more steps, but the last checkpoint is written again.
    if before < campaign.steps and not run.wait_for(lambda: run.step() >= kill.when.step):
        return _ended(run)
    if kill.aim == "moment":
        try:
            run.process.wait(kill.when.offset)
            return _ended(run)
        except subprocess.TimeoutExpired:
            pass
    else:
        # A write takes some hundredths of a second. Who sleeps in between is woken at once; who never does
        # waits for its turn on a busy machine.
        if not run.wait_for(lambda: _being_written(run, kill), pause=0.001):
            return _ended(run)
    run.kill()
    left = run.seconds_to_vanish(2.0)
    pid = run.process.pid
    struck = [path.name for path in partial_files(run.folder) if f".{pid}." in path.name]
    row = KillRow(
        kill.aim,
        run.step(),
        run.validating(),
        struck,
        saved_step(run.folder),
        0 if left is not None else len(run.living()),
    )
    if before < campaign.steps and run.first_step() != before:
        row.faults.append(f"it had gone on from step {run.first_step()}, but {before} was saved")
    if row.resumed_from < before:
        row.faults.append(f"step {before} had been saved")
    if row.living_after:
        row.faults.append(f"{row.living_after} processes outlive it")
    return row


def _ended(run: Run) -> KillRow | None:
    """No row, for a run that came to its end."""
    if run.finish():
        raise RuntimeError(f"a run failed by itself:\n{run.screen()[-3000:]}")
    return None


def _being_written(run: Run, kill: Kill) -> bool:
    folder, pid = run.folder, run.process.pid
    validated = (folder / "validation.jsonl").exists()
    if kill.aim in ("best", "last"):
        # The best may not be written again: when the write was missed, the moment after it must do.
        return (folder / f".{kill.aim}.{pid}.partial").exists() or (kill.aim == "best" and validated)
    if kill.aim == "state after validation" and not validated:
        return False
    try:
        size = (folder / f".state.{pid}.partial.pt").stat().st_size
    except FileNotFoundError:
        return False
    whole = folder / "state.pt"
    return size >= kill.fraction * (whole.stat().st_size if whole.exists() else 0)


def kill_campaign(campaign: Campaign, name: str, kills: list[Kill]) -> list[KillRow]:
    """All kills, one after the other; those that missed the write that they were to strike are repeated."""
    rows: list[KillRow] = []
    for kill in kills:
        for _ in range(5):
            row = kill_once(campaign, name, kill)
            if row is None:
                print(f"{len(rows) + 1:4} {kill.aim:24} the run ended before", flush=True)
                break
            rows.append(row)
            phase = f"{row.step}{' validating' if row.validating else ''}"
            print(
                f"{len(rows):4} {row.aim:24} {phase:>14}  {row.resumed_from:12}  {row.living_after:6}  "
                f"{'; '.join(row.faults) or 'good':8}  {' '.join(row.in_write) or '-'}",
                flush=True,
            )
            if kill.aim in ("moment", "best") or row.in_write:
                break
    return rows


# Stopping -------------------------------------------------------------------------------------------------


@dataclass
class StopRow:
    """What a signal did."""

    signal: str
    step: int
    exit_code: int | None
    seconds: float | None
    resumed_from: int
    faults: list[str] = field(default_factory=list)


def stop_campaign(campaign: Campaign, name: str) -> list[StopRow]:
    """Stop one run in many ways; it is resumed between them."""
    steps, validated = campaign.steps, campaign.validated
    rows = []
    for title, number, group, step, in_validation in (
        ("KILL main, stepping", signal.SIGKILL, False, steps // 8, False),
        ("TERM main, stepping", signal.SIGTERM, False, steps // 6, False),
        ("TERM group, stepping", signal.SIGTERM, True, steps // 4, False),
        ("INT group, stepping", signal.SIGINT, True, steps // 3, False),
        ("KILL main, validating", signal.SIGKILL, False, validated, True),
        ("TERM main, validating", signal.SIGTERM, False, validated, True),
        ("TERM group, validating", signal.SIGTERM, True, steps, True),
    ):
        run = campaign.start(name)
        reached = run.wait_for(partial(_reached, run, step, in_validation))
        if not reached:
            raise RuntimeError(f"{title}: the run ended before\n{run.screen()[-3000:]}")
        row = StopRow(title, run.step(), None, None, 0)
        start = time.monotonic()
        if number == signal.SIGKILL:
            run.kill(only_main=True)
            row.seconds = run.seconds_to_vanish(GRACE)
        else:
            (os.killpg if group else os.kill)(run.process.pid, number)
            row.exit_code = run.finish()
            row.seconds = time.monotonic() - start
            # A signal after the last batch of the last validation comes too late: the run is done.
            if row.exit_code != 130 and (row.exit_code, step) != (0, steps):
                row.faults.append(f"exit code {row.exit_code}, not 130: {run.screen()[-300:]!r}")
            run.seconds_to_vanish(1.0)
            if saved_step(run.folder) < row.step:
                row.faults.append("steps that had been taken were not saved")
            if row.seconds > GRACE:
                row.faults.append(f"it took longer than {GRACE:.0f} s")
        if run.living():
            row.faults.append(f"{len(run.living())} processes live on")
            os.killpg(run.process.pid, signal.SIGKILL)
        row.resumed_from = saved_step(run.folder)
        rows.append(row)
        _print_stop(row)
    return rows


def _reached(run: Run, step: int, in_validation: bool) -> bool:
    return run.step() >= step and (not in_validation or run.validating())


def kill_while_decoding(campaign: Campaign) -> StopRow:
    """SIGKILL to the main process while others fill the frame cache: do they notice?"""
    cache = campaign.out / "cache2"
    run = campaign.start("decoding", "cache2")
    if not run.wait_for(lambda: any(path.stat().st_size for path in partial_files(cache)), pause=0.001):
        raise RuntimeError(f"the run ended before it had decoded:\n{run.screen()[-3000:]}")
    run.kill(only_main=True)
    row = StopRow("KILL main, decoding", -1, None, run.seconds_to_vanish(GRACE), 0)
    if row.seconds is None:
        row.faults.append(f"{len(run.living())} processes live after {GRACE:.0f} s")
        os.killpg(run.process.pid, signal.SIGKILL)
    again = campaign.start("decoding", "cache2")
    if not again.wait_for(lambda: again.step() >= 1):
        row.faults.append(f"does not go on: {again.screen()[-300:]!r}")
    else:
        again.kill()
    row.faults += [f"{path.name} is left over" for path in partial_files(cache)]
    _print_stop(row)
    return row


def _print_stop(row: StopRow) -> None:
    seconds = "-" if row.seconds is None else f"{row.seconds:.1f} s"
    code = "-" if row.exit_code is None else row.exit_code
    print(
        f"{row.signal:24} {row.step:5}  {code!s:>4}  {seconds:>7}  {row.resumed_from:12}  "
        f"{'; '.join(row.faults) or 'good'}",
        flush=True,
    )


# Comparing ------------------------------------------------------------------------------------------------


def differences(reference: Path, other: Path) -> list[str]:
    """What of a finished run is not as in the undisturbed one."""
    found = []
    for name in ("best", "last"):
        hashes = [_hash(folder / name / "model.safetensors") for folder in (reference, other)]
        if hashes[0] != hashes[1]:
            found.append(f"{name}: weights differ")
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (reference, other)]
    found += [f"state.pt: {path} differs" for path in _unequal(*states)][:5]
    for name in ("log.jsonl", "validation.jsonl"):
        ours, theirs = (_log(folder / name) for folder in (reference, other))
        if ours != theirs:
            steps = [[line["step"] for line in lines] for lines in (ours, theirs)]
            why = f"steps {steps[1]} instead of {steps[0]}" if steps[0] != steps[1] else "values differ"
            found.append(f"{name}: {why}")
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def _unequal(a: Any, b: Any, path: str = "") -> list[str]:
    """Paths of values that are not the same, bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [p for key in a for p in _unequal(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [p for i, pair in enumerate(zip(a, b, strict=True)) for p in _unequal(*pair, f"{path}/{i}")]
    if torch.is_tensor(a) and torch.is_tensor(b):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and a == b else [path]


def _log(path: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if COMPARED.fullmatch(k)} for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/kills"), help="emptied first")
    parser.add_argument(
        "--kills", type=int, default=10, help="random ones; three more strike special moments"
    )
    parser.add_argument(
        "--in-write", type=int, default=4, help="of these in the middle of a write of the state"
    )
    parser.add_argument("--epochs", type=int, default=16, help="even; eight steps each")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of PyTorch: other sums at other numbers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="where the figures go as well")
    args = parser.parse_args()
    if args.epochs % 2 or not 0 <= args.in_write <= args.kills:
        parser.error("--epochs must be even, and --in-write at most --kills")

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what is running is cleared.
    campaign = Campaign(args.out.resolve(), args.epochs, args.threads)
    for name in ("reference", "killed", "stopped", "decoding", "cache", "cache2"):
        shutil.rmtree(campaign.out / name, ignore_errors=True)
    make_motionworld(campaign.out / "data", MotionWorldConfig(VIDEOS, 0, "demo", val=16, test=0))
    memory = shared_memory()
    curve, seconds = run_reference(campaign)
    print(f"undisturbed: {campaign.steps} steps, {seconds:.1f} s of stepping, validating and saving\n")

    print(
        f"{'':4} {'SIGKILL to all':24} {'at step':>14}  resumed from  living  verdict   in a write of",
        flush=True,
    )
    kills = draw_kills(campaign, curve, seconds, args.kills, args.in_write, args.seed)
    rows = kill_campaign(campaign, "killed", kills)
    last = campaign.start("killed")
    verdict = [f"the last run failed: {last.screen()[-500:]!r}"] if last.finish() else []
    verdict += differences(campaign.out / "reference", campaign.out / "killed")
    verdict += [f"kill {i}: {fault}" for i, row in enumerate(rows, start=1) for fault in row.faults]
    struck = sum(row.aim == "state" and bool(row.in_write) for row in rows)
    if struck < args.in_write:
        verdict.append(f"only {struck} kills struck a write of the state")
    left = partial_files(campaign.out / "killed")
    size = sum(f.stat().st_size for path in left for f in (path.rglob("*") if path.is_dir() else [path]))
    if left:
        names = ", ".join(path.name for path in left)
        verdict.append(f"{len(left)} partial files of {size / 1e6:.1f} MB are left over: {names}")

    print(f"\n{'signal':24} {'step':>5}  code  seconds  resumed from", flush=True)
    stops = stop_campaign(campaign, "stopped")
    last = campaign.start("stopped")
    stopped = [f"the last run failed: {last.screen()[-500:]!r}"] if last.finish() else []
    stopped += differences(campaign.out / "reference", campaign.out / "stopped")
    stopped += [f"{path.name} is left over" for path in partial_files(campaign.out / "stopped")]
    stops.append(kill_while_decoding(campaign))
    stopped += [f"{row.signal}: {fault}" for row in stops for fault in row.faults]
    leaked = shared_memory() - memory
    print(f"\nshared memory of torch left over: {len(leaked)} blocks (others' included)")
    good = "equal to the undisturbed run, nothing left over"
    for title, times, faults in (("killed", len(rows), verdict), ("stopped", len(stops), stopped)):
        print(f"{title} {times} times: {f'{len(faults)} faults' if faults else good}")
        for fault in faults:
            print(f"  FAULT {fault}")
    if args.json:
        result = {
            "settings": {k: str(v) for k, v in vars(args).items()},
            "environment": environment(),
            "undisturbed": {"steps": campaign.steps, "seconds": round(seconds, 1)},
            "kills": [asdict(row) for row in rows],
            "stops": [asdict(row) for row in stops],
            "shared_memory_blocks": len(leaked),
            "faults": {"killed": verdict, "stopped": stopped},
        }
        write_json(args.json, result)
    return 1 if verdict or stopped else 0


if __name__ == "__main__":
    sys.exit(main())
