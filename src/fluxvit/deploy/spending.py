"""Predictors that do not spend the same on every clip: cascades, and a mean budget shared among clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fluxvit.deploy.latency import milliseconds, time_in_turns
from fluxvit.deploy.predictor import Prediction, Predictor, Sampled
from fluxvit.flux.budget import Budget, Cascade, Plan
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import get_selector, keep_best
from fluxvit.flux.spending import NEEDS, Spent, chain_gmacs, chain_tokens, share_tokens, stage_answer
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput
from fluxvit.video.inputs import VideoInput

# Cascades --------------------------------------------------------------------------------------------------


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
            found, _ = model.sample(clip_of(plan.grid), [s.keep for s in alike], plan.selector)
            samples.update(zip(alike, found, strict=True))
        tokens, kept = samples[plan]
        yield model.read(model.encode(tokens), kept, plan.head)


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
        if predictor.info.multi_label:
            raise ValueError(
                "a cascade stops where one class is sure enough; this checkpoint tells several classes of a "
                "clip, so use a single plan"
            )
        if not isinstance(cascade, Cascade):
            budget = None if cascade is None else Budget.of(cascade)
            cascade = nearest_cascade(predictor.info.cascades, budget, self._costs_in(budget))
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
            self.model, cascade.stages, lambda grid: predictor.clip(sampled.frames[grid], grid)
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


# A mean budget, shared -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What a first look at a clip leaves: enough to answer at any number of tokens.

    Args:
        path: The clip; None if it was given in memory.
        embeddings: Of its pool, ``[1, T, L, C]``, on the CPU.
        scores: What the selector says of them, ``[1, T, L]``.
        seconds: Length of the video.
        need: Its need of tokens; see :data:`~fluxvit.flux.spending.NEEDS`.
    """

    path: Path | None
    embeddings: Tensor
    scores: Tensor
    seconds: float
    need: float


class CorpusPredictor:
    """``corpus = CorpusPredictor(Predictor("runs/demo/best", 64))``, then
    ``corpus.spend([corpus.look(path) for path in paths])``

    Answers at so many tokens a clip in the mean, more for clips that need more. All clips are looked at
    first: decoded, embedded and scored, which is kept in memory (4 bytes a channel of each token of the pool)
    and not done again.

    Args:
        predictor: Its plan's tokens are the mean.
        need: What the tokens are shared by: ``motion`` or ``spread``; see
            :data:`~fluxvit.flux.spending.NEEDS`.
        floor, ceiling: Fewest and most tokens of a clip; None: 3/4 and 3/2 of the mean, within the pool.

    Attributes:
        plan: Grid, selector and mean number of tokens.

    Raises:
        ValueError: The need is unknown, the selector scores no embeddings, or the mean does not lie within
            floor and ceiling.
    """

    def __init__(
        self,
        predictor: Predictor,
        need: str = "motion",
        *,
        floor: int | None = None,
        ceiling: int | None = None,
    ) -> None:
        if need not in NEEDS:
            raise ValueError(f"need {need!r} is unknown; choose {' or '.join(NEEDS)}")
        self._predictor, self.model, self.plan = predictor, predictor.model, predictor.plan
        self._need, config = NEEDS[need], predictor.model.config
        self._selector = get_selector(self.plan.selector)
        if self._selector.reads != "embeddings":
            raise ValueError(
                f"selector {self.plan.selector} scores no embeddings, and sharing goes by their scores; use "
                "a plan of another selector"
            )
        pool = self.plan.grid.tokens(config.patch_size, config.tubelet_size)
        mean = self.plan.keep
        self._limits = (
            max(1, mean * 3 // 4) if floor is None else floor,
            min(mean * 3 // 2 if ceiling is None else ceiling, pool),
        )
        share_tokens([], mean, *self._limits)  # Fails now if it ever will.

    @torch.inference_mode()
    def look(self, video: VideoInput, *, fps: float | None = None) -> Look:
        """Decode, embed and score a clip.

        Args:
            video: As for a :class:`~fluxvit.deploy.predictor.Predictor`.
            fps: As for a :class:`~fluxvit.deploy.predictor.Predictor`.

        Raises:
            VideoError: It cannot be read.
            ValueError: Frames have another shape or type, or ``fps`` cannot be used.
        """
        grid = self.plan.grid
        sampled = self._predictor.sample(video, [grid], fps)
        embeddings, shape = self.model.patch_embed(self._predictor.clip(sampled.frames[grid], grid))
        scores = self._selector.scores(embeddings, shape[1:])
        return Look(sampled.path, embeddings.cpu(), scores.cpu(), sampled.seconds, self._need(scores))

    def shares(self, looks: Sequence[Look]) -> list[int]:
        """Tokens of each clip, the mean times their number in all."""
        return share_tokens([look.need for look in looks], self.plan.keep, *self._limits)

    def spend(self, looks: Sequence[Look], at_once: int = 8) -> Iterator[Prediction]:
        """Predictions in the order of the looks; their plans tell the tokens of each. They keep no
        frames.

        Args:
            at_once: Clips that are encoded in one pass, packed without padding.
        """
        keeps = self.shares(looks)
        for first in range(0, len(looks), at_once):
            yield from self._encode(looks[first : first + at_once], keeps[first : first + at_once])

    @torch.inference_mode()
    def _encode(self, looks: Sequence[Look], keeps: Sequence[int]) -> list[Prediction]:
        model, config, grid = self.model, self.model.config, self.plan.grid
        shape = grid.token_shape(config.patch_size, config.tubelet_size)
        groups = self._selector.groups(shape[0])
        kept = [keep_best(look.scores, groups, keep) for look, keep in zip(looks, keeps, strict=True)]
        tokens = [
            model.place(look.embeddings.to(self._predictor.device), shape, k.to(self._predictor.device))
            for look, k in zip(looks, kept, strict=True)
        ]
        lengths = [x.shape[1] for x in tokens]
        parts = model.encode(torch.cat(tokens, dim=1), lengths).split(lengths, dim=1)
        predictions = []
        for look, keep, k, part in zip(looks, keeps, kept, parts, strict=True):
            plan = replace(self.plan, keep=keep, measured=None)
            out = model.read(part, k, plan.head)
            spent = Spent(keep, grid_cost(config.size, grid, keep, plan.selector).total / 1e9)
            probabilities = self._predictor.info.probabilities(out.logits.cpu())
            sampled = Sampled(look.path, look.seconds, {}, {})
            predictions.append(self._predictor.prediction(sampled, plan, probabilities, out, spent))
        return predictions
