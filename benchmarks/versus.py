"""How fast FluxViT classifies beside the video models of transformers, at equal tokens and type.

    python benchmarks/versus.py videomae:compiled fluxvit:plain fluxvit:torch fluxvit:openvino
    python benchmarks/versus.py vivit vjepa2 videoprism fluxvit:openvino --dtype bf16
    python benchmarks/versus.py fluxvit:torch fluxvit:openvino --keep 392 --file --dtype bf16

A row is a model and how it runs. The models of transformers run `eager`, the default, or `compiled` by
torch.compile. FluxViT-B runs `unfused` (the usual research code: attention by two matrix products and a
softmax), `plain` (as it is trained), `compiled`, and prepared for inference with blocks in `torch` or
`openvino`.

All models have random weights and 400 classes, and read 1568 tokens. VideoMAE-B, ViViT-B and V-JEPA 2
(`vjepa2` in the size of ViT-B, `vjepa2-large` of ViT-L) read 16 frames of 224x224, and VideoPrism-B 8 frames
of 252x252. FluxViT embeds the 4096 tokens of 16 frames of 224x224 and keeps 1568 of them, or `--keep`. With
`--file` all begin at the same video file of ten seconds, which is read by the same code.

All are timed in turns with VideoMAE-B, eager; the medians are printed. `GEMM` is the share of this machine's
own rate of the type, measured in the same run, that the multiply-accumulates make up. PyTorch's
FlopCounterMode counts those of transformers' models, `fluxvit.flux.cost` those of FluxViT.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.deploy.bench import conditions
from fluxvit.deploy.predictor import Predictor
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import create_model
from fluxvit.models.inference import PackedLinear, can_pack
from fluxvit.video.writer import write_video
from inference_speed import unfused_attention

GRID = SamplingGrid(16, 224, 224)
REFERENCE = "videomae:eager"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Contender(NamedTuple):
    """``run`` classifies clips ``[B, 3, T, H, W]`` of ``grid``; ``macs`` are those of one clip."""

    run: Callable[[Tensor], object]
    grid: SamplingGrid
    macs: int


def transformers_model(name: str) -> tuple[nn.Module, SamplingGrid]:
    hf: Any = import_module("transformers")
    frames = {"num_frames": 16, "num_labels": 400}
    vjepa2 = {"crop_size": 224, "frames_per_clip": 16, "num_labels": 400}
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    if name == "videomae":
        return hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**frames)), GRID
    if name == "vivit":
        return hf.VivitForVideoClassification(hf.VivitConfig(**frames)), GRID
    if name == "vjepa2":
        return hf.VJEPA2ForVideoClassification(hf.VJEPA2Config(**vjepa2, **base)), GRID
    if name == "vjepa2-large":
        return hf.VJEPA2ForVideoClassification(hf.VJEPA2Config(**vjepa2)), GRID
    if name == "videoprism":
        config = hf.VideoPrismVisionConfig(image_size=252, num_frames=8, num_labels=400)
        return hf.VideoPrismForVideoClassification(config), SamplingGrid(8, 252, 252)
    raise SystemExit(f"unknown model {name!r}: videomae, vivit, vjepa2, vjepa2-large, videoprism or fluxvit")


def count_macs(name: str) -> int:
    with torch.device("meta"):
        model, grid = transformers_model(name)
        video = torch.empty(1, grid.frames, 3, grid.height, grid.width)
    # The attention of CPUs is counted only where it is computed by matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.requires_grad_(False).eval()(video)
    return counter.get_total_flops() // 2


def contender(row: str, keep: int, dtype: torch.dtype, device: torch.device) -> Contender:
    name, _, form = row.partition(":")
    if name != "fluxvit":
        model, grid = transformers_model(name)
        model = model.to(device, dtype).eval()
        call = torch.compile(model) if form == "compiled" else model
        return Contender(lambda video: call(video.transpose(1, 2).to(dtype)), grid, count_macs(name))
    torch.manual_seed(0)
    fluxvit = create_model("fluxvit_base").eval().to(device)
    macs = grid_cost(fluxvit.config.size, GRID, keep).total
    if form in ("torch", "openvino"):
        precision = "fp32" if dtype == torch.float32 else "bf16"
        checkpoint = Checkpoint(fluxvit).prepared(precision, form)  # type: ignore[arg-type]
        return Contender(partial(checkpoint.model, budget=keep), GRID, macs)
    fluxvit.to(dtype)
    run: Callable[..., object] = torch.compile(fluxvit) if form == "compiled" else fluxvit

    def plain(video: Tensor) -> object:
        with mock.patch("fluxvit.models.attention.attention", unfused_attention):
            return run(video, budget=keep)

    return Contender(plain if form == "unfused" else partial(run, budget=keep), GRID, macs)


def write_clip(path: Path) -> None:
    """Ten seconds of a moving scene: 300 frames of 340x256, a key frame every 250."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8).repeat(12, 0).repeat(12, 1)
    scene = np.clip(scene + rng.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)
    write_video(path, (scene[n // 2 : n // 2 + 256, n : n + 340][:, :340] for n in range(300)), 30, gop=250)


def product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    matrix = torch.rand(side, side, device=device, dtype=dtype)
    if device.type == "cpu" and can_pack(dtype):
        return partial(PackedLinear(matrix, None, dtype, None), matrix)
    return partial(torch.mm, matrix, matrix)


def in_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each work, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            time.sleep(0.01)  # Threads of the pass before wait actively for a while.
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="MODEL:FORM")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--keep", type=int, default=1568, help="tokens that FluxViT keeps")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--file", action="store_true", help="begin at a video file, in batches of one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.file and args.batch != 1:
        parser.error("--file is measured in batches of one")
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    rows = [row if ":" in row else f"{row}:{'plain' if row == 'fluxvit' else 'eager'}" for row in args.rows]
    contenders = {row: contender(row, args.keep, dtype, device) for row in dict.fromkeys([REFERENCE, *rows])}

    with tempfile.TemporaryDirectory() as folder:
        works: dict[str, Callable[[], object]] = {}
        if args.file:
            path = Path(folder) / "clip.mp4"
            write_clip(path)
            checkpoint = Checkpoint(create_model("fluxvit_nano", num_classes=1).to(device))
            reader = Predictor(checkpoint, grid=SamplingGrid(16, 32, 32))

            def read(grid: SamplingGrid) -> Tensor:
                return checkpoint.clip(reader.sample(path, [grid]).frames[grid], grid)

            def classify(one: Contender) -> object:
                return one.run(read(one.grid))

            works = {row: partial(classify, one) for row, one in contenders.items()}
            works["reading"] = lambda: read(GRID)
        else:
            for row, one in contenders.items():
                size = args.batch, 3, one.grid.frames, one.grid.height, one.grid.width
                works[row] = partial(one.run, torch.randn(size, device=device))
        side = 2048 if device.type == "cpu" else 8192
        works["GEMM"] = product(side, dtype, device)
        times = in_turns(works, args.repeats)
    medians = {row: statistics.median(spent) for row, spent in times.items()}

    rate = 2 * side**3 / medians["GEMM"]
    versions = {name: version(name) for name in ("transformers", "openvino") if find_spec(name)}
    print(", ".join(f"{name} {value}" for name, value in {**conditions(device), **versions}.items()))
    reading = (
        f"from file to logits, of which reading takes {1000 * medians['reading']:.0f} ms; "
        if args.file
        else ""
    )
    print(
        f"{args.dtype}, batch {args.batch}, FluxViT-B keeps {args.keep} tokens, "
        f"{args.repeats} turns; {reading}GEMM {rate / 1e9:.0f} GFLOP/s"
    )
    known = [row for row in (REFERENCE, "videomae:compiled") if row in contenders]
    print(f"{'':<20}{'GMACs':>8}{'ms':>8}{'range':>14}{'GEMM':>7}  as fast as " + ", ".join(known))
    for row, one in contenders.items():
        share = 2 * args.batch * one.macs / medians[row] / rate
        low, high = 1000 * min(times[row]), 1000 * max(times[row])
        ratios = "  ".join(f"{medians[other] / medians[row]:.2f}x" for other in known)
        print(
            f"{row:<20}{one.macs / 1e9:>8.1f}{1000 * medians[row]:>8.0f}{f'{low:.0f}-{high:.0f}':>14}"
            f"{100 * share:>5.0f} %  {ratios}",
            flush=True,
        )


if __name__ == "__main__":
    main()
