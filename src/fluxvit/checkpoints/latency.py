"""The latency of plans on a device: measured, and kept for later processes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from fluxvit import __version__
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Measured, Plan, fit_budget
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.inference import form
from fluxvit.utils.files import append_json, read_json_lines, write_json_lines
from fluxvit.utils.schema import Count, Positive, convert
from fluxvit.utils.system import device_name, processor_name

# A warm-up ends when a pass is hardly faster than the fastest before it, or at this multiple of its length.
_STABLE, _MOST_WARMUPS = 0.95, 5
# Passes of a measurement, and of one that decides between plans.
_RUNS, _FRESH_RUNS = 20, 50
# Longest time for the passes of a slow plan, and their minimum number.
_SECONDS, _FEWEST_RUNS = 4.0, 5
# A longer file of measurements is reduced to the newest row of every plan.
_MOST_ROWS = 5000


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds of a forward pass.

    Args:
        p10, p50, p90: Percentiles of the passes; p50, the median, is the latency.
        runs: Passes that were timed.
    """

    p10: Positive
    p50: Positive
    p90: Positive
    runs: Count


def measure_latencies(
    model: FluxViT, plans: Sequence[Plan], *, batch_size: int = 1, runs: int = _RUNS, warmup: int = 3
) -> list[Latency]:
    """Time the forward passes of plans in turns, so that other load on the machine favours none of them.

    The time is that of the network alone, from a batch of random pixels on the model's device and in its
    dtype to logits, by the wall clock with the device synchronised before and after. It does not include
    reading the video.

    Args:
        model: The network; it runs in eval mode, whatever mode it is in.
        plans: The plans to time.
        batch_size: Clips in a pass. The milliseconds are those of the whole batch.
        runs: Passes of each plan; fewer, but at least five, if they take more than four seconds.
        warmup: Untimed passes of each plan; more, up to five times as many, while they still get faster,
            but no more than four seconds of them.

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
    """Time several functions in turns; other arguments as for :func:`measure_latencies`.

    Args:
        timers: Each runs once and returns its milliseconds, as :func:`milliseconds` measures them.
    """
    for timer in timers:
        _warm_up(timer, warmup)
    times: list[list[float]] = [[] for _ in timers]
    for turn in range(runs):
        for timer, spent in zip(timers, times, strict=True):
            if turn < _FEWEST_RUNS or sum(spent) < 1000 * _SECONDS:
                spent.append(timer())
    return [_latency(spent) for spent in times]


def _latency(times: list[float]) -> Latency:
    p10, p50, p90 = np.percentile(times, (10, 50, 90)).tolist()
    return Latency(p10, p50, p90, len(times))


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of a function on a device, which is idle before and after."""
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


# Measurements on disk --------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder for what can be computed again: ``$FLUXVIT_CACHE``, or one in the user's cache folder."""
    if os.environ.get("FLUXVIT_CACHE"):
        return Path(os.environ["FLUXVIT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The standard has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "fluxvit"


class LatencyTable:
    """Latencies of a model's plans on its device, kept between processes.

    A measurement counts only under the same :attr:`conditions` (hardware, versions, architecture, precision)
    and for the same grid, keep, head and selector. The file grows by whole lines of JSON, so that several
    processes can write it at once. Damaged lines are ignored, and nothing is kept if it cannot be written.

    Args:
        model: The network, on its device and in its dtype.
        folder: The folder of ``latency.jsonl``; default: :func:`cache_folder`.
    """

    def __init__(self, model: FluxViT, folder: str | Path | None = None) -> None:
        self.model = model
        self.conditions = _conditions(model)
        self._path = (cache_folder() if folder is None else Path(folder)) / "latency.jsonl"
        try:
            rows = read_json_lines(self._path, Latency)
            if len(rows) > _MOST_ROWS:
                rows = list({_key(row): row for row in rows}.values())
                write_json_lines(self._path, rows)
        except OSError:
            rows = []
        self._known = {_key(row): convert(row, Latency) for row in rows}

    def get(self, plan: Plan) -> Latency | None:
        """The last measurement; None if there is none."""
        return self._known.get(_key(self._row(plan)))

    def put(self, plan: Plan, latency: Latency) -> None:
        """Keep a measurement."""
        row = self._row(plan)
        self._known[_key(row)] = latency
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_json(self._path, row | msgspec.structs.asdict(latency))
        except OSError:
            pass  # A full or read-only disk costs measuring again at the next start, nothing else.

    def measure(self, plan: Plan, *, fresh: bool = False) -> Latency:
        """The last measurement, or a new one by :func:`measure_latencies`, which is kept.

        Args:
            fresh: Measure even if there is a measurement, and longer than usual.

        Raises:
            ValueError: The plan does not fit the model.
        """
        known = None if fresh else self.get(plan)
        if known is None:
            (known,) = measure_latencies(self.model, [plan], runs=_FRESH_RUNS if fresh else _RUNS)
            self.put(plan, known)
        return known

    def _row(self, plan: Plan) -> dict[str, Any]:
        return self.conditions | {
            "grid": str(plan.grid),
            "keep": plan.keep,
            "head": plan.head,
            "selector": plan.selector,
            "batch": 1,
        }


def _key(row: dict[str, Any]) -> str:
    """Everything in a row of the file except its figures."""
    return json.dumps(
        {name: value for name, value in row.items() if name not in Latency.__struct_fields__}, sort_keys=True
    )


def _conditions(model: FluxViT) -> dict[str, Any]:
    """Everything that the latency of a plan depends on besides the plan."""
    weight = model.patch_embed.proj.weight
    device, precision = weight.device, str(weight.dtype).removeprefix("torch.")
    if (kind := form(model)) != "plain":
        precision += f", {kind}"
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
        table: Latencies for budgets in milliseconds; default: the user's table.

    Returns:
        The plan; its ``measured`` has its GMACs and, for budgets in milliseconds, the last median.

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
