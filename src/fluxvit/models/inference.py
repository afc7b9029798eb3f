"""The inference form of a FluxViT: the same function with fewer and faster operations.

:func:`prepare` absorbs what is linear into the neighbouring matrices, once:

* the weights of the RMS norms into the matrices that follow, LayerScale and the shift of the local position
  term into those that precede, and the weights of the query and key norms into one;
* the keys and values of a head's pooling: with a single query, ``q . (W x)`` is ``(W^T q) . x``, so that no
  token is projected.

In fp32 the result differs from the network's by rounding only. Patch embedding, positions and pooling stay in
fp32, so that the same tokens are kept in every form.

On a CPU the blocks run in OpenVINO if it is installed (:mod:`fluxvit.models.openvino_blocks`). Without it the
matrices are packed in the layout in which oneDNN multiplies, with GELU in the same pass; matrices in bf16
then run on the processor's bf16 units.
"""

from __future__ import annotations

import copy
import math
import os
import time
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.attention import Packing, attention
from fluxvit.models.embed import PatchEmbed
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.layers import AttentionPool, Block, Blocks, BudgetHead
from fluxvit.models.norm import RMSNorm
from fluxvit.models.openvino_blocks import OpenVINOBlocks, has_openvino
from fluxvit.utils.options import Precision
from fluxvit.utils.system import cpu_instructions

# oneDNN, and PyTorch above it, keep the kernels of the last 1024 shapes: 0.7 GB after random budgets.
# Both read these at the first product, so that a process that has computed before keeps its setting.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "256")

Backend = Literal["auto", "torch", "openvino"]
"""What runs the blocks; ``auto`` is OpenVINO on a CPU if it is installed, and otherwise PyTorch."""


def prepare(
    model: FluxViT, dtype: torch.dtype = torch.float32, backend: Backend = "auto", *, pack: bool = True
) -> FluxViT:
    """The network in its inference form, on the same device; ``model`` stays as it is.

    Args:
        model: A network in fp32.
        dtype: Type in which the blocks compute, ``torch.float32`` or ``torch.bfloat16``.
        backend: What runs the blocks.
        pack: Pack PyTorch's matrices on a CPU. A network that is to be exported must not be packed.

    Returns:
        A network with the methods and outputs of a FluxViT. It cannot be trained or saved.

    Raises:
        ValueError: The network was prepared already, or the backend cannot be used.
    """
    if form(model) != "plain":
        raise ValueError("the network is in its inference form already; prepare the one that was loaded")
    device = next(model.parameters()).device
    openvino = _uses_openvino(backend, device)
    packed = pack and device.type == "cpu" and can_pack(dtype)
    # A deep copy of all but the blocks, which are made anew.
    prepared = copy.deepcopy(model, {id(model.blocks): Blocks()})
    with torch.no_grad():
        linear = PackedLinear if packed and not openvino else PlainLinear
        kind = torch.float32 if openvino else dtype
        blocks = [InferenceBlock(block, kind, linear) for block in model.blocks if isinstance(block, Block)]
        run = OpenVINOBlocks(blocks, dtype) if openvino else Blocks(blocks)
        prepared.blocks = run  # type: ignore[assignment]
        embed = InferencePatchEmbed(model.patch_embed, PackedLinear if packed else PlainLinear)
        prepared.patch_embed = embed
        prepared.head_drop = nn.Identity()  # type: ignore[assignment]
        for head in prepared.heads:
            assert isinstance(head, BudgetHead)
            head.pool = InferencePool(head.pool)  # type: ignore[assignment]
    return prepared.eval().requires_grad_(False)


def form(model: FluxViT) -> str:
    """How a network computes, in a few words: ``plain``, or the kind and type of its prepared matrices."""
    if isinstance(model.blocks, OpenVINOBlocks):
        kind, dtype = "openvino", model.blocks.dtype
    elif isinstance(block := model.blocks[0], InferenceBlock):
        kind, dtype = ("packed" if isinstance(block.qkv, PackedLinear) else "prepared"), block.dtype
    else:
        return "plain"
    return f"{kind} {str(dtype).removeprefix('torch.')}"


