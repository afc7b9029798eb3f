"""Predictors that run a more expensive plan only if a cheap one is unsure (cascades)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fluxvit.checkpoints.latency import milliseconds, time_in_turns
from fluxvit.deploy.predictor import Prediction, Predictor, Sampled, read_ahead
from fluxvit.flux.budget import Budget
from fluxvit.flux.cascade import Spent, chain_gmacs, chain_tokens, stage_answer
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Plan
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput
from fluxvit.video.base import VideoError
from fluxvit.video.inputs import VideoInput


def run_stages(
    model: FluxViT, stages: Sequence[Plan], clip_of: Callable[[SamplingGrid], Tensor]
) -> Iterator[FluxViTOutput]:
    """Run plans one after the other on the same clips; each runs when the iterator reaches it.

    Stages with the same grid and selector share embeddings and selection.

    Args:
        model: The model, in eval mode.
        clip_of: Returns the clips on a grid, ``[B, C, T, H, W]``. It is called when the grid is reached.
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

    Chains are timed in turns, so that a changing load of the device affects all of them alike. The time for
    reading the video is not included.
    """
    config, weight = model.config, model.patch_embed.proj.weight
    pixels = torch.Generator().manual_seed(0)
    clips = {}
    for grid in sorted({plan.grid for chain in chains for plan in chain}):
        shape = 1, config.in_chans, grid.frames, grid.height, grid.width
        clips[grid] = torch.randn(shape, generator=pixels).to(weight)

    def run(chain: Sequence[Plan]) -> None:
        for out in run_stages(model, chain, clips.__getitem__):
            out.logits.cpu()  # As in a prediction, where the CPU decides whether to continue.

    timers = [partial(milliseconds, partial(run, chain), weight.device) for chain in chains]
    return [latency.p50 for latency in time_in_turns(timers, runs=runs)]


def prefixes(stages: Sequence[Plan]) -> list[Sequence[Plan]]:
    """The first one, two, ... of the stages."""
    return [stages[: n + 1] for n in range(len(stages))]


def nearest_cascade(
    cascades: Sequence[Cascade], budget: Budget | None, costs: Callable[[Cascade], Sequence[float]]
) -> Cascade:
    """The cascade with the highest mean cost within a budget, or with the highest of all without a budget.

    Args:
        costs: Returns the costs of the first one, two, ... stages of a cascade, in the unit of the budget.

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
        if budget.tokens_per_s is not None:
            raise ValueError(f"budget {budget}: a cascade takes the mean cost of a clip, such as 3gflops")
        limit = budget.tokens or budget.gflops or budget.latency_ms or limit
    fitting = [i for i, mean in enumerate(means) if mean <= limit]
    if not fitting:
        unit = str(budget).split(" ", 1)[1]
        raise ValueError(f"budget {budget}: the cheapest cascade takes {min(means):.3g} {unit} in the mean")
    return cascades[max(fitting, key=lambda i: means[i])]


class CascadePredictor:
    """Predicts with a cascade: a cheap plan answers first, and a more expensive one only if it is unsure.

    ``CascadePredictor(Predictor("runs/demo/best"), Budget(gflops=3))("clip.mp4").top(5)`` gives the five most
    likely classes. The frames for all stages are decoded in one pass.

    Args:
        predictor: Predictor with the model, the labels and the device. Its plan is not used.
        cascade: The cascade to run; or the mean budget of a clip (a number means tokens), for which the
            checkpoint's cascade with the highest mean cost within it is used. By default the most expensive
            cascade is used.

    Attributes:
        cascade: The cascade that is run.

    Raises:
        ValueError: The checkpoint has no cascade that fits, or predicts several classes of a clip.
    """

    def __init__(self, predictor: Predictor, cascade: Cascade | Budget | int | None = None) -> None:
        self._predictor, self.model = predictor, predictor.model
        if predictor.checkpoint.multi_label:
            raise ValueError(
                "a cascade stops when one class is sure enough; this checkpoint predicts several classes of "
                "a clip, so use a single plan"
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

    def __call__(self, video: VideoInput, *, fps: float | None = None) -> Prediction:
        """Classify a video. The plan of the prediction is that of the last stage that was run.

        Args:
            video: A video that :class:`~fluxvit.deploy.predictor.Predictor` accepts.
            fps: Frame rate of an array of frames, as in :class:`~fluxvit.deploy.predictor.Predictor`.

        Raises:
            VideoError: The video cannot be read.
            ValueError: Frames have another shape or type, or ``fps`` cannot be used.
        """
        return self._predict(self._sample(video, fps))

    def map(
        self, videos: Iterable[VideoInput], *, fps: float | None = None, ahead: int = 2
    ) -> Iterator[Prediction | VideoError]:
        """Classify videos as :meth:`~fluxvit.deploy.predictor.Predictor.map` does."""
        return read_ahead(videos, partial(self._sample, fps=fps), self._predict, ahead)

    def _sample(self, video: VideoInput, fps: float | None) -> Sampled:
        return self._predictor.sample(video, [plan.grid for plan in self.cascade.stages], fps)

    @torch.inference_mode()
    def _predict(self, sampled: Sampled) -> Prediction:
        cascade, predictor = self.cascade, self._predictor
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
