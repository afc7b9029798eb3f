"""The engine of bulk jobs on a Ray cluster: tasks decode parts on CPUs, and actors run the network.

Ray Data streams the parts, and starts no more of them than its object store holds.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from fluxvit.deploy.bulk.config import BulkOptions
from fluxvit.deploy.bulk.decoding import Part, Sampler, decode
from fluxvit.deploy.bulk.network import Network, Result
from fluxvit.flux.plan import Plan

# Longest time that a cluster may take to answer, in seconds.
_REACH_S = 10.0


class RayEngine:
    """Runs a job on a Ray cluster, whose machines must have this package and see the videos.

    Args:
        config: The options of the job.
        plan: How the budget is spent; see :class:`~fluxvit.deploy.bulk.network.Network`.

    Raises:
        ValueError: The cluster cannot be reached or is too small, or the checkpoint cannot be used.
    """

    def __init__(self, config: BulkOptions, plan: Plan | None) -> None:
        folder = Path(config.checkpoint)
        # Workers have a folder of their own.
        self._config = replace(config, checkpoint=str(folder.resolve() if folder.exists() else folder))
        _connect(config.address)
        resources = ray.cluster_resources()
        gpus = 0 if config.device == "cpu" else int(resources.get("GPU", 0))
        cpus = int(resources.get("CPU", 0))
        self._models = config.models or gpus or max(1, cpus // 2)
        self._gpus = min(gpus, 1)
        if self._models > (gpus or cpus - 1) or cpus < 1:
            raise ValueError(
                f"--models {self._models}: the Ray cluster has {cpus} CPUs and {gpus} GPUs; each model takes "
                "a GPU, or else a CPU, and decoding takes at least one CPU"
            )
        describe = ray.remote(num_cpus=1, num_gpus=self._gpus)(_describe)
        try:
            self.settings, self._sampler = ray.get(describe.remote(self._config, plan))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def run(self, parts: Sequence[Part]) -> Iterator[Result]:
        """The results of parts, in any order."""
        if not parts:
            return
        data, grids = cast(Any, ray.data), [plan.grid for plan in self._sampler.plans]
        # A row is a part: rows are never cut.
        packed = [{"part": pickle.dumps(part)} for part in parts]
        decoded = data.from_items(packed, override_num_blocks=len(packed)).map(
            _decode,
            fn_args=(self._sampler,),
            compute=TaskPoolStrategy(self._config.workers),
            num_cpus=1,
            # Frames and their copy. If tasks asked for the same as the actors, Ray would run them there.
            memory=2 * self._config.part * max(3 * g.frames * g.height * g.width for g in grids),
        )
        results = decoded.map(
            _Model,
            fn_constructor_args=(self._config, self._sampler.plan, self.settings),
            compute=ActorPoolStrategy(size=self._models),
            num_cpus=1 - self._gpus,
            num_gpus=self._gpus,
        )
        for row in results.iter_rows():
            yield pickle.loads(row["result"])


def _connect(address: str) -> None:
    """Connect to a cluster, or start one on this machine, unless the process has one already."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself waits for minutes.
            socket.create_connection((host, int(port)), timeout=_REACH_S).close()
        ray.init(
            address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"--address {address}: no Ray cluster answers there ({error})") from None


def _describe(config: BulkOptions, plan: Plan | None) -> tuple[dict[str, Any], Sampler]:
    """The settings and the sampler of a network as the machines of the cluster load it."""
    network = Network(config, plan)
    return network.settings, network.sampler


def _decode(row: dict[str, bytes], sampler: Sampler) -> dict[str, bytes]:
    return {"decoded": pickle.dumps(decode(pickle.loads(row["part"]), sampler))}


class _Model:
    """The network in a process of its own."""

    def __init__(self, config: BulkOptions, plan: Plan | None, settings: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._network = Network(config, plan)
        if self._network.settings != settings:
            raise ValueError(
                f"machines of the cluster would run different networks, {self._network.settings} and "
                f"{settings}; give --precision fp32, and the same checkpoint to all"
            )

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"result": pickle.dumps(self._network(pickle.loads(row["decoded"])))}
