"""Accuracy in transformers with square grids, and with grids of the shape of each video (``keep_aspect``).

    fluxvit data make motionworld data/mw --videos 1 --val 1 --test 400 --difficulty demo --seed 99
    python benchmarks/keep_aspect.py fluxvit_nano_motionworld --manifest data/mw/test.jsonl --budgets 72,36,18

Both rows of a budget keep the same number of tokens of as many frames; the pools differ a little.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.bench import conditions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint folder, or the name of a checkpoint of the package")
    parser.add_argument("--manifest", type=Path, required=True, help="test videos with labels")
    parser.add_argument("--budgets", default="72,36,18", help="budgets in tokens, separated by commas")
    arguments = parser.parse_args()

    import transformers

    from fluxvit.hf import FluxViTForVideoClassification, FluxViTVideoProcessor

    model = FluxViTForVideoClassification.from_checkpoint(arguments.checkpoint)
    entries = read_manifest(arguments.manifest).entries
    facts = {"transformers": transformers.__version__, **conditions(model.device), "videos": len(entries)}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{'tokens':>6}  {'grids':8}  {'accuracy':>8}  {'right here only':>15}  sizes of frames")
    for budget in map(int, arguments.budgets.split(",")):
        right: dict[bool, list[bool]] = {}
        sizes: dict[bool, Counter[str]] = {}
        for keep_aspect in (False, True):
            model.config.keep_aspect = keep_aspect
            processor = FluxViTVideoProcessor(model.config, budget)
            right[keep_aspect], sizes[keep_aspect] = [], Counter()
            for entry in entries:
                inputs = processor(entry.path)
                height, width = inputs["pixel_values_videos"].shape[-2:]
                sizes[keep_aspect][f"{height}x{width}"] += 1
                with torch.inference_mode():
                    answer = model(**inputs).logits.argmax()
                right[keep_aspect].append(int(answer) == entry.label)
        for keep_aspect, hits in right.items():
            only = sum(hit and not other for hit, other in zip(hits, right[not keep_aspect], strict=True))
            shapes = ", ".join(f"{size} {count}" for size, count in sizes[keep_aspect].most_common())
            name = "aspect" if keep_aspect else "square"
            print(f"{budget:6}  {name:8}  {sum(hits) / len(hits):8.1%}  {only:15}  {shapes}", flush=True)


if __name__ == "__main__":
    main()
