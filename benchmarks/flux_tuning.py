"""Does training on flexible grids and several budgets pay? The paper's tables 1 and 5 at the scale of a CPU.

Trains a network on all tokens of one grid, and tunes it further in four ways for the same number of steps and
clips (table 1 also tunes a model that was trained in this way):

    fixed          all tokens of one grid, as video transformers are usually trained
    single         Flux-Single: grids of one to two budgets of tokens, selected down to one budget
    multi          Flux-Multi: the same grids; full, half and quarter budget in each step
    multi+align    Flux-Multi with the smaller budgets aligned to the largest

and tests each at the full, half, quarter and eighth budget (the last is never trained) with three samplings:

    plain          the grid with exactly this number of tokens: fewer frames
    cut            the fixed grid, selected down (table 5)
    dense          larger frames, selected down

    python benchmarks/flux_tuning.py --train DATA/train.jsonl --test DATA/test.jsonl --out runs/flux_tuning

Every run resumes, so the command can be interrupted and repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.evaluation.metrics import Score
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.config import preset
from fluxvit.training.config import GridSettings, ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.recipes import DataSettings, Recipe, TaskSettings
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import join_world
from fluxvit.utils.files import write_json
from fluxvit.video.augment_settings import AugmentSettings

CACHED_FRAMES = 32
SAMPLINGS = ("plain", "cut", "dense")
WAYS = ("fixed", "single", "multi", "multi+align")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", required=True, help="manifest")
    add("--test", required=True, help="manifest")
    add("--out", type=Path, default=Path("runs/flux_tuning"))
    add("--ways", default=",".join(WAYS))
    add("--seeds", default="0,1,2")
    add("--model", default="fluxvit_nano")
    add("--tubelet", type=int, default=4, help="frames of a token")
    add("--frames", type=int, default=32, help="of the fixed grid")
    add("--size", type=int, default=24, help="of the fixed grid, in pixels")
    add(
        "--start_epochs", type=float, default=12, help="of the common start; 0: every way starts from nothing"
    )
    add("--start_seed", type=int, default=1)
    add("--epochs", type=float, default=6, help="of each way")
    add("--batch_size", type=int, default=32)
    add("--start_lr", type=float, default=1e-3)
    add("--lr", type=float, default=5e-4)
    add("--align_weight", type=float, default=16, help="128 makes it 1 - cosine for vectors of width 128")
    add("--cache_side", type=int, default=48, help="frames are decoded once to this shorter side")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    train, test = read_manifest(args.train), read_manifest(args.test)
    for manifest in (train, test):
        _cache(args, manifest).build()
    if args.start_epochs:
        train_recipe(_recipe(args, "start", args.start_seed, args.out / "start"), join_world())
    runs = [(args, way, int(seed)) for seed in args.seeds.split(",") for way in args.ways.split(",")]
    threads = max(1, torch.get_num_threads() // args.jobs)
    context = multiprocessing.get_context("spawn")
    results = []
    with ProcessPoolExecutor(
        args.jobs, context, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        for result in pool.map(_run, runs):
            results.append(result)
            print(json.dumps(result), flush=True)
    print(table(results))
    conditions = {
        "settings": {
            name: str(value) for name, value in vars(args).items() if name not in ("train", "test", "out")
        },
        "videos": {"train": len(train), "test": len(test)},
        "digests": {"train": train.digest, "test": test.digest},
        "environment": {
            "fluxvit": __version__,
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": threads,
        },
    }
    write_json(args.out / "flux_tuning.json", {**conditions, "runs": results})
    print(json.dumps(conditions))


def _run(job: tuple[argparse.Namespace, str, int]) -> dict[str, Any]:
    args, way, seed = job
    out = args.out / f"{way}-{seed}"
    done = out / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    world = join_world()
    folder = train_recipe(_recipe(args, way, seed, out), world, progress=False)
    info = Checkpoint.load(folder)
    model = info.model
    model.to(world.device)
    manifest = read_manifest(args.test)
    dataset = ClipDataset(manifest, _cache(args, manifest))
    full = _tokens(args)
    keeps = [full, full // 2, full // 4, full // 8]
    fixed = SamplingGrid(args.frames, args.size, args.size)
    scores: dict[str, list[Score]] = {}
    scores["plain"] = []
    for part, keep in enumerate(keeps):
        frames = args.frames >> part
        if frames % args.tubelet == 0:  # Smaller budgets have less than one tubelet of frames.
            grid = SamplingGrid(frames, args.size, args.size)
            scores["plain"] += [r.score for r in predict_plans(info, dataset, [Plan(grid, keep)])]
    scores["cut"] = [r.score for r in predict_plans(info, dataset, [Plan(fixed, k) for k in keeps])]
    dense = SamplingGrid(args.frames, args.size + 8, args.size + 8)
    scores["dense"] = [r.score for r in predict_plans(info, dataset, [Plan(dense, k) for k in keeps])]
    result = {
        "way": way,
        "seed": seed,
        "keeps": keeps,
        "correct": {name: [score.correct for score in row] for name, row in scores.items()},
        "total": len(manifest),
    }
    write_json(done, result)
    return result


def _recipe(args: argparse.Namespace, way: str, seed: int, out: Path) -> Recipe:
    full, frames, size = _tokens(args), args.frames, args.size
    start = way == "start"
    fixed = start or way == "fixed"
    settings: dict[str, Any] = {"budgets": (full, full // 2, full // 4) if "multi" in way else (full,)}
    init = ""
    if args.start_epochs and not start:
        init = str(args.out / "start" / "last")
    else:
        settings["tubelet_size"] = args.tubelet
    grids = GridSettings(
        frames=(frames if fixed else frames // 2, frames + 1 if fixed else CACHED_FRAMES + 1, args.tubelet),
        sizes=(size, size + 1 if fixed else size + 17, 8),
        min_tokens=full,
        max_tokens=full if fixed else 2 * full,
    )
    epochs = args.start_epochs if start else args.epochs
    return Recipe(
        data=DataSettings(
            str(args.train),
            workers=0,
            cache=str(args.out / "cache"),
            cache_frames=CACHED_FRAMES,
            cache_side=args.cache_side,
        ),
        out=str(out),
        model=ModelSettings(args.model, init, NetworkSettings(**settings)),
        grids=grids,
        task=TaskSettings(align_weight=args.align_weight if way == "multi+align" else 0.0),
        optim=TrainConfig(
            batch_size=args.batch_size,
            lr=args.start_lr if start or not init else args.lr,
            seed=seed,
            precision="fp32",
        ),
        epochs=epochs,
        warmup_epochs=min(1.0, epochs / 8),
        augment=AugmentSettings(crop_scale=(0.7, 1.0), crop_ratio=(0.85, 1.18)),
    )


def _tokens(args: argparse.Namespace) -> int:
    return SamplingGrid(args.frames, args.size, args.size).tokens(preset(args.model).patch_size, args.tubelet)


def _cache(args: argparse.Namespace, manifest: Manifest) -> FrameCache:
    return FrameCache(args.out / "cache", manifest, CACHED_FRAMES, args.cache_side)


def table(results: list[dict[str, Any]]) -> str:
    """Mean accuracy in percent over seeds, with its standard deviation, for each sampling and way."""
    keeps = results[0]["keeps"]
    lines = []
    for sampling in SAMPLINGS:
        lines.append(f"{sampling:12}" + "".join(f"{keep:>8} tokens" for keep in keeps))
        for way in WAYS:
            runs = [run for run in results if run["way"] == way]
            if not runs:
                continue
            rows = [[100 * count / run["total"] for count in run["correct"][sampling]] for run in runs]
            cells = [_cell(list(column)) for column in zip(*rows, strict=True)]
            cells += [f"{'-':>8}{'':7}"] * (len(keeps) - len(cells))
            lines.append(f"{way:12}" + "".join(cells))
        lines.append("")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):4.1f}" if len(values) > 1 else ""
    return f"{mean(values):8.1f}{spread:7}"


if __name__ == "__main__":
    main()
