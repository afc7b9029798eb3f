"""Does pre-training on a frozen teacher pay? The paper's tables 3 and 5 at the scale of a CPU.

Pre-trains a network on unlabelled videos in several ways and tunes each on labelled videos. Another network
is trained from scratch for as many CPU seconds as `multi` took for everything: the teacher, pre-training and
tuning.

    scratch        Flux-Multi tuning alone, as long as multi took in total
    short          the same for as many epochs as the others are tuned
    multi          Flux-UMT at three budgets, then the same tuning
    single         Flux-UMT at the largest budget, then the same tuning
    no_glpe        multi, of a network without global and local positions (paper table 3)
    no_dpn         multi, of a network without dual patch norm
    scratch_no_dpn scratch, of such a network, for as long as no_dpn took in total

The teacher is a larger FluxViT that is trained here first, on the labels of all videos.

Each is tested at the full, half and quarter budget. A linear probe of the pre-trained network, before tuning,
is tested at the full one. It is trained on the same labels, chosen on the validation videos and scored on the
test videos.

    python benchmarks/flux_pretraining.py --data data/metaworld --labels 250

Every run resumes, so the command can be interrupted and repeated; the seconds of a part that was interrupted
are those of its last run. Seconds are CPU seconds of the process, so that other work hardly changes them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

import torch

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import content_digest, read_manifest, write_manifest
from fluxvit.evaluation.classification import predict_plans
from fluxvit.evaluation.config import ProbeConfig
from fluxvit.evaluation.probing.probe import run_probe
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.training.config import GridSettings, ModelSettings, NetworkSettings, TrainConfig, VideoSettings
from fluxvit.training.recipes import DataSettings, DistillSettings, PretrainRecipe, Recipe, TeacherSettings
from fluxvit.training.runs.pretrain import pretrain_recipe
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import ALONE
from fluxvit.utils.files import write_json
from fluxvit.utils.system import follow_parent, processor_name
from fluxvit.video.augment_settings import AugmentSettings

Videos = TypeVar("Videos", bound=VideoSettings)

WAYS = ("multi", "scratch", "short", "single", "no_glpe", "no_dpn", "scratch_no_dpn")
# Ways from scratch, and the way whose total time each is given.
SCRATCH = {"scratch": "multi", "scratch_no_dpn": "no_dpn"}
# Few tokens, for a CPU, each of four frames of 8x8 pixels.
TUBELET, FRAMES, SIDE = 4, 16, 56
BUDGETS, PRETRAINING_BUDGETS = (24, 12, 6), (24, 18, 12)
GRIDS = GridSettings(frames=(4, 9, 4), sizes=(32, 57, 8), min_tokens=24, max_tokens=98)
TEST_GRID = SamplingGrid(4, 48, 48)
SPLITS = {"labelled": "train", "val": "val", "test": "test", "full": "train"}
CHANGES: dict[str, dict[str, Any]] = {
    "no_glpe": {"global_position": False, "local_position": False},
    "no_dpn": {"dual_patch_norm": False},
    "large": {"embed_dim": 192, "num_heads": 3, "pool_dim": 192},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train.jsonl, val.jsonl and test.jsonl")
    add("--out", type=Path, default=Path("runs/flux_pretraining"))
    add("--ways", default=",".join(WAYS))
    add("--seeds", default="0,1,2")
    add("--target", default="label", help="key of the class in the manifests, such as object")
    add("--labels", type=int, default=0, help="videos with labels, equally many of each class; 0: all")
    add("--pretrain_epochs", type=float, default=14)
    add("--pretrain_lr", type=float, default=2e-3)
    add("--epochs", type=float, default=51, help="of tuning, over the videos with labels")
    add("--lr", type=float, default=1e-3)
    add("--standardize", type=int, default=512, help="clips over which features are")
    add("--large_epochs", type=float, default=12, help="of the larger FluxViT that teaches")
    add("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    _write_splits(args)
    for manifest in (args.data / "train.jsonl", *(args.out / f"{name}.jsonl" for name in SPLITS)):
        _frames(args, manifest).build()
    context = multiprocessing.get_context("spawn")
    seeds, ways = [int(seed) for seed in args.seeds.split(",")], args.ways.split(",")
    # Ways from scratch need to know how long others took, which come first.
    last = [(way, seed) for seed in seeds for way in ways if way in SCRATCH]
    rounds = [[(way, seed) for seed in seeds for way in ways if way not in SCRATCH], last]
    results = []
    torch.set_num_threads(1)
    teaching = _timed(args.out / "teacher.json", lambda: _train_teacher(args))["seconds"]
    with ProcessPoolExecutor(args.jobs, context, initializer=_settle) as pool:
        for group in rounds:
            for result in pool.map(_run, [(args, way, seed, teaching) for way, seed in group]):
                results.append(result)
                print(json.dumps(result), flush=True)
    print(table(results))
    splits = {name: read_manifest(args.out / f"{name}.jsonl") for name in SPLITS}
    splits["train"] = read_manifest(args.data / "train.jsonl")
    conditions = {
        "settings": {name: str(value) for name, value in vars(args).items() if name not in ("data", "out")},
        "videos": {name: len(manifest) for name, manifest in splits.items()},
        "digests": {name: manifest.digest for name, manifest in splits.items()},
        "environment": {
            "fluxvit": __version__,
            "torch": torch.__version__,
            "processor": f"{processor_name()}, {platform.machine()}",
            "threads": 1,
        },
    }
    write_json(args.out / "flux_pretraining.json", {**conditions, "runs": results})
    print(json.dumps(conditions))


def _settle() -> None:
    """Prepare a worker process."""
    follow_parent()
    torch.set_num_threads(1)


def _run(job: tuple[argparse.Namespace, str, int, float]) -> dict[str, Any]:
    args, way, seed, teaching = job
    out = args.out / f"{way}-{seed}"
    done = out / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    seconds: dict[str, float] = {}
    epochs, init, probe = args.epochs, "", None
    if way in SCRATCH:
        first = json.loads((args.out / f"{SCRATCH[way]}-{seed}" / "result.json").read_text())["seconds"]
        epochs *= sum(first.values()) / first["tuning"]
    elif way != "short":
        seconds["teacher"] = teaching
        pretraining = _pretraining(args, way, seed, out / "pretrain")
        seconds["pretraining"] = _timed(
            out / "pretrain.json", lambda: pretrain_recipe(pretraining, ALONE, progress=False)
        )["seconds"]
        init = str(out / "pretrain" / "last")
        probe = _probe(args, init, out / "probe")
    recipe = _tuning(args, way, seed, out / "tune", init, epochs)
    seconds["tuning"] = _timed(out / "tune.json", lambda: train_recipe(recipe, ALONE, progress=False))[
        "seconds"
    ]
    info = Checkpoint.load(out / "tune" / "last")
    manifest = read_manifest(args.out / "test.jsonl")
    dataset = ClipDataset(manifest, _frames(args, args.out / "test.jsonl"))
    tested = predict_plans(info, dataset, [Plan(TEST_GRID, keep) for keep in BUDGETS])
    result = {
        "way": way,
        "seed": seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "epochs": round(epochs, 2),
        "probe": probe,
        "correct": [entry.score.correct for entry in tested],
        "total": len(manifest),
    }
    write_json(done, result)
    return result


def _timed(done: Path, work: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of some work, which is not repeated."""
    if not done.exists():
        start = time.process_time()
        work()
        done.parent.mkdir(parents=True, exist_ok=True)
        write_json(done, {"seconds": time.process_time() - start})
    return json.loads(done.read_text())


