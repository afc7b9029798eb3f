"""How fast is a training step at several token budgets (Flux-Multi), and what makes it faster?

    python benchmarks/training_step.py --model fluxvit_base --batch 16 --grid 16x224 --budgets 3072,2048,1024

The script times steps with plain and with compiled blocks, the budgets one after the other and packed into
one sequence; the ways in which PyTorch's AdamW updates the weights; and the table of positions, resampled by
matrix products and by `F.interpolate`. `share` is the part of this device's own GEMM rate, in the same number
format and measured in the same run, that the multiply-accumulates of the steps make up (the backward pass
counts as two forward passes). All of a table are timed in turns, and the medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.embed import PositionTable
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.gemm import gemm_product
from fluxvit.training.config import TrainConfig
from fluxvit.training.optim import make_optimizer, parameter_groups
from fluxvit.training.tasks.classify import ClassifyTask
from fluxvit.training.trainer import faster_precision
from fluxvit.utils.system import environment, usable_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="fluxvit_tiny")
    add("--batch", type=int, default=2)
    add("--grid", type=SamplingGrid.parse, default=SamplingGrid(8, 224, 224))
    add("--budgets", default="768,512,256")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add("--device", default="auto")
    add("--repeats", type=int, default=7)
    args = parser.parse_args()
    device, budgets = usable_device(args.device), tuple(map(int, args.budgets.split(",")))
    precision = faster_precision(device) if args.precision == "auto" else args.precision
    print(", ".join(f"{name} {value}" for name, value in environment(device).items()))
    print(f"{args.model}, batch {args.batch}, {args.grid}, {budgets}, {precision}, {device}\n")
    _compare_steps(args, device, budgets, precision == "bf16")
    _compare_updates(args, device)
    _compare_positions(args, device)


class Steps:
    """A task with its optimiser, and steps of it as the trainer takes them."""

    def __init__(self, args: argparse.Namespace, device: torch.device, budgets: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        model = create_model(args.model, budgets=budgets, num_classes=400, drop_path=0.0)
        self.task = ClassifyTask(Checkpoint(model)).to(device).train()
        self.optimizer = make_optimizer(self.task, TrainConfig())
        grid = args.grid
        self.video = torch.randn(args.batch, 3, grid.frames, grid.height, grid.width, device=device)
        self.label = torch.randint(400, (args.batch,), device=device)

    def take(self, packed: bool, bf16: bool) -> None:
        with torch.autocast(self.video.device.type, torch.bfloat16, enabled=bf16):
            loss = self.packed() if packed else self.in_turn()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def in_turn(self) -> Tensor:
        return self.task({"video": self.video, "label": self.label})["loss"]

    def packed(self) -> Tensor:
        """The same loss; the blocks see the clips of all budgets as one packed sequence."""
        return self._loss(encode_packed(self.task.model, self.video))

    def _loss(self, encoded: list[Tensor]) -> Tensor:
        model, total, anchor = self.task.model, self.video.new_zeros(()), None
        for head, tokens in enumerate(encoded):
            pooled = model.forward_head(tokens, head, pre_logits=True)
            total = total + F.cross_entropy(model.classify(pooled, head).float(), self.label)
            if anchor is None:
                anchor = F.normalize(pooled.detach().float(), dim=-1)
            else:
                aligned = F.smooth_l1_loss(model.align(pooled, head).float(), anchor)
                total = total + self.task.settings.align_weight * aligned
        return total


def encode_packed(model: FluxViT, video: Tensor) -> list[Tensor]:
    """Encoded tokens ``[B, 1 + K, C]`` for each budget."""
    samples, _ = model.select_tokens(video, model.config.budgets)
    rows = [row[None] for tokens, _ in samples for row in tokens]
    lengths = [row.shape[1] for row in rows]
    encoded = model.encode(torch.cat(rows, dim=1), lengths).split(lengths, dim=1)
    batch = len(video)
    return [torch.cat(encoded[i * batch : (i + 1) * batch]) for i in range(len(samples))]


def _compare_steps(
    args: argparse.Namespace, device: torch.device, budgets: tuple[int, ...], bf16: bool
) -> None:
    works: dict[str, Callable[[], object]] = {}
    for blocks in ("plain", "compiled"):
        steps = Steps(args, device, budgets)
        if blocks == "plain":
            with torch.no_grad():
                difference = (steps.in_turn() - steps.packed()).abs().item()
        else:
            for block in steps.task.blocks():
                block.compile(dynamic=True)
        for way in ("one after the other", "packed"):
            if blocks == "compiled" and way == "packed" and device.type == "cpu" and args.batch > 2:
                continue  # Without a kernel for packed sequences, each clip at each budget is compiled.
            works[f"{blocks}, {way}"] = partial(steps.take, way == "packed", bf16)
    task, video = steps.task, steps.video
    works["gemm"], macs_of_product = gemm_product(device, torch.bfloat16 if bf16 else torch.float32)
    first, memory, seconds = in_turns(works, args.repeats, device)
    rate = macs_of_product / seconds.pop("gemm")
    macs, tokens = task.count_macs(video), task.count_tokens(video)
    print(f"GEMM {2 * rate / 1e12:.3g} TFLOP/s; {tokens} tokens and {2 * macs / 1e12:.3g} TFLOP a step;")
    print(f"the losses of packed and other steps differ by {difference:.1e} (fp32)\n")
    print(f"{'blocks, budgets':32}{'ms':>8}{'tokens/s':>10}{'share':>8}{'first s':>9}{'GiB':>7}")
    for name, spent in seconds.items():
        gib = f"{memory[name] / 2**30:.1f}" if device.type == "cuda" else "-"
        print(
            f"{name:32}{1000 * spent:8.0f}{tokens / spent:10.0f}{100 * macs / spent / rate:6.0f} %"
            f"{first[name]:9.1f}{gib:>7}",
            flush=True,
        )


def _compare_updates(args: argparse.Namespace, device: torch.device) -> None:
    task = ClassifyTask(Checkpoint(create_model(args.model))).to(device)
    for parameter in task.parameters():
        parameter.grad = torch.randn_like(parameter)

    def update(**way: bool) -> Callable[[], object]:
        return torch.optim.AdamW(parameter_groups(task, 0.05), lr=1e-6, **way).step  # type: ignore[arg-type]

    ways = {"loop": update(foreach=False), "foreach": update(foreach=True), "fused": update(fused=True)}
    _, _, seconds = in_turns(ways, args.repeats, device)
    cells = ", ".join(f"{name} {1000 * spent:.1f}" for name, spent in seconds.items())
    print(f"\nAdamW, ms: {cells}")


def products(table: PositionTable, shape: tuple[int, int, int]) -> Tensor:
    """The positions ``[t * h * w, C]`` as the network makes them."""
    return table(shape)[1]


def interpolated(table: PositionTable, shape: tuple[int, int, int]) -> Tensor:
    """The same by `F.interpolate`, as the authors' code resamples them."""
    grid = table.grid.float()
    if table.scale is not None and table.shift is not None:
        grid = grid * table.scale.float() + table.shift.float()
    frames, height, width, dim = grid.shape
    t, h, w = shape
    if t != frames:
        rows = grid.flatten(1).t()[None]
        grid = F.interpolate(rows, size=t, mode="linear")[0].t().unflatten(1, (height, width, dim))
    if (h, w) != (height, width):
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size=(h, w), mode="bicubic").permute(0, 2, 3, 1)
    return grid.reshape(t * h * w, dim)


