"""Are damaged files found, named and survived?

Makes a MotionWorld and damages a twentieth of its training videos, a fifth of them in each of five ways: cut
short, emptied, replaced by text, replaced by sound, and the middle filled with zeros. Then:

1. `fluxvit data check --deep` must name every one of them with a reason, and no other.
2. Training from the list as it is, without a probe, must run to its end. Files that give no frame are
   replaced and named once each, in the log and in `replaced.jsonl`. Where only the middle is lost, the frame
   before the gap is shown for those in it, so such a file need not be replaced: see `kinds` in the result.
3. The memory of the loader's workers must stay flat over three passes of such data.

Memory is read from /proc, so the third part needs Linux.

    python benchmarks/damaged_data.py --out benchmarks/results/damaged_data.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from fluxvit.cli import main as fluxvit
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import TrainingBatches, loader
from fluxvit.data.manifest import read_manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.training.config import GridSettings, ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.recipes import DataSettings, Recipe
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import ALONE
from fluxvit.utils.files import write_json

PASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        world = make_dataset(
            folder / "world", MotionWorldConfig(args.videos, args.seed, "demo", val=0, test=0)
        )
        damaged = damage(world, args.seed)
        result = {
            "videos": args.videos,
            "damaged": len(damaged),
            "probe": probe(world, folder, damaged),
            "training": train(world, folder, damaged, args.workers),
            "memory": measure_memory(world, args.workers),
            "conditions": {
                "torch": torch.__version__,
                "pyav": av.__version__,
                "python": platform.python_version(),
                "workers": args.workers,
                "seed": args.seed,
            },
        }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        write_json(args.out, result)


# Damage ----------------------------------------------------------------------------------------------------


def damage(world: Path, seed: int) -> dict[Path, str]:
    """Damage a twentieth of the training videos; what was done to which."""
    paths = [entry.path for entry in read_manifest(world / "train.jsonl").entries]
    chosen = np.random.default_rng(seed).choice(len(paths), max(len(KINDS), len(paths) // 20), replace=False)
    done = {}
    for place, number in enumerate(chosen):
        kind = list(KINDS)[place % len(KINDS)]
        KINDS[kind](paths[number])
        done[paths[number]] = kind
    return done


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_by_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())


def _zero_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    path.write_bytes(data)


KINDS: dict[str, Callable[[Path], object]] = {
    "cut short": _cut_short,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("This is not a video.\n" * 100),
    "sound only": _replace_by_sound,
    "zeros in the middle": _zero_the_middle,
}


# Parts of the benchmark ------------------------------------------------------------------------------------


def probe(world: Path, folder: Path, damaged: dict[Path, str]) -> dict[str, object]:
    """What the command finds, and whether it prints the names."""
    out = folder / "probed.jsonl"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = fluxvit(["data", "check", str(world), "--split", "train", "--deep", "--out", str(out)])
    broken = {entry.path: entry.error for entry in read_manifest(out).entries if not entry.ok}
    missed, wrong = set(damaged) - set(broken), set(broken) - set(damaged)
    return {
        "exit_code": code,
        "found": len(broken),
        "missed": [f"{path.name}: {damaged[path]}" for path in sorted(missed)],
        "wrong": [f"{path.name}: {broken[path]}" for path in sorted(wrong)],
        "named_in_print": sum(str(path) in printed.getvalue() for path in broken),
        "reasons": {damaged.get(path, "sound"): reason for path, reason in sorted(broken.items())},
    }


def train(world: Path, folder: Path, damaged: dict[Path, str], workers: int) -> dict[str, object]:
    """Train without a probe; which files are named as replaced."""
    out = folder / "run"
    recipe = Recipe(
        data=DataSettings(train=str(world / "train.jsonl"), workers=workers),
        out=str(out),
        model=ModelSettings(name="fluxvit_nano", settings=NetworkSettings((96,))),
        grids=GridSettings(frames=(8, 17, 8), sizes=(32, 41, 8), min_tokens=128, max_tokens=400),
        optim=TrainConfig(batch_size=16, precision="fp32"),
        epochs=2.0,
        warmup_epochs=0.5,
    )
    heard = _Heard()
    logging.getLogger("fluxvit").addHandler(heard)
    start = time.monotonic()
    train_recipe(recipe, ALONE, progress=False)
    seconds = time.monotonic() - start
    lines = (out / "replaced.jsonl").read_text(encoding="utf-8").splitlines()
    errors = [json.loads(line)["error"] for line in lines]
    named = Counter(path for error in errors for path in damaged if error.startswith(f"{path}: "))
    made, replaced = Counter(damaged.values()), Counter(damaged[path] for path in named)
    kinds = {kind: f"{replaced[kind]} of {made[kind]} replaced" for kind in KINDS}
    return {
        "finished": (out / "last").is_dir(),
        "seconds": round(seconds),
        "named": len(named),
        "named_more_than_once": sum(count > 1 for count in named.values()),
        "sound_files_named": len(errors) - named.total(),
        "named_in_log": sum(any(error in message for message in heard.messages) for error in errors),
        "last_message": heard.messages[-1],
        "kinds": kinds,
    }


class _Heard(logging.Handler):
    """Keeps the messages of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def measure_memory(world: Path, workers: int) -> dict[str, object]:
    """Peak memory and open files of the workers, all together, in each of several passes."""
    manifest = read_manifest(world / "train.jsonl")
    grids, batch = [SamplingGrid(8, 112, 112), SamplingGrid(16, 80, 80)], 16
    per_pass = len(manifest) // batch
    requests = TrainingBatches(len(manifest), grids, batch, PASSES * per_pass, 0)
    peaks, files = [0] * PASSES, [0] * PASSES
    for step, _ in enumerate(loader(ClipDataset(manifest), requests, workers)):
        team = [Path("/proc", str(child.pid)) for child in multiprocessing.active_children()]
        # Workers end one by one after the last batch that they make.
        if len(team) == workers:
            number = step // per_pass
            peaks[number] = max(peaks[number], sum(_resident(process) for process in team))
            files[number] = max(files[number], sum(len(list((p / "fd").iterdir())) for p in team))
    return {
        "mebibytes_by_pass": [round(peak / 2**20, 1) for peak in peaks],
        "spread_percent": round(100 * (max(peaks) - min(peaks)) / min(peaks), 2),
        "open_files_by_pass": files,
    }


def _resident(process: Path) -> int:
    line = next(x for x in (process / "status").read_text().splitlines() if x.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
