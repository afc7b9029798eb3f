"""``fluxvit label`` and ``fluxvit embed``: tables of many videos, which continue after an interruption.

The folder holds ``rows/part-000000.parquet`` and so on; for parts with videos that cannot be read
``damaged/part-000000.parquet``; and the settings of the job, ``job.json``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fluxvit.deploy.bulk.config import BulkOptions, LabelConfig
from fluxvit.deploy.bulk.decoding import Decoded, Part, decode
from fluxvit.deploy.bulk.inputs import list_digest, list_inputs
from fluxvit.deploy.bulk.network import Network, Result, one_thread
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.utils.ahead import map_ahead
from fluxvit.utils.files import atomic_folder, atomic_path, lock_folder, write_json
from fluxvit.utils.progress import report
from fluxvit.utils.schema import read
from fluxvit.utils.system import log_device, usable_cores
from fluxvit.utils.terminal import say

SETTINGS, ROWS, DAMAGED, LANCE = "job.json", "rows", "damaged", "rows.lance"
_FORMAT = "fluxvit bulk 1"
_MOST_WORKERS = 16


class LocalEngine:
    """Decodes parts in threads, and runs copies of the network in others meanwhile.

    Args:
        config: The options of the job.
        plan: How the budget is spent; see :class:`~fluxvit.deploy.bulk.network.Network`.
    """

    def __init__(self, config: BulkOptions, plan: Plan | None) -> None:
        self._network = Network(config, plan)
        self._config, self._plan = config, self._network.sampler.plan
        self.settings, device = self._network.settings, self._network.device
        cores = min(usable_cores(), _MOST_WORKERS)
        self._workers = config.workers or cores
        self._models = config.models or (max(1, cores // 2) if device.type == "cpu" else 1)
        log_device(device)

    def run(self, parts: Sequence[Part]) -> Iterator[Result]:
        """The results of parts, in any order."""
        first = self._network
        networks = SimpleQueue[Network]()
        for number in range(min(self._models, len(parts))):
            networks.put(Network(self._config, self._plan) if number else first)

        def run(decoded: Decoded) -> Result:
            network = networks.get()
            try:
                return network(decoded)
            finally:
                networks.put(network)

        read = partial(decode, sampler=first.sampler)
        return map_ahead(run, map_ahead(read, parts, self._workers), self._models)


def run_bulk(config: BulkOptions) -> int:
    """Label or embed videos; the exit code is 2 if some of them cannot be read.

    Parts that are there already are left out, so that an interrupted run continues.

    Raises:
        ValueError: The inputs, the checkpoint or an option cannot be used, a package is missing, or the
            folder holds the results of other settings.
    """
    _check_packages(config)
    items, out = list_inputs(config.inputs), Path(config.out)
    parts = [Part(n, items[at : at + config.part]) for n, at in enumerate(range(0, len(items), config.part))]
    requested = {
        "format": _FORMAT,
        "command": "label" if isinstance(config, LabelConfig) else "embed",
        "videos": list_digest(items),
        "budget": config.budget and str(config.budget),
        "grid": config.grid and str(config.grid),
        "part": config.part,
        "batch": config.batch,
        "top": config.top if isinstance(config, LabelConfig) else None,
    }
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out), one_thread():
        path = out / SETTINGS
        former = read(path, dict[str, Any]) if path.exists() else None
        _compare(out, former, requested)
        engine = _engine(config, _plan(former) if former else None)
        settings = requested | engine.settings
        _compare(out, former, settings)
        if former is None:
            write_json(path, settings)
        todo = [part for part in parts if not _is_done(out, part.number, config.retry)]
        busy = [0.0, 0.0]
        start = time.perf_counter()
        with report("Videos", len(items), len(items) - sum(len(part.items) for part in todo)) as advance:
            for result in engine.run(todo):
                _write(out, result)
                busy = [busy[0] + result.decode_s, busy[1] + result.network_s]
                advance(len(result.rows) + len(result.damaged))
        wall = time.perf_counter() - start
        rows, damaged = (_count(out / folder, parts) for folder in (ROWS, DAMAGED))
        if config.format == "lance":
            _write_lance(out, parts)
    say(f"wrote   {out}: {rows} videos in {len(parts)} parts, {len(parts) - len(todo)} were there already")
    if todo:
        say(f"busy    decoding {busy[0]:.1f} s, network {busy[1]:.1f} s, together in {wall:.1f} s")
    if damaged:
        say(f"fluxvit: {damaged} videos cannot be read; {out / DAMAGED} says why", error=True)
    return 2 if damaged else 0


def _check_packages(config: BulkOptions) -> None:
    needed = {"pyarrow": "bulk"}
    needed |= {"ray": "ray"} if config.engine == "ray" else {}
    needed |= {"lance": "lance"} if config.format == "lance" else {}
    for package, extra in needed.items():
        if find_spec(package) is None:
            raise ValueError(f"this needs {package}: pip install 'fluxvit[{extra}]'")


def _engine(config: BulkOptions, plan: Plan | None) -> Any:
    if config.engine == "local":
        return LocalEngine(config, plan)
    from fluxvit.deploy.bulk.on_ray import RayEngine

    return RayEngine(config, plan)


def _plan(settings: dict[str, Any]) -> Plan | None:
    """The plan of an earlier run: a budget in milliseconds may lead to another one if measured again."""
    plan = settings.get("plan")
    return Plan(**plan | {"grid": SamplingGrid.parse(plan["grid"])}) if plan else None


def _compare(out: Path, former: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Raise a ValueError if the settings of an earlier run are others."""
    changed = [name for name in settings if former is not None and former.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"{out} holds results of other settings ({', '.join(changed)}); choose another --out"
        )


# Files ----------------------------------------------------------------------------------------------------


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _is_done(out: Path, number: int, retry: bool) -> bool:
    return _file(out / ROWS, number).exists() and not (retry and _file(out / DAMAGED, number).exists())


def _write(out: Path, result: Result) -> None:
    from pyarrow import parquet

    damaged = _file(out / DAMAGED, result.number)
    if result.damaged.num_rows == 0:
        damaged.unlink(missing_ok=True)
    # The rows come last: when they are there, the part is done.
    for path, table in ((damaged, result.damaged), (_file(out / ROWS, result.number), result.rows)):
        if table is result.rows or table.num_rows:
            with atomic_path(path) as partial_file:
                parquet.write_table(table, partial_file, compression="zstd")


def _count(folder: Path, parts: Sequence[Part]) -> int:
    from pyarrow import parquet

    files = (_file(folder, part.number) for part in parts)
    return sum(parquet.read_metadata(file).num_rows for file in files if file.exists())


def _write_lance(out: Path, parts: Sequence[Part]) -> None:
    """Write the rows of all parts as one Lance table, in the order of the videos."""
    import lance
    import pyarrow as pa
    from pyarrow import parquet

    files = [_file(out / ROWS, part.number) for part in parts]
    batches = (batch for file in files for batch in parquet.read_table(file).to_batches())
    schema = parquet.read_schema(files[0])
    with atomic_folder(out / LANCE) as folder:
        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(folder), mode="overwrite")