def _train_teacher(args: argparse.Namespace) -> None:
    recipe = _tuning(args, "large", 0, args.out / "large", "", args.large_epochs)
    train_recipe(recipe, ALONE, progress=False)


def _write_splits(args: argparse.Namespace) -> None:
    """Write manifests with the requested labels: of the training videos, the first of each class."""
    for name, source in SPLITS.items():
        manifest = read_manifest(args.data / f"{source}.jsonl", args.target)
        entries, seen = [], Counter[int]()
        each = args.labels // len({entry.label for entry in manifest.entries}) or len(manifest)
        for entry in manifest.entries:
            seen[entry.label] += 1
            if name != "labelled" or seen[entry.label] <= each:
                entries.append(entry)
        digest = content_digest(tuple(entries), manifest.root)
        chosen = replace(manifest, entries=tuple(entries), labels=(), digest=digest)
        write_manifest(args.out / f"{name}.jsonl", chosen)


def _data(args: argparse.Namespace, kind: type[Videos], manifest: Path) -> Videos:
    return kind(
        str(manifest),
        workers=0,
        cache=str(args.out / "cache"),
        cache_frames=FRAMES,
        cache_side=SIDE,
    )


def _optim(lr: float, batch_size: int, seed: int) -> TrainConfig:
    return TrainConfig(batch_size=batch_size, lr=lr, precision="bf16", save_seconds=120.0, seed=seed)


