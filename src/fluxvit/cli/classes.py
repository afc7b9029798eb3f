"""``fluxvit classes``."""

from __future__ import annotations

from fluxvit.cli.parser import Parser, add_device, values
from fluxvit.terminal import say


def run(argv: list[str]) -> int:
    parser = Parser(
        "classes",
        "Make a classifier of class names out of a dual encoder: an ordinary checkpoint, which predict, "
        "evaluate and optimize take. Nothing is trained.",
    )
    add = parser.add_argument
    add("checkpoint", help="folder of a dual encoder, such as runs/contrast/last")
    add("names", help="file of class names, one a line or with indices; or a manifest that names its classes")
    add("--to", default="runs/classes", help="checkpoint folder to write")
    add("--templates", help="text file of sentences with {} for the class; default: 16 of ours")
    add(
        "--average",
        choices=("embeddings", "scores"),
        default="embeddings",
        help="over templates; either is found in the literature",
    )
    add_device(parser)
    return _classes(**values(parser, argv))


def _classes(
    checkpoint: str, names: str, to: str, templates: str | None, average: str, device: str | None
) -> int:
    from dataclasses import replace
    from pathlib import Path

    from fluxvit.checkpoints import save_checkpoint
    from fluxvit.data.class_names import read_class_names
    from fluxvit.data.text_files import text_lines
    from fluxvit.dual_checkpoints import load_dual
    from fluxvit.evaluation.zero_shot import TEMPLATES, embed_classes, text_classifier
    from fluxvit.machine import log_device, usable_device

    place = usable_device(device)
    encoder, info = load_dual(checkpoint, place)
    labels = list(read_class_names(names))
    sentences = list(text_lines(Path(templates))) if templates else TEMPLATES
    log_device(place)
    vectors = embed_classes(encoder, info.texts, labels, sentences, average)
    provenance = {
        **info.provenance,
        "classes": {"names": names, "templates": list(sentences), "average": average},
    }
    folder = save_checkpoint(
        to, text_classifier(encoder, vectors), replace(info.video, labels=labels, provenance=provenance)
    )
    say(f"checkpoint  {folder}: {len(labels)} classes, {len(sentences)} templates averaged as {average}")
    return 0
