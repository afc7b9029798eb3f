"""The model card of a checkpoint: ``README.md`` with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCardData

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.plan import Plan
from fluxvit.hf.configuration import FluxViTConfig

CARD = "README.md"
_MARK = "<!-- Written by fluxvit. Remove this line to keep your own changes. -->"


def model_card(config: FluxViTConfig, name: str) -> str:
    """The model card; it says only what the configuration knows.

    Args:
        name: The name of the folder or of the repository on the hub.
    """
    checkpoint = config.to_checkpoint()
    network, classes = checkpoint.model.config, checkpoint.model.num_classes
    data = ModelCardData(
        license=str(checkpoint.provenance.get("license", "unknown")),
        library_name="transformers",
        pipeline_tag="video-classification" if classes else "feature-extraction",
        tags=["fluxvit", "video", "token-selection"],
    )
    kind = "FluxViTForVideoClassification" if classes else "FluxViTModel"
    budgets = ", ".join(map(str, network.budgets))
    return f"""---
{data.to_yaml()}
---

{_MARK}

# {name}

A FluxViT of {network.parameters / 1e6:.3g} million parameters: a video transformer that takes clips of any
number of frames and any size, and keeps as many tokens as a budget allows. It was made for {budgets} tokens.
{_classes(checkpoint)}

## How to use

It needs the package fluxvit: `pip install 'fluxvit[hf]'`.

```python
from fluxvit.hf import {kind}, FluxViTVideoProcessor

processor = FluxViTVideoProcessor.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}")
outputs = model(**processor("clip.mp4", budget={network.budgets[-1]}))
```

The folder is a checkpoint of fluxvit, too: `fluxvit predict clip.mp4 --checkpoint FOLDER`.

## Training

{_training(checkpoint)}

## Accuracy

{_accuracy(checkpoint)}

## Limits

{_limits(checkpoint)}
"""


def may_replace_card(path: Path) -> bool:
    """Whether there is no model card yet, or only one that was made here and was not changed by its owner."""
    return not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace")


def _classes(checkpoint: Checkpoint) -> str:
    count = checkpoint.model.num_classes
    if not count:
        return "It has no classifier: it gives features."
    several = ", of which a clip may show several" if checkpoint.multi_label else ""
    shown = "; ".join(checkpoint.labels[:5]) + ("; ..." if count > 5 else "")
    return f"It knows {count} classes{several}" + (f": {shown}" if checkpoint.labels else ".")


def _training(checkpoint: Checkpoint) -> str:
    facts = {name: value for name, value in checkpoint.provenance.items() if name != "license"}
    if not facts:
        return "The checkpoint does not say what it was trained on."
    text = json.dumps(facts, indent=1, default=str)
    return f"What the checkpoint says about its origin:\n\n```json\n{text}\n```"


def _limits(checkpoint: Checkpoint) -> str:
    limits = "Frames are resized and cropped in the middle: what happens at the borders can be missed."
    if checkpoint.sampling.kind == "sparse":
        limits += " They are spread over the whole video, so that short events in long videos can be missed."
    if checkpoint.model.num_classes:
        limits += " The answer is made of the classes of training, also for videos that show none of them."
    return limits + " How the model does on other data than that of its training and tests is unknown."


def _accuracy(checkpoint: Checkpoint) -> str:
    measured = [plan for plan in checkpoint.plans if plan.measured and plan.measured.accuracy is not None]
    if not measured:
        return "The checkpoint stores no measured accuracy."
    rows = [_row(checkpoint, plan) for plan in measured]
    head = "| tokens | sampling | GMACs | accuracy | held-out clips |\n| --- | --- | --- | --- | --- |"
    return "\n".join([head, *rows])


def _row(checkpoint: Checkpoint, plan: Plan) -> str:
    gmacs = grid_cost(checkpoint.model.config.size, plan.grid, plan.keep, plan.selector).total / 1e9
    assert plan.measured is not None
    assert plan.measured.accuracy is not None
    accuracy, total = plan.measured.accuracy, plan.measured.total
    return f"| {plan.keep} | {plan.grid} | {gmacs:.3g} | {accuracy:.1%} | {total} |"
