"""``fluxvit zero-shot``: a classifier made of class names and a dual encoder, without training.

It is saved as an ordinary checkpoint, which predict, evaluate, optimize and all other commands take.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.class_names import read_class_names
from fluxvit.data.formats.text_files import text_lines
from fluxvit.deploy.config import ZeroShotConfig
from fluxvit.utils.system import log_device, usable_device

TEMPLATES = (
    "{}",
    "{}.",
    "a video of {}.",
    "a clip of {}.",
    "a photo of {}.",
    "a short film that shows {}.",
    "someone is filmed: {}.",
    "a person doing {}.",
    "a person is busy with {}.",
    "this is {}.",
    "this video shows {}.",
    "here we see {}.",
    "the action is {}.",
    "an example of {}.",
    "people and {}.",
    "what happens is {}.",
)
"""Sixteen sentences of our own wording; ``{}`` stands for the class."""


def embed_classes(
    dual: DualEncoderCheckpoint,
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    average: Literal["embeddings", "scores"] = "embeddings",
) -> Tensor:
    """A vector for each class ``[N, D]``, made of its name in all templates.

    Args:
        average: With ``embeddings``, a unit vector in the direction of the mean of the templates' vectors, as
            in CLIP. With ``scores``, that mean itself, whose cosine is the mean of the templates' cosines, as
            in InternVideo2.

    Raises:
        ValueError: A template does not have exactly one ``{}``, or there are no names or templates.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r}: it must have one {{}}, where the class goes")
    if not names or not templates:
        raise ValueError("there must be at least one class name and one template")
    plain = [plain_name(name) for name in names]
    sentences = [template.replace("{}", name) for name in plain for template in templates]
    means = dual.embed_texts(sentences).unflatten(0, (len(names), -1)).mean(1)
    return F.normalize(means, dim=-1) if average == "embeddings" else means


def plain_name(name: str) -> str:
    """A class name as words: data sets write ``ApplyEyeMakeup``, ``brush_hair``, ``adult+male+speaking``."""
    spaced = re.sub(r"[_+]+", " ", name)
    if " " not in spaced:
        spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", spaced)
        if spaced.count(" "):
            spaced = spaced.lower()
    return " ".join(spaced.split())


def run_zero_shot(config: ZeroShotConfig) -> str:
    """Write the checkpoint of a classifier of class names; returns a summary for people.

    Raises:
        ValueError: The dual encoder, the names or the templates cannot be read.
    """
    device = usable_device(config.device)
    dual = DualEncoderCheckpoint.load(config.checkpoint, device)
    labels = list(read_class_names(config.names))
    templates = list(text_lines(Path(config.templates))) if config.templates else list(TEMPLATES)
    log_device(device)
    vectors = embed_classes(dual, labels, templates, config.average)
    source = {"names": config.names, "templates": templates, "average": config.average}
    provenance = {**dual.provenance, "classes": source}
    folder = replace(dual.classifier(vectors, labels), provenance=provenance).save(config.out)
    return f"{len(labels)} classes, {len(templates)} templates averaged as {config.average}\nwrote   {folder}"