def _uses_openvino(backend: Backend, device: torch.device) -> bool:
    """Whether a backend means OpenVINO.

    Raises:
        ValueError: OpenVINO was asked for and cannot be used.
    """
    if backend == "openvino" and device.type != "cpu":
        raise ValueError(f"the backend openvino runs on a CPU, not on {device}; leave the backend out")
    if backend == "openvino" and not has_openvino():
        raise ValueError("the backend openvino is not installed: pip install 'fluxvit[openvino]'")
    return device.type == "cpu" and backend != "torch" and has_openvino()


@cache
def faster_dtype(device: torch.device) -> torch.dtype:
    """The type in which the matrices of a prepared network are multiplied faster, bfloat16 or float32.

    x86 processors say whether they multiply in bf16. Others differ widely, so that both types are tried.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if device.type != "cpu" or not can_pack(torch.bfloat16):
        return torch.float32
    instructions = cpu_instructions()
    if instructions["AVX2"]:
        # Not by time: on a busy machine an interrupted run and its continuation must choose the same.
        native = instructions["AVX512-BF16"] or instructions["AMX"]
        return torch.bfloat16 if native else torch.float32
    kinds = torch.bfloat16, torch.float32
    layers = [PackedLinear(torch.ones(1024, 256), None, dtype, None) for dtype in kinds]
    inputs = [torch.ones(1024, 256, dtype=dtype) for dtype in kinds]
    fastest = [math.inf, math.inf]
    for _ in range(40):
        for i, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
            start = time.perf_counter()
            layer(x)
            fastest[i] = min(fastest[i], time.perf_counter() - start)
    # A little faster is not worth the rounding.
    return torch.bfloat16 if fastest[0] < 0.8 * fastest[1] else torch.float32


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """``precision``, with ``auto`` replaced by the format in which a device multiplies faster."""
    if precision != "auto":
        return precision
    return "bf16" if faster_dtype(device) == torch.bfloat16 else "fp32"


class PackedLinear(nn.Module):
    """A linear layer whose matrix lies in oneDNN's own layout, optionally followed by GELU in the same pass.

    Args:
        weight, bias: fp32 ``[out, in]`` and ``[out]`` or None.
        dtype: Type in which it multiplies.
        gelu: None, or how GELU is computed: ``tanh`` or ``none`` (erf).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: str | None) -> None:
        super().__init__()
        self.dtype, self.gelu = dtype, gelu
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        name, algorithm = ("none", "") if self.gelu is None else ("gelu", self.gelu)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention by oneDNN's products of one head at a time, for inference on CPUs.

    It takes half the time of PyTorch's own kernel in bf16, and less than that kernel's in fp32: it multiplies
    on the same units as the layers. The scores of a block of queries stay in the cache.

    Args:
        q, k, v: ``[B, H, N, D]``.

    Returns:
        ``[B, N, H * D]``.
    """
    batch, heads, length, width = q.shape
    q = q * width**-0.5
    out = q.new_empty(batch, length, heads, width)
    blocks = math.ceil(length * length / _BLOCK_SCORES)
    for clip, (clip_q, clip_k, clip_v) in enumerate(zip(q, k.contiguous(), v.mT.contiguous(), strict=True)):
        for head in range(heads):
            start = 0
            for block in clip_q[head].tensor_split(blocks):
                weights = _product(block, clip_k[head]).softmax(-1)
                out[clip, start : start + len(block), head] = _product(weights, clip_v[head])
                start += len(block)
    return out.flatten(2)


# Scores of one head that are computed at a time; a block of them is a few MB.
_BLOCK_SCORES = 1 << 21


def _product(x: Tensor, rows: Tensor) -> Tensor:
    """``x @ rows.T`` by oneDNN, whatever library `torch.matmul` prefers."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), rows, None, "none", [], "")