def _pretraining(args: argparse.Namespace, way: str, seed: int, out: Path) -> PretrainRecipe:
    budgets = PRETRAINING_BUDGETS[:1] if way == "single" else PRETRAINING_BUDGETS
    return PretrainRecipe(
        data=_data(args, VideoSettings, args.data / "train.jsonl"),
        out=str(out),
        model=_model(way, budgets),
        grids=GRIDS,
        teacher=TeacherSettings("fluxvit", str(args.out / "large" / "last")),
        task=DistillSettings(teacher_tokens=PRETRAINING_BUDGETS[0], standardize=args.standardize),
        optim=_optim(args.pretrain_lr, 64, seed),
        epochs=args.pretrain_epochs,
        warmup_epochs=args.pretrain_epochs / 10,
        augment=AugmentSettings(crop_scale=(0.6, 1.0)),
    )


def _tuning(args: argparse.Namespace, way: str, seed: int, out: Path, init: str, epochs: float) -> Recipe:
    return Recipe(
        data=_data(args, DataSettings, args.out / f"{'full' if way == 'large' else 'labelled'}.jsonl"),
        out=str(out),
        model=ModelSettings("", init, NetworkSettings(BUDGETS)) if init else _model(way, BUDGETS),
        grids=GRIDS,
        optim=_optim(args.lr, 32, seed),
        epochs=epochs,
        warmup_epochs=epochs / 10,
        augment=AugmentSettings(crop_scale=(0.6, 1.0)),
    )


def _model(way: str, budgets: tuple[int, ...]) -> ModelSettings:
    changes = CHANGES.get(way.removeprefix("scratch_"), {})
    settings = {"budgets": budgets, "tubelet_size": TUBELET, **changes}
    return ModelSettings("fluxvit_nano", "", NetworkSettings(**settings))


def _frames(args: argparse.Namespace, manifest: Path) -> FrameCache:
    return FrameCache(args.out / "cache", read_manifest(manifest), FRAMES, SIDE)


def _probe(args: argparse.Namespace, checkpoint: str, out: Path) -> int:
    """Test videos that a linear probe on a frozen checkpoint gets right."""
    train, val, test = (str(args.out / f"{name}.jsonl") for name in ("labelled", "val", "test"))
    config = ProbeConfig(checkpoint, train, val, test, grid=TEST_GRID, budget=BUDGETS[0], out=str(out))
    result = run_probe(config, progress=False)
    assert result.test is not None
    return result.test.correct


def table(results: list[dict[str, Any]]) -> str:
    """Mean accuracy in percent over seeds, with its standard deviation, and mean CPU seconds."""
    names = [f"{budget} tokens" for budget in BUDGETS]
    lines = [f"{'':14}{'probe':>15}" + "".join(f"{name:>15}" for name in names) + "   CPU seconds"]
    for way in WAYS:
        runs = [run for run in results if run["way"] == way]
        if not runs:
            continue
        rows = [[100 * count / run["total"] for count in run["correct"]] for run in runs]
        cells = [_cell([100 * run["probe"] / run["total"] for run in runs if run["probe"] is not None])]
        cells += [_cell(list(column)) for column in zip(*rows, strict=True)]
        parts = {name: mean(run["seconds"][name] for run in runs) for name in runs[0]["seconds"]}
        terms = " + ".join(f"{name} {value:.0f}" for name, value in parts.items())
        lines.append(f"{way:14}" + "".join(cells) + f"   {terms} = {sum(parts.values()):.0f}")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return f"{'-':>15}"
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}".rjust(15)


if __name__ == "__main__":
    main()
