"""From a video file to logits: how the time divides, and what decoding ahead and fewer tokens save.

    python benchmarks/file_to_logits.py --model fluxvit_small

For streams of H.264 clips of ten seconds it prints the milliseconds of a clip for decoding alone, the network
alone, one clip after the other, and `Predictor.map`, which decodes the next clips meanwhile; `bound` is the
time in which all cores together can do both, if decoding takes one core and the network all of them. The
stages of one clip follow. The last table compares 512 tokens, which are selected from twice as many frames,
with all 2048 tokens of a plain grid: the network alone and from the files, at batch 1 and 8.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.loading import load_or_create
from fluxvit.deploy.bench import STAGES, Form, conditions, time_stages
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.inference import form
from fluxvit.utils.system import usable_device
from fluxvit.utils.terminal import table
from fluxvit.video.transforms import resize_and_crop, to_tensor
from fluxvit.video.writer import write_video


def write_clip(path: Path, height: int, width: int, seed: int) -> None:
    """Ten seconds of textured objects that move over a moving background."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (4, height // 8, width // 8, 3), np.uint8)
    images = resize_and_crop(to_tensor(noise), (height, width)).permute(1, 2, 3, 0).numpy()

    def frame(number: int) -> np.ndarray:
        image = np.roll(images[0], number // 2, axis=1)
        for index, texture in enumerate(images[1:], start=1):
            top = int((height * 0.75) * (0.5 + 0.5 * np.sin(number * 0.02 * index + seed)))
            left = int((width * 0.75) * (0.5 + 0.5 * np.cos(number * 0.03 * index)))
            image[top : top + height // 4, left : left + width // 4] = texture[: height // 4, : width // 4]
        return image

    write_video(path, map(frame, range(300)), 30, gop=250)


def per_clip(work: Callable[[], object], clips: int, rounds: int) -> float:
    """Median milliseconds of a clip."""
    spent = []
    work()
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        spent.append(1000 * (time.perf_counter() - start) / clips)
    return statistics.median(spent)


def predictor_of(checkpoint: Checkpoint, plan: Plan) -> Predictor:
    predictor = Predictor(checkpoint, plan.keep, grid=plan.grid)
    assert predictor.plan.keep == plan.keep
    return predictor


@torch.inference_mode()
def from_files(predictor: Predictor, files: list[Path]) -> object:
    """One batch of clips from their files."""
    grid, plan = predictor.plan.grid, predictor.plan
    frames = [predictor.sample(file, [grid]).frames[grid] for file in files]
    video = torch.cat([predictor.checkpoint.clip(each, grid) for each in frames])
    return predictor.model(video, plan.keep, plan.head, plan.selector)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="fluxvit_small")
    parser.add_argument("--dense", default="16x224", help="grid of the selected tokens")
    parser.add_argument("--plain", default="8x224", help="grid whose tokens are all kept")
    parser.add_argument("--keep", type=int, default=512)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = usable_device(args.device)
    print(", ".join(f"{name} {value}" for name, value in conditions(device).items()))
    checkpoint = load_or_create(args.model, device)
    checkpoint.model.reset_classifier(400)
    checkpoint = checkpoint.prepared()
    dense, plain = SamplingGrid.parse(args.dense), SamplingGrid.parse(args.plain)
    few = Plan(dense, args.keep)
    everything = Plan(plain, checkpoint.pool(plain))
    predictor, rounds = predictor_of(checkpoint, few), args.rounds
    print(f"{args.model}, {form(checkpoint.model)}: {few.keep} of {checkpoint.pool(dense)} tokens of {dense}")
    with tempfile.TemporaryDirectory() as folder:
        sets: dict[str, list[Path]] = {}
        for height, width in ((240, 320), (360, 640)):
            files = [Path(folder) / f"{height}_{number}.mp4" for number in range(args.clips)]
            for seed, file in enumerate(files):
                write_clip(file, height, width, seed)
            sets[f"{width}x{height}"] = files
        rows = [["clips", "decode", "network", "one by one", "map", "bound", "map / max(decode, network)"]]
        stages = [["clips", *STAGES]]
        for name, files in sets.items():
            sampled = predictor.sample(files[0], [dense]).frames[dense]

            def read(files: list[Path] = files) -> object:
                return [predictor.sample(file, [dense]) for file in files]

            def compute(sampled: np.ndarray = sampled) -> object:
                return [predictor.model(checkpoint.clip(sampled, dense), few.keep) for _ in range(args.clips)]

            def one_by_one(files: list[Path] = files) -> object:
                return [predictor(file) for file in files]

            def ahead(files: list[Path] = files) -> object:
                return list(predictor.map(files))

            times = [per_clip(work, len(files), rounds) for work in (read, compute, one_by_one, ahead)]
            bound = times[0] / torch.get_num_threads() + times[1]
            ratio = times[3] / max(times[:2])
            rows.append([name, *(f"{each:.1f}" for each in (*times, bound)), f"{ratio:.2f}"])
            spent = time_stages(Form("auto", "auto", checkpoint), few, files[0], 10)
            stages.append([name, *(f"{spent[stage]:.2f}" for stage in STAGES)])
        print("\nMilliseconds of a clip:", *table(rows), sep="\n")
        print("\nStages of one clip, in milliseconds:", *table(stages), sep="\n")

        files = next(iter(sets.values()))
        size = checkpoint.model.config.size
        costs = [grid_cost(size, plan.grid, plan.keep) for plan in (everything, few)]
        ratios = [costs[0].published / costs[1].published, costs[0].total / costs[1].total]
        print(
            f"\n{everything.keep} plain tokens take {ratios[0]:.2f} times the MACs of {few.keep} as papers",
            end="",
        )
        print(f" count them, {ratios[1]:.2f} times with the dropped tokens' embedding.")
        rows = [["batch", "path", f"{everything.keep} tokens, ms", f"{few.keep} tokens, ms", "ratio"]]
        for batch in (1, 8):
            works: dict[str, list[Callable[[], object]]] = {"network": [], "file to logits": []}
            for plan in (everything, few):
                chosen = predictor_of(checkpoint, plan)
                frames = chosen.sample(files[0], [plan.grid]).frames[plan.grid]
                video = checkpoint.clip(frames, plan.grid).expand(batch, -1, -1, -1, -1).contiguous()
                works["network"].append(partial(chosen.model, video, plan.keep))
                works["file to logits"].append(partial(from_files, chosen, (files * batch)[:batch]))
            for name, (slow, fast) in works.items():
                spent_ms = [per_clip(slow, batch, rounds), per_clip(fast, batch, rounds)]
                ratio = spent_ms[0] / spent_ms[1]
                rows.append([str(batch), name, *(f"{ms:.1f}" for ms in spent_ms), f"{ratio:.2f}"])
        print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
