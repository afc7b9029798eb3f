"""How fast does the loader deliver augmented training clips, compared with decoding alone?

Makes H.264 videos like a copy of Kinetics (340x256, 10 seconds) and measures several times, in turns:
decoding alone in one and in two processes (`open_video` and `read` at the times of training clips), and the
loader with two workers, which decodes the same frames, crops, resizes, augments and collates batches. The
loader is measured with the default augmentation (random resized crop) and with that of configs/k400.yaml.

Rates are medians over the turns. A ratio is the median of the ratios within each turn, so that a change of
the machine's load affects both sides. Starting processes is not timed. The same ratio of processor time for a
clip is also printed: other work on the machine hardly changes it, but it excludes the receiving process and
any waiting.

    python benchmarks/loader_throughput.py --out benchmarks/results/loader_throughput.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from fluxvit.data.dataset import Augmentation, Clip, ClipDataset, ClipRequest
from fluxvit.data.loader import loader
from fluxvit.data.manifest import Entry, Manifest
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.files import write_json
from fluxvit.utils.system import usable_cores
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times
from fluxvit.video.writer import write_video

WIDTH, HEIGHT, SECONDS = 340, 256, 10
AUGMENTATIONS = {
    "default": Augmentation(),
    # As in configs/k400.yaml.
    "k400": Augmentation(
        crop_scale=(0.08, 1.0), flip=0.5, rand_augment="rand-m7-n4-mstd0.5-inc1", erase=0.25
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--gops", default="8,250", help="frames between key frames; FFmpeg's default is 250")
    parser.add_argument("--frames", default="8,24")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--clips", type=int, default=96, help="of each measurement")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    conditions = {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "torch": torch.__version__,
        "pyav": av.__version__,
        "python": platform.python_version(),
        "load_before": [round(x, 1) for x in _load()],
        **{name: value for name, value in vars(args).items() if name != "out"},
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for gop in map(int, args.gops.split(",")):
            manifest, kilobits = make_videos(Path(folder) / str(gop), args.videos, gop)
            for frames in map(int, args.frames.split(",")):
                grid = SamplingGrid(frames, args.size, args.size)
                row = measure(manifest, grid, args.clips, args.batch, args.workers, args.repeats)
                rows.append({"gop": gop, "kilobits_per_second": kilobits, "grid": str(grid), **row})
                _print_row(rows[-1], args.workers)
    conditions["load_after"] = [round(x, 1) for x in _load()]
    print("; ".join(f"{name} {value}" for name, value in conditions.items()))
    if args.out is not None:
        write_json(args.out, {"conditions": conditions, "rows": rows})


def make_videos(folder: Path, count: int, gop: int) -> tuple[Manifest, int]:
    """Videos of a panning textured scene with moving objects and sensor noise, and their mean kbit/s."""
    entries = []
    for n in range(count):
        path = folder / f"{n}.mp4"
        fps = (25, 30)[n % 2]
        write_video(path, _scene(np.random.default_rng(n), SECONDS * fps), fps, gop=gop)
        entries.append(Entry(path, 0))
    bits = 8 * sum(entry.path.stat().st_size for entry in entries)
    return Manifest(tuple(entries), ("x",), "benchmark"), round(bits / (1000 * SECONDS * count))


def _scene(rng: np.random.Generator, frames: int) -> Iterator[np.ndarray]:
    def texture(height: int, width: int) -> np.ndarray:
        layers = [
            np.kron(rng.normal(0, 18, (-(-height // s), -(-width // s), 3)), np.ones((s, s, 1)))[
                :height, :width
            ]
            for s in (2, 8, 32)
        ]
        return 128 + np.sum(layers, axis=0)

    scene = texture(HEIGHT + 120, WIDTH + 120)
    things = [(texture(64, 48), rng.uniform(-4, 4, 2), rng.uniform(0, 180, 2)) for _ in range(4)]
    noise = rng.normal(0, 3, (8, HEIGHT, WIDTH, 1))
    pan = rng.uniform(1, 5)
    for t in range(frames):
        top, left = (int(60 + 59 * f(t * pan / 60)) for f in (np.sin, np.cos))
        image = scene[top : top + HEIGHT, left : left + WIDTH] + noise[t % 8]
        for thing, speed, start in things:
            y, x = ((start + t * speed) % (HEIGHT - 64, WIDTH - 48)).astype(int)
            image[y : y + 64, x : x + 48] = thing
        yield image.clip(0, 255).astype(np.uint8)


def measure(
    manifest: Manifest, grid: SamplingGrid, clips: int, batch: int, workers: int, repeats: int
) -> dict[str, object]:
    """Clips per second of every way of reading, taken in turns, and ratios to the bare reader."""
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for repeat in range(repeats):
        requests = [ClipRequest(n % len(manifest), grid, (repeat, n)) for n in range(clips)]
        ways: dict[str, Callable[[list[ClipRequest]], float]] = {
            "bare 1": lambda r: bare_rate(manifest, r, 1),
            f"bare {workers}": lambda r: bare_rate(manifest, r, workers),
        }
        for name, augmentation in AUGMENTATIONS.items():
            data = _Clips(manifest, augmentation=augmentation)
            ways[f"loader {name}"] = partial(loader_rate, data, batch=batch, workers=workers)
        # The order alternates, so that a rising or falling load favours none.
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            start = _children_seconds()
            ways[name]([])
            middle = _children_seconds()
            rates.setdefault(name, []).append(ways[name](requests))
            # The cost of starting and ending the processes is subtracted.
            cost = _children_seconds() - middle - (middle - start)
            costs.setdefault(name, []).append(cost / clips)

    def ratios(values: dict[str, list[float]]) -> dict[str, float]:
        bare = values[f"bare {workers}"]
        pairs = {name: zip(values[f"loader {name}"], bare, strict=True) for name in AUGMENTATIONS}
        return {name: round(statistics.median(a / b for a, b in pair), 3) for name, pair in pairs.items()}

    return {
        "clips_per_second": {name: round(statistics.median(r), 2) for name, r in rates.items()},
        "range": {name: [round(min(r), 2), round(max(r), 2)] for name, r in rates.items()},
        "ratio_to_bare": ratios(rates),
        "processor_ratio": {name: round(1 / ratio, 3) for name, ratio in ratios(costs).items()},
        "processor_seconds_per_clip": {name: round(statistics.median(c), 4) for name, c in costs.items()},
    }


def bare_rate(manifest: Manifest, requests: list[ClipRequest], processes: int) -> float:
    """Clips per second of processes that only open and decode."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    team = [
        context.Process(target=_read_all, args=(manifest, requests[rank::processes], barrier), daemon=True)
        for rank in range(processes)
    ]
    for process in team:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for process in team:
        process.join()
    return len(requests) / seconds