class PlainLinear(nn.Module):
    """:class:`PackedLinear` with PyTorch's public functions, for every device."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gelu: str | None) -> None:
        super().__init__()
        self.dtype, self.gelu = dtype, gelu
        self.register_buffer("weight", weight.detach().to(dtype, copy=True), persistent=False)
        bias = None if bias is None else bias.detach().to(dtype, copy=True)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        x = F.linear(x, self.weight, self.bias)
        return x if self.gelu is None else F.gelu(x, approximate=self.gelu)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch packs matrices of ``dtype`` for this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    try:
        layer = PackedLinear(torch.eye(16), torch.zeros(16), dtype, "tanh")
        return bool(torch.isfinite(layer(torch.ones(2, 16, dtype=dtype))).all())
    except (AttributeError, RuntimeError):  # These operators are not public, and may change.
        return False


class InferencePatchEmbed(PatchEmbed):
    """A patch embedding with fewer passes over the pixels.

    The values of a tubelet are ordered (time, channel, height, width), as they lie in a video. The projection
    is linear, so that tubelets are divided by their RMS after it, when they are smaller.
    """

    bias: Tensor

    def __init__(self, embed: PatchEmbed, linear: type[PackedLinear] | type[PlainLinear]) -> None:
        nn.Module.__init__(self)
        self.patch_size, self.tubelet_size = embed.patch_size, embed.tubelet_size
        self.in_chans = embed.in_chans
        self.norm_before, self.norm = copy.deepcopy(embed.norm_before), copy.deepcopy(embed.norm)
        weight, sides = embed.proj.weight, (self.tubelet_size, self.patch_size, self.patch_size)
        if isinstance(embed.norm_before, RMSNorm):
            weight = weight * embed.norm_before.weight
        weight = weight.unflatten(1, (*sides, self.in_chans)).permute(0, 1, 4, 2, 3).flatten(1)
        self.proj = linear(weight, None, torch.float32, None)  # type: ignore[assignment]
        self.register_buffer("bias", embed.proj.bias.detach().clone(), persistent=False)

    def _cut(self, video: Tensor, shape: tuple[int, int, int]) -> Tensor:
        (t, h, w), p, batch = shape, self.patch_size, video.shape[0]
        # Six axes at most, because runtimes for phones know no more.
        x = video.transpose(1, 2).reshape(batch * t, self.tubelet_size * self.in_chans, h, p, w, p)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, t, h * w, -1)

    def embed(self, patches: Tensor) -> Tensor:
        """Project the pixels of tubelets ``[..., V]`` to ``[..., D]``."""
        # In place, because memory that is new to the process takes a CPU longer than the arithmetic.
        in_place = not torch.is_grad_enabled()
        mul, add = (Tensor.mul_, Tensor.add_) if in_place else (torch.mul, torch.add)
        patches = patches.float()
        x = self.proj(patches)
        if isinstance(self.norm_before, RMSNorm):
            x = mul(x, _inverse_rms(patches, self.norm_before.eps))
        x = add(x, self.bias)
        if isinstance(self.norm, RMSNorm):
            x = mul(mul(x, _inverse_rms(x, self.norm.eps)), self.norm.weight)
        return x


class InferenceBlock(nn.Module):
    """A transformer block with its norms' weights, LayerScale and local shift absorbed."""

    q_weight: Tensor | None
    local_scale: Tensor | None

    def __init__(
        self, block: Block, dtype: torch.dtype, linear: type[PackedLinear] | type[PlainLinear]
    ) -> None:
        super().__init__()
        attn, mlp = block.attn, block.mlp
        self.num_heads, self.eps, self.dtype = attn.num_heads, block.norm1.eps, dtype
        self.packed = linear is PackedLinear
        q_weight = None
        if isinstance(attn.q_norm, RMSNorm) and isinstance(attn.k_norm, RMSNorm):
            q_weight = attn.q_norm.weight * attn.k_norm.weight
        self.register_buffer("q_weight", q_weight, persistent=False)
        local = None if attn.local_scale is None else attn.local_scale.detach().to(dtype, copy=True)
        self.register_buffer("local_scale", local, persistent=False)
        self.qkv = linear(attn.qkv.weight * block.norm1.weight, attn.qkv.bias, dtype, None)
        bias: Tensor = attn.proj.bias
        if attn.local_shift is not None:
            bias = bias + attn.proj.weight @ attn.local_shift
        gamma = block.ls1.gamma
        self.proj = linear(attn.proj.weight * gamma[:, None], bias * gamma, dtype, None)
        self.fc1 = linear(mlp.fc1.weight * block.norm2.weight, mlp.fc1.bias, dtype, mlp.approximate)
        gamma = block.ls2.gamma
        self.fc2 = linear(mlp.fc2.weight * gamma[:, None], mlp.fc2.bias * gamma, dtype, None)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """fp32 ``[B, N, C]`` to the same; ``packing`` as in :func:`~fluxvit.models.attention.attention`."""
        dtype = self.dtype
        q, k, v = self.qkv(_rms_quotient(x, self.eps).to(dtype)).chunk(3, dim=-1)
        local = v
        if self.q_weight is not None:
            q = (_rms_quotient(q, self.eps) * self.q_weight).to(dtype)
            k = _rms_quotient(k, self.eps).to(dtype)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.packed:
            lengths = [x.shape[1]] if packing is None else packing.known_lengths()
            sequences = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True)
            out = torch.cat([blocked_attention(*sequence) for sequence in sequences], dim=1)
        else:
            out = attention(q, k, v, packing).transpose(1, 2).flatten(2)
        if self.local_scale is not None:
            out = torch.addcmul(out, local, self.local_scale)
        x = x + self.proj(out)
        return x + self.fc2(self.fc1(_rms_quotient(x, self.eps).to(dtype)))


