"""``fluxvit predict``: print the classes of each clip, and what the answer cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import mean
from typing import TYPE_CHECKING, Any

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT
from fluxvit.deploy.cascade import CascadePredictor
from fluxvit.deploy.config import PredictConfig
from fluxvit.deploy.explain import write_explanation
from fluxvit.deploy.predictor import Prediction, Predictor
from fluxvit.flux.budget import Budget
from fluxvit.flux.grid import SamplingGrid
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import json_line, printable, say
from fluxvit.video.base import VideoError

if TYPE_CHECKING:
    from fluxvit.deploy.streaming import StreamAnswer


def run(config: PredictConfig) -> int:
    """Classify the clips; the exit code is 2 if one of them cannot be read."""
    predictor = load_predictor(
        config.checkpoint, None if config.cascade else config.budget, config.grid, config.device
    )
    answer: Callable[[str], Prediction] = predictor
    if config.cascade:
        answer = CascadePredictor(predictor, config.budget)
    failed, spent = 0, []
    for clip in config.clips:
        try:
            prediction = answer(clip)
        except VideoError as error:
            # One bad clip must not keep the others from their answers.
            say(f"fluxvit: {printable(error)}", error=True)
            failed += 1
            continue
        log_device(predictor.device)
        spent.append(prediction.spent)
        line = (
            _as_json(prediction, config.top) if config.json else _as_text(prediction, config.top, predictor)
        )
        say(line, flush=True)
        if config.explain:
            size = predictor.model.config
            write_explanation(config.explain, prediction, size.patch_size, size.tubelet_size)
            say(f"wrote {config.explain}", error=True)
    if config.cascade and spent:
        tokens, gmacs = mean(one.tokens for one in spent), mean(one.gmacs for one in spent)
        clips = f"{len(spent)} clip{'s' if len(spent) > 1 else ''}"
        say(f"fluxvit: {clips}: {tokens:.4g} tokens and {gmacs:.3g} GMACs in the mean", error=True)
    return 2 if failed else 0


def load_predictor(
    checkpoint: str, budget: Budget | None, grid: SamplingGrid | None, device: str
) -> Predictor:
    """The predictor of a checkpoint. Without one the packaged model answers, and a line says so."""
    predictor = Predictor(checkpoint or DEFAULT_CHECKPOINT, budget, grid=grid, device=device)
    if not checkpoint:
        say(
            f"fluxvit: answering with {DEFAULT_CHECKPOINT}, which comes with the package and tells "
            f"{len(predictor.labels)} motions of drawn objects; --checkpoint names another",
            error=True,
        )
    return predictor


def top_classes(answer: Prediction | StreamAnswer, top: int) -> dict[str, Any]:
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
    answer = {"clip": str(prediction.path), **top_classes(prediction, top), "spent": spent}
    answer |= {"head": plan.head, "selector": plan.selector}
    return json_line(answer)


def _as_text(prediction: Prediction, top: int, predictor: Any) -> str:
    config, plan = predictor.model.config, prediction.plan
    pool = config.pool(plan.grid)
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
