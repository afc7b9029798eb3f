"""How long a plan takes on the device in hand: measuring it, and remembering what was measured."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit import __version__
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Measured, Plan, fit_budget
from fluxvit.models.fluxvit import FluxViT
from fluxvit.utils.files import append_json, read_json_lines, write_json_lines
from fluxvit.utils.system import device_name, processor_name

# A warm-up ends when a pass is hardly faster than the fastest before it, or after so many times its length.
_STABLE, _MOST_WARMUPS = 0.95, 5
# Passes of a measurement, and of one that decides.
_RUNS, _FRESH_RUNS = 20, 50
# Slow plans are measured for so long, though in so many passes at least.
_SECONDS, _FEWEST_RUNS = 4.0, 5
# Of the file of measurements, before only the newest of every plan stay.
_MOST_ROWS = 5000


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward pass.

    Args:
        p10, p50, p90: Percentiles of the passes; p50, the median, is the latency.
        runs: Passes that were timed.
    """

    p10: float
    p50: float
    p90: float
    runs: int


def measure_latency(
    model: FluxViT, plan: Plan, *, batch_size: int = 1, runs: int = _RUNS, warmup: int = 3
) -> Latency:
    """Time the forward pass of a plan; arguments as for :func:`measure_latencies`."""
    return measure_latencies(model, [plan], batch_size=batch_size, runs=runs, warmup=warmup)[0]


def measure_latencies(
    model: FluxViT, plans: Sequence[Plan], *, batch_size: int = 1, runs: int = _RUNS, warmup: int = 3
) -> list[Latency]:
    """Time the forward passes of plans in turns, so that a load that comes and goes favours none of them.

    Timed is the network alone, from a batch of random pixels on the model's device and in its dtype to logits
    that are there: wall clock, the device synchronised before and after. Reading the video is not in it.

    Args:
        model: The network; it runs in eval mode, whatever mode it is in.
        plans: What to time.
        batch_size: Clips in a pass. A batch's milliseconds are told, not a clip's.
        runs: Passes of each plan; fewer, but five at least, where they would take more than four seconds.
        warmup: Untimed passes of each plan; more, up to five times as many, while they still get faster,
            but four seconds of them at most.

    Raises:
        ValueError: A number is below 1, or a plan does not fit the model.
    """
    if min(batch_size, runs, warmup) < 1:
        raise ValueError(f"batch_size {batch_size}, runs {runs} and warmup {warmup}: each must be at least 1")
    training = model.training
    model.eval()
    try:
        videos = {plan.grid: _noise(model, plan, batch_size) for plan in plans}
        timers = [partial(_pass_ms, model, plan, videos[plan.grid]) for plan in plans]
        return time_in_turns(timers, runs=runs, warmup=warmup)
    finally:
        model.train(training)


