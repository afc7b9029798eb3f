"""Measures how fast networks run on this machine: ``fluxvit bench``.

All forms of a network (what runs its blocks, and in which precision) are timed in turns, so that other load
on the machine favours none of them. So is a large matrix product in each precision, because the share of its
rate that a network reaches says how much faster it could be.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.latency import milliseconds, time_in_turns
from fluxvit.checkpoints.loading import load_or_create
from fluxvit.deploy.config import BenchBackend, BenchConfig
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Plan
from fluxvit.flux.selection import get_selector
from fluxvit.models.inference import PackedLinear, can_pack
from fluxvit.utils.drawing import BASELINES, OPTIMISED, PLAIN, new_figure, style, svg
from fluxvit.utils.files import atomic_path, check_replaceable, write_json
from fluxvit.utils.options import Precision
from fluxvit.utils.schema import located
from fluxvit.utils.system import cpu_instructions, environment, usable_device
from fluxvit.utils.terminal import say, table
from fluxvit.video.reader import open_video
from fluxvit.video.transforms import resize_and_crop, to_tensor
from fluxvit.video.writer import write_video

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSV, JSON, FIGURE = "bench.csv", "bench.json", "bench.svg"
STAGES = ("decode", "resize", "normalise", "embed", "select", "encode", "pool")
"""The stages from a video file to logits."""
_COLOURS = (OPTIMISED, PLAIN, BASELINES[2])
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """How fast a form of a network ran.

    Args:
        model: Size or checkpoint.
        backend, precision: The form.
        grid, pool, tokens: Sampling grid, its tokens, and how many of them are kept.
        batch: Clips in a pass.
        p50_ms, p90_ms: Percentiles of the milliseconds of a pass.
        clips_per_s: Clips per second at the median.
        gmacs: GMACs of a clip, everything counted.
        tflops: Trillions of operations per second, two for each multiply-accumulate.
        gemm_share: Part of the rate of large matrix products in the same precision.
        peak_mb: Largest memory of a pass on an accelerator, in MB; None on a CPU.
    """

    model: str
    backend: str
    precision: str
    grid: str
    pool: int
    tokens: int
    batch: int
    p50_ms: float
    p90_ms: float
    clips_per_s: float
    gmacs: float
    tflops: float
    gemm_share: float
    peak_mb: float | None


@dataclass(frozen=True)
class Form:
    """A network as it runs.

    Args:
        backend: What runs its blocks; ``plain`` is the network as it is trained.
        precision: ``fp32`` or ``bf16``.
        checkpoint: The network in this form.
    """

    backend: str
    precision: str
    checkpoint: Checkpoint

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"

    def autocast(self) -> torch.autocast:
        """The context in which it runs: a plain network computes in bf16 by autocast."""
        enabled = self.backend == "plain" and self.precision == "bf16"
        return torch.autocast(self.checkpoint.device.type, torch.bfloat16, enabled=enabled)

    def run(self, video: Tensor, plan: Plan) -> Any:
        """The output of the network at a plan."""
        with torch.inference_mode(), self.autocast():
            return self.checkpoint.model(video, plan.keep, plan.head, plan.selector)


def run_bench(config: BenchConfig) -> None:
    """Measure, and write a table, a picture and the conditions.

    Raises:
        ValueError: A model, a budget, the video, the device or the folder cannot be used.
    """
    out, device = Path(config.out), usable_device(config.device)
    check_replaceable(out, frozenset({CSV, JSON, FIGURE}), "the results of fluxvit bench")
    checkpoints = {name: load_or_create(name, device) for name in config.models}
    plans = {name: _plans(name, checkpoint, config) for name, checkpoint in checkpoints.items()}
    results = Results(out, conditions(device), config.models)
    say(", ".join(f"{name} {value}" for name, value in results.conditions.items()))
    with _video(config.video) as video:
        for name, checkpoint in checkpoints.items():
            forms, missing = forms_of(checkpoint, config.backend, config.precision)
            results.missing += [f"{name}, {reason}" for reason in missing]
            for batch in config.batch:
                for plan in plans[name]:
                    results.add(measure(name, forms, plan, batch, config.runs))
            for form in forms:
                spent = time_stages(form, plans[name][0], video, config.runs)
                results.stages.append({"model": name, "form": str(form), **spent})
            results.write()
    say(results.report(config.video or "a video of ten seconds"))


class Results:
    """What was measured, written after each group of rows.

    Args:
        out: Folder to write.
        conditions: Software, device and settings.
        models: Names of the models.
    """

    def __init__(self, out: Path, conditions: dict[str, Any], models: Sequence[str]) -> None:
        self.out, self.conditions = out, conditions
        self.width = max(len(Path(name).name) for name in models)
        self.rows: list[Row] = []
        self.stages: list[dict[str, Any]] = []
        self.missing: list[str] = []

    def add(self, rows: Sequence[Row]) -> None:
        """Print and write rows."""
        if not self.rows:
            say(f"{'model':<{self.width}}  {_HEADINGS}")
        for row in rows:
            say(f"{Path(row.model).name:<{self.width}}  {_line(row)}", flush=True)
        self.rows += rows
        self.write()

    def write(self) -> None:
        """Write the table, and everything as JSON."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(self.out / CSV) as partial_file,
            partial_file.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(map(asdict, self.rows))
        write_json(
            self.out / JSON,
            {
                "conditions": self.conditions,
                "rows": list(map(asdict, self.rows)),
                "stages_ms": self.stages,
                "not_measured": self.missing,
            },
        )

    def report(self, video: str) -> str:
        """Draw the picture; returns what is printed after the table."""
        lines = [f"not measured: {reason}" for reason in self.missing]
        lines += ["", f"milliseconds of a clip, from {video} to logits"]
        rows = [
            [each["model"], each["form"], *(f"{each[name]:.2f}" for name in STAGES)] for each in self.stages
        ]
        lines += table([["model", "form", *STAGES], *rows])
        files = f"{CSV}, {JSON}"
        if find_spec("matplotlib"):
            with atomic_path(self.out / FIGURE) as partial_file:
                partial_file.write_text(svg(figure(self.rows), facecolor="white"), encoding="utf-8")
            files += f", {FIGURE}"
        else:
            files += "; a picture needs pip install 'fluxvit[report]'"
        return "\n".join([*lines, "", f"wrote   {self.out}: {files}"])


