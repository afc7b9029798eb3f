"""CUDA graphs: a prepared network without the time that Python takes to launch its kernels.

A budget is an exact number of tokens, so that the shapes of a call depend only on its grid, budget and batch.
A call that comes again is recorded as a CUDA graph, and replayed from then on. At batch 1 the kernels of a
call take a tenth of the time in which Python launches them.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fluxvit.flux.selection import GroupDynamic, Learned, Selector, get_selector
from fluxvit.models.attention import Packing, native_packing
from fluxvit.models.fluxvit import FluxViT, FluxViTOutput
from fluxvit.models.inference import InferenceBlock

_log = logging.getLogger(__name__)

# Recordings, and calls that were seen once; each recording holds its inputs.
_MOST_GRAPHS = 32
# More clips or tokens than these keep the device busy for longer than launching takes.
_MOST_CLIPS = 32
_MOST_TOKENS = 1 << 15
# Calls after which the blocks are compiled, which takes about half a minute.
_COMPILE_AFTER = 200
_WARM_UPS = 3


class Recorder(Protocol):
    """Records a function, which always reads and writes the same tensors."""

    def usable(self) -> bool:
        """Whether calls of this moment may be recorded and replayed."""
        ...

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """A function that repeats ``work``, and the result of ``work``, into which it writes."""
        ...


class CUDARecorder:
    """Records CUDA graphs.

    The graphs share their memory. That is safe because they run one after the other on the default stream,
    and what one leaves is copied before the next one runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # Nothing else runs on this stream, so that cuBLAS takes its workspace there from the graphs' memory.
        # PyTorch frees the workspace of a stream with any graph that was captured on it (pytorch#193402).
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def usable(self) -> bool:
        return torch.cuda.current_stream(self.device) == torch.cuda.default_stream(self.device)

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        for _ in range(_WARM_UPS):  # Libraries are initialised and kernels tuned before the capture.
            work()
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the stream even if the end of a failed capture raises. Other threads may
        # read videos into pinned memory meanwhile.
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(self.stream),
            torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
        ):
            result = work()
        return graph.replay, result


class Graphs:
    """Recorded calls; the ones used last are kept.

    A call is recorded when it comes a second time, so that passing shapes cost nothing. If that fails, all
    calls run as usual from then on.

    Args:
        recorder: Makes the recorder; it is made anew after :meth:`clear`.
        most: Number of calls that are remembered.
    """

    def __init__(self, recorder: Callable[[], Recorder], most: int = _MOST_GRAPHS) -> None:
        self._make, self._most, self._lock = recorder, most, Lock()
        self._recorder: Recorder | None = None
        # None for a call that was seen once.
        self._calls: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        self._failed = False

    def clear(self) -> None:
        """Drop all recordings."""
        with self._lock:
            self._calls.clear()
            self._recorder = None

    def run(
        self,
        key: Hashable,
        work: Callable[..., Any],
        inputs: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
        usual: Callable[[], Any],
    ) -> Any:
        """``work(*inputs)`` with each input padded to its shape; or ``usual()``, if that is not recorded.

        Args:
            key: Everything that the operations of ``work`` depend on, except shapes and types of the inputs.
            work: A function of tensors of fixed shapes, which reads no values back.

        Returns:
            Tensors of their own, which later calls do not change.
        """
        key = key, tuple(shapes), tuple((x.dtype, x.device) for x in inputs)
        with self._lock:
            if key in self._calls and not self._failed and (recorder := self._usable()):
                try:
                    recording = self._calls[key] or _Recording(recorder, work, inputs, shapes)
                    self._keep(key, recording)
                    return recording(inputs)
                except RuntimeError as error:
                    _log.warning("CUDA graphs cannot be used, so that calls take longer: %s", error)
                    self._failed = True
                    self._calls.clear()
        result = usual()
        with self._lock:
            self._keep(key, self._calls.get(key))
        return result

    def _usable(self) -> Recorder | None:
        self._recorder = self._recorder or self._make()
        return self._recorder if self._recorder.usable() else None

    def _keep(self, key: Hashable, recording: _Recording | None) -> None:
        self._calls[key] = recording
        self._calls.move_to_end(key)
        while len(self._calls) > self._most:
            self._calls.popitem(last=False)


