"""``fluxvit predict``: print the classes of each clip, and what the answer cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fluxvit.checkpoints.checkpoint import DEFAULT_CHECKPOINT, Checkpoint
from fluxvit.deploy.cascade import CascadePredictor
from fluxvit.deploy.config import PredictConfig, StreamConfig
from fluxvit.deploy.explain import write_explanation
from fluxvit.deploy.predictor import Answer, Prediction, Predictor
from fluxvit.flux.budget import Budget
from fluxvit.utils.system import log_device
from fluxvit.utils.terminal import json_line, printable, say
from fluxvit.video.base import VideoError


def run(config: PredictConfig) -> int:
    """Classify the clips; the exit code is 2 if one of them cannot be read."""
    budget = None if config.cascade else config.budget
    predictor = load_predictor(config, budget)
    checkpoint, size = predictor.checkpoint, predictor.model.config
    answers = predictor.map(config.clips)
    if config.cascade:
        answers = CascadePredictor(predictor, config.budget).map(config.clips)
    failed = False
    for prediction in answers:
        if isinstance(prediction, VideoError):  # The other clips are still answered.
            say(f"fluxvit: {printable(prediction)}", error=True)
            failed = True
            continue
        log_device(predictor.device)
        top = config.top
        line = _as_json(prediction, top) if config.json else _as_text(prediction, top, checkpoint)
        say(line, flush=True)
        if config.explain:
            write_explanation(config.explain, prediction, size.patch_size, size.tubelet_size)
            say(f"wrote {config.explain}", error=True)
    return 2 if failed else 0


def load_predictor(config: PredictConfig | StreamConfig, budget: Budget | None) -> Predictor:
    """The predictor of a checkpoint. Without one the packaged model answers, and a line says so."""
    options = {"grid": config.grid, "device": config.device, "precision": config.precision}
    if isinstance(config, PredictConfig):
        options["selector"] = config.selector
    predictor = Predictor(config.checkpoint or DEFAULT_CHECKPOINT, budget, **options)  # type: ignore[arg-type]
    if not config.checkpoint:
        say(
            f"fluxvit: answering with {DEFAULT_CHECKPOINT}, which comes with the package and recognises "
            f"{len(predictor.labels)} motions of drawn objects; --checkpoint names another",
            error=True,
        )
    return predictor


def top_classes(answer: Answer, top: int) -> dict[str, Any]:
    """The fields that the JSON lines of predict and of stream have in common."""
    return {
        "top": [{"label": label, "probability": round(p, 6)} for label, p in answer.top(top)],
        "grid": str(answer.plan.grid),
        "tokens": answer.plan.keep,
    }


def top_lines(answer: Answer, top: int) -> list[str]:
    """A class and its probability for each line of text."""
    return [f"{100 * p:5.1f} %  {printable(label)}" for label, p in answer.top(top)]


def _as_json(prediction: Prediction, top: int) -> str:
    spent = {**asdict(prediction.spent), "gmacs": round(prediction.spent.gmacs, 6)}
    plan = prediction.plan
    if plan.measured is not None and plan.measured.latency_ms is not None:
        spent["latency_ms"] = round(plan.measured.latency_ms, 3)
    answer = {"clip": str(prediction.path), **top_classes(prediction, top), "spent": spent}
    return json_line({**answer, "head": plan.head, "selector": plan.selector})


def _as_text(prediction: Prediction, top: int, checkpoint: Checkpoint) -> str:
    plan, cost = prediction.plan, prediction.spent
    spent = [f"{plan.keep} of {checkpoint.pool(plan.grid)} tokens of {plan.grid}"]
    if plan.selector != "group_dynamic":
        spent.append(plan.selector)
    if cost.passes > 1:
        spent.append(f"{cost.tokens} tokens in {cost.passes} passes")
    spent.append(f"{cost.gmacs:.3g} GMACs")
    if plan.measured is not None and plan.measured.latency_ms is not None:
        spent.append(f"{plan.measured.latency_ms:.3g} ms")
    lines = [f"{printable(prediction.path)}  ({', '.join(spent)})"]
    return "\n".join([*lines, *(f"  {line}" for line in top_lines(prediction, top))])
