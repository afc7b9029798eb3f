"""Recorded calls give what the network gives. A function that is called again stands for a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fluxvit.models import graphs
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput, create_model
from fluxvit.models.graphs import CapturedFluxViT, Graphs, pack_lengths, round_up
from fluxvit.models.inference import prepare


class Repeating:
    """Records a function as one that is called again and writes into the tensors of its first result."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def usable(self) -> bool:
        return True

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        self.recorded += 1
        result = work()

        def replay() -> None:
            self.replayed += 1
            for former, new in zip(tree_leaves(result), tree_leaves(work()), strict=True):
                if isinstance(former, Tensor):
                    former.copy_(new)

        return replay, result


class Failing(Repeating):
    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        self.recorded += 1
        raise RuntimeError("operation not permitted when stream is capturing")


def plain_and_captured(recorder: Repeating | None = None) -> tuple[FluxViT, CapturedFluxViT, Repeating]:
    torch.manual_seed(0)
    model = prepare(create_model("fluxvit_nano", num_classes=5, depth=2).eval(), backend="torch", pack=False)
    recorder = recorder or Repeating()
    return model, CapturedFluxViT(model, lambda: recorder, compile_after=None), recorder


def assert_same(ours: FluxViTOutput, expected: FluxViTOutput) -> None:
    assert ours.head == expected.head
    assert (ours.kept is None) == (expected.kept is None)
    assert ours.kept is None or torch.equal(ours.kept, expected.kept)
    torch.testing.assert_close(ours.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.embedding, expected.embedding, rtol=1e-4, atol=1e-5)


def clips(number: int, frames: int = 6, height: int = 40, width: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 3, frames, height, width, generator=generator)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_calls_are_recorded_when_they_come_again_and_batches_are_padded(mode: Any) -> None:
    model, captured, recorder = plain_and_captured()
    with mode():
        for seed, number in enumerate((3, 3, 3, 1, 5, 1, 6, 5, 3)):
            video = clips(number, seed=seed)
            assert_same(captured(video, 20), model(video, 20))
    # Batches of 5 and 6 share a graph: the sizes are 3, 1 and 6.
    assert (recorder.recorded, recorder.replayed) == (3, 6)


@torch.inference_mode()
def test_every_argument_has_its_own_recording() -> None:
    model, captured, recorder = plain_and_captured()
    calls = [
        ((clips(2), 20), {}),
        ((clips(2), 12), {}),
        ((clips(2), None), {}),
        ((clips(2), [20]), {}),
        ((clips(2), [30, 12]), {}),
        ((clips(2), 20), {"head": 1}),
        ((clips(2), 20), {"selector": "two_sided_pixels"}),
        ((clips(2, 4), 20), {}),
        ((clips(2, 6, 24, 40), 20), {}),
    ]
    for _ in range(3):
        for args, options in calls:
            ours, expected = captured(*args, **options), model(*args, **options)
            assert isinstance(ours, list) == isinstance(expected, list)
            several = (ours, expected) if isinstance(ours, list) else ([ours], [expected])
            for pair in zip(*several, strict=True):
                assert_same(*pair)
    assert (recorder.recorded, recorder.replayed) == (len(calls), 2 * len(calls))


@torch.inference_mode()
def test_outputs_stay_as_they_are_when_later_calls_come() -> None:
    _, captured, _ = plain_and_captured()
    captured(clips(2), 20)
    outputs = [captured(clips(2, seed=seed), 20) for seed in range(3)]
    copies = [[x.clone() for x in (out.logits, out.embedding, out.kept)] for out in outputs]
    captured(clips(2, seed=9), 20)
    for out, copied in zip(outputs, copies, strict=True):
        assert all(map(torch.equal, (out.logits, out.embedding, out.kept), copied))
    assert not torch.equal(outputs[0].logits, outputs[1].logits)


def test_outputs_may_be_changed_outside_inference_mode() -> None:
    _, captured, _ = plain_and_captured()
    for _ in range(3):
        with torch.inference_mode():
            out = captured(clips(1), 20)
        out.logits.add_(1)


def test_the_calls_used_last_are_kept() -> None:
    recorder = Repeating()
    recordings = Graphs(lambda: recorder, most=2)

    def run(key: str) -> None:
        x = torch.ones(1)
        assert recordings.run(key, torch.neg, [x], [(1,)], lambda: -x) == -1

    for key in "aabba":
        run(key)
    assert recorder.recorded == 2
    run("c")  # The place of b.
    run("a")
    assert recorder.recorded == 2
    run("b")
    run("b")
    assert recorder.recorded == 3
    recordings.clear()
    run("b")
    assert recorder.recorded == 3