def measure(name: str, forms: Sequence[Form], plan: Plan, batch: int, runs: int) -> list[Row]:
    """Time the forms of a network at a plan, in turns with a large matrix product in each precision.

    Args:
        name: The model's name in the rows.
        forms: The forms, all of one network on one device.
        plan: The plan to time.
        batch: Clips in a pass.
        runs: Passes of each form.
    """
    config, device = forms[0].checkpoint.model.config, forms[0].checkpoint.device
    grid = plan.grid
    shape = batch, config.in_chans, grid.frames, grid.height, grid.width
    video = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    works: list[Callable[[], object]] = [partial(form.run, video, plan) for form in forms]
    peaks = [_peak_mb(work, device) for work in works]
    precisions = sorted({form.precision for form in forms})
    works += [_product(device, _DTYPES[precision]) for precision in precisions]
    latencies = time_in_turns([partial(_rested_ms, work, device) for work in works], runs=runs)
    side = _side(device)
    rates = {
        precision: 2 * side**3 / (latency.p50 / 1000)
        for precision, latency in zip(precisions, latencies[len(forms) :], strict=True)
    }
    macs = grid_cost(config.size, grid, plan.keep, plan.selector).total
    rows = []
    for form, latency, peak in zip(forms, latencies[: len(forms)], peaks, strict=True):
        rate = 2 * macs * batch / (latency.p50 / 1000)
        rows.append(
            Row(
                model=name,
                backend=form.backend,
                precision=form.precision,
                grid=str(grid),
                pool=config.pool(grid),
                tokens=plan.keep,
                batch=batch,
                p50_ms=round(latency.p50, 3),
                p90_ms=round(latency.p90, 3),
                clips_per_s=round(1000 * batch / latency.p50, 3),
                gmacs=round(macs / 1e9, 4),
                tflops=round(rate / 1e12, 4),
                gemm_share=round(rate / rates[form.precision], 4),
                peak_mb=peak,
            )
        )
    return rows


