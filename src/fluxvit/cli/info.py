"""``fluxvit info``: a model's parameters and cost, and a checkpoint's plan table."""

from __future__ import annotations

from pathlib import Path

import torch

from fluxvit.checkpoints.checkpoint import Checkpoint, pretrained_names
from fluxvit.deploy.config import InfoConfig
from fluxvit.flux.cost import NetworkSize, clip_cost, grid_cost
from fluxvit.flux.plan import Measured, Plan
from fluxvit.models.config import PRESETS
from fluxvit.models.fluxvit import create_model
from fluxvit.utils.terminal import printable, say


def run(settings: InfoConfig) -> None:
    """Print what a model is and costs."""
    model, grid = settings.model, settings.grid
    plans: list[Plan] = []
    if model in PRESETS:
        with torch.device("meta"):
            network = create_model(model)
    elif Path(model).exists() or model in pretrained_names():
        checkpoint = Checkpoint.load(model)
        network, plans = checkpoint.model, checkpoint.plans
    else:
        names = ", ".join([*PRESETS, *pretrained_names()])
        raise ValueError(f"{model} is neither a checkpoint folder nor one of {names}")
    config = network.config
    usual = sorted({*config.budgets, *((512,) if config.patch_size == 14 else ())})
    budgets = settings.tokens or usual
    pool = None if grid is None else config.pool(grid)
    count = sum(p.numel() for p in network.parameters())
    tables = sum(p.numel() for p in network.pos_embed.parameters())
    say(f"{model}: {config.depth} blocks, width {config.embed_dim}, {config.num_heads} heads, ", end="")
    say(f"patch {config.patch_size}, tubelet {config.tubelet_size}, {config.num_classes} classes")
    say(f"parameters {count / 1e6:.2f} M (of these {tables / 1e6:.2f} M positions)")
    say("GMACs of one clip (papers write GFLOPs); 'published' is what the paper counts, kept tokens only;")
    say(f"'left out' is embedding the dropped tokens of {grid or 'a pool twice the budget'} and selection")
    say(f"{'tokens':>8} {'pool':>8} {'published':>10} {'left out':>9} {'total':>8}")
    for budget in budgets:
        sampled = 2 * budget if pool is None else pool
        if budget > sampled:
            say(f"{budget:>8} {sampled:>8}  (the grid has fewer tokens)")
            continue
        cost = clip_cost(config.size, budget, sampled)
        row = (cost.published, cost.unpublished, cost.total)
        say(f"{budget:>8} {sampled:>8} {row[0] / 1e9:>10.3f} {row[1] / 1e9:>9.3f} {row[2] / 1e9:>8.3f}")
    if plans:
        _print_plans(plans, config.size)


def _print_plans(plans: list[Plan], size: NetworkSize) -> None:
    say("its plan table; accuracy on held-out data, latency where it was measured")
    say(
        f"{'tokens':>8} {'grid':>12} {'pool':>8} {'head':>5} {'accuracy':>9} {'GMACs':>8} {'ms':>8}  selector"
    )
    for plan in sorted(plans, key=lambda plan: -plan.keep):
        known = plan.measured or Measured()
        cells = [
            f"{plan.keep:>8} {plan.grid!s:>12} {size.pool(plan.grid):>8}",
            f"{'-' if plan.head is None else plan.head:>5}",
            f"{'-' if known.accuracy is None else f'{100 * known.accuracy:.1f} %':>9}",
            f"{grid_cost(size, plan.grid, plan.keep, plan.selector).total / 1e9:>8.3f}",
            f"{'-' if known.latency_ms is None else f'{known.latency_ms:.3g}':>8}",
            f" {plan.selector}{f' ({printable(known.device)})' if known.device else ''}",
        ]
        say(" ".join(cells))