class _Recording:
    """A recorded call with the tensors that it reads and writes."""

    def __init__(
        self,
        recorder: Recorder,
        work: Callable[..., Any],
        inputs: Sequence[Tensor],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self._inputs = [x.new_zeros(shape) for x, shape in zip(inputs, shapes, strict=True)]
        self._fill(inputs)
        self._replay, self._result = recorder.record(partial(work, *self._inputs))

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        self._fill(inputs)
        self._replay()
        return tree_map_only(Tensor, Tensor.clone, self._result)

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        # The padding keeps what an earlier call left there. No clip or sequence reads another one's rows.
        for buffer, x in zip(self._inputs, inputs, strict=True):
            buffer[tuple(map(slice, x.shape))].copy_(x)


class CapturedFluxViT(FluxViT):
    """A prepared network whose repeated calls are replayed as CUDA graphs.

    A batch is padded to the next size of :func:`round_up`. After many calls the blocks are compiled, if
    Triton is installed. Calls that need gradients, autocast, training mode or a stream of their own run as
    usual, and so do selectors that read nothing, whose draws are cached.

    Args:
        model: A network in its inference form; its modules are shared.
        recorder: Makes the recorder of the graphs.
        compile_after: Number of calls after which :meth:`compile_blocks` is called; None: never.
    """

    def __init__(
        self,
        model: FluxViT,
        recorder: Callable[[], Recorder] | None = None,
        compile_after: int | None = _COMPILE_AFTER,
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        self._graphs = Graphs(recorder or partial(CUDARecorder, model.cls_token.device))
        self._compiled: list[Callable[..., Tensor]] = []
        self._calls, self._compile_after = 0, compile_after if find_spec("triton") else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CapturedFluxViT:
        self._graphs.clear()  # Graphs hold the addresses of the parameters, which may move.
        super()._apply(fn, recurse)
        return self

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks for any number of clips and tokens; if that fails, they stay as they are.

        Args:
            options: Arguments of `torch.compile`.
        """
        self._compile_after = None
        compiled = [torch.compile(block, dynamic=True, **options) for block in self.blocks]
        device, width = self.cls_token.device, self.cls_token.shape[-1]
        try:
            with _plain_tensors():
                # One block stands for all; a batch of one is compiled apart.
                for clips in (1, 2):
                    compiled[0](torch.zeros(clips, 1024, width, device=device))
        except Exception as error:  # Compilers fail in many ways.
            _log.warning("the blocks cannot be compiled, so that calls take longer: %s", error)
            return
        self._compiled = compiled
        self._graphs.clear()

    def forward(  # type: ignore[override]
        self,
        video: Tensor,
        budget: int | Sequence[int] | None = None,
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> FluxViTOutput | list[FluxViTOutput]:
        """See :meth:`FluxViT.forward`."""
        usual = partial(super().forward, budget=budget, head=head, selector=selector)
        several = isinstance(budget, Sequence)
        budgets = tuple(budget) if isinstance(budget, Sequence) else (budget,)
        if not self._repeatable([video], budgets, head, selector):
            return usual(video)
        with _plain_tensors():
            return self._batched(("forward", several, budgets, head, get_selector(selector)), usual, video)

    def forward_packed(
        self,
        videos: Sequence[Tensor],
        budgets: Sequence[int | None],
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> list[FluxViTOutput]:
        """See :meth:`FluxViT.forward_packed`. Clips of one size and budget are selected together, and the
        blocks run on packs of a few fixed sizes.
        """
        if not self._repeatable(videos, budgets, head, selector):
            return super().forward_packed(videos, budgets, head, selector)
        with _plain_tensors():
            return self._forward_packed(videos, budgets, head, get_selector(selector))

    def _forward_packed(
        self, videos: Sequence[Tensor], budgets: Sequence[int | None], head: int | None, selector: Selector
    ) -> list[FluxViTOutput]:
        plans = _groups((tuple(video.shape), budget) for video, budget in zip(videos, budgets, strict=True))
        outputs: dict[int, FluxViTOutput] = {}
        if not self._packs():
            for (_, budget), clips in plans.items():
                output = self.forward(torch.stack([videos[i] for i in clips]), budget, head, selector)
                assert isinstance(output, FluxViTOutput)
                outputs |= {i: _rows(output, slice(row, row + 1)) for row, i in enumerate(clips)}
            return [outputs[i] for i in range(len(videos))]

        def select(batch: Tensor, budget: int | None) -> tuple[Tensor, Tensor | None]:
            return self.select_tokens(batch, [budget], selector)[0][0]

        samples: dict[int, tuple[Tensor, Tensor | None]] = {}
        for (_, budget), clips in plans.items():
            batch = torch.stack([videos[i] for i in clips])
            chosen = self._batched(("select", budget, selector), partial(select, budget=budget), batch)
            samples |= {i: _rows(chosen, slice(row, row + 1)) for row, i in enumerate(clips)}
        encoded = self._encode_packed([samples[i][0] for i in range(len(videos))])
        for clips in _groups(x.shape[1] for x in encoded).values():
            read = partial(self.head_output, kept=None, head=head)
            output = self._batched(("head", head), read, torch.cat([encoded[i] for i in clips]))
            for row, i in enumerate(clips):
                outputs[i] = _rows(output, slice(row, row + 1))._replace(kept=samples[i][1])
        return [outputs[i] for i in range(len(videos))]

    def _encode_packed(self, sequences: Sequence[Tensor]) -> list[Tensor]:
        """Run the blocks on sequences ``[1, N, C]``, in packs of at most ``_MOST_TOKENS``."""
        encoded: list[Tensor] = []
        start = total = 0
        for i, x in enumerate(sequences):
            if total and total + x.shape[1] > _MOST_TOKENS:
                encoded += self._encode_pack(sequences[start:i])
                start, total = i, 0
            total += x.shape[1]
        return [*encoded, *self._encode_pack(sequences[start:])]

    def _encode_pack(self, sequences: Sequence[Tensor]) -> Sequence[Tensor]:
        lengths = [x.shape[1] for x in sequences]
        filled, longest = pack_lengths(lengths)
        x = torch.cat(list(sequences), dim=1)
        ends = Packing.of(filled, x.device).ends
        work = partial(self._run_fixed_pack, longest=longest)
        shapes = (1, sum(filled), x.shape[2]), tuple(ends.shape)
        usual = partial(self.encode, x, lengths)
        x = self._graphs.run(("encode", longest), work, [x, ends], shapes, usual)
        return x[:, : sum(lengths)].split(lengths, dim=1)

    def _run_fixed_pack(self, x: Tensor, ends: Tensor, longest: int) -> Tensor:
        return self._run_blocks(x, Packing(None, ends, longest))

    def encode_layers(
        self, x: Tensor, indices: Sequence[int], lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """See :meth:`FluxViT.encode_layers`."""
        if self._compiled and not indices and lengths is None and not torch.is_grad_enabled():
            return self._run_blocks(x), []
        return super().encode_layers(x, indices, lengths)

    def _repeatable(
        self,
        videos: Sequence[Tensor],
        budgets: Sequence[object],
        head: object,
        selector: str | Selector,
    ) -> bool:
        """Whether a call may be recorded, and computes the same when it is repeated."""
        device = self.cls_token.device
        has_autocast = torch.amp.is_autocast_available(device.type)  # The meta device has none.
        return (
            all(video.device == device and not video.requires_grad for video in videos)
            and all(type(value) is int or value is None for value in (*budgets, head))
            and isinstance(get_selector(selector), GroupDynamic | Learned)
            and not self.training
            and not (has_autocast and torch.is_autocast_enabled(device.type))
            and not torch.compiler.is_compiling()
        )

    def _batched(self, key: Hashable, work: Callable[[Tensor], Any], batch: Tensor) -> Any:
        """``work(batch)``, repeated for the next of a few sizes of batches."""
        self._calls += 1
        if self._compile_after is not None and self._calls > self._compile_after:
            self.compile_blocks()
        clips = len(batch)
        if not 1 <= clips <= _MOST_CLIPS:
            return work(batch)
        shape = round_up(clips), *batch.shape[1:]
        return _rows(self._graphs.run(key, work, [batch], [shape], partial(work, batch)), slice(clips))

    def _run_blocks(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        for block in self._compiled or self.blocks:
            x = block(x, packing)
        return x

    def _packs(self) -> bool:
        """Whether the blocks attend within packed sequences by one kernel."""
        block = self.blocks[0]
        return isinstance(block, InferenceBlock) and native_packing(self.cls_token.device, block.dtype)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """No gradients; results are tensors that may be changed later, in and out of inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _rows(output: Any, rows: slice) -> Any:
    return tree_map_only(Tensor, lambda x: x[rows], output)


def _groups(values: Iterable[Hashable]) -> dict[Any, list[int]]:
    """The positions at which each value stands."""
    groups: dict[Any, list[int]] = {}
    for i, value in enumerate(values):
        groups.setdefault(value, []).append(i)
    return groups


def round_up(number: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: few sizes, of which at most a third is padding."""
    power = 1 << max(0, number - 1).bit_length()
    return power * 3 // 4 if power >= 4 and number <= power * 3 // 4 else power


def pack_lengths(lengths: Sequence[int]) -> tuple[list[int], int]:
    """Fill up a pack to one of a few sizes, by sequences that nobody reads.

    Returns:
        The lengths of all sequences, of which some may be 0, and the bound that none of them exceeds. Their
        number, sum and bound take few values.
    """
    longest, capacity = round_up(max(lengths)), round_up(sum(lengths))
    whole, rest = divmod(capacity - sum(lengths), longest)
    filled = [*lengths, *[longest] * whole, rest]
    sequences = round_up(len(lengths)) + -(-capacity // longest)
    return filled + [0] * (sequences - len(filled)), longest
