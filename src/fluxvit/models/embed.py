"""From pixels to tokens: patch embedding with dual norms, and positions for any grid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.cuda import is_current_stream_capturing
from torch.nn import functional as F

from fluxvit.models.norm import RMSNorm

_CACHED_GRIDS = 16  # Enough for a deployment; a search over grids must not fill the memory.


class PatchEmbed(nn.Module):
    """Cut a video into tubelets and project each, with an RMS norm before and one after (DPN).

    The values of a tubelet are ordered (time, height, width, channel).
    """

    def __init__(
        self, patch_size: int, tubelet_size: int, in_chans: int, embed_dim: int, *, dual_norm: bool
    ) -> None:
        super().__init__()
        self.patch_size, self.tubelet_size, self.in_chans = patch_size, tubelet_size, in_chans
        values = tubelet_size * patch_size**2 * in_chans
        self.norm_before = RMSNorm(values) if dual_norm else nn.Identity()
        self.proj = nn.Linear(values, embed_dim)
        self.norm = RMSNorm(embed_dim) if dual_norm else nn.Identity()

    def forward(self, video: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Embed ``[B, C, T, H, W]``.

        Returns:
            Embeddings ``[B, t, h * w, D]`` without positions, and the token shape (t, h, w).

        Raises:
            ValueError: See :meth:`patchify`.
        """
        patches, shape = self.patchify(video, self.proj.weight.dtype)
        return self.embed(patches), shape

    def patchify(
        self, video: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, tuple[int, int, int]]:
        """Cut ``[B, C, T, H, W]`` into tubelets.

        Args:
            dtype: Type of the result; None: the video's.

        Returns:
            The pixels of each tubelet ``[B, t, h * w, V]``, V values a tubelet, and the token shape (t, h,
            w).

        Raises:
            ValueError: The video does not divide into tubelets, or is not floating-point.
        """
        if video.ndim != 5 or video.shape[1] != self.in_chans:
            raise ValueError(f"expected a video [B, {self.in_chans}, T, H, W], got {list(video.shape)}")
        if not video.is_floating_point():
            raise ValueError(
                f"expected a normalised floating-point video, got {video.dtype}; normalize it first"
            )
        frames, height, width = video.shape[2:]
        p, tt = self.patch_size, self.tubelet_size
        if frames % tt or height % p or width % p or min(frames, height, width) == 0:
            raise ValueError(
                f"a video of {frames} frames of {height}x{width} does not divide into tubelets of "
                f"{tt} frames of {p}x{p} pixels; resize or crop it"
            )
        t, h, w = frames // tt, height // p, width // p
        return self._cut(video.to(dtype or video.dtype), (t, h, w)), (t, h, w)

    def _cut(self, video: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """The pixels of each tubelet, ``[B, t, h * w, V]``."""
        (t, h, w), p, tt = shape, self.patch_size, self.tubelet_size
        x = video.reshape(video.shape[0], self.in_chans, t, tt, h, p, w, p)
        return x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(video.shape[0], t, h * w, -1)

    def embed(self, patches: Tensor) -> Tensor:
        """Project the pixels of tubelets ``[..., V]`` to ``[..., D]``."""
        return self.norm(self.proj(self.norm_before(patches.to(self.proj.weight.dtype))))


def sincos_table(shape: tuple[int, int, int], dim: int) -> Tensor:
    """3-D sine-cosine positions ``[T, H, W, dim]``: a quarter of the channels for time, then width, height.

    Each part of width d holds sin(pos * w_k), then cos(pos * w_k), with w_k = 10000 ** (-2k / d).
    """

    def encode(positions: int, width: int) -> Tensor:
        rate = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
        angle = torch.arange(positions, dtype=torch.float64)[:, None] * rate
        return torch.cat([angle.sin(), angle.cos()], dim=1).float()

    t, h, w = shape
    side = dim * 3 // 8
    parts = (
        encode(t, dim - 2 * side)[:, None, None].expand(t, h, w, -1),
        encode(w, side)[None, None].expand(t, h, w, -1),
        encode(h, side)[None, :, None].expand(t, h, w, -1),
    )
    return torch.cat(parts, dim=-1)


class PositionTable(nn.Module):
    """Learned positions on a 3-D grid, resampled to the grid at hand (GPE, paper section 3).

    The per-channel ``scale`` and ``shift`` (in the release a convolution of kernel one) apply to the grid's
    rows, not to the class token's. Resampling is linear in time, then bicubic in space.
    """

    def __init__(self, shape: tuple[int, int, int], dim: int, *, affine: bool) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, dim))
        self.grid = nn.Parameter(sincos_table(shape, dim))
        self.scale = nn.Parameter(torch.ones(dim)) if affine else None
        self.shift = nn.Parameter(torch.zeros(dim)) if affine else None
        self._cache: dict[tuple[int, int, int], tuple[tuple, Tensor]] = {}

    def forward(self, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Rows for the class token ``[1, C]`` and for a grid of tokens ``[t * h * w, C]``, fp32.

        Without gradients the rows of each grid are computed once and kept until a parameter changes. A change
        through ``parameter.data`` is not noticed.
        """
        parameters = [p for p in (self.grid, self.scale, self.shift) if p is not None]
        # Parameters made in inference mode have no version that would reveal a change.
        unversioned = any(p.is_inference() for p in parameters)
        # A graph must compute what it reads: the cache is emptied at times.
        recorded = torch.compiler.is_compiling() or (self.grid.is_cuda and is_current_stream_capturing())
        if torch.is_grad_enabled() or recorded or unversioned:
            return self.cls.float(), self._resample(shape)
        # In-place changes (by an optimiser or a loaded checkpoint) raise the version; moves change the rest.
        state = tuple((p._version, p.data_ptr(), p.device, p.dtype) for p in parameters)
        former, rows = self._cache.get(shape, ((), self.cls))
        if former != state:
            rows = self._resample(shape)
            if len(self._cache) >= _CACHED_GRIDS:
                self._cache.clear()
            self._cache[shape] = (state, rows)
        return self.cls.float(), rows

    def _resample(self, shape: tuple[int, int, int]) -> Tensor:
        table = self.grid.float()
        t, h, w = shape
        frames, height, width, dim = table.shape
        # Each axis is one small matrix product, and so is its backward pass: the one of `interpolate` takes
        # longer on a GPU than the blocks do. Autocast would round the products.
        with full_precision(table.device.type):
            table = _resample_axis(table.reshape(1, frames, -1), t, "linear")
            table = _resample_axis(table.reshape(t, height, -1), h, "bicubic")
            table = _resample_axis(table.reshape(t * h, width, dim), w, "bicubic")
        rows = table.reshape(t * h * w, dim)
        if self.scale is None:
            return rows
        # The weights of a row add up to one, so the scale and shift of the table are those of its rows.
        return torch.addcmul(self.shift.float(), rows, self.scale.float())


def full_precision(device: str) -> AbstractContextManager:
    """A context without autocast, on a type of device."""
    # Not `torch.amp.is_autocast_available`, which torch.export of PyTorch 2.6 cannot trace.
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _resample_axis(values: Tensor, size: int, mode: str) -> Tensor:
    """Resample the middle axis of ``[A, N, C]`` to ``size``."""
    if values.shape[1] == size:
        return values
    return resampling_matrix(values.shape[1], size, mode, values.device) @ values


@torch.no_grad()
def resampling_matrix(source: int, size: int, mode: str, device: torch.device) -> Tensor:
    """The fp32 weights ``[size, source]`` by which :func:`torch.nn.functional.interpolate` resamples.

    Args:
        mode: ``linear`` or ``bicubic``.
    """
    signals = torch.eye(source, device=device)[:, None]  # One for each position, [source, 1, source].
    if mode == "linear":
        return F.interpolate(signals, size=size, mode="linear")[:, 0].t()
    return F.interpolate(signals[..., None], size=(size, 1), mode="bicubic")[:, 0, :, 0].t()