def time_in_turns(
    timers: Sequence[Callable[[], float]], *, runs: int = _RUNS, warmup: int = 3
) -> list[Latency]:
    """Time several works in turns; arguments as for :func:`measure_latencies`.

    Args:
        timers: Each does its work once, as by :func:`milliseconds`, and tells how long it took.
    """
    for timer in timers:
        _warm_up(timer, warmup)
    times: list[list[float]] = [[] for _ in timers]
    for turn in range(runs):
        for timer, spent in zip(timers, times, strict=True):
            if turn < _FEWEST_RUNS or sum(spent) < 1000 * _SECONDS:
                spent.append(timer())
    return [_latency(spent) for spent in times]


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of a work on a device, from nothing pending there to nothing pending there."""
    _wait_for(device)
    start = time.perf_counter()
    work()
    _wait_for(device)
    return 1000 * (time.perf_counter() - start)


def _noise(model: FluxViT, plan: Plan, batch_size: int) -> Tensor:
    weight = model.patch_embed.proj.weight
    shape = batch_size, model.config.in_chans, plan.grid.frames, plan.grid.height, plan.grid.width
    # Noise, because zeros draw less power, which lets some devices run faster than they ever will.
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return pixels.to(weight.device, weight.dtype)


@torch.inference_mode()
def _pass_ms(model: FluxViT, plan: Plan, video: Tensor) -> float:
    return milliseconds(lambda: model(video, plan.keep, plan.head, plan.selector), video.device)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _warm_up(timer: Callable[[], float], passes: int) -> None:
    fastest, total = float("inf"), 0.0
    for turn in range(1, passes * _MOST_WARMUPS + 1):
        spent = timer()
        total += spent
        if total > 1000 * _SECONDS or (turn >= passes and spent > _STABLE * fastest):
            break
        fastest = min(fastest, spent)


def _latency(times: list[float]) -> Latency:
    if len(times) == 1:
        return Latency(times[0], times[0], times[0], 1)
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return Latency(tenths[0], statistics.median(times), tenths[-1], len(times))


# What was measured, kept on disk ---------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where what can be computed again is kept: ``$FLUXVIT_CACHE``, else the user's cache folder."""
    if os.environ.get("FLUXVIT_CACHE"):
        return Path(os.environ["FLUXVIT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fluxvit"


class LatencyTable:
    """Latencies of a model's plans on the device that it is on, remembered between processes.

    A measurement counts only under the same :attr:`conditions` (hardware, versions, architecture, precision)
    and for the same grid, keep, head, selector and batch. The file grows by whole lines of JSON: several
    processes may write it at once, damaged lines are passed over, and where it cannot be written, nothing is
    remembered.

    Args:
        model: The network, on its device and in its dtype.
        folder: Where ``latency.jsonl`` lies, or will lie; default: :func:`cache_folder`.
    """

    def __init__(self, model: FluxViT, folder: str | Path | None = None) -> None:
        self.model = model
        self.conditions = _conditions(model)
        self._path = (cache_folder() if folder is None else Path(folder)) / "latency.jsonl"
        self._known: dict[str, Latency] = {}
        try:
            rows = read_json_lines(self._path)
            if len(rows) > _MOST_ROWS:
                write_json_lines(self._path, list({_key(row): row for row in rows}.values()))
        except OSError:
            rows = []
        for row in rows:
            try:
                p10, p50, p90 = (float(row[name]) for name in _FIGURES[:3])
                latency = Latency(p10, p50, p90, int(row["runs"]))
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if 0 < latency.p50 < float("inf"):
                self._known[_key(row)] = latency

    def get(self, plan: Plan, batch_size: int = 1) -> Latency | None:
        """What was measured last; None: nothing yet."""
        return self._known.get(_key(self._row(plan, batch_size)))

    def put(self, plan: Plan, latency: Latency, batch_size: int = 1) -> None:
        """Remember a measurement."""
        row = self._row(plan, batch_size)
        self._known[_key(row)] = latency
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_json(self._path, row | asdict(latency))
        except OSError:
            pass  # A full or read-only disk costs measuring again at the next start, nothing else.

    def measure(self, plan: Plan, batch_size: int = 1, *, fresh: bool = False) -> Latency:
        """What is remembered, else what :func:`measure_latency` says, which is remembered then.

        Args:
            fresh: Measure even if something is remembered, and longer than usual.

        Raises:
            ValueError: The plan does not fit the model.
        """
        known = None if fresh else self.get(plan, batch_size)
        if known is None:
            runs = _FRESH_RUNS if fresh else _RUNS
            known = measure_latency(self.model, plan, batch_size=batch_size, runs=runs)
            self.put(plan, known, batch_size)
        return known

    def _row(self, plan: Plan, batch_size: int) -> dict[str, Any]:
        return self.conditions | {
            "grid": str(plan.grid),
            "keep": plan.keep,
            "head": plan.head,
            "selector": plan.selector,
            "batch": batch_size,
        }


_FIGURES = tuple(field.name for field in fields(Latency))


def _key(row: dict[str, Any]) -> str:
    """What a row of the file is about: all of it but the figures."""
    return json.dumps({name: value for name, value in row.items() if name not in _FIGURES}, sort_keys=True)


def _conditions(model: FluxViT) -> dict[str, Any]:
    """What the latency of a plan depends on besides the plan."""
    weight = model.patch_embed.proj.weight
    device, precision = weight.device, str(weight.dtype).removeprefix("torch.")
    if torch.is_autocast_enabled(device.type):
        precision += f", autocast {str(torch.get_autocast_dtype(device.type)).removeprefix('torch.')}"
    if (products := torch.get_float32_matmul_precision()) != "highest":
        precision += f", {products} products"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = f"{major}.{minor}"
    else:
        capability = torch.backends.cpu.get_cpu_capability()
    architecture = json.dumps(model.config.to_dict(), sort_keys=True).encode()
    return {
        "device": device_name(device),
        "capability": capability,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "fluxvit": __version__,
        "torch": torch.__version__,
        "model": hashlib.sha256(architecture).hexdigest()[:16],
        "precision": precision,
    }


# Budgets in milliseconds -----------------------------------------------------------------------------------


def plan_for(
    model: FluxViT, budget: Budget, plans: Sequence[Plan], table: LatencyTable | None = None
) -> Plan:
    """:func:`~fluxvit.flux.plan.fit_budget` on the device that the model is on.

    Args:
        model: The network.
        budget: What a clip may cost.
        plans: Known plans.
        table: Latencies, for milliseconds; default: the user's.

    Returns:
        The plan; its ``measured`` tells the GMACs of it and, for milliseconds, the median measured last.

    Raises:
        ValueError: Not even the cheapest plan fits.
    """
    if budget.latency_ms is not None and table is None:
        table = LatencyTable(model)

    def measure_ms(plan: Plan, fresh: bool) -> float:
        assert table is not None
        return table.measure(plan, fresh=fresh).p50

    plan = fit_budget(budget, plans, model.config.size, measure_ms)
    cost = grid_cost(model.config.size, plan.grid, plan.keep, plan.selector)
    facts = replace(plan.measured or Measured(), gmacs=cost.total / 1e9)
    if table is not None and (latency := table.get(plan)) is not None:
        facts = replace(facts, latency_ms=latency.p50, device=str(table.conditions["device"]))
    return replace(plan, measured=facts)
