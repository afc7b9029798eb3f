"""A dual encoder: a FluxViT and a text tower with projections into one space.

The vector of a video is its pooled vector after ``head_norm``, as for a classifier, and a projection. The
vector of a text is that of the tower after another projection. Both are unit vectors, compared by their
cosine. One projection serves all token budgets.

Shapes: B clips or texts, P width of a pooled vector, D of the shared space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.flux.selection import Selector
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.text import TextTower


class LanguageSide(nn.Module):
    """Everything in a dual encoder except its FluxViT.

    Args:
        text: The text tower. It is always in eval mode: like CLIP's, it is trained without dropout.
        pool_dim: Width P of the pooled vector.
        dim: Width D of the shared space.
        temperature: Temperature at the start of training; cosines are divided by it.
        least_temperature: Lower bound, which training cannot reach.

    Raises:
        ValueError: The temperatures are not 0 < ``least_temperature`` < ``temperature``.
    """

    def __init__(
        self,
        text: TextTower,
        pool_dim: int,
        dim: int,
        temperature: float = 0.07,
        least_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 < least_temperature < temperature:
            raise ValueError(
                f"temperature {temperature:g} must be above {least_temperature:g}, which must be above 0"
            )
        self.text, self.dim, self.least_temperature = text, dim, least_temperature
        self.video_proj = nn.Linear(pool_dim, dim)
        self.text_proj = nn.Linear(text.out_dim, dim)
        # A vector of one axis: FSDP cannot shard parameters without an axis.
        self.sharpness = nn.Parameter(torch.tensor([-math.log(temperature / least_temperature - 1)]))
        for projection in (self.video_proj, self.text_proj):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            nn.init.zeros_(projection.bias)

    def train(self, mode: bool = True) -> LanguageSide:
        super().train(mode)
        self.text.eval()
        return self

    @property
    def scale(self) -> Tensor:
        """The factor of the cosines, a scalar: one over the temperature."""
        # Far below its bound it grows like the exponential that CLIP learns. Unlike a clamped one, it always
        # has a gradient.
        return self.sharpness[0].sigmoid() / self.least_temperature

    def embed_video(self, model: FluxViT, pooled: Tensor) -> Tensor:
        """Pooled vectors ``[B, P]`` to unit vectors ``[B, D]``."""
        return F.normalize(self.video_proj(model.head_norm(pooled)).float(), dim=-1)

    def embed_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Texts, in the form that :class:`TextTower` takes, to unit vectors ``[B, D]``."""
        return F.normalize(self.text_proj(self.text(ids, lengths)).float(), dim=-1)

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {f"text.{name}" for name in self.text.no_weight_decay()}


class DualEncoder(nn.Module):
    """A FluxViT and its language side.

    ``encoder.embed_video(video, budget=1024) @ encoder.embed_text(ids, lengths).t()`` are cosines.

    Args:
        video: The video tower; its classifier, if it has one, is not used.
        language: The text tower and the projections.

    Raises:
        ValueError: The widths of the two do not fit.
    """

    def __init__(self, video: FluxViT, language: LanguageSide) -> None:
        super().__init__()
        width, expected = video.config.pool_dim, language.video_proj.in_features
        if width != expected:
            raise ValueError(
                f"the video side pools to {width} channels, and the language side reads {expected}"
            )
        self.video, self.language = video, language

    def embed_video(
        self,
        video: Tensor,
        budget: int | None = None,
        head: int | None = None,
        selector: str | Selector = "group_dynamic",
    ) -> Tensor:
        """Unit vectors ``[B, D]`` of normalised clips ``[B, C, T, H, W]``.

        Args:
            budget, head, selector: See :meth:`FluxViT.forward`.

        Raises:
            ValueError: See :meth:`FluxViT.forward`.
        """
        pooled = self.video(video, budget, head, selector).embedding
        return self.language.embed_video(self.video, pooled)

    def embed_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of texts, in the form that :class:`TextTower` takes."""
        return self.language.embed_text(ids, lengths)
