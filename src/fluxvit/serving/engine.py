"""What the server does with a checkpoint: plans for budgets, and batches, searches and chats.

Everything except :meth:`Engine.plan` runs in the one thread of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.checkpoints.latency import LatencyTable
from fluxvit.checkpoints.loading import load_encoder
from fluxvit.deploy.chat import Chat
from fluxvit.deploy.search.database import Hit, VideoDatabase
from fluxvit.deploy.search.index import Embedder, search, settings_of
from fluxvit.flux.budget import Budget
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Measured, Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViTOutput
from fluxvit.models.graphs import CapturedFluxViT
from fluxvit.serving.config import ServeConfig
from fluxvit.serving.decoding import Clips
from fluxvit.utils.system import usable_device

# Clips of one plan that pass through the network together; more save no time.
_MOST_CLIPS = 32
_LIMIT = 256  # Tokens of an answer of a language model.


@dataclass(frozen=True)
class Work:
    """Clips of a video, and the plan of each of them."""

    clips: Clips
    plan: Plan


@dataclass(frozen=True)
class Result:
    """The means over the clips of a video, and the tokens of each clip.

    Args:
        probabilities: float64 ``[classes]``; None if there are no classes.
        embedding: float32 ``[P]``.
        kept: int64 ``[clips, K]``; None if all tokens were kept.
    """

    probabilities: np.ndarray | None
    embedding: np.ndarray
    kept: np.ndarray | None


class Engine:
    """A checkpoint that answers requests.

    Args:
        config: Options of the server.

    Attributes:
        tasks: What the checkpoint can do, of ``classify``, ``embed``, ``search`` and ``chat``.
        video: The checkpoint of the video side, in its inference form.
        ladder: Plans from cheap to expensive, with their measured milliseconds on this device.

    Raises:
        ValueError: The checkpoint, the database or the default budget cannot be used.
    """

    def __init__(self, config: ServeConfig) -> None:
        device = usable_device(config.device)
        self._chat: Chat | None = None
        self._encoder: Checkpoint | DualEncoderCheckpoint
        if ChatCheckpoint.is_in(config.checkpoint):
            self._chat = Chat(config.checkpoint, device=device, precision=config.precision)
            self._encoder = self._chat.checkpoint.video
        else:
            self._encoder = load_encoder(config.checkpoint, device).prepared(config.precision)
        self.video = self._encoder.video
        self._db, self._embedder = Path(config.db), None
        classes = self.video.model.config.num_classes > 0
        self.tasks = ("classify",) * classes + ("embed",)
        if config.db:
            with VideoDatabase(config.db) as database:
                settings = settings_of(database)
            if settings is None:
                raise ValueError(f"{config.db} is empty; fill it with: fluxvit index FOLDER --db {config.db}")
            self._embedder = Embedder(settings, device, config.precision)
            self.tasks += ("search",)
        if self._chat is not None:
            self.tasks += ("chat",)
        self.name = Path(config.checkpoint).resolve().name
        self.labels = self.video.class_names if classes else []
        self.ladder = _ladder(self.video)
        self.plan = lru_cache(1024)(self._plan)
        most = self.video.model.config.budgets[0]
        self.default = config.budget or Budget(tokens=self.video.plan().keep)
        self.most_tokens = min(most, self.video.plan().keep)
        if self.default.tokens_per_s is None:
            self.plan(self.default)

    def _plan(self, budget: Budget) -> Plan:
        """The plan of a budget. One in milliseconds gets the most expensive plan of the ladder within it.

        Raises:
            ValueError: The budget cannot be honoured.
        """
        if budget.latency_ms is None:
            return self.video.plan(budget)
        fitting = [plan for plan in self.ladder if _ms(plan) <= budget.latency_ms]
        if not fitting:
            least = min(map(_ms, self.ladder))
            raise ValueError(f"budget {budget}: the cheapest plan takes {least:.3g} ms on this server")
        return fitting[-1]

    def gmacs(self, plan: Plan) -> float:
        """1e9 multiply-accumulates of a clip, everything counted."""
        return grid_cost(self.video.model.config.size, plan.grid, plan.keep, plan.selector).total / 1e9

    @torch.inference_mode()
    def run(self, batch: Sequence[Work]) -> list[Result]:
        """The results of a batch. Clips of one plan are stacked; on CUDA devices all share a packed pass."""
        works = [(work, clip) for work in batch for clip in work.clips.frames]
        videos = [self.video.clip(clip, work.plan.grid)[0] for work, clip in works]
        outputs: list[FluxViTOutput | None] = [None] * len(works)
        captured = isinstance(self.video.model, CapturedFluxViT)
        # Heads and selectors differ between plans; a packed pass has one of each.
        groups: dict[object, list[int]] = {}
        for number, (work, _) in enumerate(works):
            plan = work.plan
            key = (plan.head, plan.selector) if captured else plan
            groups.setdefault(key, []).append(number)
        for numbers in groups.values():
            for first in range(0, len(numbers), _MOST_CLIPS):
                part = numbers[first : first + _MOST_CLIPS]
                plans = [works[number][0].plan for number in part]
                clips = [videos[number] for number in part]
                for number, output in zip(part, self._pass(clips, plans, captured), strict=True):
                    outputs[number] = output
        return list(self._means(batch, [output for output in outputs if output is not None]))

    def _pass(self, clips: list[Tensor], plans: list[Plan], packed: bool) -> list[FluxViTOutput]:
        model, plan = self.video.model, plans[0]
        if packed:
            keeps = [plan.keep for plan in plans]
            return model.forward_packed(clips, keeps, plan.head, plan.selector)
        video = torch.stack(clips)
        out = model(video, plan.keep, plan.head, plan.selector)
        return [tree_map_only(Tensor, partial(_row, i), out) for i in range(len(clips))]

    def _means(self, batch: Sequence[Work], outputs: list[FluxViTOutput]) -> list[Result]:
        results, first = [], 0
        for work in batch:
            part = outputs[first : first + len(work.clips.frames)]
            first += len(part)
            vectors = self._encoder.vectors(torch.cat([out.embedding for out in part]))
            embedding = self._encoder.mean_vector(vectors).cpu()
            probabilities = None
            if "classify" in self.tasks:
                logits = torch.cat([out.logits.cpu() for out in part])
                probabilities = check_finite(self.video.probabilities(logits).mean(0), "the answer").numpy()
            rows = [out.kept.cpu() for out in part if out.kept is not None]
            kept = torch.cat(rows).numpy() if rows else None
            results.append(Result(probabilities, check_finite(embedding, "the answer").numpy(), kept))
        return results

    def search(self, text: str, count: int) -> list[Hit]:
        """The windows of the database nearest to a sentence.

        Raises:
            ValueError: The sentence is empty.
        """
        assert self._embedder is not None
        with VideoDatabase(self._db) as database:
            return search(database, self._embedder, text, None, count)

    def chat(self, clips: Clips, plan: Plan, question: str) -> str:
        """The answer of the language model to a question about clips.

        Raises:
            ValueError: The question is empty.
        """
        assert self._chat is not None
        self._chat.plan = plan
        self._chat.see(list(clips.frames))
        return "".join(self._chat.ask(question, limit=_LIMIT))


def _row(number: int, x: Tensor) -> Tensor:
    return x[number : number + 1]


def _ms(plan: Plan) -> float:
    assert plan.measured is not None
    assert plan.measured.latency_ms is not None
    return plan.measured.latency_ms


def _ladder(checkpoint: Checkpoint) -> list[Plan]:
    """The stored plans, with their latency. If there are no more of them than budgets of training, plans of
    these, of half of the smallest and of those between join them.
    """
    budgets = sorted({min(budget, checkpoint.plan().keep) for budget in checkpoint.model.config.budgets})
    steps = {plan.keep for plan in checkpoint.plans}
    if len(steps) <= len(budgets):
        budgets = [max(1, budgets[0] // 2), *budgets]
        steps |= {*budgets, *((a + b) // 2 for a, b in pairwise(budgets))}
    table, plans = LatencyTable(checkpoint.model), []
    least = math.inf
    for tokens in sorted(steps, reverse=True):
        plan = checkpoint.plan(tokens)
        # Other work may slow a measurement down. A plan takes no longer than those that keep more tokens.
        least = min(least, table.measure(plan).p50)
        plans.append(replace(plan, measured=replace(plan.measured or Measured(), latency_ms=least)))
    return plans[::-1]
