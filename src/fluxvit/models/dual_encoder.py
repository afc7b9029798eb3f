"""Videos and texts in one space: a FluxViT, a text tower, and what brings both together.

A video's vector is its pooled vector through ``head_norm``, as for a classifier, and a projection; a text's
is the tower's through another. Both are unit vectors, compared by their cosine. One projection serves all
token budgets.

Shapes: B clips or texts, P width of a pooled vector, D of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.flux.selection import Selector
from fluxvit.models.fluxvit import FluxViT
from fluxvit.models.text import TextTower


class LanguageSide(nn.Module):
    """Everything in a dual encoder except its FluxViT.

    Args:
        text: The text tower. It is always in eval mode: no dropout while it is trained, as CLIP's.
        pool_dim: Width P of the pooled vector.
        dim: Width D of the shared space.
        temperature: Temperature at the start of training; cosines are divided by it.
        least_temperature: Lower bound, which training cannot reach.

    Raises:
        ValueError: The temperatures are not 0 < least <= first.
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
        # Vectors of one axis: parameters without one cannot be shared out between processes.
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
        """What cosines are multiplied by, a scalar: one over the temperature."""
        # Far below its bound it grows as the exponential that CLIP learns; it can always come back, which a
        # clamped one cannot.
        return self.sharpness[0].sigmoid() / self.least_temperature

    def embed_video(self, model: FluxViT, pooled: Tensor) -> Tensor:
        """Pooled vectors ``[B, P]`` to unit vectors ``[B, D]``."""
        return F.normalize(self.video_proj(model.head_norm(pooled)).float(), dim=-1)

    def embed_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Texts, as :class:`TextTower` takes them, to unit vectors ``[B, D]``."""
        return F.normalize(self.text_proj(self.text(ids, lengths)).float(), dim=-1)

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {f"text.{name}" for name in self.text.no_weight_decay()}


class DualEncoder(nn.Module):
    """A FluxViT and its language side.

    ``encoder.embed_video(video, budget=1024) @ encoder.embed_text(ids, lengths).t()`` are cosines.

    Args:
        video: Its classifier, if it has one, is not used.
        language: The rest.

    Raises:
        ValueError: The two do not fit.
    """

    def __init__(self, video: FluxViT, language: LanguageSide) -> None:
        super().__init__()
        width, wanted = video.config.pool_dim, language.video_proj.in_features
        if width != wanted:
            raise ValueError(
                f"the video side pools to {width} channels, and the language side reads {wanted}"
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
        return self.embed_video_at(video, [budget], [head], selector)[0]

    def embed_video_at(
        self,
        video: Tensor,
        budgets: Sequence[int | None],
        heads: Sequence[int | None],
        selector: str | Selector = "group_dynamic",
    ) -> list[Tensor]:
        """The same at several budgets and heads; the pool is embedded once."""
        samples, _ = self.video.select_tokens(video, budgets, selector)
        return [
            self.language.embed_video(
                self.video, self.video.forward_head(self.video.encode(tokens), head, pre_logits=True)
            )
            for (tokens, _), head in zip(samples, heads, strict=True)
        ]

    def embed_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Unit vectors ``[B, D]`` of texts; ids ``[B, N]`` and lengths ``[B]`` as `TextTower` takes them."""
        return self.language.embed_text(ids, lengths)
