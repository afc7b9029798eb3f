"""``fluxvit stream``: print the classes of a window that slides over a video while it comes."""

from __future__ import annotations

from contextlib import closing

from fluxvit.cli.predict import load_predictor, top_classes
from fluxvit.deploy.config import StreamConfig
from fluxvit.deploy.streaming import (
    DEFAULT_HOPS,
    DEFAULT_WINDOW_S,
    StreamAnswer,
    StreamingPredictor,
    check_rates,
)
from fluxvit.flux.budget import Budget
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import json_line, printable, say
from fluxvit.video.stream import open_stream


def run(config: StreamConfig) -> None:
    """Classify the window, hop by hop, until the video ends."""
    source = open_stream(config.source, live=config.live)
    window, budget = config.window, config.budget
    if window is None:
        window = min(DEFAULT_WINDOW_S, source.seconds or DEFAULT_WINDOW_S)
    check_rates(window, config.hop, config.token_rate)
    if config.token_rate is not None:
        # About what a step will keep: it chooses the grid. The tubelets of the grid round the hop.
        budget = Budget(tokens=max(1, round(config.token_rate * (config.hop or window / DEFAULT_HOPS))))
    still = load_predictor(config.checkpoint, budget, config.grid, config.device)
    if config.window is None and (span := still.checkpoint.sampling.window(still.plan.grid.frames)):
        window = min(span, source.seconds or span)
    predictor = StreamingPredictor(still, window, config.hop, token_rate=config.token_rate)
    log_device(still.device)
    say(f"fluxvit: {printable(source.name)}: {predictor}", error=True)
    steps = dropped = 0
    try:
        with closing(predictor(source)) as answers:
            for answer in answers:
                steps += 1
                dropped += answer.dropped
                show = _step_as_json if config.json else _step_as_text
                say(show(config.source, answer, config.top), flush=True)
    finally:
        if dropped:
            say(
                f"fluxvit: {printable(source.name)}: {steps} steps; {dropped} more were skipped to keep up",
                error=True,
            )


def _step_as_json(source: str, answer: StreamAnswer, top: int) -> str:
    return json_line(
        {
            "clip": source,
            "start": round(answer.start, 6),
            "end": round(answer.end, 6),
            **top_classes(answer, top),
            "dropped": answer.dropped,
        }
    )


def _step_as_text(source: str, answer: StreamAnswer, top: int) -> str:
    classes = "   ".join(f"{100 * p:5.1f} %  {printable(label)}" for label, p in answer.top(top))
    skipped = f"   ({answer.dropped} skipped)" if answer.dropped else ""
    return f"{answer.start:8.2f} to {answer.end:.2f} s  {classes}{skipped}"
