"""``fluxvit stream``: print the classes of a window that slides over a video while it plays."""

from __future__ import annotations

from contextlib import closing

from fluxvit.cli.predict import load_predictor, top_classes, top_lines
from fluxvit.deploy.config import StreamConfig
from fluxvit.deploy.streaming import DEFAULT_HOPS, DEFAULT_WINDOW_S, StreamAnswer, StreamingPredictor
from fluxvit.flux.budget import Budget
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import json_line, printable, say
from fluxvit.video.stream import open_stream


def run(config: StreamConfig) -> None:
    """Classify the window, hop by hop, until the video ends."""
    source = open_stream(config.source, live=config.live, reconnect=config.reconnect)
    window, budget = config.window, config.budget
    if window is None:
        window = min(DEFAULT_WINDOW_S, source.seconds or DEFAULT_WINDOW_S)
    rate = None if budget is None else budget.tokens_per_s
    if rate is not None:
        # About what a window will keep, which chooses the grid. The grid's tubelets round the hop later.
        budget = Budget(tokens=max(1, round(rate * (config.hop or window / DEFAULT_HOPS))))
    predictor = load_predictor(config, budget)
    span = predictor.checkpoint.sampling.window(predictor.plan.grid.frames)
    if config.window is None and span:
        window = min(span, source.seconds or span)
    streaming = StreamingPredictor(predictor, window, config.hop, token_rate=rate)
    log_device(predictor.device)
    say(f"fluxvit: {printable(source.name)}: {streaming}", error=True)
    dropped = 0
    try:
        with closing(streaming(source)) as answers:
            for answer in answers:
                dropped += answer.dropped
                show = _as_json if config.json else _as_text
                say(show(config.source, answer, config.top), flush=True)
    finally:
        if dropped:
            say(f"fluxvit: {printable(source.name)}: {dropped} windows were skipped to keep up", error=True)


def _as_json(source: str, answer: StreamAnswer, top: int) -> str:
    value = {"clip": source, "start": round(answer.start, 6), "end": round(answer.end, 6)}
    value |= {**top_classes(answer, top), "dropped": answer.dropped, "gap": round(answer.gap, 3)}
    return json_line(value if answer.lag is None else value | {"lag": round(answer.lag, 3)})


def _as_text(source: str, answer: StreamAnswer, top: int) -> str:
    skipped = f"   ({answer.dropped} skipped)" if answer.dropped else ""
    return f"{answer.start:8.2f} to {answer.end:.2f} s  {'   '.join(top_lines(answer, top))}{skipped}"
