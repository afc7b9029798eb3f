"""What does the choice of tokens gain, and what does it cost? Compares all selectors at equal K.

Two more methods are compared: `merging` (tokens are merged instead of dropped, before the first block) and
`plain` (no choice: the largest frames, and as many of them, of which K tokens are all).

    python benchmarks/compare_selectors.py CHECKPOINT [CHECKPOINT ...] --data DATA/test.jsonl --grid 32x40 \
      --budgets 50,25 --cache runs/cache --json runs/selectors.json

Checkpoints are seeds of one recipe. For one checkpoint the accuracy is printed with its 95 % interval
(Wilson), for several the mean and the standard deviation. Differences from group_dynamic are paired by clip,
with the 95 % interval over clips. Milliseconds are medians for one clip and for eight at once; all methods
take turns, so that they share the load of the machine. "choose" is the choice alone, "all" the whole forward
pass of the first checkpoint. With --json the same command goes on after the last checkpoint that was done.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.cache import FrameCache
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.evaluation.classification import number_for_checkpoint
from fluxvit.evaluation.metrics import Score
from fluxvit.evaluation.tested_plans import plain_grid
from fluxvit.flux.cost import clip_cost, grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import SELECTORS, gather_tokens
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.files import write_json
from fluxvit.utils.system import environment

MERGING, PLAIN, REFERENCE = "merging", "plain", "group_dynamic"
# Frames alone have no motion vectors: selectors_from_file.py compares codec.
METHODS = (*(name for name in SELECTORS if name not in ("codec", "learned")), MERGING, PLAIN)
BATCHES = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CHECKPOINT", help="folders, or names of the package's own")
    add("--data", required=True, help="manifest")
    add("--grid", type=SamplingGrid.parse, required=True, help="such as 32x40")
    add("--budgets", default="", help="tokens, such as 50,25; default: a quarter and an eighth of the pool")
    add("--methods", default=",".join(METHODS), help="default: all")
    add("--clips", type=int, help="take the first ones only")
    add("--cache", type=Path, help="folder for decoded frames; default: decode for every checkpoint")
    add("--cache_frames", type=int, default=32)
    add("--cache_side", type=int, default=48, help="shorter side in pixels")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--repeats", type=int, default=30, help="of each timing")
    add("--json", type=Path, help="results, with the answer to every clip")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    methods = args.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(
            f"--methods: there is no {', '.join(sorted(unknown))}; choose among {', '.join(METHODS)}"
        )
    if REFERENCE not in methods:
        parser.error(f"--methods: {REFERENCE} must be among them, since all are compared with it")
    manifest = read_manifest(args.data)
    checkpoints = [Checkpoint.load(checkpoint, args.device) for checkpoint in args.checkpoints]
    for path, checkpoint in zip(args.checkpoints, checkpoints, strict=True):
        manifest = number_for_checkpoint(str(args.data), manifest, str(path), checkpoint)
    model = checkpoints[0].model
    config = model.config
    if any(checkpoint.model.config.size != config.size for checkpoint in checkpoints):
        parser.error("the checkpoints are of different sizes; give those of one recipe at a time")
    pool = args.grid.tokens(config.patch_size, config.tubelet_size)
    budgets = [int(k) for k in args.budgets.split(",")] if args.budgets else [pool // 4, pool // 8]
    if not all(0 < budget < pool for budget in budgets):
        parser.error(
            f"--budgets {args.budgets}: choose from 1 to {pool - 1} of the {pool} tokens of {args.grid}"
        )
    setting = {
        "data": manifest.digest,
        "clips": min(len(manifest), args.clips or len(manifest)),
        "grid": str(args.grid),
        "budgets": budgets,
        "methods": methods,
    }
    result = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    if result and result["setting"] != setting:
        parser.error(f"--json {args.json}: it holds results of other settings; choose another name")
    plain = {str(budget): str(_plain(model, budget, args.grid)) for budget in budgets}
    result = {"setting": setting, "plain": plain, "runs": {}, **result}

    dataset = _dataset(args, manifest)
    for name, checkpoint in zip(args.checkpoints, checkpoints, strict=True):
        digest = checkpoint.digest()
        if digest not in result["runs"]:
            correct = _correct(checkpoint, dataset, args, setting, name)
            result["runs"][digest] = {"checkpoint": "/".join(Path(name).parts[-2:]), "correct": correct}
            if args.json:
                write_json(args.json, result)
    digests = [checkpoint.digest() for checkpoint in checkpoints]
    result["milliseconds"] = _milliseconds(model, args, setting)
    result["conditions"] = {**environment(args.device), "threads": str(args.threads)}
    if args.json:
        write_json(args.json, result)
    print("\n".join(_report(result, digests, config, args.grid)))


def _dataset(args: argparse.Namespace, manifest: Manifest) -> ClipDataset:
    if args.cache is None:
        return ClipDataset(manifest)
    return ClipDataset(manifest, FrameCache(args.cache, manifest, args.cache_frames, args.cache_side).build())


def _answers(model: FluxViT, video: Tensor, budgets: Sequence[int], method: str) -> list[Tensor]:
    """Logits at each budget. For ``plain`` the video must have the grid of its one budget."""
    if method == PLAIN:
        return [model(video).logits]
    if method == MERGING:
        embeddings, shape = model.patch_embed(video)
        (placed,) = model.add_positions(embeddings, shape, [None])
        merged = [torch.cat([placed[:, :1], merge_tokens(placed[:, 1:], k)[0]], dim=1) for k in budgets]
        return [model.forward_head(model.encode(tokens)) for tokens in merged]
    return [out.logits for out in model(video, budgets, selector=method)]


@torch.inference_mode()
def _correct(
    checkpoint: Checkpoint,
    dataset: ClipDataset,
    args: argparse.Namespace,
    setting: dict[str, Any],
    title: str,
) -> dict[str, dict[str, str]]:
    """For each method and budget a digit per clip: 1 if the prediction is right."""
    model, budgets, clips = checkpoint.model, setting["budgets"], range(setting["clips"])
    passes: list[tuple[SamplingGrid, list[int], list[str]]] = [
        (args.grid, budgets, [method for method in setting["methods"] if method != PLAIN])
    ]
    if PLAIN in setting["methods"]:
        passes += [(_plain(model, budget, args.grid), [budget], [PLAIN]) for budget in budgets]
    digits: dict[str, dict[str, str]] = {method: {} for method in setting["methods"]}
    for grid, keeps, methods in passes:
        batches = epoch_batches(len(dataset), grid, 32, clips)
        what = f"{title}, {grid}"
        for clip in _track(loader(dataset, batches, 0), what, len(batches)):
            video = checkpoint.normalize(clip.video)
            for method in methods:
                for keep, logits in zip(keeps, _answers(model, video, keeps, method), strict=True):
                    right = (logits.argmax(-1).cpu() == clip.label).int().tolist()
                    row = digits[method]
                    row[str(keep)] = row.get(str(keep), "") + "".join(map(str, right))
    return digits


def _plain(model: FluxViT, budget: int, grid: SamplingGrid) -> SamplingGrid:
    """The largest square frames, up to the grid's height, of which a tubelet or more fits into the budget."""
    config = model.config
    for size in range(grid.height, 0, -config.patch_size):
        plain = plain_grid(model, budget, size)
        if plain.tokens(config.patch_size, config.tubelet_size) <= budget:
            return plain
    raise AssertionError("one patch is one token")


