"""Answers requests about videos; independent of the web framework.

A request is admitted if the queue has room, waits for a decoding process, then for the network together with
others, and is given up at its deadline at any of these points.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Plan
from fluxvit.serving.batching import TokenBatcher
from fluxvit.serving.config import ServeConfig
from fluxvit.serving.decoding import Clips, Decoders, Limits
from fluxvit.serving.engine import Engine, Result, Work
from fluxvit.serving.errors import RequestError
from fluxvit.serving.metrics import Metrics
from fluxvit.serving.schemas import (
    ChatAnswer,
    ChatRequest,
    ClassifyAnswer,
    ClassifyRequest,
    Cost,
    EmbedAnswer,
    Hit,
    Kept,
    Label,
    Milliseconds,
    ModelAnswer,
    PlanAnswer,
    PlanRow,
    RequestLimits,
    SearchAnswer,
    SearchRequest,
    VideoRequest,
    View,
)
from fluxvit.utils.system import device_name, usable_cores

T = TypeVar("T")

# Seconds for which batches fill while videos wait for decoding processes.
_LINGER = 0.05
# The share of the newest answer in the mean time between answers.
_NEWEST = 0.05


class Service:
    """A checkpoint, the processes that decode for it, and the queue before both.

    Make it outside of the event loop, because it loads and measures; call its methods inside.

    Args:
        config: Options of the server.
        batcher: What makes batches of requests.

    Attributes:
        draining: Whether no more requests are admitted.

    Raises:
        ValueError: The checkpoint, the database, a folder or the default budget cannot be used.
    """

    def __init__(self, config: ServeConfig, batcher: type[TokenBatcher] = TokenBatcher) -> None:
        self._folders = [_folder(name) for name in config.allow]
        self.config, self.metrics, self.engine = config, Metrics(), Engine(config)
        self.draining = False
        limits = Limits(config.max_seconds, config.max_pixels, config.max_frames)
        count = config.decoders or usable_cores()
        self._decoders = Decoders(count, config.decode_time, config.decode_memory, limits)
        self._decoders.start()
        self._batcher = batcher(self.engine.run, config.batch_tokens, self.metrics.batch, self._linger)
        self._budget = lru_cache(1024)(Budget.parse)
        self._in_flight = 0
        self._between, self._last = 0.1, 0.0  # Mean seconds between answers, and when the last one was given.

    def _linger(self) -> float:
        # Larger batches leave more of the processor to the decoders. Where videos wait for these anyway, the
        # time does not count.
        return _LINGER if self._decoders.saturated else 0.0

    def model(self) -> ModelAnswer:
        """What is served."""
        config, engine = self.config, self.engine
        return ModelAnswer(
            name=engine.name,
            tasks=list(engine.tasks),
            labels=list(engine.labels),
            parameters=engine.video.model.config.parameters,
            device=device_name(engine.video.device),
            default_budget=str(engine.default),
            plans=[self._row(plan) for plan in engine.ladder],
            limits=RequestLimits(
                bytes=config.max_bytes,
                seconds=config.max_seconds,
                pixels=config.max_pixels,
                frames=config.max_frames,
                tokens=config.batch_tokens,
            ),
        )

    def _row(self, plan: Plan) -> PlanRow:
        facts = plan.measured
        assert facts is not None
        assert facts.latency_ms is not None
        return PlanRow(
            budget=str(Budget(tokens=plan.keep)),
            tokens=plan.keep,
            pool=self.engine.video.pool(plan.grid),
            grid=str(plan.grid),
            gflops=self.engine.gmacs(plan),
            milliseconds=facts.latency_ms,
            accuracy=facts.correct / facts.total if facts.total and facts.correct is not None else None,
        )

    def allowed_path(self, path: str) -> str:
        """The video that a request names by path.

        Raises:
            RequestError: It is not below a folder that is allowed, or does not exist.
        """
        message = f"the path {path!r} is not below a folder that this server allows"
        try:
            found = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):
            raise RequestError(403, "forbidden_path", message) from None
        if not any(found.is_relative_to(folder) for folder in self._folders):
            raise RequestError(403, "forbidden_path", message)
        if not found.exists():
            raise RequestError(404, "not_found", f"the path {path!r} does not exist")
        return str(found)

    @asynccontextmanager
    async def admitted(self, task: str) -> AsyncIterator[None]:
        """Room in the queue for a request while its input is received and answered.

        Raises:
            RequestError: The server cannot do this, is full, or is stopping.
        """
        if task not in self.engine.tasks:
            raise RequestError(404, "no_such_task", f"{self.engine.name} cannot {task}")
        if self.draining:
            raise RequestError(503, "draining", "the server is stopping; ask another one", 1)
        if self._in_flight >= self.config.queue:
            wait = self._in_flight * self._between / 2
            raise RequestError(
                429,
                "too_many_requests",
                f"{self._in_flight} requests are waiting; try again later",
                min(60, max(1, math.ceil(wait))),
            )
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.set(self._in_flight)
            self.metrics.waiting_tokens.set(self._batcher.waiting_tokens)

    async def classify(
        self, request: ClassifyRequest, path: str, name: str, arrived: float
    ) -> ClassifyAnswer:
        """The classes of the video at ``path``, which messages call ``name``.

        Args:
            arrived: Time of the event loop at which the request came.

        Raises:
            RequestError: The video or the budget cannot be used, or the deadline has passed.
        """
        result, facts = await self._through(request, path, name, arrived, "classify", self._compute)
        assert result.probabilities is not None
        order = (-result.probabilities).argsort(kind="stable")[: request.top]
        labels = [Label(label=self.engine.labels[i], score=float(result.probabilities[i])) for i in order]
        return ClassifyAnswer(labels=labels, **facts)

    async def embed(self, request: VideoRequest, path: str, name: str, arrived: float) -> EmbedAnswer:
        """The vector of a video; see :meth:`classify`."""
        result, facts = await self._through(request, path, name, arrived, "embed", self._compute)
        return EmbedAnswer(embedding=result.embedding.tolist(), **facts)

    async def chat(self, request: ChatRequest, path: str, name: str, arrived: float) -> ChatAnswer:
        """The answer to a question about a video; see :meth:`classify`."""

        async def ask(clips: Clips, plan: Plan) -> tuple[str, float, float]:
            loop = asyncio.get_running_loop()
            start = loop.time()
            answer = await self._batcher.call(partial(self.engine.chat, clips, plan, request.question))
            return answer, 0.0, loop.time() - start

        answer, facts = await self._through(request, path, name, arrived, "chat", ask)
        return ChatAnswer(answer=answer, **facts)

    async def search(self, request: SearchRequest, arrived: float) -> SearchAnswer:
        """The moments of indexed videos nearest to a sentence.

        Raises:
            RequestError: The sentence or the database cannot be used, or the deadline has passed.
        """
        async with self._deadline(None, arrived):
            try:
                hits = await self._batcher.call(partial(self.engine.search, request.text, request.top))
            except ValueError as error:
                raise RequestError(400, "bad_request", str(error)) from None
        return SearchAnswer(
            results=[Hit(video=str(hit.path), start=hit.start, end=hit.end, score=hit.score) for hit in hits]
        )

    async def _compute(self, clips: Clips, plan: Plan) -> tuple[Result, float, float]:
        tokens = plan.keep * len(clips.frames)
        answered = await self._batcher.submit(Work(clips, plan), tokens)
        return answered.answer, answered.waited, answered.computed

    async def _through(
        self,
        request: VideoRequest,
        path: str,
        name: str,
        arrived: float,
        task: str,
        compute: Callable[[Clips, Plan], Awaitable[tuple[T, float, float]]],
    ) -> tuple[T, dict[str, Any]]:
        """Decode a video, compute something of its clips, and say what that took."""
        loop, engine = asyncio.get_running_loop(), self.engine
        async with self._deadline(request.deadline_ms, arrived):
            start = loop.time()
            plan, count = await self._plan(request.budget, path, name)
            clips = await self._decoders.read(path, name, engine.video.sampling, plan.grid, count)
            decoded = loop.time() - start
            answer, waited, computed = await compute(clips, plan)
        now = loop.time()
        self._between += _NEWEST * (min(now - self._last, 1.0) - self._between) if self._last else 0.0
        self._last = now
        tokens = count * plan.keep
        size = str(1 << (tokens - 1).bit_length())
        self.metrics.latency.labels(task, size).observe(now - arrived)
        for stage, seconds in (("decode", decoded), ("queue", waited), ("network", computed)):
            self.metrics.stages.labels(stage).observe(seconds)
        kept = answer.kept if isinstance(answer, Result) else None
        explained = request.explain and kept is not None
        return answer, {
            "plan": PlanAnswer(
                grid=str(plan.grid),
                frames=plan.grid.frames,
                height=plan.grid.height,
                width=plan.grid.width,
                tokens=plan.keep,
                pool=engine.video.pool(plan.grid),
                selector=plan.selector,
                clips=count,
            ),
            "cost": Cost(tokens=tokens, gflops=count * engine.gmacs(plan)),
            "milliseconds": Milliseconds(
                queue=1e3 * waited,
                decode=1e3 * decoded,
                network=1e3 * computed,
                total=1e3 * (now - arrived),
            ),
            "seconds": clips.seconds,
            "times": clips.times.reshape(-1).tolist(),
            "kept": self._kept(kept, clips, plan) if explained else None,
        }

    async def _plan(self, budget: str | None, path: str, name: str) -> tuple[Plan, int]:
        """The plan of each clip, and the number of clips.

        Raises:
            RequestError: The budget cannot be honoured.
        """
        engine = self.engine
        try:
            wanted = engine.default if budget is None else self._budget(budget)
            if wanted.tokens_per_s is None:
                return engine.plan(wanted), 1
            seconds = await self._decoders.length(path, name)
            count, tokens = wanted.spread(seconds, engine.most_tokens)
            if count * tokens > self.config.batch_tokens:
                raise ValueError(
                    f"budget {wanted}: {seconds:.3g} s of video get {count * tokens} tokens, more than the "
                    f"{self.config.batch_tokens} that a request may cost"
                )
            return engine.plan(Budget(tokens=tokens)), count
        except ValueError as error:
            raise RequestError(400, "bad_budget", str(error)) from None

    def _kept(self, kept: Any, clips: Clips, plan: Plan) -> Kept:
        config, pool = self.engine.video.model.config, self.engine.video.pool(plan.grid)
        depth, rows, columns = plan.grid.token_shape(config.patch_size, config.tubelet_size)
        indices = [int(index) + clip * pool for clip, row in enumerate(kept) for index in row]
        (height, width), grid = clips.size, plan.grid
        scale = max(grid.height / height, grid.width / width)
        across, down = min(1.0, grid.width / scale / width), min(1.0, grid.height / scale / height)
        return Kept(
            shape=(depth * len(kept), rows, columns),
            tubelet=config.tubelet_size,
            indices=indices,
            view=View(x=(1 - across) / 2, y=(1 - down) / 2, width=across, height=down),
        )

    @asynccontextmanager
    async def _deadline(self, milliseconds: float | None, arrived: float) -> AsyncIterator[None]:
        seconds = self.config.deadline if milliseconds is None else milliseconds / 1e3
        task = asyncio.current_task()
        assert task is not None
        passed = False

        def give_up() -> None:
            nonlocal passed
            passed = True
            task.cancel()

        # asyncio.timeout needs Python 3.11.
        timer = asyncio.get_running_loop().call_at(arrived + seconds, give_up)
        try:
            yield
        except asyncio.CancelledError:
            if not passed:
                raise
            message = f"the request was not answered within {seconds:g} s"
            raise RequestError(504, "deadline", message) from None
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Stop the processes and the thread of the network."""
        self.draining = True
        self._decoders.close()
        await self._batcher.close()


def _folder(name: str) -> Path:
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise ValueError(f"--allow {name}: no such folder")
    return folder