def _compare_positions(args: argparse.Namespace, device: torch.device) -> None:
    """Positions as they are made now, and as they were: resampled once for each budget."""
    config, times = create_model(args.model).config, len(args.budgets.split(","))
    table = PositionTable(config.table_shape, config.embed_dim, affine=True).to(device)
    print(f"\npositions of {config.table_shape}, ms")
    t, h, w = args.grid.token_shape(config.patch_size, config.tubelet_size)
    for shape in ((t, h, w), (t + 2, h + 2, w - 2)):
        ways = {
            "products": partial(products, table, shape),
            "interpolate": partial(interpolated, table, shape),
        }
        rows = {name: way() for name, way in ways.items()}
        upstream = torch.randn_like(rows["products"])
        back = {
            name: partial(torch.autograd.grad, values, table.grid, upstream, retain_graph=True)
            for name, values in rows.items()
        }
        works: dict[str, Callable[[], object]] = {}
        for name, way in ways.items():
            works |= {f"{name} forward": way, f"{name} backward": back[name]}
        _, _, seconds = in_turns(works, 3 * args.repeats, device)
        cells = ", ".join(f"{name} {1000 * spent:.2f}" for name, spent in seconds.items())
        now, then = (sum(seconds[f"{name} {way}"] for way in ("forward", "backward")) for name in ways)
        apart = [(a - b).abs().max().item() for a, b in (rows.values(), [one()[0] for one in back.values()])]
        print(f"{shape}: {cells}; a step {1000 * times * then:.2f} before, {1000 * now:.2f} now")
        print(f"    largest difference {apart[0]:.1e}, of the gradient {apart[1]:.1e}")


def in_turns(
    works: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """The seconds of the first call of each work, its peak memory on CUDA, and its median seconds later."""

    def spent(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        return time.perf_counter() - start

    first, memory = dict[str, float](), dict[str, float]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        first[name] = spent(work)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            spent(work)
            memory[name] = torch.cuda.max_memory_allocated(device)
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(spent(work))
    return first, memory, {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
