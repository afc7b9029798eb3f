"""``fluxvit predict``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxvit.cli.parser import Parser, values

if TYPE_CHECKING:
    from fluxvit.deploy.predictor import Prediction


def run(argv: list[str]) -> int:
    parser = Parser("predict", "Say what is to be seen in clips.")
    add = parser.add_argument
    add("clips", nargs="+", help="video files, or folders of frames")
    add("--checkpoint", help="checkpoint folder, such as runs/demo/best; default: the package's nano model")
    add(
        "--budget", help="what a clip may cost: 1024 (tokens), 20gflops or 50ms; default: the largest trained"
    )
    add("--grid", help="sampling grid, such as 16x224; default: the checkpoint's plan for the budget")
    add("--top", type=int, default=5, help="classes to show")
    add("--json", action="store_true", help="print one JSON object a clip")
    add("--explain", metavar="OUT.mp4", help="write the clip with dropped patches dimmed")
    add("--device", default="cpu", help="such as cuda")
    return _predict(**values(parser, argv))


def _predict(
    clips: list[str],
    checkpoint: str | None,
    budget: str | None,
    grid: str | None,
    top: int,
    json: bool,
    explain: str | None,
    device: str,
) -> int:
    if top < 1:
        raise ValueError(f"--top {top}: at least one class must be shown")
    if explain and len(clips) > 1:
        raise ValueError("--explain takes one clip at a time")
    if explain and Path(explain).suffix not in (".mp4", ".mov", ".mkv"):
        raise ValueError(f"--explain {explain}: the name must end in .mp4, .mov or .mkv")

    if explain and Path(explain).resolve() == Path(clips[0]).resolve():
        raise ValueError(f"--explain {explain}: that is the clip itself; choose another name")

    from fluxvit.checkpoints import DEFAULT_CHECKPOINT
    from fluxvit.deploy.predictor import Predictor
    from fluxvit.flux.budget import parse_budget
    from fluxvit.flux.grid import SamplingGrid
    from fluxvit.video.base import VideoError

    predictor = Predictor(
        checkpoint or DEFAULT_CHECKPOINT,
        None if budget is None else parse_budget(budget),
        grid=None if grid is None else SamplingGrid.parse(grid),
        device=device,
    )
    if checkpoint is None:
        print(
            f"fluxvit: answering with {DEFAULT_CHECKPOINT}, which comes with the package and tells "
            f"{len(predictor.labels)} motions of drawn objects; --checkpoint names another",
            file=sys.stderr,
        )
    failed = 0
    for clip in clips:
        try:
            prediction = predictor(clip)
        except VideoError as error:
            # One bad clip must not keep the others from their answers.
            print(f"fluxvit: {error}", file=sys.stderr)
            failed += 1
            continue
        print(_as_json(prediction, top) if json else _as_text(prediction, top, predictor))
        if explain:
            from fluxvit.deploy.explain import write_explanation

            config = predictor.model.config
            write_explanation(explain, prediction, config.patch_size, config.tubelet_size)
            print(f"wrote {explain}", file=sys.stderr)
    return 2 if failed else 0


def _as_json(prediction: Prediction, top: int) -> str:
    plan = prediction.plan
    answer: dict[str, Any] = {
        "clip": str(prediction.path),
        "top": [{"label": label, "probability": round(p, 6)} for label, p in prediction.top(top)],
        "grid": str(plan.grid),
        "tokens": plan.keep,
    }
    return json.dumps(answer, ensure_ascii=False)


def _as_text(prediction: Prediction, top: int, predictor: Any) -> str:
    config, plan = predictor.model.config, prediction.plan
    pool = plan.grid.tokens(config.patch_size, config.tubelet_size)
    lines = [f"{prediction.path}  ({plan.keep} of {pool} tokens of {plan.grid})"]
    lines += [f"  {100 * p:5.1f} %  {label}" for label, p in prediction.top(top)]
    return "\n".join(lines)