@torch.inference_mode()
def _milliseconds(model: FluxViT, args: argparse.Namespace, setting: dict[str, Any]) -> dict[str, Any]:
    """Medians ``{method: {budget: {"choose": [at each batch size], "all": [at each]}}}``; None: no choice."""
    jobs: dict[tuple[str, int, str, int], Callable[[], object]] = {}
    for batch in BATCHES:
        video = _noise(model, args.grid, batch, args.device)
        embeddings, shape = model.patch_embed(video)
        patches, _ = model.patch_embed.patchify(video)
        placed = model.add_positions(embeddings, shape, [None])[0][:, 1:]
        for budget in setting["budgets"]:
            for method in setting["methods"]:
                if method == PLAIN:
                    clip = _noise(model, _plain(model, budget, args.grid), batch, args.device)
                else:
                    clip = video
                jobs[method, budget, "all", batch] = _bind(_answers, model, clip, [budget], method)
                if method == MERGING:
                    jobs[method, budget, "choose", batch] = _bind(merge_tokens, placed, budget)
                elif method != PLAIN:
                    tokens = embeddings if SELECTORS[method].reads == "embeddings" else patches
                    choose = _bind(model.select_indices, tokens, [budget], method)
                    jobs[method, budget, "choose", batch] = choose
    times: dict[tuple[str, int, str, int], list[float]] = {job: [] for job in jobs}
    for turn in _track(range(args.repeats + 2), "Timing", args.repeats + 2):
        for job, run in jobs.items():
            start = time.perf_counter()
            run()
            if args.device != "cpu":
                torch.cuda.synchronize(args.device)
            if turn >= 2:  # The first two warm up.
                times[job].append(1000 * (time.perf_counter() - start))

    def medians(method: str, budget: int, what: str) -> list[float | None]:
        rows = [times.get((method, budget, what, batch)) for batch in BATCHES]
        return [statistics.median(row) if row else None for row in rows]

    return {
        method: {
            str(budget): {what: medians(method, budget, what) for what in ("choose", "all")}
            for budget in setting["budgets"]
        }
        for method in setting["methods"]
    }


def _track(rounds: Iterable[Any], title: str, count: int) -> Iterable[Any]:
    console = Console(stderr=True)  # Standard output may go to a file.
    return track(rounds, title, count, console=console, transient=True, disable=not console.is_terminal)


def _bind(function: Callable[..., object], *given: object) -> Callable[[], object]:
    return lambda: function(*given)


def _noise(model: FluxViT, grid: SamplingGrid, batch: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, model.config.in_chans, grid.frames, grid.height, grid.width)
    return torch.randn(shape, generator=generator).to(device)


