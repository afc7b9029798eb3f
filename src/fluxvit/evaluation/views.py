"""Several views of a video at test time: clips spread over its length, crops spread over its frames."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor
from torch.utils.data import Dataset

from fluxvit.data.dataset import Clip, ClipDataset, ClipRequest
from fluxvit.schema import convert, shown
from fluxvit.video.base import VideoError

_VIEWS = re.compile(r"(\d{1,12})x(\d{1,12})", re.ASCII)
MOST_VIEWS = 1000
"""Views of a video that an evaluation may ask for."""
_Part = Annotated[int, Meta(ge=1, le=MOST_VIEWS)]


class Views(NamedTuple):
    """``clips`` at different times of a video, ``crops`` of each: 4x3 are twelve views.

    One crop is the centre. Several are spread evenly along the side of the frame that has room for them,
    once the grid just fits into it.
    """

    clips: _Part = 1
    crops: _Part = 1

    @classmethod
    def parse(cls, text: str) -> Views:
        """Read ``"4x3"``: four clips, three crops of each.

        Raises:
            ValueError: ``text`` is something else, or a number is not from 1 to 1000.
        """
        match = _VIEWS.fullmatch(text.strip().lower())
        if not match:
            raise ValueError(f"views {shown(text)}: give CLIPSxCROPS, such as 4x3 or 1x1")
        return convert([int(match[1]), int(match[2])], cls, key="views")

    @property
    def total(self) -> int:
        """Views of a video."""
        return self.clips * self.crops

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


ONE_VIEW = Views()


def merge_views(logits: Tensor, views: int, multi_label: bool = False) -> Tensor:
    """Logits of all views ``[B * views, C]``, those of a video together, to one row a video, fp32 ``[B, C]``.

    Of several views it is the logarithm of their mean probabilities (softmax of each, averaged in fp64); one
    view's logits stay as they are. With ``multi_label`` it is the logit of the mean of the sigmoids.
    """
    if views == 1:
        return logits.float()
    if multi_label:
        return logits.double().sigmoid().unflatten(0, (-1, views)).mean(1).logit(eps=1e-12).float()
    rows = logits.double().log_softmax(-1).unflatten(0, (-1, views))
    return (rows.logsumexp(1) - torch.tensor(float(views), dtype=torch.float64).log()).float()


class ReadableOrBlack(Dataset[Clip]):
    """Test clips, black ones in place of those that cannot be read: their ``replaced`` is 1, and ``faults``
    tell why. So a batch has its size whatever is in it, and nobody takes a black clip's answer for one.
    """

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, request: ClipRequest) -> Clip:
        """The clip, or batch of views, that is asked for."""
        try:
            return self._dataset[request]
        except VideoError as error:
            grid, (clips, crops), label = request.grid, request.views, self._dataset.label(request.item)
            shape = [] if clips * crops == 1 else [clips * crops]
            return Clip(
                torch.zeros(*shape, 3, grid.frames, grid.height, grid.width, dtype=torch.uint8),
                label.expand([*shape, *label.shape]).clone(),
                torch.full(shape, request.item),
                torch.ones(shape, dtype=torch.int64),
                (str(error),),
            )
