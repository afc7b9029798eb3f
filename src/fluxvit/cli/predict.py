"""``fluxvit predict``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import json_line, printable, say

if TYPE_CHECKING:
    from fluxvit.deploy.predictor import Prediction, Predictor
    from fluxvit.deploy.streaming import StreamAnswer

_STREAM_ONLY = {"window", "hop", "token_rate", "raw", "live"}
_STREAM_TAKES = _STREAM_ONLY | {"clips", "checkpoint", "budget", "grid", "top", "json", "device"}


def run(argv: list[str]) -> int:
    parser = Parser("predict", "Say what is to be seen in clips.")
    add = parser.add_argument
    add(
        "clips",
        nargs="+",
        help="video files, or folders of frames; for --stream also a camera (/dev/video0, camera:0), "
        "an address (rtsp://...), or - for standard input",
    )
    add("--checkpoint", help="checkpoint folder, such as runs/demo/best; default: the package's nano model")
    add(
        "--budget", help="what a clip may cost: 1024 (tokens), 20gflops or 50ms; default: the largest trained"
    )
    add("--grid", help="sampling grid, such as 16x224; default: the checkpoint's plan for the budget")
    add("--top", type=int, help="classes to show; default: 5, of a stream 1")
    add("--json", action="store_true", help="print one JSON object a clip, or a step of a stream")
    add("--explain", metavar="OUT.mp4", help="write the clip with dropped patches dimmed")
    add_device(parser)
    add(
        "--cascade",
        action="store_true",
        help="a cheap plan first, a dearer one only where that is unsure; --budget is a clip's mean",
    )
    add("--stream", action="store_true", help="answer while the video comes, for a window that slides")
    add("--window", type=float, help="seconds of the window; default: 4, or a shorter file's length")
    add("--hop", type=float, help="seconds between two answers; default: an eighth of the window")
    add("--token_rate", type=float, help="tokens to encode for each second of a stream, in place of --budget")
    add("--raw", metavar="WxH@FPS", help="the stream is bare rgb24 frames, such as 640x360@30")
    add("--live", action="store_true", help="skip what cannot be kept up with, as for cameras and rtsp")
    options = values(parser, argv)
    is_stream = options.pop("stream")
    if options["top"] is None:
        options["top"] = 1 if is_stream else 5
    if options["top"] < 1:
        raise ValueError(f"--top {options['top']}: at least one class must be shown")
    others = set(options) - _STREAM_TAKES if is_stream else _STREAM_ONLY
    for name in sorted(others):
        if options.pop(name):
            raise ValueError(f"--{name} is {'not for' if is_stream else 'only for'} --stream")
    return _stream(**options) if is_stream else _predict(**options)


def _predict(
    clips: list[str],
    checkpoint: str | None,
    budget: str | None,
    grid: str | None,
    top: int,
    json: bool,
    explain: str | None,
    device: str | None,
    cascade: bool,
) -> int:
    if cascade and grid:
        raise ValueError("--cascade has plans of its own; leave out --grid")
    if explain and len(clips) > 1:
        raise ValueError("--explain takes one clip at a time")
    if explain and Path(explain).suffix not in (".mp4", ".mov", ".mkv"):
        raise ValueError(f"--explain {explain}: the name must end in .mp4, .mov or .mkv")

    if explain and Path(explain).resolve() == Path(clips[0]).resolve():
        raise ValueError(f"--explain {explain}: that is the clip itself; choose another name")

    from fluxvit.deploy.spending import CascadePredictor
    from fluxvit.flux.budget import parse_budget
    from fluxvit.machine import log_device
    from fluxvit.video.base import VideoError

    predictor = _load(checkpoint, None if cascade else budget, grid, device)
    answer: Callable[[str], Prediction] = predictor
    if cascade:
        answer = CascadePredictor(predictor, None if budget is None else parse_budget(budget))
    failed, spent = 0, []
    for clip in clips:
        try:
            prediction = answer(clip)
        except VideoError as error:
            # One bad clip must not keep the others from their answers.
            say(f"fluxvit: {printable(error)}", error=True)
            failed += 1
            continue
        log_device(predictor.device)
        spent.append(prediction.spent)
        say(_as_json(prediction, top) if json else _as_text(prediction, top, predictor), flush=True)
        if explain:
            from fluxvit.deploy.explain import write_explanation

            config = predictor.model.config
            write_explanation(explain, prediction, config.patch_size, config.tubelet_size)
            say(f"wrote {explain}", error=True)
    if cascade and spent:
        tokens, gmacs = mean(one.tokens for one in spent), mean(one.gmacs for one in spent)
        clips_ = f"{len(spent)} clip{'s' if len(spent) > 1 else ''}"
        say(f"fluxvit: {clips_}: {tokens:.4g} tokens and {gmacs:.3g} GMACs in the mean", error=True)
    return 2 if failed else 0


def _load(checkpoint: str | None, budget: str | None, grid: str | None, device: str | None) -> Predictor:
    from fluxvit.checkpoints import DEFAULT_CHECKPOINT
    from fluxvit.deploy.predictor import Predictor
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid

    predictor = Predictor(
        checkpoint or DEFAULT_CHECKPOINT,
        None if budget is None else parse_budget(budget),
        grid=None if grid is None else SamplingGrid.parse(grid),
        device=device,
    )
    if checkpoint is None:
        say(
            f"fluxvit: answering with {DEFAULT_CHECKPOINT}, which comes with the package and tells "
            f"{len(predictor.labels)} motions of drawn objects; --checkpoint names another",
            error=True,
        )
    return predictor


def _stream(
    clips: list[str],
    checkpoint: str | None,
    budget: str | None,
    grid: str | None,
    top: int,
    json: bool,
    device: str | None,
    window: float | None,
    hop: float | None,
    token_rate: float | None,
    raw: str | None,
    live: bool,
) -> int:
    if len(clips) > 1:
        raise ValueError("--stream takes one source at a time")
    if token_rate is not None and budget is not None:
        raise ValueError("give --budget, what a step may cost, or --token_rate, not both")

    from fluxvit.deploy.streaming import DEFAULT_HOPS, DEFAULT_WINDOW_S, StreamingPredictor, check_rates
    from fluxvit.machine import log_device
    from fluxvit.video.stream import open_stream

    source = open_stream(clips[0], raw=raw, live=live or None)
    if window is None:
        window = min(DEFAULT_WINDOW_S, source.seconds or DEFAULT_WINDOW_S)
    check_rates(window, hop, token_rate)
    if token_rate is not None:
        # About what a step will keep: it chooses the grid. The tubelets of the grid round the hop.
        budget = str(max(1, round(token_rate * (hop or window / DEFAULT_HOPS))))
    still = _load(checkpoint, budget, grid, device)
    predictor = StreamingPredictor(still, window, hop, token_rate=token_rate)
    log_device(still.device)
    say(f"fluxvit: {printable(source.name)}: {predictor}", error=True)
    steps = dropped = 0
    try:
        with closing(predictor(source)) as answers:
            for answer in answers:
                steps += 1
                dropped += answer.dropped
                line = _step_as_json(clips[0], answer, top) if json else _step_as_text(answer, top)
                say(line, flush=True)
    finally:
        if dropped:
            say(
                f"fluxvit: {printable(source.name)}: {steps} steps; {dropped} more were skipped to keep up",
                error=True,
            )
    return 0


def _step_as_json(clip: str, answer: StreamAnswer, top: int) -> str:
    return json_line(
        {
            "clip": clip,
            "start": round(answer.start, 6),
            "end": round(answer.end, 6),
            **_found(answer, top),
            "dropped": answer.dropped,
        }
    )


def _step_as_text(answer: StreamAnswer, top: int) -> str:
    classes = "   ".join(f"{100 * p:5.1f} %  {printable(label)}" for label, p in answer.top(top))
    skipped = f"   ({answer.dropped} skipped)" if answer.dropped else ""
    return f"{answer.start:8.2f} to {answer.end:.2f} s  {classes}{skipped}"


def _found(answer: Prediction | StreamAnswer, top: int) -> dict[str, Any]:
    return {
        "top": [{"label": label, "probability": round(p, 6)} for label, p in answer.top(top)],
        "grid": str(answer.plan.grid),
        "tokens": answer.plan.keep,
    }


def _as_json(prediction: Prediction, top: int) -> str:
    spent = {**asdict(prediction.spent), "gmacs": round(prediction.spent.gmacs, 6)}
    plan = prediction.plan
    if plan.measured is not None and plan.measured.latency_ms is not None:
        spent["latency_ms"] = round(plan.measured.latency_ms, 3)
    answer = {"clip": str(prediction.path), **_found(prediction, top), "spent": spent}
    answer |= {"head": plan.head, "selector": plan.selector}
    return json_line(answer)


def _as_text(prediction: Prediction, top: int, predictor: Any) -> str:
    config, plan = predictor.model.config, prediction.plan
    pool = plan.grid.tokens(config.patch_size, config.tubelet_size)
    spent = [f"{plan.keep} of {pool} tokens of {plan.grid}"]
    if plan.keep < pool and plan.selector != "group_dynamic":
        spent.append(plan.selector)
    if prediction.spent.passes > 1:
        spent[0] = f"pass {prediction.spent.passes}: {spent[0]}"
        spent.append(f"{prediction.spent.tokens} tokens in all")
    spent.append(f"{prediction.spent.gmacs:.3g} GMACs")
    if plan.measured is not None and plan.measured.latency_ms is not None:
        spent.append(f"{plan.measured.latency_ms:.3g} ms")
    lines = [f"{printable(prediction.path)}  ({', '.join(spent)})"]
    lines += [f"  {100 * p:5.1f} %  {printable(label)}" for label, p in prediction.top(top)]
    return "\n".join(lines)
