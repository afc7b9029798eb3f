"""What does a step of a stream cost, compared with predicting the whole window again?

Prints medians over the steps after the first. Streaming and recomputing take turns, so that a changing load
favours neither. The first columns measure the network alone, from frames that are already resized and
normalised. The next ones measure everything from an H.264 file of 340x256 at 25 frames a second: decoding,
resizing, normalising, network. Recomputing reads the window from an open file by seeking. Weights are random
except those of the packaged checkpoint. The last column is the largest difference of a probability between
the two.

    python benchmarks/streaming.py --out benchmarks/results/streaming.json
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.deploy.predictor import Predictor
from fluxvit.deploy.streaming import StreamAnswer, StreamingPredictor, Tubelet
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import create_model
from fluxvit.utils.files import write_json
from fluxvit.video.reader import open_video
from fluxvit.video.sampling import segment_times
from fluxvit.video.stream import TimedFrames, open_stream
from fluxvit.video.writer import write_video

WIDTH, HEIGHT, FPS = 340, 256, 25


@dataclass(frozen=True)
class Case:
    model: str
    grid: str
    keep: int
    window_s: float
    hop_s: float


CASES = [
    Case(DEFAULT_CHECKPOINT, "32x32", 36, 4.0, 0.5),
    Case(DEFAULT_CHECKPOINT, "32x64", 36, 4.0, 0.5),
    Case("fluxvit_tiny", "16x224", 1024, 4.0, 0.5),
    Case("fluxvit_small", "16x224", 2048, 4.0, 0.5),
    Case("fluxvit_small", "16x224", 1024, 4.0, 0.5),
    Case("fluxvit_small", "16x224", 512, 4.0, 0.25),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each case")
    parser.add_argument("--models", default="", help="measure only these models, separated by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    conditions = {
        "machine": platform.processor() or platform.machine(),
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(args.device),
        "threads": args.threads,
        "torch": torch.__version__,
        "pyav": av.__version__,
        "load_before": [round(x, 1) for x in os.getloadavg()],
        "steps": args.steps,
        "video": f"{WIDTH}x{HEIGHT} at {FPS} frames a second, H.264, a key frame every 50",
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    print(
        f"{'model':27} {'grid':7} {'tokens':>9} {'hop/window':>10}"
        f" {'network ms':>17} {'with video ms':>17} {'GMACs':>15} {'differ':>8}\n"
        f"{'':27} {'':7} {'':>9} {'s':>10}"
        + f" {'stream':>8} {'anew':>8}" * 2
        + f" {'stream':>7} {'anew':>7}"
    )
    requested = args.models.split(",") if args.models else [case.model for case in CASES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for case in CASES if case.model in requested]
        seconds = max((case.window_s + (args.steps + 1) * case.hop_s for case in cases), default=1)
        video = make_video(Path(folder) / "video.mp4", seconds)
        for case in cases:
            row = measure(case, video, args.steps, args.device, Path(folder))
            rows.append(row)
            print(
                f"{case.model:27} {case.grid:7} {row['keep']:4}/{row['pool']:<4}"
                f" {row['hop_s']:>5.3g}/{row['window_s']:<4.3g}"
                f" {row['network_stream_ms']:8.1f} {row['network_anew_ms']:8.1f}"
                f" {row['all_stream_ms']:8.1f} {row['all_anew_ms']:8.1f}"
                f" {row['stream_gmacs']:7.3g} {row['anew_gmacs']:7.3g} {row['largest_difference']:8.0e}",
                flush=True,
            )
    if args.out:
        write_json(args.out, {"conditions": conditions, "rows": rows})


def make_video(path: Path, seconds: float) -> Path:
    """Write a video of noise of two scales that moves over other noise."""
    rng = np.random.default_rng(0)

    def texture() -> np.ndarray:
        coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 20, 3)).repeat(16, 0).repeat(20, 1)
        return ((3 * coarse + rng.integers(0, 256, (HEIGHT, WIDTH, 3))) // 4).astype(np.uint8)

    ground, thing = texture(), texture()

    def frames() -> Iterator[np.ndarray]:
        for number in range(round(seconds * FPS) + 1):
            frame = ground.copy()
            left = 3 * number % (WIDTH - 100)
            frame[60:160, left : left + 100] = thing[60:160, :100]
            yield frame

    write_video(path, frames(), FPS, gop=50)
    return path


def measure(case: Case, video: Path, steps: int, device: str, folder: Path) -> dict[str, Any]:
    grid = SamplingGrid.parse(case.grid)
    checkpoint: str | Path = case.model
    if case.model != DEFAULT_CHECKPOINT:
        torch.manual_seed(0)
        checkpoint = folder / case.model
        if not checkpoint.exists():
            Checkpoint(create_model(case.model, layer_scale=1.0).eval()).save(checkpoint)
    predictor = Predictor(checkpoint, case.keep, grid=grid, device=device)
    stream = StreamingPredictor(predictor, case.window_s, case.hop_s)
    model, plan, size = predictor.model, predictor.plan, predictor.model.config.size
    period = stream.window_s / grid.frames

    with open_video(video) as reader:
        samples = reader.read((np.arange(int(reader.end / period)) + 0.5) * period)
    clip = predictor.checkpoint.clip(samples, grid)

    def start_of(step: int) -> float:
        return step * stream.hop_s

    @torch.inference_mode()
    def network_anew(step: int) -> np.ndarray:
        first = round(start_of(step) / period)
        out = model(clip[:, :, first : first + grid.frames], plan.keep, plan.head, plan.selector)
        return out.logits[0].double().softmax(-1).cpu().numpy()

    @torch.inference_mode()
    def all_anew(step: int) -> np.ndarray:
        begin = start_of(step)
        frames = reader.read(segment_times(begin, begin + stream.window_s, grid.frames))
        out = model(predictor.checkpoint.clip(frames, grid), plan.keep, plan.head, plan.selector)
        return out.logits[0].double().softmax(-1).cpu().numpy()

    class Ready(StreamingPredictor):
        """Skips the work on pixels: yields tubelets of the clip that was made before."""

        def tubelets(self, source: Any) -> Any:
            for number, video in enumerate(clip.split(size.tubelet_size, dim=2)):
                yield Tubelet(video, number)

    ready = Ready(predictor, case.window_s, case.hop_s)(TimedFrames([]))
    network = in_turns(ready, network_anew, steps)
    with open_video(video) as reader:
        everything = in_turns(stream(open_stream(str(video))), all_anew, steps)
    return {
        "model": case.model,
        "grid": case.grid,
        "keep": plan.keep,
        "pool": grid.tokens(size.patch_size, size.tubelet_size),
        "window_s": stream.window_s,
        "hop_s": stream.hop_s,
        "network_stream_ms": network[0],
        "network_anew_ms": network[1],
        "all_stream_ms": everything[0],
        "all_anew_ms": everything[1],
        "stream_gmacs": stream.macs / 1e9,
        "anew_gmacs": grid_cost(size, grid, plan.keep, plan.selector).total / 1e9,
        "largest_difference": max(network[2], everything[2]),
    }


def in_turns(
    answers: Iterator[StreamAnswer], anew: Callable[[int], np.ndarray], steps: int
) -> tuple[float, float, float]:
    """Median milliseconds of a step of the stream and of recomputing, and the largest difference.

    The first step is not counted, because it embeds a whole window and warms up both.
    """
    streamed, recomputed, difference = [], [], 0.0
    for step in range(steps + 1):
        begin = time.perf_counter()
        answer = next(answers)
        middle = time.perf_counter()
        probabilities = anew(step)
        end = time.perf_counter()
        streamed.append(1000 * (middle - begin))
        recomputed.append(1000 * (end - middle))
        difference = max(difference, float(np.abs(answer.probabilities - probabilities).max()))
    return statistics.median(streamed[1:]), statistics.median(recomputed[1:]), difference


if __name__ == "__main__":
    main()
