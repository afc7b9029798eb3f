"""Training of the learned selector of a frozen classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.cost import grid_cost
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.selection import Given
from fluxvit.models.token_scorer import TokenScorer
from fluxvit.training.tasks.base import Batch, Task


class SelectorTask(Task):
    """Teach the learned selector on which tokens the logits of a frozen network depend.

    In every step the network sees a quarter of the tokens of a clip, drawn without replacement in proportion
    to the exponentials of their scores. A random combination of its logits is differentiated with respect to
    the tokens that enter the blocks. Tokens with a large gradient matter, whatever they speak for: labels are
    not used, so that the selector learns nothing that only they could tell. The scores learn, as logarithms,
    each token's share of the sum of the gradients' norms.

    Args:
        checkpoint: The trained network, with a learned selector.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, "learned")
        self.model.requires_grad_(False)
        self.scorer.requires_grad_(True)
        self.train()

    @property
    def scorer(self) -> TokenScorer:
        """The network that is trained."""
        assert self.model.token_scorer is not None
        return self.model.token_scorer

    def train(self, mode: bool = True) -> SelectorTask:
        super().train(mode)
        self.model.eval()  # Its dropout would be noise in what is learned.
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, the divergence of the scores from the shares; and the part of the shares that the better
        half of the drawn tokens have together.
        """
        video = batch["video"]
        maps = self.scorer(self.scorer.thumbnails(video))
        scores = maps.flatten(1)
        with torch.no_grad():
            # The largest of these are such a draw.
            keys = Given(maps - torch.empty_like(maps).exponential_().log(), num_groups=1)
            ((tokens, drawn),), _ = self.model.select_tokens(video, [self._drawn(scores.shape[1])], keys)
        shares = self._shares(tokens)
        scores = scores if drawn is None else scores.gather(1, drawn)
        best = scores.topk(max(1, scores.shape[1] // 2), dim=1).indices
        loss = F.kl_div(scores.log_softmax(1), shares, reduction="batchmean")
        return {"loss": loss, "found": shares.gather(1, best).sum(1).mean()}

    def _shares(self, tokens: Tensor) -> Tensor:
        """How much the logits depend on each of the tokens ``[B, 1 + K, C]`` but the class token: fp32
        ``[B, K]``; rows sum to 1.
        """
        with torch.enable_grad():
            logits = self.model.forward_head(self.model.encode(tokens.requires_grad_())).float()
            direction = torch.randn_like(logits)
            # What all logits have in common changes no answer.
            mixed = (logits * (direction - direction.mean(1, keepdim=True))).sum()
        (gradient,) = torch.autograd.grad(mixed, tokens)
        norms = torch.linalg.vector_norm(gradient[:, 1:].float(), dim=-1)
        return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)

    def validation_budgets(self, grid: SamplingGrid) -> Sequence[int]:
        pool = self.model.config.pool(grid)
        return [max(1, pool // part) for part in (4, 8, 16)]

    def count_tokens(self, video: Tensor) -> int:
        return len(video) * self._drawn(self.model.config.pool(SamplingGrid(*video.shape[2:])))

    def count_macs(self, video: Tensor) -> int:
        grid, size = SamplingGrid(*video.shape[2:]), self.model.config.size
        # Forwards, and back to the tokens.
        return 2 * len(video) * grid_cost(size, grid, self._drawn(size.pool(grid)), self.selector).total

    @staticmethod
    def _drawn(pool: int) -> int:
        return max(1, pool // 4)