@torch.inference_mode()
def test_a_failed_capture_warns_once_and_calls_run_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    model, captured, recorder = plain_and_captured(Failing())
    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            for budget in (20, 10):
                video = clips(2, seed=seed)
                assert_same(captured(video, budget), model(video, budget))
    assert recorder.recorded == 1
    assert len(caplog.records) == 1
    assert "stream is capturing" in caplog.text


@torch.inference_mode()
def test_bad_calls_raise_what_the_network_raises(caplog: pytest.LogCaptureFixture) -> None:
    _, captured, recorder = plain_and_captured()
    bad = [
        (clips(1), 0, None, "budget"),
        (clips(1), 20, 7, "head 7 does not exist"),
        (clips(1, 6, 41), 20, None, "does not divide"),
        (clips(1), 20.5, None, "budget"),
        (clips(1)[0], 20, None, "expected a video"),
    ]
    for video, budget, head, message in bad * 3:
        with pytest.raises(ValueError, match=message):
            captured(video, budget, head)
    assert recorder.recorded == 0
    assert not caplog.records


def test_calls_that_cannot_be_repeated_run_as_usual() -> None:
    model, captured, recorder = plain_and_captured()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            captured(clips(1), 20)
        assert torch.equal(
            captured(clips(1), 20, selector="tube").kept, model(clips(1), 20, selector="tube").kept
        )
        video = clips(1).requires_grad_()
        captured(video, 20).logits.sum().backward()
        assert video.grad.abs().sum() > 0
    assert recorder.recorded == 0


@torch.inference_mode()
def test_moved_parameters_drop_the_recordings() -> None:
    _, captured, recorder = plain_and_captured()
    for _ in range(3):
        captured(clips(1), 20)
    captured.to("cpu")
    for _ in range(2):
        captured(clips(1), 20)
    assert recorder.recorded == 2


@torch.inference_mode()
def test_blocks_are_compiled_once_for_all_shapes() -> None:
    model, captured, recorder = plain_and_captured()
    compiled = 0

    def count(module: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return module.forward

    torch.compiler.reset()
    captured.compile_blocks(backend=count)
    first = compiled
    for seed, (number, frames, budget) in enumerate(
        [(1, 6, 20), (2, 4, 11), (3, 8, 33), (1, 4, 7), (40, 4, 9)] * 3
    ):
        video = clips(number, frames, seed=seed)
        assert_same(captured(video, budget), model(video, budget))
    assert recorder.replayed
    assert first == 2  # A batch of one, and all others.
    assert compiled == first


def test_blocks_that_cannot_be_compiled_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model, captured, _ = plain_and_captured()

    def fail(*_: object) -> Callable[..., Any]:
        raise OSError("no compiler")

    torch.compiler.reset()
    captured.compile_blocks(backend=fail)
    assert "no compiler" in caplog.text
    assert_same(captured(clips(2), 20), model(clips(2), 20))


shapes = st.tuples(st.sampled_from([2, 4, 10]), st.sampled_from([8, 16, 24]), st.sampled_from([8, 24]))


@pytest.mark.parametrize("packs", [True, False])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_packs_of_fixed_size_equal_single_clips(packs: bool, data: st.DataObject) -> None:
    model, captured, recorder = plain_and_captured()
    captured._packs = lambda: packs  # type: ignore[method-assign]
    plans = data.draw(st.lists(st.tuples(shapes, st.sampled_from([None, 1, 5, 12])), min_size=1, max_size=6))
    most = data.draw(st.sampled_from([8, 64, 1 << 15]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "_MOST_TOKENS", most)
        for seed in range(3):
            videos = [clips(1, *shape, seed=seed + i)[0] for i, (shape, _) in enumerate(plans)]
            outputs = captured.forward_packed(videos, [budget for _, budget in plans])
            assert len(outputs) == len(plans)
            for video, (_, budget), output in zip(videos, plans, outputs, strict=True):
                assert_same(output, model(video[None], budget))
    assert recorder.recorded
    assert recorder.replayed


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_packs_have_few_sizes(lengths: list[int]) -> None:
    filled, longest = pack_lengths(lengths)
    assert filled[: len(lengths)] == lengths
    assert max(filled) <= longest
    assert longest in map(round_up, lengths)
    assert round_up(sum(filled)) == sum(filled) < max(2, 1.5 * sum(lengths))
    # Packs that share the sizes of one graph differ in nothing that the host knows.
    assert len(filled) == round_up(len(lengths)) + -(-sum(filled) // longest)


def test_rounding_up() -> None:
    assert [round_up(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17, 33)] == [
        *(1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 16, 24, 48)
    ]
