"""``fluxvit convert``."""

from __future__ import annotations

from fluxvit.cli.parser import Parser, values


def run(argv: list[str]) -> int:
    parser = Parser(
        "convert", "Turn one of the authors' .pth files (small or base) into a checkpoint folder."
    )
    add = parser.add_argument
    add("source", help="their .pth file")
    add("out", help="folder to write")
    add("--activation", default="gelu_tanh", help="gelu_tanh, as the published weights were trained, or gelu")
    add("--labels", help="text file of class names, one a line, in the order of the classes")
    add("--allow_mismatch", action="store_true", help="take the tensors that fit, leave the others at random")
    return _convert(**values(parser, argv))


def _convert(source: str, out: str, activation: str, labels: str | None, allow_mismatch: bool) -> int:
    from pathlib import Path

    from fluxvit.checkpoints import CheckpointInfo, convert_release, save_checkpoint
    from fluxvit.flux.grid import legal_grids

    try:
        names = Path(labels).read_text(encoding="utf-8").splitlines() if labels else []
    except UnicodeDecodeError:
        raise ValueError(f"--labels {labels}: not a UTF-8 text file") from None
    model, report = convert_release(source, activation=activation, allow_mismatch=allow_mismatch)
    print(report)
    info = CheckpointInfo(
        labels=names,
        # The grids of the authors' fine-tuning scripts.
        grids=list(legal_grids(range(6, 26, 2), range(112, 364, 28), 2048, 6144)),
        provenance={"converted_from": Path(source).name, "activation": activation},
    )
    print(f"wrote {save_checkpoint(out, model, info)}")
    return 0