@torch.inference_mode()
def time_stages(form: Form, plan: Plan, video: Path, runs: int) -> dict[str, float]:
    """The median milliseconds of each of :data:`STAGES` for one clip.

    Raises:
        VideoError: The video cannot be read.
    """
    checkpoint, model, grid = form.checkpoint, form.checkpoint.model, plan.grid
    times: list[list[float]] = []
    for _ in range(runs + 1):
        marks: list[float] = []

        def mark(marks: list[float] = marks) -> None:
            if checkpoint.device.type != "cpu":
                torch.accelerator.synchronize(checkpoint.device)
            marks.append(1000 * time.perf_counter())

        mark()
        with open_video(video) as reader:
            moments = checkpoint.sampling.times(0, reader.end, grid.frames, reader.fps)
            frames = reader.read(moments)
        mark()
        resized = resize_and_crop(to_tensor(frames), (grid.height, grid.width))
        mark()
        clip = checkpoint.normalize(resized)[None]
        with form.autocast():
            mark()
            ((tokens, kept),), _ = model.select_tokens(clip, [plan.keep], plan.selector)
            mark()
            encoded = model.encode(tokens)
            mark()
            model.head_output(encoded, kept, plan.head)
            mark()
            # Selection alone, on what the selector reads.
            reads = get_selector(plan.selector).reads
            if reads == "thumbnails":
                read = model.thumbnails(clip)
            else:
                read = (model.patch_embed if reads == "embeddings" else model.patch_embed.patchify)(clip)[0]
            mark()
            model.select_indices(read, [plan.keep], plan.selector)
            mark()
        decode, resize, normalise, embed, encode, pool, _, select = np.diff(marks).tolist()
        times.append([decode, resize, normalise, max(0.0, embed - select), select, encode, pool])
    medians = [statistics.median(each) for each in zip(*times[1:], strict=True)]
    return {name: round(spent, 3) for name, spent in zip(STAGES, medians, strict=True)}