class InferencePool(nn.Module):
    """A head's pooling, in which no token is projected to a key or a value."""

    keys: Tensor
    values: Tensor
    shift: Tensor

    def __init__(self, pool: AttentionPool) -> None:
        super().__init__()
        heads = pool.num_heads
        self.norm_q, self.q, self.proj, self.eps = pool.norm_q, pool.q, pool.proj, pool.norm_k.eps
        width = pool.q.out_features // heads
        # The biases of the keys add the same to every token's score, which the softmax takes out again.
        keys = (pool.k.weight * pool.norm_k.weight).unflatten(0, (heads, width))
        self.register_buffer("keys", keys * width**-0.5, persistent=False)
        values = pool.v.weight * pool.norm_v.weight
        self.register_buffer("values", values.unflatten(0, (heads, width)).mT.contiguous(), persistent=False)
        shift = pool.v.weight @ pool.norm_v.bias + pool.v.bias
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, P]``."""
        normed, weights = self._weights(x)
        mixed = (weights @ normed).transpose(0, 1) @ self.values  # [H, B, D]
        return self.proj(mixed.transpose(0, 1).flatten(1) + self.shift)

    def attention(self, x: Tensor) -> Tensor:
        """How much each token ``[B, N, C]`` counts in the pooled vector, averaged over heads: fp32
        ``[B, N]``; rows sum to 1.
        """
        return self._weights(x)[1].mean(1)

    def _weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The normed tokens ``[B, N, C]``, and how much each counts for each head, ``[B, H, N]``."""
        x = x.float()
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        query = self.q(self.norm_q(x.mean(1))).unflatten(1, (self.keys.shape[0], 1, -1))  # [B, H, 1, D]
        query = (query @ self.keys)[:, :, 0]  # [B, H, C]
        return normed, (query @ normed.mT).softmax(-1)


def _rms_quotient(x: Tensor, eps: float) -> Tensor:
    """``x / rms(x)`` over the last axis, fp32."""
    wide = x.float()
    return wide * _inverse_rms(wide, eps)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``1 / rms(x)`` over the last axis, which is kept; in one pass over ``x``, fp32."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
    return torch.rsqrt(square / x.shape[-1] + eps)
