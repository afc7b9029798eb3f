"""How fast is a search in a database of windows, compared with usearch and LanceDB if they are installed?

Fills a database with random unit vectors, a hundred windows to a file, and asks for the ten nearest: first
with nothing in memory, as the command does, then repeatedly, as a server does, then with filters. Every
result is compared with products of all vectors in fp64.

    python benchmarks/search_speed.py --windows 100000 --dim 512
    pip install usearch lancedb   # Compares with these as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fluxvit.deploy.search.database import Filter, VideoDatabase
from fluxvit.utils.system import processor_name

COUNT, QUERIES, PER_FILE = 10, 50, 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(args.windows, args.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[rng.integers(0, args.windows, QUERIES)] + rng.normal(size=(QUERIES, args.dim)) / 20
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    truth = [set(np.argsort(-(vectors.astype(np.float64) @ query))[:COUNT].tolist()) for query in queries]
    results: dict[str, Any] = {
        "windows": args.windows,
        "dim": args.dim,
        "queries": QUERIES,
        "processor": processor_name(),
    }
    print(json.dumps(results))
    folder = Path(tempfile.mkdtemp())
    try:
        for name, measure in (("fluxvit", _ours), ("usearch", _usearch), ("lancedb", _lancedb)):
            if name == "fluxvit" or importlib.util.find_spec(name):
                row = measure(folder / name, vectors, queries, truth)
                results[name] = row
                print(name, json.dumps(row), flush=True)
    finally:
        shutil.rmtree(folder)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def _ours(path: Path, vectors: np.ndarray, queries: np.ndarray, truth: list[set[int]]) -> dict[str, float]:
    start = time.perf_counter()
    spans = [(4.0 * k, 4.0 * k + 4) for k in range(PER_FILE)]
    with VideoDatabase(path, create=True) as database:
        for first in range(0, len(vectors), PER_FILE):
            part = vectors[first : first + PER_FILE]
            database.put(f"/videos/{first // PER_FILE:06}.mp4", "", float(first), spans[: len(part)], part)
    made = time.perf_counter() - start

    def numbers(database: VideoDatabase, query: np.ndarray) -> set[int]:
        hits = database.nearest(query, COUNT)
        return {int(hit.path[8:14]) * PER_FILE + round(hit.start / 4) for hit in hits}

    with VideoDatabase(path) as database:
        cold = _milliseconds(lambda: numbers(database, queries[0]))
        found, times = _ask(lambda query: numbers(database, query), queries)
        only = Filter("/0000")
        filtered_cold = _milliseconds(lambda: database.nearest(queries[0], COUNT, only))
        filtered = [_milliseconds(partial(database.nearest, query, COUNT, only)) for query in queries]
    return {
        "seconds to write": round(made, 1),
        "MB": round(path.stat().st_size / 1e6, 1),
        "ms, nothing in memory": round(cold, 1),
        **_figures(found, times, truth),
        "ms, another filter": round(filtered_cold, 1),
        "ms, the same filter again": round(median(filtered), 2),
    }


def _usearch(path: Path, vectors: np.ndarray, queries: np.ndarray, truth: list[set[int]]) -> dict[str, float]:
    from usearch.index import Index

    start = time.perf_counter()
    index = Index(ndim=vectors.shape[1], metric="cos", dtype="f16")
    index.add(np.arange(len(vectors)), vectors)
    index.save(str(path))
    made = time.perf_counter() - start
    found, times = _ask(lambda query: set(index.search(query, COUNT).keys.tolist()), queries)
    size = round(path.stat().st_size / 1e6, 1)
    return {"seconds to write": round(made, 1), "MB": size, **_figures(found, times, truth)}


def _lancedb(path: Path, vectors: np.ndarray, queries: np.ndarray, truth: list[set[int]]) -> dict[str, float]:
    import lancedb
    import pyarrow as pa

    start = time.perf_counter()
    items = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    data = pa.table({"number": pa.array(np.arange(len(vectors))), "vector": items})
    table = lancedb.connect(str(path)).create_table("windows", data)
    made = time.perf_counter() - start

    def ask(query: np.ndarray) -> set[int]:
        rows = table.search(query).distance_type("cosine").limit(COUNT).to_list()
        return {row["number"] for row in rows}

    found, times = _ask(ask, queries)
    size = round(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6, 1)
    return {"seconds to write": round(made, 1), "MB": size, **_figures(found, times, truth)}


def _ask(ask: Callable[[np.ndarray], set[int]], queries: np.ndarray) -> tuple[list[set[int]], list[float]]:
    ask(queries[0])
    found, times = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(ask(query))
        times.append(1000 * (time.perf_counter() - start))
    return found, times


def _figures(found: list[set[int]], times: list[float], truth: list[set[int]]) -> dict[str, float]:
    right = sum(len(one & other) for one, other in zip(found, truth, strict=True)) / (COUNT * len(truth))
    ordered = sorted(times)
    return {
        "ms, median": round(median(times), 2),
        "ms, slowest of 50": round(ordered[-1], 2),
        "of the true ten found, %": round(100 * right, 1),
    }


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