def _read_all(manifest: Manifest, requests: list[ClipRequest], barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for request in requests:
        with open_video(manifest.entries[request.item].path) as reader:
            rng = np.random.default_rng(request.seed)
            reader.read(segment_times(0, reader.end, request.grid.frames, generator=rng))
    barrier.wait()  # type: ignore[attr-defined]


_NOTHING = SamplingGrid(1, 1, 1)


class _Clips(ClipDataset):
    """Clips of files, and empty clips that cost nothing."""

    def __getitem__(self, request: ClipRequest) -> Clip:
        if request.grid == _NOTHING:
            zero = torch.tensor(0)
            return Clip(torch.zeros(3, 1, 1, 1, dtype=torch.uint8), zero, zero, zero)
        return super().__getitem__(request)


def loader_rate(data: ClipDataset, requests: list[ClipRequest], batch: int, workers: int) -> float:
    """Clips per second of the loader, timed after all workers have started."""
    batches = [requests[first : first + batch] for first in range(0, len(requests), batch)]
    # The loader requests so many batches in advance. They are empty, so that no clip is made before timing.
    ahead = 4 * workers
    starters = [[ClipRequest(0, _NOTHING)] for _ in range(ahead)]
    seconds = 0.0
    for number, clip in enumerate(loader(data, starters + batches, workers)):
        if number == 0:
            seconds = -time.perf_counter()
        assert number < ahead or clip.video.shape[2] == requests[0].grid.frames
    return len(requests) / (seconds + time.perf_counter())


def _print_row(row: dict[str, object], workers: int) -> None:
    def shown(key: str, scale: float, digits: int, unit: str) -> str:
        values = row[key]
        assert isinstance(values, dict)
        return "  ".join(f"{name} {scale * value:.{digits}f}{unit}" for name, value in values.items())

    print(
        f"gop {row['gop']:<4} {row['grid']:8} clips/s: {shown('clips_per_second', 1, 1, '')}  "
        f"of bare {workers}: {shown('ratio_to_bare', 100, 0, ' %')}  "
        f"by processor time: {shown('processor_ratio', 100, 0, ' %')}",
        flush=True,
    )


def _children_seconds() -> float:
    """Processor time of child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _load() -> tuple[float, ...]:
    return os.getloadavg()


if __name__ == "__main__":
    main()
