"""Predictors that run a more expensive plan only where a cheap one is unsure: cascades."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fluxvit.checkpoints.latency import milliseconds, time_in_turns
from fluxvit.deploy.predictor import Prediction, Predictor
from fluxvit.flux.budget import Budget
from fluxvit.flux.cascade import Spent, chain_gmacs, chain_tokens, stage_answer
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Plan
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput
from fluxvit.video.inputs import VideoInput


def run_stages(
    model: FluxViT, stages: Sequence[Plan], clip_of: Callable[[SamplingGrid], Tensor]
) -> Iterator[FluxViTOutput]:
    """Run plans one after the other on the same clips, each when it is asked for.

    Stages of one grid and selector share embeddings and selection.

    Args:
        model: In eval mode.
        clip_of: Gives the clips on a grid, ``[B, C, T, H, W]``, when the grid is reached.
    """
    samples: dict[Plan, tuple[Tensor, Tensor | None]] = {}
    for plan in stages:
        if plan not in samples:
            alike = [s for s in stages if (s.grid, s.selector) == (plan.grid, plan.selector)]
            found, _ = model.select_tokens(clip_of(plan.grid), [s.keep for s in alike], plan.selector)
            samples.update(zip(alike, found, strict=True))
        tokens, kept = samples[plan]
        yield model.head_output(model.encode(tokens), kept, plan.head)


@torch.inference_mode()
def measure_chains(model: FluxViT, chains: Sequence[Sequence[Plan]], runs: int = 20) -> list[float]:
    """Median milliseconds of one clip that goes through all stages of a chain, for each chain.

    Timed in turns, so that a load that comes and goes favours none. Reading the video is not in it.
    """
    config, weight = model.config, model.patch_embed.proj.weight
    pixels = torch.Generator().manual_seed(0)
    clips = {}
    for grid in sorted({plan.grid for chain in chains for plan in chain}):
        shape = 1, config.in_chans, grid.frames, grid.height, grid.width
        clips[grid] = torch.randn(shape, generator=pixels).to(weight)

    def run(chain: Sequence[Plan]) -> None:
        for out in run_stages(model, chain, clips.__getitem__):
            out.logits.cpu()  # As in use: whether to go on is decided on the CPU.

    timers = [partial(milliseconds, partial(run, chain), weight.device) for chain in chains]
    return [latency.p50 for latency in time_in_turns(timers, runs=runs)]


def prefixes(stages: Sequence[Plan]) -> list[Sequence[Plan]]:
    """The first one, two, ... of the stages."""
    return [stages[: n + 1] for n in range(len(stages))]


def nearest_cascade(
    cascades: Sequence[Cascade], budget: Budget | None, costs: Callable[[Cascade], Sequence[float]]
) -> Cascade:
    """The cascade of the highest mean cost within a mean budget; None: of the highest.

    Args:
        costs: Costs of the first one, two, ... stages of a cascade, in the budget's unit.

    Raises:
        ValueError: There are no cascades, or none fits.
    """
    if not cascades:
        raise ValueError(
            "the checkpoint's plan table has no cascades; tune some with: fluxvit optimize --cascades"
        )
    means = [cascade.mean(costs(cascade)) for cascade in cascades]
    limit = float("inf")
    if budget is not None:
        limit = budget.tokens or budget.gflops or budget.latency_ms or limit
    fitting = [i for i, mean in enumerate(means) if mean <= limit]
    if not fitting:
        unit = str(budget).split(" ", 1)[1]
        raise ValueError(f"budget {budget}: the cheapest cascade takes {min(means):.3g} {unit} in the mean")
    return cascades[max(fitting, key=lambda i: means[i])]


class CascadePredictor:
    """``CascadePredictor(Predictor("runs/demo/best"), Budget(gflops=3))("clip.mp4").top(5)``

    A cheap plan answers first, and a dearer one only where that is unsure. Frames for all stages are decoded
    in one go.

    Args:
        predictor: Model, labels and device; its own plan is not used.
        cascade: What to run; or what a clip may cost in the mean, for which the plan table's cascade with the
            highest mean cost within it is taken. A number is tokens. None: the table's dearest cascade.

    Attributes:
        cascade: What is run.

    Raises:
        ValueError: The plan table has no cascade that fits, or the checkpoint tells several classes of a
            clip.
    """

    def __init__(self, predictor: Predictor, cascade: Cascade | Budget | int | None = None) -> None:
        self._predictor, self.model = predictor, predictor.model
        if predictor.checkpoint.multi_label:
            raise ValueError(
                "a cascade stops where one class is sure enough; this checkpoint tells several classes of a "
                "clip, so use a single plan"
            )
        if not isinstance(cascade, Cascade):
            budget = None if cascade is None else Budget.of(cascade)
            cascade = nearest_cascade(predictor.checkpoint.cascades, budget, self._costs_in(budget))
        self.cascade = cascade
        self._gmacs = chain_gmacs(self.model.config.size, cascade.stages)

    def _costs_in(self, budget: Budget | None) -> Callable[[Cascade], Sequence[float]]:
        if budget is not None and budget.tokens is not None:
            return lambda cascade: chain_tokens(cascade.stages)
        if budget is not None and budget.latency_ms is not None:
            return lambda cascade: measure_chains(self.model, prefixes(cascade.stages))
        return lambda cascade: chain_gmacs(self.model.config.size, cascade.stages)

    @torch.inference_mode()
    def __call__(self, video: VideoInput, *, fps: float | None = None) -> Prediction:
        """Classify a video; the prediction's plan is the last stage that was run.

        Args:
            video: As for a :class:`~fluxvit.deploy.predictor.Predictor`.
            fps: As for a :class:`~fluxvit.deploy.predictor.Predictor`.

        Raises:
            VideoError: It cannot be read.
            ValueError: Frames have another shape or type, or ``fps`` cannot be used.
        """
        cascade, predictor = self.cascade, self._predictor
        sampled = predictor.sample(video, [plan.grid for plan in cascade.stages], fps)
        stages = run_stages(
            self.model, cascade.stages, lambda grid: predictor.checkpoint.clip(sampled.frames[grid], grid)
        )
        logits: list[Tensor] = []
        for out in stages:
            logits.append(out.logits)
            answer = stage_answer(logits, cascade.temperatures, cascade.average)
            if answer.max() >= cascade.threshold:
                break
        run = len(logits)
        plan = replace(cascade.stages[run - 1], measured=None)
        spent = Spent(chain_tokens(cascade.stages)[run - 1], self._gmacs[run - 1], run)
        return predictor.prediction(sampled, plan, answer, out, spent)
