"""The network never waits for the host: no copy between devices, and no value read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fluxvit.flux.selection import SELECTORS, get_selector
from fluxvit.models.attention import native_packing
from fluxvit.models.fluxvit import FluxViT, create_model
from fluxvit.models.graphs import CapturedFluxViT
from fluxvit.models.inference import prepare
from host_copies import no_host_copies


def on_meta(**settings: Any) -> tuple[FluxViT, Tensor]:
    with torch.device("meta"):
        return create_model("fluxvit_nano", selector_dim=4, **settings), torch.empty(2, 3, 8, 64, 64)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: torch.tensor([1, 2], device="meta"),
        lambda x: x + torch.ones(3).to("meta"),
        lambda x: x + torch.ones(()),
        lambda x: x[[0, 1]],
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
    ],
)
def test_copies_and_reads_are_noticed(copy: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError), no_host_copies():
        copy(torch.empty(3, device="meta"))


@pytest.mark.parametrize("selector", SELECTORS)
def test_inference(selector: str) -> None:
    model, video = on_meta()
    if get_selector(selector).reads == "nothing":
        model(video, budget=50, selector=selector)  # Seeded draws are copied once.
    with no_host_copies(), torch.inference_mode():
        for budget in (50, [100, 50, 25], None):
            model(video, budget=budget, selector=selector)


@pytest.mark.parametrize("selector", [name for name in SELECTORS if get_selector(name).reads != "nothing"])
def test_the_inference_form(selector: str) -> None:
    model, video = on_meta()
    model = prepare(model.eval(), torch.bfloat16)
    with no_host_copies(), torch.inference_mode():
        for budget in (50, [100, 50, 25], None):
            model(video, budget=budget, selector=selector)


class Once:
    """Records calls that compute nothing on the meta device."""

    def usable(self) -> bool:
        return True

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        return (lambda: None), work()


@pytest.mark.skipif(not native_packing(torch.device("meta"), torch.bfloat16), reason="this PyTorch is older")
def test_packed_clips() -> None:
    model, video = on_meta()
    plain = prepare(model.eval(), torch.bfloat16)
    videos, budgets = [video[0], video[0, :, :4], video[1], video[1, :, :, :40]], [50, 20, None, 50]
    with no_host_copies(), torch.inference_mode():
        for network in (plain, CapturedFluxViT(plain, Once, compile_after=None)):
            for _ in range(3):
                outputs = network.forward_packed(videos, budgets)
                assert [out.logits.shape[0] for out in outputs] == [1] * 4


def test_a_training_step() -> None:
    model, video = on_meta(drop_path=0.1, drop_rate=0.1)
    model.train()
    with no_host_copies():
        outputs = model(video, budget=[100, 50, 25])
        sum(output.logits.sum() for output in outputs).backward()
