"""How well does a dual encoder find videos by sentences, trained on MotionWorld's captions on a CPU?

The text tower is a pretrained one or a small one from scratch. The video tower starts from the packaged
checkpoint, which has learned the motions of these videos as classes, or from scratch. The dual encoder is
tested on new videos at the full token budget and at a quarter of it, with plain sampling and with plans that
were searched on the validation videos.

Captions that differ in one motion only are counted separately: is a video nearer to its caption than to the
same caption with left for right (up for down, closer for away)? Chance is 50 %.

    fluxvit data make motionworld data/mw --videos 3000 --val 200 --test 800 --difficulty demo --seed 7
    python benchmarks/dual_encoder.py --data data/mw --seeds 0,1,2

Every part resumes or is skipped when it is done, so that the command can be interrupted and repeated. The
seconds of a part that was interrupted are those of its last run.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.cli.command import parse
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.config import RetrievalConfig
from fluxvit.evaluation.language.retrieval import run_retrieval
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.optimization.config import OptimizeConfig
from fluxvit.optimization.dual_encoder import optimize_dual
from fluxvit.synthetic.motionworld.language import CLAUSES
from fluxvit.training.config import NetworkSettings
from fluxvit.training.recipes import ContrastiveRecipe, TextSettings
from fluxvit.training.runs.contrastive import contrastive_recipe
from fluxvit.utils.distributed import ALONE
from fluxvit.utils.files import write_json
from fluxvit.utils.system import processor_name

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPE = CONFIGS / "contrastive" / "motionworld_nano.yaml"
OPPOSITES = CONFIGS / "overlays" / "motionworld_opposites.yaml"
ACTS = ("slide", "lift", "depth")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of a MotionWorld")
    add("--out", type=Path, default=Path("runs/dual_encoder"))
    add("--seeds", default="0,1,2")
    add("--text", default="minilm", choices=("minilm", "words"))
    add("--start", default="package", choices=("package", "nothing"), help="of the video tower")
    add("--epochs", type=float, help="default: the recipe's")
    args = parser.parse_args()
    recipe = _recipe(args)
    assert recipe.data.cache
    FrameCache(
        recipe.data.cache, read_manifest(recipe.data.train), recipe.data.cache_frames, recipe.data.cache_side
    ).build()
    rows = []
    for seed in map(int, args.seeds.split(",")):
        rows.append(_run(args, recipe, seed))
        print(json.dumps(rows[-1]), flush=True)
    print(_table(rows))
    conditions = {
        "text": args.text,
        "start": args.start,
        "epochs": recipe.epochs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor_name(),
        "digests": {n: read_manifest(args.data / f"{n}.jsonl").digest for n in ("train", "val", "test")},
    }
    print(json.dumps(conditions))
    write_json(args.out / f"{args.text}-{args.start}.json", {**conditions, "runs": rows})


def _recipe(args: argparse.Namespace) -> ContrastiveRecipe:
    files = [str(RECIPE), str(OPPOSITES)] if args.start == "nothing" else [str(RECIPE)]
    recipe = parse("train-contrastive", ContrastiveRecipe, files)
    data = replace(recipe.data, train=str(args.data / "train.jsonl"), cache=str(args.out / "cache"))
    model, text = recipe.model, recipe.text
    grids, optim, evaluation = recipe.grids, recipe.optim, recipe.evaluation
    if args.start == "nothing":  # As in configs/motionworld_nano.yaml.
        settings = NetworkSettings(budgets=(72, 36, 18), tubelet_size=4)
        model = replace(model, name="fluxvit_nano", init="", settings=settings, weights="motion")
        data = replace(data, cache=str(args.out / "cache64"), cache_frames=64, cache_side=40)
        grids = replace(grids, frames=(40, 65, 8), sizes=(24, 33, 8), max_tokens=256)
        optim, evaluation = replace(optim, lr=3e-4), replace(evaluation, grid="64x24")
    if args.text == "words":
        text = TextSettings("words", context=64)
    epochs = args.epochs or recipe.epochs
    # The last checkpoint is tested, because the validation videos choose plans.
    recipe = replace(recipe, data=data, model=model, text=text, epochs=epochs, val="")
    return replace(recipe, grids=grids, optim=optim, evaluation=evaluation)


def _run(args: argparse.Namespace, recipe: ContrastiveRecipe, seed: int) -> dict[str, Any]:
    out = args.out / f"{args.text}-{args.start}-{seed}"
    recipe = replace(recipe, out=str(out), optim=replace(recipe.optim, seed=seed))
    trained = _timed(out / "trained.json", lambda: contrastive_recipe(recipe, ALONE))
    encoder, test = str(out / "last"), str(args.data / "test.jsonl")
    full = DualEncoderCheckpoint.load(encoder).video.model.config.budgets[0]
    budgets = (full, full // 4)
    optimize = OptimizeConfig(encoder, str(args.data / "val.jsonl"), budgets, out=str(out / "search"))
    searched = _timed(out / "searched.json", lambda: optimize_dual(optimize))
    requested = tuple(Budget(tokens=budget) for budget in budgets)
    found = run_retrieval(RetrievalConfig(encoder, test, requested, out=str(out)))
    print(found)
    rows = found.results["rows"]
    opposites = _Opposites(encoder, Path(test))
    return {
        "seed": seed,
        "training": trained,
        "search": searched,
        "rows": [{**row, "opposites": opposites(row)} for row in rows],
    }


def _timed(done: Path, work: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the clock and of the processor of some work, which is not repeated."""
    if not done.exists():
        clock, processor = time.perf_counter(), time.process_time()
        work()
        seconds = {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - processor}
        write_json(done, {name: round(value, 1) for name, value in seconds.items()})
    return json.loads(done.read_text())


