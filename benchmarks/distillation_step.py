"""What does one multi-budget step cost, compared with a step for each budget?

All budgets of a Flux-UMT step share the teacher's pass, the embedding and the optimiser's update. If the
teacher takes T seconds, embedding, selection and update take E, and the student's passes with their decoders
take S, then one step takes T + E + S, and three steps of one budget each take 3 T + 3 E + S: about twice as
long with a teacher as expensive as the three passes together. This script measures the parts, both kinds of
step and the memory of each, in separate processes.

    python benchmarks/distillation_step.py

Teachers are FluxViTs of several depths with random weights. The depth of the last one is chosen so that it
costs as much as the student's passes.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fluxvit import __version__
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.teachers import FluxViTTeacher
from fluxvit.training.optim import parameter_groups
from fluxvit.training.recipes import DistillSettings
from fluxvit.training.tasks.distill import DistillTask
from fluxvit.utils.system import processor_name
from fluxvit.video.transforms import IMAGENET_MEAN, IMAGENET_STD


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--student", default="fluxvit_tiny")
    add("--teacher", default="fluxvit_small")
    add("--depths", default="2,12", help="blocks of the teachers")
    add("--grid", default="8,112,112", help="frames, height and width of the clips")
    add("--budgets", default="512,384,256")
    add("--clips", type=int, default=2, help="a step")
    add("--repeats", type=int, default=7)
    add("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()

    budgets = [int(number) for number in args.budgets.split(",")]
    machine = f"{processor_name()} ({platform.machine()}), {args.threads} threads, fp32"
    print(f"fluxvit {__version__}, PyTorch {torch.__version__}, {machine}")
    print(f"{args.student} from {args.teacher} of so many blocks; {args.clips} clips {args.grid}, {budgets}")
    print(
        "seconds, medians of repeats that take turns; predicted: from the parts; memory: a process's peak\n"
    )
    names = ["blocks", "teacher", "embed", "update", "students", "multi", "predicted", "3 single"]
    names += ["predicted", "ratio", "predicted", "GiB multi", "GiB single"]
    print("".join(f"{name:>11}" for name in names))
    depths = [int(number) for number in args.depths.split(",")]
    per_block, passes = 0.0, 0.0
    for depth in [*depths, 0]:
        if depth == 0:  # As expensive as the student's passes.
            depth = max(1, round(passes / per_block))
        times = _alone(_times, args, budgets, depth)
        memory = [_alone(_memory, args, part, depth) for part in (budgets, budgets[:1])]
        per_block, passes = times["teacher"] / depth, times["students"]
        shared = times["teacher"] + times["embed"] + times["update"]
        predicted = shared + passes, len(budgets) * shared + passes
        found = times["multi"], times["single"]
        row = [times["teacher"], times["embed"], times["update"], passes]
        row += [found[0], predicted[0], found[1], predicted[1]]
        cells = [f"{value:.3f}" for value in row]
        cells += [f"{steps[1] / steps[0]:.2f}x" for steps in (found, predicted)]
        cells += [f"{value:.2f}" for value in memory]
        print("".join(f"{cell:>11}" for cell in [str(depth), *cells]), flush=True)


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of some work in a process of its own, where nothing of other work is in memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class Setting:
    """A student, its decoders, its teacher, an optimiser and clips."""

    def __init__(self, args: argparse.Namespace, budgets: list[int], depth: int, seen: int) -> None:
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        self.student = create_model(args.student, budgets=tuple(budgets), num_classes=0)
        self.student.head_norm.requires_grad_(False)
        self.student.aligners.requires_grad_(False)
        config = {"depth": depth, "budgets": (budgets[0],), "num_classes": 0}
        teacher = FluxViTTeacher(
            create_model(args.teacher, **config), IMAGENET_MEAN, IMAGENET_STD, torch.float32
        )
        self.task = DistillTask(Checkpoint(self.student), teacher, DistillSettings(teacher_tokens=seen))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.task, 0.05))
        self.video = torch.randn(args.clips, 3, *(int(number) for number in args.grid.split(",")))
        self.task.train()

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.task({"video": self.video})["loss"].backward()
        self.optimizer.step()


def _times(args: argparse.Namespace, budgets: list[int], depth: int) -> dict[str, float]:
    """Seconds of the parts of a step, and of steps."""
    # The teacher sees the same tokens in all settings.
    together = Setting(args, budgets, depth, budgets[0])
    singles = [Setting(args, [budget], depth, budgets[0]) for budget in budgets]
    model, task = together.student, together.task
    embedded, shape = model.patch_embed(together.video)
    (seen,) = model.select_indices(embedded, [budgets[0]])
    target = task._targets(together.video, shape, seen)
    without = Setting(args, budgets, depth, budgets[0])
    # The teacher's features cost nothing any more.
    without.task._targets = lambda *_: target  # type: ignore[method-assign]
    embeds = _Embedding(model)

    def teach() -> None:
        task._targets(together.video, shape, seen)

    def step_each() -> None:
        for setting in singles:
            setting.step()

    jobs: dict[str, Callable[[], Any]] = {
        "teacher": teach,
        "embed": lambda: embeds(together.video, budgets[0]),
        "rest": without.step,
        "update": without.optimizer.step,
        "multi": together.step,
        "single": step_each,
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(args.repeats):
        for name, job in jobs.items():
            gc.collect()
            job()  # Once for the memory, which a smaller job before it has given back.
            start = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - start)
    middle = {name: median(values) for name, values in seconds.items()}
    return {**middle, "students": middle["rest"] - middle["embed"] - middle["update"]}


class _Embedding:
    """Embedding and selection, with a backward pass through the embedding."""

    def __init__(self, model: FluxViT) -> None:
        self.model = model

    def __call__(self, video: Tensor, keep: int) -> None:
        embedded, _ = self.model.patch_embed(video)
        self.model.select_indices(embedded, [keep])
        embedded.sum().backward()


def _memory(args: argparse.Namespace, budgets: list[int], depth: int) -> float:
    """GiB that the process holds at most in a step of these budgets."""
    setting = Setting(args, budgets, depth, budgets[0])
    for _ in range(2):
        setting.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
