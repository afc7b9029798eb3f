"""Classifies a video while it plays, by a window that slides over it; nothing is embedded twice.

Patch embeddings do not depend on their position in the window: positions are added later, and selection
compares embeddings. The embeddings of a tubelet therefore serve every window that contains it. A step costs
the embedding of the new tubelets, the selection, and the encoding of the kept tokens.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Condition, Thread

import numpy as np
import torch
from torch import Tensor

from fluxvit.deploy.predictor import Answer, Predictor
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Plan
from fluxvit.flux.selection import get_selector
from fluxvit.models.finite import check_finite
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput
from fluxvit.video.base import VideoError
from fluxvit.video.inputs import VideoInput
from fluxvit.video.sampling import check_window
from fluxvit.video.stream import FileFrames, FrameSource, open_stream

DEFAULT_WINDOW_S = 4.0
_MOST_TOKENS = 1e9  # In a second; more than any grid has.
DEFAULT_HOPS = 8  # Hops in a window if no hop is given.


@dataclass(frozen=True, kw_only=True)
class StreamAnswer(Answer):
    """An answer about one window of a stream.

    Args:
        start: Start of the window, in seconds from the first frame.
        end: End of the window.
        dropped: Windows left out just before this one, because the network was too slow for a live stream.
        gap: Seconds without a frame before this window, because the stream had been lost; 0 if it had not.
        lag: Seconds since the newest frame of the window arrived; None if that is unknown.
    """

    start: float
    end: float
    dropped: int
    gap: float = 0.0
    lag: float | None = None


@dataclass(frozen=True)
class Tubelet:
    """A tubelet of a stream.

    Args:
        video: The input of the network, ``[1, 3, tubelet_size, H, W]``.
        number: The tubelets before it in its part. A part begins when the stream begins or comes back.
        start: Start of the part, in seconds.
        gap: Seconds without a frame before the part.
        arrived: See :class:`~fluxvit.video.stream.FrameSource`.
    """

    video: Tensor
    number: int
    start: float = 0.0
    gap: float = 0.0
    arrived: float | None = None


class StreamingPredictor:
    """``for answer in StreamingPredictor(Predictor("runs/demo/best"), 4, 0.5)(open_stream("clip.mp4")): ...``

    The plan's grid is spread over the window: T frames in ``window_s`` seconds. The window advances by
    tubelets of ``tubelet_size / T * window_s`` seconds; the hop is rounded to at least one tubelet. The first
    answer comes when the first window is full.

    Every window is answered if the stream is not live. The frames of a live stream are received in a thread
    while the network computes; if it took longer than a hop, the newest complete window is answered next.
    When a lost stream comes back, a new window begins, and its seconds include the time in between.

    Args:
        predictor: Model and plan; a cascade cannot be used.
        window_s: Seconds of a window, best as long as the clips that the model was trained on.
        hop_s: Seconds between windows. None is an eighth of the window.
        token_rate: Tokens to encode for each second of video, instead of the tokens of the plan.

    Attributes:
        plan: Grid, tokens and selector of a step.
        window_s, hop_s: The window, and the hop after rounding, in seconds.

    Raises:
        ValueError: A number is out of range (windows are from a hundredth of a second to a day long), the hop
            is longer than the window, or the token rate leaves less than one token for a step.
    """

    def __init__(
        self,
        predictor: Predictor,
        window_s: float = DEFAULT_WINDOW_S,
        hop_s: float | None = None,
        *,
        token_rate: float | None = None,
    ) -> None:
        check_window(window_s)
        hop_s = window_s / DEFAULT_HOPS if hop_s is None else hop_s
        if not 0 < hop_s < math.inf:
            raise ValueError(f"hop {hop_s:g}: it must be above 0 seconds")
        if hop_s > window_s:
            raise ValueError(
                f"hop {hop_s:g} s is longer than the window of {window_s:g} s and would leave video out; "
                "lengthen the window"
            )
        if token_rate is not None and not 0 < token_rate <= _MOST_TOKENS:
            raise ValueError(
                f"{token_rate:g} tokens a second: the rate must be above 0 and up to {_MOST_TOKENS:g}"
            )
        self.model, self._predictor = predictor.model, predictor
        plan, config = predictor.plan, self.model.config
        self._tubelets = plan.grid.token_shape(config.patch_size, config.tubelet_size)[0]
        self._hop = max(1, round(hop_s * self._tubelets / window_s))
        self.window_s, self.hop_s = window_s, self._hop * window_s / self._tubelets
        if token_rate is not None:
            keep = min(int(token_rate * self.hop_s + 1e-9), config.pool(plan.grid))
            if keep < 1:
                raise ValueError(
                    f"{token_rate:g} tokens a second: that is less than one token a hop of {self.hop_s:g} s; "
                    f"give at least {1 / self.hop_s:.3g}, or a longer hop"
                )
            plan = plan if keep == plan.keep else replace(plan, keep=keep, measured=None)
        self.plan = plan

    @property
    def token_rate(self) -> float:
        """Tokens that are encoded for each second of video."""
        return self.plan.keep / self.hop_s

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a step, everything counted."""
        size, plan = self.model.config.size, self.plan
        cost = grid_cost(size, plan.grid, plan.keep, plan.selector)
        pool = grid_cost(size, plan.grid, size.pool(plan.grid)).embed_kept
        return (
            cost.selection + cost.blocks + cost.pooling + cost.classifier + pool * self._hop // self._tubelets
        )

    def __str__(self) -> str:
        plan, config = self.plan, self.model.config
        pool = config.pool(plan.grid)
        return (
            f"{plan.keep} of {pool} tokens of {plan.grid} in windows of {self.window_s:.3g} s every "
            f"{self.hop_s:.3g} s: {self.token_rate:.3g} tokens and {self.macs / 1e9 / self.hop_s:.3g} GMACs "
            "a second"
        )

    def __call__(
        self, source: FrameSource | VideoInput, *, fps: float | None = None
    ) -> Generator[StreamAnswer, None, None]:
        """Answers, one for each step, as the frames come.

        Args:
            source: Frames over time. Text is opened by :func:`~fluxvit.video.stream.open_stream`; anything
                else may be whatever :func:`~fluxvit.video.reader.open_video` accepts.
            fps: Frames per second of a folder of frames or of frames in memory. None means 25.

        The end of the iterator, or closing it, releases the source.

        Raises:
            VideoError: The source broke off, or ended before its first window was full.
        """
        if isinstance(source, str) and fps is None:
            source = open_stream(source)
        elif not isinstance(source, FrameSource):
            source = FileFrames(source, fps=fps)
        tubelets = self.tubelets(source)
        windows = (_newest_windows if source.live else _all_windows)(tubelets, self._tubelets, self._hop)
        pool = _SlidingPool(self.model, self.plan)
        gap = 0.0
        # The source is closed first: the thread that receives may wait for it.
        with closing(windows), closing(source):
            for fresh, dropped in windows:
                out = pool.advance(torch.cat([tubelet.video for tubelet in fresh], dim=2))
                newest = fresh[-1]
                # From a count, because sums of seconds would accumulate rounding errors.
                seconds = newest.start + (newest.number + 1) * self.window_s / self._tubelets
                logits = check_finite(out.logits[0].cpu(), source.name)
                yield StreamAnswer(
                    start=seconds - self.window_s,
                    end=seconds,
                    labels=self._predictor.labels,
                    probabilities=self._predictor.checkpoint.probabilities(logits).numpy(),
                    plan=self.plan,
                    kept=None if out.kept is None else out.kept[0].cpu().numpy(),
                    embedding=out.embedding[0].float().cpu().numpy(),
                    dropped=dropped,
                    gap=0.0 if newest.gap == gap else newest.gap,
                    lag=None if newest.arrived is None else time.monotonic() - newest.arrived,
                )
                gap = newest.gap

    def tubelets(self, source: FrameSource) -> Generator[Tubelet, None, None]:
        """The tubelets of a source.

        Raises:
            VideoError: As in a call.
        """
        grid, size = self.plan.grid, self.model.config.tubelet_size
        period = self.window_s / grid.frames
        most, end = 0, 0.0
        for part in source.parts(period):
            start, count = max(part.start, end), 0  # Frames may have come faster than the clock.
            with closing(part.images):
                former: list[np.ndarray] = []
                while group := list(itertools.islice(part.images, size)):
                    if len(group) == size:
                        # A picture that is shown for long, as after dropped ones, is prepared once.
                        if len(former) != size or any(a is not b for a, b in zip(group, former, strict=True)):
                            video = self._predictor.checkpoint.clip(np.stack(group), grid)
                        yield Tubelet(video, count // size, start, part.gap, source.arrived)
                    count, former = count + len(group), group
            most, end = max(most, count), start + count * period
        if most < grid.frames:
            raise VideoError.of(
                source.name,
                f"ended after {most * period:.3g} s, before the first window of "
                f"{self.window_s:g} s was full; choose a shorter window",
            )


class _SlidingPool:
    """The embeddings of a window that slides over a video, and what its selector reads besides."""

    def __init__(self, model: FluxViT, plan: Plan) -> None:
        self._model, self._plan = model, plan
        self._shape = plan.grid.token_shape(model.config.patch_size, model.config.tubelet_size)
        self._reads = get_selector(plan.selector).reads
        self._embeddings: Tensor | None = None
        self._read: Tensor | None = None

    @torch.inference_mode()
    def advance(self, video: Tensor) -> FluxViTOutput:
        """Add tubelets ``[1, 3, t * tubelet_size, H, W]``, and answer for the window that ends with them."""
        model, plan = self._model, self._plan
        self._embeddings = tokens = self._slide(self._embeddings, model.patch_embed(video)[0])
        if self._reads == "pixels":
            self._read = tokens = self._slide(self._read, model.patch_embed.patchify(video)[0])
        elif self._reads == "thumbnails":
            self._read = tokens = self._slide(self._read, model.thumbnails(video))
        (kept,) = model.select_indices(tokens, [plan.keep], plan.selector)
        (inputs,) = model.add_positions(self._embeddings, self._shape, [kept])
        return model.head_output(model.encode(inputs), kept, plan.head)

    def _slide(self, former: Tensor | None, new: Tensor) -> Tensor:
        """The newest tubelets that make a window, ``[1, T, L, ...]``."""
        joined = new if former is None else torch.cat([former, new], dim=1)
        return joined[:, -self._shape[0] :]


_Windows = Generator[tuple[list[Tubelet], int], None, None]


def _all_windows(tubelets: Generator[Tubelet, None, None], window: int, hop: int) -> _Windows:
    """The tubelets that each window adds to the one before, and the number of windows left out, 0."""
    fresh: list[Tubelet] = []
    with closing(tubelets):
        for tubelet in tubelets:
            if tubelet.number == 0:
                fresh, missing = [], window
            fresh.append(tubelet)
            if len(fresh) == missing:
                yield fresh, 0
                fresh, missing = [], hop


def _newest_windows(tubelets: Generator[Tubelet, None, None], window: int, hop: int) -> _Windows:
    """The same for a live stream, whose frames a thread receives: the newest complete window each time."""
    waiting: deque[Tubelet] = deque(maxlen=window + hop)  # It contains the newest complete window.
    changed = Condition()
    # Of the present part: tubelets seen, tubelets given, and the end of the next window.
    seen, given, end = 0, 0, window
    missed, ended, left = 0, False, False
    failure: Exception | None = None

    def receive() -> None:
        nonlocal seen, given, end, missed, ended, failure
        try:
            # Closed in this thread: a camera must not be closed while another thread reads it.
            with closing(tubelets):
                for tubelet in tubelets:
                    with changed:
                        if tubelet.number == 0:
                            # Windows of the part before this one that are still to be answered.
                            missed += max(0, (seen - end) // hop + 1)
                            seen, given, end = 0, 0, window
                            waiting.clear()
                        waiting.append(tubelet)
                        seen += 1
                        changed.notify()
                    if left:
                        break
        except Exception as error:
            failure = error
        with changed:
            ended = True
            changed.notify()

    # A daemon, because it may wait forever for a camera that sends nothing any more.
    thread = Thread(target=receive, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                # With a limit, because Windows does not notice Ctrl-C otherwise.
                while seen < end and not ended:
                    changed.wait(timeout=0.5)
                if seen < end:
                    break
                skipped = (seen - end) // hop
                end += skipped * hop
                first = seen - len(waiting)
                fresh = [waiting[i - first] for i in range(max(given, end - window), end)]
                given, end = end, end + hop
                dropped, missed = skipped + missed, 0
            yield fresh, dropped
    finally:
        left = True
        thread.join(timeout=2.0)
    if failure is not None:
        raise failure
