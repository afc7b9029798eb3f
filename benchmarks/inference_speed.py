"""How fast a FluxViT classifies here: `fluxvit bench` with the usual research code beside it.

    python benchmarks/inference_speed.py fluxvit_small --budgets 1024,2048,3072 --batches 1,8

`unfused` is the same network in fp32, with attention as two matrix products and a softmax. All forms are
timed in turns; `times` is how much faster a form is than `unfused`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from torch import Tensor

from fluxvit.checkpoints.loading import load_or_create
from fluxvit.deploy.bench import Form, conditions, forms_of, measure
from fluxvit.flux.plan import Plan
from fluxvit.utils.system import usable_device
from fluxvit.utils.terminal import table


def unfused_attention(q: Tensor, k: Tensor, v: Tensor, packing: None = None, **_: bool) -> Tensor:
    return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v


@dataclass(frozen=True)
class Unfused(Form):
    def run(self, video: Tensor, plan: Plan) -> Any:
        with (
            mock.patch("fluxvit.models.attention.attention", unfused_attention),
            mock.patch("fluxvit.models.layers.attention", unfused_attention),
        ):
            return super().run(video, plan)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--budgets", default="512,1024,2048,3072")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = usable_device(args.device)
    print(", ".join(f"{name} {value}" for name, value in conditions(device).items()))
    checkpoint = load_or_create(args.model, device)
    forms, missing = forms_of(checkpoint, ("openvino", "torch", "plain"), ("fp32", "bf16"))
    for reason in missing:
        print(f"not measured: {reason}")
    forms = [Unfused("unfused", "fp32", checkpoint), *forms]
    rows = [["batch", "tokens", "form", "p50 ms", "times", "of GEMM"]]
    for batch in map(int, args.batches.split(",")):
        for budget in map(int, args.budgets.split(",")):
            plan = replace(checkpoint.plan(budget), keep=budget)
            measured = measure(args.model, forms, plan, batch, args.runs)
            rows += [
                [
                    str(batch),
                    str(budget),
                    f"{row.backend} {row.precision}",
                    f"{row.p50_ms:.1f}",
                    f"{measured[0].p50_ms / row.p50_ms:.2f}",
                    f"{100 * row.gemm_share:.0f} %",
                ]
                for row in measured
            ]
            for line in table(rows)[-len(measured) :]:
                print(line, flush=True)


if __name__ == "__main__":
    main()
