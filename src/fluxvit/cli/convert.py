"""``fluxvit convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fluxvit.cli.parser import Parser, values
from fluxvit.terminal import say

if TYPE_CHECKING:
    from fluxvit.releases import KeyReport, TowerReport


def run(argv: list[str]) -> int:
    parser = Parser(
        "convert",
        "Turn a .pth file, the authors' (FluxViT small or base) or InternVideo2's, into a checkpoint folder.",
    )
    add = parser.add_argument
    add("source", help="their .pth file; its tensors tell which kind it is")
    add("out", help="folder to write")
    add("--activation", default="gelu_tanh", help="gelu_tanh, as the published weights were trained, or gelu")
    add("--labels", help="file of class names, one a line or with indices, in the order of the classes")
    add("--allow_mismatch", action="store_true", help="take the tensors that fit, leave the others at random")
    add("--exact", action="store_true", help="InternVideo2: leave out what would change what it computes")
    add("--budgets", help="InternVideo2: tokens that get a head each; default 3072,2048,1024")
    add(
        "--weights",
        choices=("model", "ema"),
        default="model",
        help="ema takes the moving average from a file that holds it beside the model",
    )
    return _convert(**values(parser, argv))


def _convert(
    source: str,
    out: str,
    activation: str,
    labels: str | None,
    allow_mismatch: bool,
    exact: bool,
    budgets: str | None,
    weights: Literal["model", "ema"],
) -> int:
    from pathlib import Path

    from fluxvit.checkpoints import CheckpointInfo, save_checkpoint
    from fluxvit.data.class_names import read_class_names
    from fluxvit.flux.grid import SamplingGrid, legal_grids
    from fluxvit.releases import convert_internvideo2, convert_release, is_internvideo2, read_release

    names = list(read_class_names(labels)) if labels else []
    try:
        counts = [int(text) for text in (budgets or "3072,2048,1024").split(",")]
    except ValueError:
        raise ValueError(f"--budgets {budgets!r}: give whole numbers, such as 3072,2048,1024") from None
    provenance = {"converted_from": Path(source).name, "activation": activation}
    if weights == "ema":
        provenance["weights"] = weights
    report: KeyReport | TowerReport
    if is_internvideo2(read_release(source, weights)):
        if allow_mismatch:
            raise ValueError(f"{source} is InternVideo2's, which must fit: --allow_mismatch is for FluxViTs")
        model, report = convert_internvideo2(
            source, exact=exact, budgets=counts, activation=activation, weights=weights
        )
        frames, patch = model.config.table_shape[0], model.config.patch_size
        if exact:
            side = model.config.table_shape[1] * patch
            grids = [SamplingGrid(frames * model.config.tubelet_size, side, side)]
        else:
            # The grids of the paper's pre-training (tables 14 and 16).
            grids = list(legal_grids(range(4, 26, 2), range(168, 280, 28), 2048, 4096))
        provenance["made_from"] = "InternVideo2, as it is" if exact else "InternVideo2, to be trained"
    else:
        for option, given in (("--exact", exact), ("--budgets", budgets is not None)):
            if given:
                raise ValueError(
                    f"{option} is for InternVideo2's files; {source} is none (a FluxViT keeps its heads)"
                )
        model, report = convert_release(
            source, activation=activation, allow_mismatch=allow_mismatch, weights=weights
        )
        # The grids of the authors' fine-tuning scripts.
        grids = list(legal_grids(range(6, 26, 2), range(112, 364, 28), 2048, 6144))
    say(report)
    info = CheckpointInfo(labels=names, grids=grids, provenance=provenance)
    say(f"wrote {save_checkpoint(out, model, info)}")
    return 0
