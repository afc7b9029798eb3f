"""``fluxvit info``: a model's parameters and cost, and a checkpoint's plan table."""

from __future__ import annotations

from fluxvit.checkpoints.loading import load_or_create
from fluxvit.deploy.config import InfoConfig
from fluxvit.flux.cost import NetworkSize, clip_cost, grid_cost
from fluxvit.flux.plan import Measured, Plan
from fluxvit.models.config import PRESETS
from fluxvit.utils.terminal import printable, say


def run(settings: InfoConfig) -> None:
    """Print what a model is and costs."""
    name, grid = settings.model, settings.grid
    checkpoint = load_or_create(name, "meta" if name in PRESETS else "cpu")
    model, plans = checkpoint.model, checkpoint.plans
    config = model.config
    count = sum(p.numel() for p in model.parameters())
    tables = sum(p.numel() for p in model.pos_embed.parameters())
    say(f"{name}: {config.depth} blocks, width {config.embed_dim}, {config.num_heads} heads, ", end="")
    say(f"patch {config.patch_size}, tubelet {config.tubelet_size}, {config.num_classes} classes")
    say(f"{count / 1e6:.2f} M parameters, {tables / 1e6:.2f} M of them in the position table")
    say("GMACs of one clip (papers call them GFLOPs). 'published' counts the kept tokens, as papers do;")
    say(f"'dropped' is selection and embedding the dropped tokens of {grid or 'a pool twice the budget'}.")
    say(f"{'tokens':>8} {'pool':>8} {'published':>10} {'dropped':>9} {'total':>8}")
    usual = sorted({*config.budgets, *((512,) if config.patch_size == 14 else ())})
    for budget in settings.tokens or usual:
        pool = 2 * budget if grid is None else config.pool(grid)
        if budget > pool:
            say(f"{budget:>8} {pool:>8}  (the grid has fewer tokens)")
            continue
        cost = clip_cost(config.size, budget, pool)
        published, dropped = cost.published / 1e9, cost.unpublished / 1e9
        say(f"{budget:>8} {pool:>8} {published:>10.3f} {dropped:>9.3f} {cost.total / 1e9:>8.3f}")
    if plans:
        _print_plans(plans, config.size)


def _print_plans(plans: list[Plan], size: NetworkSize) -> None:
    say("Plan table. Accuracy is measured on held-out videos, latency on the device that made the table.")
    say(f"{'tokens':>8} {'grid':>12} {'pool':>8} {'head':>5} {'accuracy':>9} {'GMACs':>8} {'ms':>8}", end="")
    say("  selector")
    for plan in sorted(plans, key=lambda plan: -plan.keep):
        known = plan.measured or Measured()
        head = "-" if plan.head is None else plan.head
        accuracy = "-" if known.accuracy is None else f"{100 * known.accuracy:.1f} %"
        gmacs = grid_cost(size, plan.grid, plan.keep, plan.selector).total / 1e9
        latency = "-" if known.latency_ms is None else f"{known.latency_ms:.3g}"
        say(f"{plan.keep:>8} {plan.grid!s:>12} {size.pool(plan.grid):>8} {head:>5} {accuracy:>9} ", end="")
        device = f" ({printable(known.device)})" if known.device else ""
        say(f"{gmacs:>8.3f} {latency:>8}  {plan.selector}{device}")
