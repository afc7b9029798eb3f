"""Which parts of the method pay, on a CPU? The paper's tables 2, 3 and 5, small.

Each way trains a nano model on a MotionWorld without one thing:

    all          Flux-Multi with alignment; GLPE and DPN
    no_glpe      plain positions: no affine of the position table, no positions in the values (table 3)
    no_dpn       no norms around the patch embedding (table 3)
    neither      neither GLPE nor DPN
    no_align     the smaller budgets are not aligned with the largest (table 5)
    one_budget   trained at the largest budget alone, Flux-Single (table 5)

Every model is tested at all budgets with four groups of frames in the selector, and `all` also with
two groups, with one, and with random tokens (table 2).

    python benchmarks/ablations.py --train mw/train.jsonl --test mw/test.jsonl --seeds 0,1

trains from nothing, as ``configs/motionworld_nano.yaml`` does.

    python benchmarks/ablations.py --train mw/train.jsonl --test mw/test.jsonl --init fixed-0 fixed-1 \
      --grid 32x64 --budgets 512,256,128 --tested 512,256,128,64 --align_weight 128

tunes trained checkpoints, one of each seed, as the paper adds GLPE and DPN to a ViT that was trained without
them. Both are taken out of the checkpoint, which is then trained on all tokens of the test grid until it does
without them (``--plain_clips``). From there every way adds what it has: GLPE at its initial values, and DPN
with the weights that keep the mean size of what it normalises. Grids are those of `headline.py`.

Each finished run is kept in ``--out``; an interrupted command goes on where it stopped when it is repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.deploy.predictor import Predictor
from fluxvit.evaluation.classification import predict_plans
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.config import FluxViTConfig
from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.config import ModelSettings, NetworkSettings, TrainConfig
from fluxvit.training.logs import LOG
from fluxvit.training.recipes import Recipe
from fluxvit.training.runs.train import train_recipe
from fluxvit.utils.distributed import join_world
from fluxvit.utils.files import read_json_lines, write_json
from fluxvit.utils.terminal import table
from headline import recipe as tuning_recipe
from plateau import DENSE, leaves_after, short_recipe
from trained_selectors import accuracy, difference


@dataclass(frozen=True)
class Way:
    glpe: bool = True
    dpn: bool = True
    align: bool = True
    one_budget: bool = False


WAYS = {
    "all": Way(),
    "no_glpe": Way(glpe=False),
    "no_dpn": Way(dpn=False),
    "neither": Way(glpe=False, dpn=False),
    "no_align": Way(align=False),
    "one_budget": Way(one_budget=True),
}
FOUR = "group_dynamic"
GROUPS = {FOUR: "4", "group_dynamic_2": "2", "dynamic": "1", "random": "random"}
PARTS = [
    ("GLPE", "all", "no_glpe"),
    ("GLPE", "no_dpn", "neither"),
    ("DPN", "all", "no_dpn"),
    ("DPN", "no_glpe", "neither"),
    ("both", "all", "neither"),
    ("alignment", "all", "no_align"),
    ("three budgets", "no_align", "one_budget"),
    ("three budgets and alignment", "all", "one_budget"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", required=True, help="manifest")
    add("--test", required=True, help="manifest")
    add("--out", type=Path, default=Path("runs/ablations"))
    add("--ways", default=",".join(WAYS))
    add("--seeds", default="0,1")
    add("--init", nargs="*", metavar="CHECKPOINT", help="one of each seed; default: from nothing")
    add("--plain_clips", type=int, default=2400, help="without GLPE and DPN, before the ways part")
    add("--clips", type=int, default=12_000, help="training clips of a run")
    add("--budgets", default="100,50,25", help="tokens that are kept, largest first")
    add("--tested", default="", help="tokens; default: the budgets")
    add("--grid", type=SamplingGrid.parse, default="64x24", help="of the test")
    add("--lr", type=float, default=3e-4)
    add("--align_weight", type=float, default=16.0)
    add("--batch_size", type=int, default=32)
    add("--precision", default="auto", help="fp32, bf16 or auto")
    args = parser.parse_args()
    seeds = list(map(int, args.seeds.split(",")))
    if args.init and len(args.init) != len(seeds):
        parser.error("--init: give one checkpoint for every seed")
    results = []
    for place, seed in enumerate(seeds):
        for way in args.ways.split(","):
            results.append(run(args, way, seed, args.init and args.init[place]))
            print(json.dumps({**results[-1], "marks": {}}), flush=True)
    print(*report(results), sep="\n")
    print(f"fluxvit {__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")


def run(args: argparse.Namespace, name: str, seed: int, init: str | None) -> dict[str, Any]:
    """Train and test one way, unless that is done already.

    Its ``marks`` have a digit for each test clip, by selector and tokens: 1 if the prediction is right.
    """
    out = args.out / f"{name}-{seed}"
    done = out / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    way, budgets = WAYS[name], tuple(map(int, args.budgets.split(",")))
    train, test = read_manifest(args.train), ClipDataset(read_manifest(args.test))
    trained = budgets[:1] if way.one_budget else budgets
    if init:
        if not (out / "start").exists():
            plain = plain_start(args, train, init, seed, budgets)
            with_parts(plain, way, train, args.grid).save(out / "start")
        start = Checkpoint.load(out / "start")
        first = [Plan(args.grid, budgets[0])]
        before = predict_plans(start.prepared(), test, first, indices=range(min(len(test), 300)))[0].score
        recipe = tuning(args, train, str(out / "start"), "multi", seed, trained, args.clips)
    else:
        before = None
        settings = NetworkSettings(
            budgets=trained, dual_patch_norm=way.dpn, global_position=way.glpe, local_position=way.glpe
        )
        model = ModelSettings("fluxvit_nano", settings=settings, weights="motion")
        recipe = short_recipe(args, out, len(train), model, DENSE, TrainConfig(lr=args.lr, seed=seed))
    align = args.align_weight if way.align and not way.one_budget else 0.0
    recipe = replace(recipe, out=str(out), task=replace(recipe.task, align_weight=align))
    checkpoint = Checkpoint.load(train_recipe(recipe, join_world(), progress=False))
    tested = tuple(map(int, (args.tested or args.budgets).split(",")))
    # Without a choice of tokens all selectors are equal.
    pool, others = checkpoint.pool(args.grid), list(GROUPS) if name == "all" else [FOUR]
    used = [(selector, b) for selector in others for b in tested if b < pool or selector == FOUR]
    torch.manual_seed(seed)  # Of random tokens.
    plans = [Plan(args.grid, b, selector=selector) for selector, b in used]
    marks = {
        f"{selector} {b}": "".join(str(int(right)) for right in found.logits.argmax(-1) == found.labels)
        for (selector, b), found in zip(used, predict_plans(checkpoint.prepared(), test, plans), strict=True)
    }
    rows = [row for row in read_json_lines(out / LOG) if f"accuracy@{budgets[0]}" in row]
    left = leaves_after([row[f"accuracy@{budgets[0]}"] for row in rows], 2 / checkpoint.model.num_classes)
    result = {
        "way": name,
        "seed": seed,
        "before": before and f"{100 * before.accuracy:.1f}",
        "clips": None if init or left is None else left * args.batch_size,
        "tested": tested,
        "marks": marks,
    }
    write_json(done, result)
    return result


# From a checkpoint -----------------------------------------------------------------------------------------


def tuning(
    args: argparse.Namespace,
    train: Manifest,
    init: str,
    kind: str,
    seed: int,
    budgets: tuple[int, ...],
    clips: int,
) -> Recipe:
    """The recipe of `headline.py` for this number of clips."""
    own = {"init": init, "data": Path(args.train).parent, "epochs": clips / len(train), "workers": 0}
    usual = tuning_recipe(argparse.Namespace(**{**vars(args), **own}), kind, seed, budgets)
    return replace(
        usual,
        data=replace(usual.data, train=args.train, val=""),
        optim=replace(usual.optim, precision=args.precision),
    )


def plain_start(
    args: argparse.Namespace, train: Manifest, init: str, seed: int, budgets: tuple[int, ...]
) -> Checkpoint:
    """A checkpoint without GLPE and DPN, trained until it does without them; the start of every way."""
    out = args.out / f"plain-{seed}"
    if not (out / "start").exists():
        stripped(Checkpoint.load(init), train, args.grid).save(out / "start")
    recipe = tuning(args, train, str(out / "start"), "fixed", seed, budgets, args.plain_clips)
    return Checkpoint.load(train_recipe(replace(recipe, out=str(out)), join_world(), progress=False))


@torch.no_grad()
def stripped(checkpoint: Checkpoint, train: Manifest, grid: SamplingGrid) -> Checkpoint:
    """Take out GLPE and DPN. Other weights take over what they do in the mean, but for the values that LPE
    adds to the output of attention, which are lost.
    """
    model: Any = checkpoint.model  # Its parts are known at run time only.
    pixels, embeddings = typical_sizes(checkpoint, train, grid)
    embed, table = model.patch_embed, model.pos_embed
    out = embed.norm.weight / embeddings
    embed.proj.weight.mul_(embed.norm_before.weight / pixels * out[:, None])
    embed.proj.bias.mul_(out)
    table.grid.mul_(table.scale).add_(table.shift)
    for block in model.blocks:
        block.attn.proj.bias.add_(block.attn.proj.weight @ block.attn.local_shift)
    plain = rebuilt(model, dual_patch_norm=False, global_position=False, local_position=False)
    return replace(checkpoint, model=plain)


@torch.no_grad()
def with_parts(checkpoint: Checkpoint, way: Way, train: Manifest, grid: SamplingGrid) -> Checkpoint:
    """Add the parts that a way has."""
    pixels, embeddings = typical_sizes(checkpoint, train, grid)
    model: Any = rebuilt(
        checkpoint.model, dual_patch_norm=way.dpn, global_position=way.glpe, local_position=way.glpe
    )
    if way.dpn:
        model.patch_embed.norm_before.weight.fill_(pixels)
        model.patch_embed.norm.weight.fill_(embeddings)
    return replace(checkpoint, model=model)


def rebuilt(model: FluxViT, **settings: bool) -> FluxViT:
    """The network with other settings, and the weights of all that it still has."""
    other = FluxViT(FluxViTConfig.from_dict({**model.config.to_dict(), **settings}))
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def typical_sizes(checkpoint: Checkpoint, train: Manifest, grid: SamplingGrid) -> tuple[Tensor, Tensor]:
    """The mean RMS of the pixels of a tubelet and of its embedding, on a few training clips."""
    read: Any = Predictor(checkpoint, checkpoint.pool(grid), grid=grid).sample
    embed: Any = checkpoint.model.patch_embed
    clips = [checkpoint.clip(read(one.path, [grid]).frames[grid], grid) for one in train.entries[:32]]
    patches, _ = embed.patchify(torch.cat(clips))
    return _rms(patches), _rms(embed.proj(embed.norm_before(patches)))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt().mean()


# Report ----------------------------------------------------------------------------------------------------


def right(results: list[dict[str, Any]], way: str, selector: str, tokens: int) -> Tensor:
    """``[seeds, clips]``, 1 where the prediction is right."""
    rows = [run["marks"] for run in results if run["way"] == way]
    each = [row.get(f"{selector} {tokens}") or row[f"{FOUR} {tokens}"] for row in rows]
    return torch.tensor([[int(digit) for digit in row] for row in each], dtype=torch.float64)


def report(results: list[dict[str, Any]]) -> Iterable[str]:
    """Accuracies, and what each part adds, paired by clip, with its 95 % interval over the clips."""
    tested, ways = results[0]["tested"], list(dict.fromkeys(run["way"] for run in results))
    heads = [f"{b} tokens" for b in tested]
    from_nothing = results[0]["before"] is None
    rows = [["way", "left chance after clips" if from_nothing else "before, %", "groups", *heads]]
    for way in ways:
        own = [run for run in results if run["way"] == way]
        start = " ".join(run["before"] or str(run["clips"] or "never") for run in own)
        for selector, groups in GROUPS.items() if way == "all" else [(FOUR, GROUPS[FOUR])]:
            cells = [accuracy(right(results, way, selector, b)) for b in tested]
            rows.append([way, start, groups, *cells])
    yield from table(rows)
    yield ""
    rows = [["difference in points, each seed", *heads]]
    for part, one, other in PARTS:
        if one in ways and other in ways:
            pairs = [(right(results, one, FOUR, b), right(results, other, FOUR, b)) for b in tested]
            rows.append([f"{part}: {one} over {other}", *(difference(*pair) for pair in pairs)])
    for selector in list(GROUPS)[1:] if "all" in ways else []:
        pairs = [(right(results, "all", FOUR, b), right(results, "all", selector, b)) for b in tested]
        rows.append([f"all: four groups over {GROUPS[selector]}", *(difference(*pair) for pair in pairs)])
    yield from table(rows)


if __name__ == "__main__":
    main()
