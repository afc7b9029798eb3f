"""Several views of a video at test time: clips spread over its length, crops spread over its frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fluxvit.data.dataset import Clip, ClipDataset, ClipRequest
from fluxvit.video.base import VideoError


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