@style()
def figure(rows: Sequence[Row]) -> Figure:
    """Milliseconds of a clip against tokens, a panel for each model and batch, a line for each form."""
    panels = list(dict.fromkeys((row.model, row.batch) for row in rows))
    forms = list(dict.fromkeys((row.backend, row.precision) for row in rows))
    colours = dict(zip(dict.fromkeys(backend for backend, _ in forms), _COLOURS, strict=False))
    down, across = -(-len(panels) // 2), min(2, len(panels))
    drawing = new_figure("Milliseconds of a clip against the tokens that are kept", 0.6 + 3 * down)
    grid = drawing.subplots(down, across, squeeze=False)
    for axes, (model, batch) in zip(grid.flat, panels, strict=False):
        for backend, precision in forms:
            points = sorted(
                (row.tokens, row.p50_ms / batch)
                for row in rows
                if (row.model, row.batch, row.backend, row.precision) == (model, batch, backend, precision)
            )
            if points:
                look = {"color": colours[backend], "linestyle": "-" if precision == "bf16" else "--"}
                axes.plot(*zip(*points, strict=True), marker="o", label=f"{backend} {precision}", **look)
        tokens = sorted({row.tokens for row in rows if row.model == model})
        axes.set(xscale="log", title=f"{Path(model).name}, batch {batch}")
        axes.set_xticks(tokens, list(map(str, tokens)))
        axes.minorticks_off()
        axes.set(xlabel="tokens kept (log scale)", ylabel="milliseconds of a clip", ylim=(0, None))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    drawing.legend(
        *grid.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=6, handlelength=3
    )
    return drawing


# Forms and plans -------------------------------------------------------------------------------------------


def forms_of(
    checkpoint: Checkpoint, backends: Sequence[BenchBackend], precisions: Sequence[Precision]
) -> tuple[list[Form], list[str]]:
    """The forms of a network that run here, and the reasons why others do not.

    Raises:
        ValueError: None of them runs here.
    """
    forms, missing = [], []
    for backend in backends:
        for precision in precisions:
            try:
                prepared = checkpoint if backend == "plain" else checkpoint.prepared(precision, backend)
                forms.append(Form(backend, precision, prepared))
            except ValueError as error:
                missing.append(f"{backend} {precision}: {error}")
    if not forms:
        raise ValueError(missing[-1])
    return forms, missing


def _plans(name: str, checkpoint: Checkpoint, config: BenchConfig) -> list[Plan]:
    """A plan for each budget, which keeps exactly that many tokens.

    Raises:
        ValueError: A budget or the grid cannot be used.
    """
    plans = []
    with located(name):
        for budget in config.budget or checkpoint.model.config.budgets:
            plans.append(replace(checkpoint.plan(budget, config.grid), measured=None))
    return plans


@contextmanager
def _video(path: str) -> Iterator[Path]:
    """A video, or one of ten seconds that is deleted afterwards.

    Raises:
        VideoError: The video cannot be read.
    """
    if path:
        open_video(path).close()
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        file, rng = Path(folder) / "clip.mp4", np.random.default_rng(0)
        scene = resize_and_crop(to_tensor(rng.integers(0, 256, (1, 30, 40, 3), np.uint8)), (240, 320))
        image = scene[:, 0].permute(1, 2, 0).numpy()
        write_video(file, (np.roll(image, 2 * shift, axis=1) for shift in range(300)), 30, gop=250)
        yield file


# Measuring -------------------------------------------------------------------------------------------------


def _side(device: torch.device) -> int:
    return 2048 if device.type == "cpu" else 8192


def _product(device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """A product of large square matrices, by the fastest of PyTorch's ways that this machine has."""
    matrix = torch.rand(_side(device), _side(device), device=device)
    if device.type == "cpu" and can_pack(dtype):
        return partial(PackedLinear(matrix, None, dtype, None), matrix.to(dtype))
    matrix = matrix.to(dtype)
    return partial(torch.mm, matrix, matrix)


def _rested_ms(work: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a pass that begins when the threads of the pass before it have gone to sleep: they wait
    actively for a while, at the cost of another library's threads.
    """
    time.sleep(0.01)
    return milliseconds(work, device)


def _peak_mb(work: Callable[[], object], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)


def conditions(device: torch.device) -> dict[str, Any]:
    """Software, device and what its speed depends on."""
    found: dict[str, Any] = environment(device)
    if device.type == "cpu":
        kinds = cpu_instructions()
        found["threads"] = torch.get_num_threads()
        found["instructions"] = " ".join(name for name, there in kinds.items() if there) or "none"
        found["missing"] = " ".join(name for name, there in kinds.items() if not there) or "none"
    return found


_HEADINGS = (
    f"{'form':<13} {'tokens':>6} {'batch':>5} {'p50 ms':>9} {'p90 ms':>9} {'clips/s':>8} "
    f"{'GMACs':>7} {'TFLOP/s':>8} {'of GEMM':>8}"
)


def _line(row: Row) -> str:
    return (
        f"{row.backend + ' ' + row.precision:<13} {row.tokens:>6} {row.batch:>5} "
        f"{row.p50_ms:>9.2f} {row.p90_ms:>9.2f} {row.clips_per_s:>8.2f} {row.gmacs:>7.2f} {row.tflops:>8.3f} "
        f"{100 * row.gemm_share:>6.0f} %"
    )
