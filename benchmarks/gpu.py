"""How fast a FluxViT is on a GPU, in one run of ten minutes: forward passes, mixed requests, training steps.

    python benchmarks/gpu.py --out gpu.txt
    python benchmarks/gpu.py --device cpu --tiny --out gpu.txt

The second line is a dry run of the same code without a GPU, which shows no speed. Every section stands alone:
one that fails prints its error, and the next one starts. `share` is the part of this device's own bf16 GEMM
rate, measured in the same run, that the multiply-accumulates of the network make up. All forms of a network
are timed in turns; medians are printed.

- `autocast`: the network as it is trained, under autocast. `prepared`: its inference form in bf16.
- `compiled`: prepared, its blocks compiled. `captured`: prepared, as a CUDA graph. `both`: both.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.graphs import CapturedFluxViT
from fluxvit.models.inference import prepare
from fluxvit.utils.system import environment, usable_device

Works = dict[str, Callable[[], object]]


class Unrecorded:
    """In place of CUDA graphs on other devices."""

    def usable(self) -> bool:
        return False

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        raise AssertionError


class Warnings(logging.Handler):
    """Adds warnings, such as of a failed capture, to the results."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        self.run.say(f"    WARNING {record.getMessage()}")


class Run:
    """The settings of a run, and its results, written line by line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.tiny, self.repeats = usable_device(args.device), args.tiny, args.repeats
        self.only, self.out, self.end = args.only.lower(), args.out, time.monotonic() + args.seconds
        self.rate = float("nan")

    def say(self, text: str) -> None:
        print(text, flush=True)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    def section(self, title: str, work: Callable[[Run], None]) -> None:
        if self.only not in title.lower():
            return
        self.say(f"\n# {title}")
        if time.monotonic() > self.end:
            self.say("skipped: the time is up")
            return
        start = time.monotonic()
        try:
            work(self)
        except Exception:  # The next section may still work.
            self.say(f"FAILED\n{traceback.format_exc(limit=-3)}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(f"({time.monotonic() - start:.0f} s)")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ms(self, work: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return 1000 * (time.perf_counter() - start)

    def in_turns(self, works: Works) -> dict[str, float]:
        """The median milliseconds of each work; one that fails is left out, and its error printed."""
        ready = dict(works)
        for name, work in works.items():
            try:
                for _ in range(3):  # Graphs are captured in the second call.
                    self.ms(work)
            except Exception as error:
                self.say(f"    {name} FAILED: {type(error).__name__}: {str(error).splitlines()[0]}")
                del ready[name]
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.repeats):
            for name, work in ready.items():
                times[name].append(self.ms(work))
        return {name: statistics.median(spent) for name, spent in times.items()}

    def cells(self, spent: dict[str, float], macs: float) -> str:
        """Milliseconds and shares."""
        share = 2 * macs / self.rate / 1e9  # Per cent, per millisecond.
        return "; ".join(f"{name} {ms:.2f} ms ({share / ms * 100:.1f} %)" for name, ms in spent.items())

    def captured(self, model: FluxViT) -> CapturedFluxViT:
        recorder = None if self.device.type == "cuda" else Unrecorded
        return CapturedFluxViT(model, recorder, compile_after=None)

    def video(self, grid: SamplingGrid, batch: int) -> Tensor:
        return torch.randn(batch, 3, grid.frames, grid.height, grid.width, device=self.device)

    def compile(self, model: CapturedFluxViT) -> None:
        start = time.monotonic()
        model.compile_blocks(**({"backend": "eager"} if self.tiny else {}))
        self.say(f"compiling the blocks took {time.monotonic() - start:.0f} s")


def grid_for(run: Run, keep: int) -> SamplingGrid:
    if run.tiny:
        return SamplingGrid(8, 64, 64)
    return SamplingGrid(8, 224, 224) if keep <= 1024 else SamplingGrid(16, 224, 224)


def measure_gemm(run: Run) -> None:
    """TFLOP/s of products of large matrices."""
    size = 256 if run.tiny else 8192
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(size, size, device=run.device).to(dtype)
        works: Works = {"product": partial(torch.matmul, x, x)}
        rate = 2 * size**3 / run.in_turns(works)["product"] / 1e9
        run.say(f"{dtype}, {size}^3: {rate:.1f} TFLOP/s")
        if dtype == torch.bfloat16:
            run.rate = rate


def compare_outputs(run: Run) -> None:
    """Whether graphs and compiled blocks compute what the network computes."""
    model = create_model("fluxvit_nano" if run.tiny else "fluxvit_small").to(run.device).eval()
    plain = prepare(model, torch.bfloat16, backend="torch")
    captured = run.captured(plain)
    keep, grid = (50, grid_for(run, 50)) if run.tiny else (512, grid_for(run, 512))

    def compare(name: str) -> None:
        worst, same = 0.0, True
        # More shapes than are kept, twice, so that graphs are dropped and captured again.
        plans = [(batch, keep - step) for batch in (1, 3, 5) for step in range(1 if run.tiny else 12)]
        for seed, (batch, budget) in enumerate(2 * [plan for plan in plans for _ in (0, 1)]):
            torch.manual_seed(seed)
            video = run.video(grid, batch)
            ours, expected = captured(video, budget), plain(video, budget)
            worst = max(worst, ((ours.logits - expected.logits).norm() / expected.logits.norm()).item())
            same &= torch.equal(ours.kept, expected.kept)
        run.say(f"{name}: same tokens kept: {same}; largest relative difference of logits {worst:.1e}")
        videos = [run.video(SamplingGrid(8, 56 if not run.tiny else 32, side), 1)[0] for side in sides]
        worst = 0.0
        for _ in range(3):
            outputs = captured.forward_packed(videos, [None, 20, 30])
            for video, most, ours in zip(videos, [None, 20, 30], outputs, strict=True):
                expected = plain(video[None], most)
                worst = max(worst, ((ours.logits - expected.logits).norm() / expected.logits.norm()).item())
        run.say(f"{name}, packed clips: largest relative difference of logits {worst:.1e}")

    sides = (16, 32, 48) if run.tiny else (56, 112, 168)
    compare("captured")
    run.compile(captured)
    compare("compiled and captured")


def time_forward(run: Run, name: str, cases: Sequence[tuple[int, int]]) -> None:
    """Forward passes of ``cases``, (tokens, batch)."""
    model = create_model(name, num_classes=400).to(run.device).eval()
    plain = prepare(model, torch.bfloat16, backend="torch")
    captured, compiled, both = (run.captured(plain) for _ in range(3))
    run.compile(both)
    compiled._compiled = both._compiled
    compiled._graphs._failed = True  # Nothing is captured.

    def autocast(video: Tensor, keep: int) -> object:
        with torch.autocast(run.device.type, torch.bfloat16):
            return model(video, keep)

    for keep, batch in cases:
        grid = grid_for(run, keep)
        video = run.video(grid, batch)
        works: Works = {
            "autocast": partial(autocast, video, keep),
            "prepared": partial(plain, video, keep),
            "compiled": partial(compiled, video, keep),
            "captured": partial(captured, video, keep),
            "both": partial(both, video, keep),
        }
        spent = run.in_turns(works)
        macs = batch * grid_cost(model.config.size, grid, keep).total
        run.say(f"{name}, {keep} of {grid}, batch {batch}: {run.cells(spent, macs)}")
        if time.monotonic() > run.end:
            run.say("the others are skipped: the time is up")
            return


def time_mixed(run: Run) -> None:
    """32 requests of 8 plans at once: one after the other, and packed."""
    model = (
        create_model("fluxvit_nano" if run.tiny else "fluxvit_small", num_classes=400).to(run.device).eval()
    )
    plain = prepare(model, torch.bfloat16, backend="torch")
    captured, compiled = run.captured(plain), run.captured(plain)
    run.compile(compiled)
    if run.tiny:
        plans = [(SamplingGrid(frames, 64, 64), keep) for frames in (4, 8) for keep in (10, 20, 30, 40)]
    else:
        frames, keeps = (8, 12), (256, 512, 768, 1024)
        plans = [(SamplingGrid(count, 224, 224), keep) for count in frames for keep in keeps]
    requests = [(run.video(grid, 1)[0], keep) for grid, keep in 4 * plans]
    videos, keeps_ = [video for video, _ in requests], [keep for _, keep in requests]

    def alone(network: FluxViT) -> None:
        for video, keep in requests:
            network(video[None], keep)

    works: Works = {
        "one by one": partial(alone, plain),
        "one by one, captured": partial(alone, captured),
        "packed": partial(plain.forward_packed, videos, keeps_),
        "packed, captured": partial(captured.forward_packed, videos, keeps_),
        "packed, both": partial(compiled.forward_packed, videos, keeps_),
    }
    macs = sum(4 * grid_cost(model.config.size, grid, keep).total for grid, keep in plans)
    run.say(f"32 requests of 8 plans: {run.cells(run.in_turns(works), macs)}")


def time_video_mae(run: Run, batches: Sequence[int]) -> None:
    """VideoMAE-B of transformers at its 1568 tokens, and FluxViT-B with as many and a quarter of them."""
    import transformers

    library: Any = transformers
    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2} if run.tiny else {}
    config = library.VideoMAEConfig(num_labels=400, attn_implementation="sdpa", **settings)
    theirs = library.VideoMAEForVideoClassification(config).to(run.device, torch.bfloat16).eval()
    ours = create_model("fluxvit_nano" if run.tiny else "fluxvit_base", num_classes=400).to(run.device).eval()
    both = run.captured(prepare(ours, torch.bfloat16, backend="torch"))
    run.compile(both)
    compiled = torch.compile(theirs, backend="eager" if run.tiny else "inductor")
    keeps = (50, 20) if run.tiny else (1568, 392)
    for batch in batches:
        clip = run.video(SamplingGrid(16, 224, 224), batch).bfloat16().transpose(1, 2)
        videos = {keep: run.video(grid_for(run, 1568), batch) for keep in keeps}
        works: Works = {
            "VideoMAE-B": partial(theirs, clip),
            "VideoMAE-B compiled": partial(compiled, clip),
            **{f"FluxViT-B {keep} tokens": partial(both, video, keep) for keep, video in videos.items()},
        }
        spent = run.in_turns(works)
        run.say(f"batch {batch}: " + "; ".join(f"{name} {ms:.2f} ms" for name, ms in spent.items()))


def time_training(run: Run) -> None:
    """Flux-Multi steps and the table of positions, by `training_step.py` in its own process."""
    settings = ["--model", "fluxvit_base", "--batch", "16", "--grid", "16x224", "--budgets", "3072,2048,1024"]
    if run.tiny:
        settings = ["--model", "fluxvit_nano", "--batch", "2", "--grid", "4x64", "--budgets", "32,16"]
    script = Path(__file__).with_name("training_step.py")
    command = [sys.executable, str(script), *settings, "--device", str(run.device), "--repeats", "5"]
    left = max(30.0, run.end - time.monotonic())
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=left, check=False
    )
    run.say(done.stdout.strip())
    if done.returncode:
        raise RuntimeError(f"{script.name} ended with code {done.returncode}")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips, to try the script out")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=540, help="no section starts later than this")
    parser.add_argument("--out", type=Path, help="file to which results are appended as they come")
    parser.add_argument("--only", default="", help="part of the titles of the sections to run")
    run = Run(parser.parse_args())
    logging.getLogger("fluxvit").addHandler(Warnings(run))
    run.say(", ".join(f"{name} {value}" for name, value in environment(run.device).items()))
    run.say("\n# GEMM")
    measure_gemm(run)
    run.section("Parity", compare_outputs)
    cases = [(512, 1), (2048, 32), (512, 32), (2048, 8), (2048, 1), (512, 8)]
    for name in ("fluxvit_small", "fluxvit_base"):
        if run.tiny:
            name, cases = "fluxvit_nano", [(50, 1), (20, 3)]
        run.section(f"Forward pass of {name}", partial(time_forward, name=name, cases=cases))
    run.section("Mixed requests", time_mixed)
    run.section("Flux-Multi step", time_training)
    run.section("VideoMAE-B", partial(time_video_mae, batches=(1,) if run.tiny else (1, 8, 32)))


if __name__ == "__main__":
    main()