def _gmacs(config: FluxViTConfig, grid: SamplingGrid, budget: int, method: str) -> float:
    size = config.size
    pool = grid.tokens(size.patch_size, size.tubelet_size)
    if method == PLAIN:
        return clip_cost(size, budget).total / 1e9
    if method != MERGING:
        return grid_cost(size, grid, budget, method).total / 1e9
    cost = clip_cost(size, budget, pool)
    matching = 0
    while pool > budget:
        matching += (pool - pool // 2) * (pool // 2) * size.embed_dim
        pool -= min(pool - budget, pool // 2)
    return (cost.total - cost.selection + matching) / 1e9


def _report(
    result: dict[str, Any], digests: Sequence[str], config: FluxViTConfig, grid: SamplingGrid
) -> list[str]:
    setting, runs = result["setting"], [result["runs"][digest] for digest in digests]
    pool = grid.tokens(config.patch_size, config.tubelet_size)
    lines = [
        ", ".join(run["checkpoint"] for run in runs),
        f"{setting['clips']} clips (digest {setting['data']}), chance {100 / config.num_classes:.1f} %",
        "; ".join(f"{name}: {value}" for name, value in result["conditions"].items()),
    ]
    for budget in setting["budgets"]:
        lines += [
            "",
            f"{budget} of the {pool} tokens of {grid}",
            f"{'':18}{'reads':12}{'accuracy':22}{'against group_dynamic':23}"
            f"{'choose, ms':>15}{'all, ms':>15}{'GMACs':>9}",
        ]
        for method in setting["methods"]:
            marks = torch.tensor([[int(c) for c in run["correct"][method][str(budget)]] for run in runs])
            others = torch.tensor([[int(c) for c in run["correct"][REFERENCE][str(budget)]] for run in runs])
            name = f"{PLAIN}, {result['plain'][str(budget)]}" if method == PLAIN else method
            reads = SELECTORS[method].reads if method in SELECTORS else ""
            times = result["milliseconds"][method][str(budget)]
            lines.append(
                f"{name:18}{reads:12}{_accuracy(marks):22}"
                f"{'' if method == REFERENCE else _difference(marks - others):23}"
                + "".join(f"{_times(times[what]):>15}" for what in ("choose", "all"))
                + f"{_gmacs(config, grid, budget, method):9.4f}"
            )
    return lines


def _accuracy(marks: Tensor) -> str:
    """The accuracy of marks ``[checkpoints, clips]`` in words."""
    if len(marks) == 1:
        return str(Score(int(marks.sum()), marks.shape[1]))
    rows = [100 * row.double().mean().item() for row in marks]
    return f"{statistics.mean(rows):.1f} ± {statistics.stdev(rows):.1f} %"


def _difference(differences: Tensor) -> str:
    clips = 100 * differences.double().mean(0)
    if len(clips) < 2:
        return ""
    half = 1.959964 * clips.std().item() / math.sqrt(len(clips))
    return f"{clips.mean().item():+.1f} ± {half:.1f}"


def _times(pair: Sequence[float | None]) -> str:
    return "  ".join("-" if value is None else f"{value:.3g}" for value in pair)


def merge_tokens(tokens: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Merge the tokens that are most alike into their mean until ``keep`` are left.

    This is bipartite soft matching (ToMe, arXiv 2210.09461). ToMe merges a few tokens in every block; here
    everything is merged before the first block. In each round, every second token is compared with all the
    tokens in between and paired with the most similar one (largest cosine). The best pairs are merged:
    as many as there are too many tokens, but at most half. Each original token has the same weight in a mean,
    however many rounds it went through. Which tokens are compared depends on their order, so neighbours
    should lie side by side; the order is kept.

    Args:
        tokens: ``[B, N, C]`` of any float dtype, with their positions added.
        keep: Number of tokens that remain, 1 to N.

    Returns:
        The merged tokens ``[B, keep, C]`` and how many original tokens each stands for, fp32 ``[B, keep]``.
    """
    batch, count, _ = tokens.shape
    x, sizes = tokens.float(), torch.ones(batch, count, 1, device=tokens.device)
    while (count := x.shape[1]) > keep:
        merged = min(count - keep, count // 2)
        unit = F.normalize(x.detach(), dim=-1)
        # Tokens at odd indices stay, and tokens at even indices are merged into them.
        alike, nearest = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)
        leaving = alike.topk(merged, dim=1).indices
        source, target = 2 * leaving, 2 * nearest.gather(1, leaving) + 1
        stays = torch.ones(batch, count, dtype=torch.bool, device=x.device).scatter(1, source, False)
        order = stays.int().argsort(dim=1, descending=True, stable=True)[:, : count - merged]
        total = _added(x * sizes, source, target)
        sizes = _added(sizes, source, target)
        x, sizes = gather_tokens(total / sizes, order), gather_tokens(sizes, order)
    return x.to(tokens.dtype), sizes[..., 0]


def _added(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Rows ``source`` [B, M] of ``[B, N, C]`` added to rows ``target``."""
    return x.scatter_add(1, target[..., None].expand(-1, -1, x.shape[-1]), gather_tokens(x, source))


if __name__ == "__main__":
    main()
