"""Scaled dot-product attention over dense batches or packed sequences, and the attention layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.models.norm import RMSNorm

try:  # Native variable-length attention: in newer PyTorch only, and for CUDA only.
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None  # type: ignore[assignment]


def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int] | None = None, *, causal: bool = False
) -> Tensor:
    """Softmax attention.

    Args:
        q, k, v: ``[B, H, N, D]``.
        lengths: None for a dense batch: every token of a clip sees every other. Else B is 1, N is the sum of
            the lengths, and tokens see only their own sequence.
        causal: Whether tokens of a dense batch attend only to themselves and to tokens before them.

    Returns:
        ``[B, H, N, D]``.
    """
    if lengths is None:
        if q.dtype == torch.bfloat16 and q.requires_grad and not q.is_cuda:
            # On CPUs PyTorch's backward pass of few tokens takes three times as long in bf16 as in fp32.
            with torch.autocast(q.device.type, enabled=False):
                wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
                return wide.to(v.dtype)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert not causal
    assert q.shape[0] == 1
    assert q.shape[2] == sum(lengths)
    if varlen_attn is not None and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        ends = torch.tensor([0, *lengths], device=q.device).cumsum(0).to(torch.int32)
        longest = max(lengths)
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        return varlen_attn(q, k, v, ends, ends, longest, longest).transpose(0, 1)[None]
    owner = torch.repeat_interleave(torch.tensor(lengths, device=q.device))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=owner[:, None] == owner[None, :])


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

    def forward(self, x: Tensor, lengths: list[int] | None = None) -> Tensor:
        """``[B, N, C]`` to ``[B, N, C]``; ``lengths`` as in :func:`attention`."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        # The norms' fp32 weights promote; attention wants one dtype.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        local = v
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = attention(q, k, v, lengths).transpose(1, 2).flatten(2)
        if self.local_scale is not None:
            out = out + local * self.local_scale + self.local_shift
        return self.proj(out)
