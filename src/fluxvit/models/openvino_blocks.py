"""Transformer blocks that run in OpenVINO, on CPUs.

OpenVINO fuses what PyTorch computes operation by operation, attention above all. Only the blocks run there,
in bf16 if asked; embedding, selection and pooling stay in PyTorch and in fp32, so that the same tokens are
kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxvit.models.attention import Packing

if TYPE_CHECKING:
    from fluxvit.models.inference import InferenceBlock, PackedLinear, PlainLinear

# The number of shapes that get a graph of their own, the first that come. It takes a tenth less time than the
# graph for all shapes, and a copy of the weights. A shape keeps its graph, so that its results stay the same.
_OWN_GRAPHS = 3


def has_openvino() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


class OpenVINOBlocks(nn.Module):
    """All blocks of a network as one OpenVINO model, called as :class:`~fluxvit.models.layers.Blocks` is.

    Args:
        blocks: The blocks in their inference form, with unpacked matrices in fp32.
        dtype: Type of the computation, ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(self, blocks: Sequence[InferenceBlock], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self._blocks = dtype, list(blocks)
        self._options = {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Shapes whose kernels stay in memory; 5000 by default.
            "CPU_RUNTIME_CACHE_CAPACITY": 64,
        }
        self._own_graphs = _OWN_GRAPHS
        self._process, self._lock = os.getpid(), Lock()
        # For each shape and layers; no shape means any.
        self._requests: dict[tuple[tuple[int, int] | None, tuple[int, ...]], Any] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    @torch.no_grad()
    def forward(
        self, x: Tensor, packing: Packing | None = None, indices: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """See :class:`~fluxvit.models.layers.Blocks`.

        Raises:
            RuntimeError: The process was forked from the one that made the blocks.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                "OpenVINO does not run in a forked process: start processes with 'spawn', or use the backend "
                "'torch'"
            )
        parts = x.split([x.shape[1]] if packing is None else list(packing.known_lengths()), dim=1)
        outputs = [self._run(part, [index % len(self) for index in indices]) for part in parts]
        last, *layers = (torch.cat(output, dim=1) for output in zip(*outputs, strict=True))
        return last, layers

    def clear(self, own_graphs: int = _OWN_GRAPHS) -> None:
        """Drop the compiled graphs, so that the next shapes get graphs of their own.

        Args:
            own_graphs: How many do. With 0, the results of a shape do not depend on the shapes before.
        """
        with self._lock:
            self._own_graphs = own_graphs
            self._requests.clear()

    def _run(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """The output of the last block, then those of the blocks ``indices``."""
        layers = tuple(sorted({*indices} - {len(self) - 1}))
        with self._lock:
            request = self._request((x.shape[0], x.shape[1]), layers)
            results = request.infer([x.detach().float().contiguous().numpy()], share_inputs=True)
            outputs = dict(
                zip((*layers, len(self) - 1), map(torch.from_numpy, results.to_tuple()), strict=True)
            )
        return [outputs[index] for index in (len(self) - 1, *indices)]

    def _request(self, shape: tuple[int, int], layers: tuple[int, ...]) -> Any:
        """A request that computes ``layers`` and the last block for tokens of ``shape`` (clips, tokens)."""
        own = (shape, layers) in self._requests or len(self._requests) < self._own_graphs
        key = (shape if own else None), layers
        if key not in self._requests:
            model = build_model(self._blocks, layers)
            if own:
                model.reshape([*shape, -1])
            self._requests[key] = _core().compile_model(model, "CPU", self._options).create_infer_request()
        return self._requests[key]


@cache
def _core() -> Any:
    """OpenVINO itself, which lives as long as the process.

    Each one sets up a stack for signals, and takes it away with itself: a process that drops one of several
    would die of the next signal, such as that of a worker that ends.
    """
    import openvino

    return openvino.Core()


def build_model(blocks: Sequence[InferenceBlock], layers: Sequence[int] = ()) -> Any:
    """An OpenVINO model of the blocks, for any number of clips and tokens.

    Args:
        blocks: As for :class:`OpenVINOBlocks`.
        layers: Blocks whose outputs are results, too, before that of the last block.
    """
    import openvino
    from openvino import opset13 as ops

    width = blocks[0].qkv.weight.shape[1]
    x = tokens = ops.parameter([-1, -1, width], np.float32)
    results = []
    for number, block in enumerate(blocks):
        q, k, v = ops.split(_linear(_rms_quotient(x, block.eps), block.qkv), 2, 3).outputs()
        local = v
        if block.q_weight is not None:
            q = ops.multiply(_rms_quotient(q, block.eps), _constant(block.q_weight))
            k = _rms_quotient(k, block.eps)
        split = np.array([0, 0, block.num_heads, width // block.num_heads])
        q, k, v = (ops.transpose(ops.reshape(t, split, True), np.array([0, 2, 1, 3])) for t in (q, k, v))
        out = ops.transpose(ops.scaled_dot_product_attention(q, k, v), np.array([0, 2, 1, 3]))
        out = ops.reshape(out, np.array([0, 0, width]), True)
        if block.local_scale is not None:
            out = ops.add(out, ops.multiply(local, _constant(block.local_scale)))
        x = ops.add(x, _linear(out, block.proj))
        x = ops.add(x, _linear(_linear(_rms_quotient(x, block.eps), block.fc1), block.fc2))
        if number in layers:
            results.append(x)
    return openvino.Model([*results, x], [tokens], "blocks")


def _constant(values: Tensor) -> Any:
    from openvino import opset13 as ops

    return ops.constant(values.detach().float().contiguous().numpy(), shared_memory=True)


def _linear(x: Any, layer: PackedLinear | PlainLinear) -> Any:
    from openvino import opset13 as ops

    assert isinstance(layer.weight, Tensor)
    x = ops.matmul(x, _constant(layer.weight), False, True)
    if layer.bias is not None:
        x = ops.add(x, _constant(layer.bias))
    return x if layer.gelu is None else ops.gelu(x, "tanh" if layer.gelu == "tanh" else "erf")


def _rms_quotient(x: Any, eps: float) -> Any:
    from openvino import opset13 as ops

    mean = ops.reduce_mean(ops.multiply(x, x), np.array([-1]), True)
    return ops.multiply(x, ops.divide(np.float32(1), ops.sqrt(ops.add(mean, np.float32(eps)))))
