"""Scaled dot-product attention over dense batches or packed sequences, and the attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.norm import RMSNorm

try:  # Native variable-length attention: in newer PyTorch only, and for CUDA only.
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]


class Packing(NamedTuple):
    """Sequences that lie one behind the other along the token axis of a batch of one.

    It is made once a batch, because the copy of ``ends`` to an accelerator would stall every block.

    Args:
        lengths: Tokens of each sequence. None: only the device knows them, so that the same operations serve
            every packing of as many sequences and tokens.
        ends: int32 ``[1 + sequences]`` on the device of the tokens: 0, then where each sequence ends.
        longest: No sequence is longer.
    """

    lengths: tuple[int, ...] | None
    ends: Tensor
    longest: int

    def known_lengths(self) -> Sequence[int]:
        """Tokens of each sequence; they are read from the device if they must."""
        return self.ends.diff().tolist() if self.lengths is None else self.lengths

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        if device.type == "cuda":
            ends = ends.pin_memory()
        return cls(tuple(lengths), ends.to(device, non_blocking=True), max(lengths, default=0))


def native_packing(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether one kernel serves all sequences of a packing. It never waits for their lengths."""
    # The meta device stands for an accelerator in tests.
    half = dtype in (torch.float16, torch.bfloat16)
    return varlen_attn is not None and half and device.type in ("cuda", "meta")


def attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing | None = None, *, causal: bool = False
) -> Tensor:
    """Softmax attention.

    Args:
        q, k, v: ``[B, H, N, D]``.
        packing: None for a dense batch: every token of a clip attends to every other. Else B is 1, and tokens
            attend only to those of their own sequence.
        causal: Whether tokens of a dense batch attend only to themselves and to tokens before them.

    Returns:
        ``[B, H, N, D]``.
    """
    if packing is None:
        if q.dtype == torch.bfloat16 and q.requires_grad and q.device.type == "cpu":
            # On CPUs PyTorch's backward pass of few tokens takes three times as long in bf16 as in fp32.
            with torch.autocast(q.device.type, enabled=False):
                wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
                return wide.to(v.dtype)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert not causal
    assert q.shape[0] == 1
    if native_packing(q.device, q.dtype):
        ends, longest = packing.ends, packing.longest
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        return varlen_attn(q, k, v, ends, ends, longest, longest).transpose(0, 1)[None]
    lengths = packing.known_lengths()
    assert q.shape[2] == sum(lengths)
    sequences = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attention(*sequence) for sequence in sequences], dim=2)


class Attention(nn.Module):
    """Multi-head self-attention with normalised queries and keys and a local position term.

    ``out = proj(softmax(q k^T / sqrt(D)) v + local(v))``, where ``local`` is a per-channel affine (LPE, paper
    section 3): it depends on no other token, so on no token count.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool, qk_norm: bool, local_position: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        # Over the full width, not per head, as the authors do.
        self.q_norm = RMSNorm(dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim) if qk_norm else nn.Identity()
        self.local_scale = nn.Parameter(torch.ones(dim)) if local_position else None
        self.local_shift = nn.Parameter(torch.zeros(dim)) if local_position else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """``[B, N, C]`` to ``[B, N, C]``; ``packing`` as in :func:`attention`."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # The norms' fp32 weights promote; attention wants one dtype.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        local = v
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = attention(q, k, v, packing).transpose(1, 2).flatten(2)
        if self.local_scale is not None:
            out = out + local * self.local_scale + self.local_shift
        return self.proj(out)
