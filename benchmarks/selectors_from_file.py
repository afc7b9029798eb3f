"""Selectors from the video file to the logits: accuracy at equal numbers of tokens, and the time of a clip.

    python benchmarks/selectors_from_file.py CHECKPOINT [CHECKPOINT ...] --data DATA/test.jsonl --grid 32x64 \
      --budgets 128,64,32 --json runs/from_file.json

Unlike `compare_selectors.py` it reads the files, so that `codec` has its motion vectors. Checkpoints with
a learned selector may have `learned` among the --methods. Checkpoints are seeds of one recipe. Differences
from group_dynamic are paired by clip and averaged over the checkpoints,
with the 95 % interval over clips. Milliseconds are medians of whole predictions of the first checkpoint, one
clip at a time; the selectors take turns. With --json the same command goes on where it was interrupted; when
all clips are answered, it only measures the time again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.predictor import Predictor, Sampled
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.flux.selection import SELECTORS
from fluxvit.utils.files import write_json
from fluxvit.utils.system import environment
from fluxvit.utils.terminal import table

REFERENCE = "group_dynamic"
METHODS = f"{REFERENCE},two_sided_pixels,moving_pixels,codec,random"
CHUNK = 20


@torch.inference_mode()
def answers(checkpoint: Checkpoint, samples: list[Sampled], plan: Plan, budgets: list[int]) -> list[Tensor]:
    """The classes that are predicted at each budget."""
    outs = []
    for sampled in samples:
        video = checkpoint.clip(sampled.frames[plan.grid], plan.grid)
        outs.append(checkpoint.model(video, budgets, selector=sampled.selector(plan)))
    return [torch.cat([out.logits for out in column]).argmax(-1) for column in zip(*outs, strict=True)]


def mark_clips(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Append to ``result["marks"]`` a digit for each clip that it lacks: 1 if the prediction is right."""
    entries = read_manifest(args.data).entries[: args.clips]
    checkpoints = [Checkpoint.load(path, args.device) for path in args.checkpoints]
    reader = Predictor(checkpoints[0], args.budgets[0], grid=args.grid, device=args.device)
    while (done := result["done"]) < len(entries):
        part = entries[done : done + CHUNK]
        samples = [reader.sample(entry.path, [args.grid], motion="codec" in args.methods) for entry in part]
        labels = torch.tensor([entry.label for entry in part])
        for number, checkpoint in enumerate(checkpoints):
            for method in args.methods:
                plan = Plan(args.grid, args.budgets[0], selector=method)
                found = answers(checkpoint, samples, plan, args.budgets)
                for budget, classes in zip(args.budgets, found, strict=True):
                    key = f"{method} {budget} {number}"
                    right = (classes.cpu() == labels).int().tolist()
                    result["marks"][key] = result["marks"].get(key, "") + "".join(map(str, right))
        result["done"] += len(part)
        if args.json:
            write_json(args.json, result)


def milliseconds(args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a prediction from the file, for each method and budget."""
    paths = [entry.path for entry in read_manifest(args.data).entries[: args.timed]]
    checkpoint = Checkpoint.load(args.checkpoints[0], args.device)
    jobs = {
        f"{method} {budget}": Predictor(checkpoint, budget, grid=args.grid, selector=method)
        for method in args.methods
        for budget in args.budgets
    }
    times: dict[str, list[float]] = {key: [] for key in jobs}
    for turn, path in enumerate([*paths[:2], *paths]):
        for key, predict in jobs.items():
            start = time.perf_counter()
            predict(path)
            if turn >= 2:  # The first two warm up.
                times[key].append(1000 * (time.perf_counter() - start))
    return {key: statistics.median(values) for key, values in times.items()}


def report(args: argparse.Namespace, result: dict[str, Any]) -> Iterable[str]:
    """The lines of a table for each budget."""
    yield ", ".join("/".join(Path(path).parts[-2:]) for path in args.checkpoints)
    yield f"{result['done']} clips; " + "; ".join(f"{k}: {v}" for k, v in result["conditions"].items())
    for budget in args.budgets:
        rows = [["selector", "accuracy", f"against {REFERENCE}", "file to logits, ms"]]
        numbers = range(len(args.checkpoints))
        reference = marks(result, REFERENCE, budget, numbers)
        for method in args.methods:
            found = marks(result, method, budget, numbers)
            clips = 100 * (found - reference).mean(0)
            half = 1.959964 * clips.std().item() / len(clips) ** 0.5
            accuracy = " ".join(f"{100 * row.mean().item():.1f}" for row in found)
            rows.append(
                [
                    method,
                    f"{100 * found.mean().item():.1f} % ({accuracy})",
                    "" if method == REFERENCE else f"{clips.mean().item():+.1f} ± {half:.1f}",
                    f"{result['milliseconds'][f'{method} {budget}']:.2f}",
                ]
            )
        yield f"\n{budget} tokens of {args.grid}"
        yield from table(rows)


def marks(result: dict[str, Any], method: str, budget: int, numbers: Iterable[int]) -> Tensor:
    """``[checkpoints, clips]``, of the checkpoints with these numbers: 1 where the prediction is right."""
    rows = [result["marks"][f"{method} {budget} {number}"] for number in numbers]
    return torch.tensor([[int(digit) for digit in row] for row in rows], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="folders, or names of the package's own")
    add("--data", required=True, help="manifest")
    add("--grid", type=SamplingGrid.parse, required=True, help="such as 32x64")
    add("--budgets", required=True, type=lambda text: [int(k) for k in text.split(",")])
    add("--methods", default=METHODS, type=lambda text: text.split(","), help=f"default: {METHODS}")
    add("--clips", type=int, help="take the first ones only")
    add("--timed", type=int, default=40, help="number of clips whose time is measured")
    add("--device", default="cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--json", type=Path, help="results, with the answer to every clip")
    args = parser.parse_args()
    if unknown := set(args.methods) - set(SELECTORS):
        parser.error(f"--methods: there is no {', '.join(sorted(unknown))}; see docs/selection.md")
    if REFERENCE not in args.methods:
        parser.error(f"--methods: {REFERENCE} must be among them, since all are compared with it")
    torch.set_num_threads(args.threads)
    setting = {
        "data": read_manifest(args.data).digest,
        "checkpoints": args.checkpoints,
        "grid": str(args.grid),
        "budgets": args.budgets,
        "methods": args.methods,
    }
    result = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    if result and result["setting"] != setting:
        parser.error(f"--json {args.json}: it holds results of other settings; choose another name")
    result = {"setting": setting, "done": 0, "marks": {}, **result}
    mark_clips(args, result)
    result["milliseconds"] = milliseconds(args)
    result["conditions"] = {**environment(args.device), "threads": str(args.threads)}
    if args.json:
        write_json(args.json, result)
    print("\n".join(report(args, result)))


if __name__ == "__main__":
    main()