class _Opposites:
    """Counts captions that are nearer to their video than the same caption with an act reversed."""

    def __init__(self, checkpoint: str, test: Path) -> None:
        self._dual = DualEncoderCheckpoint.load(checkpoint)
        self._manifest = read_manifest(test, None)
        self._pairs = {}
        for act in ACTS:
            captions = [(i, entry.captions[0]) for i, entry in enumerate(self._manifest.entries)]
            pairs = [(i, text, other) for i, text in captions if (other := mirrored(text, act)) is not None]
            ours = self._dual.embed_texts([text for _, text, _ in pairs])
            theirs = self._dual.embed_texts([other for _, _, other in pairs])
            self._pairs[act] = [i for i, _, _ in pairs], ours, theirs

    @torch.inference_mode()
    def __call__(self, row: dict[str, Any]) -> dict[str, float]:
        """Per cent of the captions that mention an act, at the plan of a row."""
        batches = epoch_batches(len(self._manifest), SamplingGrid.parse(row["grid"]), 32)
        vectors = []
        for clip in loader(ClipDataset(self._manifest), batches):
            video = self._dual.video.normalize(clip.video)
            vectors.append(self._dual.model.embed_video(video, row["keep"], selector=row["selector"]))
        videos = torch.cat(vectors)
        figures = {}
        for act, (items, ours, theirs) in self._pairs.items():
            nearer = (videos[items] * ours).sum(1) > (videos[items] * theirs).sum(1)
            figures[act] = round(100 * nearer.float().mean().item(), 1)
        return figures


def mirrored(caption: str, act: str) -> str | None:
    """The caption of a video in which an act goes the other way: left for right, up for down, and so on.

    Only the words for that act differ. None if the caption does not mention it.
    """
    for orientation in (0, 1):
        for clause, other in zip(CLAUSES[act, orientation], CLAUSES[act, 1 - orientation], strict=True):
            words, opposite = clause.removeprefix("{it} "), other.removeprefix("{it} ")
            found = re.search(rf"\b{re.escape(words)}\b", caption)
            if found:
                return caption[: found.start()] + opposite + caption[found.end() :]
    return None


def _table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, with standard deviations."""
    lines = [
        "budget  sampling   t2v R@1       R@10          v2t R@1       left/right    up/down       near/far"
    ]
    for i, first in enumerate(rows[0]["rows"]):
        same = [row["rows"][i] for row in rows]
        columns = [
            [row["text_to_video"]["r1"] for row in same],
            [row["text_to_video"]["r10"] for row in same],
            [row["video_to_text"]["r1"] for row in same],
            *([row["opposites"][act] for row in same] for act in ACTS),
        ]
        cells = "".join(f"{_cell(column):14}" for column in columns)
        lines.append(f"{first['budget']:<8}{first['kind']:11}{cells}".rstrip())
    seconds = [row["training"]["seconds"] for row in rows]
    return "\n".join([*lines, f"training {mean(seconds):.0f} s on the clock"])


def _cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
