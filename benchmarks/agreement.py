"""Whether the inference forms of trained checkpoints answer as the network does that was trained.

    python benchmarks/agreement.py fluxvit_nano_motionworld --data test.jsonl

All videos of a manifest are predicted in fp32 by the network as it was trained, and in each form, at each
budget. A row has the share of the videos with the same first class, the mean and the least cosine of the
centred logits and of the embeddings, the share of the videos of which the same tokens are kept, and the
accuracy.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.data.dataset import ClipDataset
from fluxvit.data.loader import epoch_batches, loader
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.classification import number_for_checkpoint
from fluxvit.flux.plan import Plan
from fluxvit.models.inference import form
from fluxvit.utils.system import environment


class Outputs(NamedTuple):
    """Logits ``[N, classes]``, embeddings ``[N, P]`` and kept tokens ``[N, K]``."""

    logits: Tensor
    embeddings: Tensor
    kept: Tensor


@torch.inference_mode()
def outputs(checkpoint: Checkpoint, plan: Plan, clips: list[Tensor]) -> Outputs:
    rows = []
    for clip in clips:
        out = checkpoint.model(checkpoint.normalize(clip), plan.keep, plan.head, plan.selector)
        everything = torch.arange(checkpoint.pool(plan.grid)).expand(len(clip), -1)
        rows.append((out.logits, out.embedding, everything if out.kept is None else out.kept))
    return Outputs(*map(torch.cat, zip(*rows, strict=True)))


def compared(expected: Outputs, found: Outputs, labels: Tensor) -> str:
    def cosine(one: Tensor, other: Tensor) -> str:
        values = F.cosine_similarity(one.double(), other.double())
        return f"{values.mean():.6f} (least {values.min():.6f})"

    def centred(logits: Tensor) -> Tensor:
        return logits - logits.mean(-1, keepdim=True)

    same = (found.logits.argmax(-1) == expected.logits.argmax(-1)).double().mean()
    kept = (found.kept == expected.kept).all(-1).double().mean()
    right = int((found.logits.argmax(-1) == labels).sum())
    logits = cosine(centred(expected.logits), centred(found.logits))
    return (
        f"top-1 equal {100 * same:6.2f} %  cosine of logits {logits}"
        f"  of embeddings {cosine(expected.embeddings, found.embeddings)}  tokens equal {100 * kept:6.2f} %"
        f"  right {right} of {len(labels)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--backends", default="torch,openvino")
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment("cpu").items()))
    for name in args.checkpoints:
        plain = Checkpoint.load(name)
        manifest = number_for_checkpoint(args.data, read_manifest(args.data, "label"), name, plain)
        dataset = ClipDataset(manifest, sampling=plain.sampling)
        forms = [
            plain.prepared(precision, backend)
            for backend in args.backends.split(",")
            for precision in ("fp32", "bf16")
        ]
        print(f"{name} on {len(dataset)} videos of {args.data}")
        for budget in plain.model.config.budgets:
            plan = plain.plan(budget)
            batches = list(loader(dataset, epoch_batches(len(dataset), plan.grid, 16), 0))
            clips, labels = [batch.video for batch in batches], torch.cat([batch.label for batch in batches])
            expected = outputs(plain, plan, clips)
            right = int((expected.logits.argmax(-1) == labels).sum())
            print(f"  {plan.keep} of {plain.pool(plan.grid)} tokens of {plan.grid}: right {right} as trained")
            for checkpoint in forms:
                found = outputs(checkpoint, plan, clips)
                print(f"    {form(checkpoint.model):18} {compared(expected, found, labels)}", flush=True)


if __name__ == "__main__":
    main()
