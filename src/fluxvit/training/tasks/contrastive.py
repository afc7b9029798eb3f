"""Contrastive training of a dual encoder: what a step computes, and the captions that it computes it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Manifest
from fluxvit.data.texts import Texts, caption_number
from fluxvit.flux.selection import Selector
from fluxvit.models.dual_encoder import LanguageSide
from fluxvit.models.fluxvit import FluxViT
from fluxvit.training.tasks.contrastive_losses import LOSSES, contrastive_loss
from fluxvit.utils.distributed import World

T = TypeVar("T")


class FluxContrast(nn.Module):
    """Contrastive training at one or several token budgets at once (paper table 16 and section 3; where they
    are silent, as in tuning).

    Each of the model's budgets sees the same clips and captions, and pools by its own head; one projection
    serves all. The loss is the sum of the budgets' contrastive losses, plus the alignment of each smaller
    budget's pooled vector with the largest's (`FluxTuning`). Of a single token frame, an image, all tokens
    are kept: there is no change to select by.

    Args:
        language: Trained beside the model.
        world: Processes whose clips are told apart.
        loss: ``infonce`` or ``sigmoid``.
        align_weight: Weight of the alignment.
        selector: Which tokens to keep.
        chunk: Clips whose activations are held at a time; the encoders then run twice, once for the loss and
            once more, chunk by chunk, for its gradients (as GradCache, arXiv 2101.06983). 0: all.
        text_lr_scale: Ratio of the text tower's learning rate to that of the other parameters.

    Raises:
        ValueError: The loss is unknown, or chunk is negative.
    """

    def __init__(
        self,
        language: LanguageSide,
        world: World,
        *,
        loss: str = "infonce",
        align_weight: float = 1.0,
        selector: str | Selector = "group_dynamic",
        chunk: int = 0,
        text_lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss {loss!r}: choose {' or '.join(LOSSES)}")
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}; it must be at least 0")
        self.language, self._world = language, world
        self.loss, self.align_weight, self.selector, self.chunk = loss, align_weight, selector, chunk
        self._text_lr_scale = text_lr_scale
        # InfoNCE has no use for it; data parallelism waits for the gradient of all that is trained.
        language.bias.requires_grad_(loss == "sigmoid")

    def forward(self, model: FluxViT, video: Tensor, captions: Tensor) -> dict[str, Tensor]:
        """Clips ``[B, 3, T, H, W]`` and their captions ``[B, 2 + N]``, as `Captions` gives them."""
        if not any(parameter.requires_grad for parameter in model.blocks.parameters()):
            model.eval()  # A frozen trunk drops no path.
        same, lengths, ids = captions[:, 0], captions[:, 1], captions[:, 2:]
        size = self.chunk or len(video)
        texts = torch.cat([self._run(self.language.embed_text, *part) for part in _parts(size, ids, lengths)])
        parts = [self._run(self._embed, model, *part) for part in _parts(size, video)]
        shares = [len(part[0]) / len(video) for part in parts]
        align = sum(
            (share * part[-1] for share, part in zip(shares, parts, strict=True)), texts.new_zeros(())
        )
        loss = self.align_weight * align
        result: dict[str, Tensor] = {}
        budgets = model.config.budgets
        for budget, *vectors in zip(budgets, *(part[:-1] for part in parts), strict=True):
            videos = torch.cat(vectors)
            loss = loss + contrastive_loss(
                videos,
                texts,
                self.language.scale,
                same,
                self._world,
                kind=self.loss,
                bias=self.language.bias[0] if self.loss == "sigmoid" else None,
            )
            result[f"recall@{budget}"] = _found(videos.detach(), texts.detach(), same)
        return {"loss": loss, **result, "temperature": 1 / self.language.scale.detach()}

    def _run(self, work: Callable[..., T], *arguments: object) -> T:
        if self.chunk and torch.is_grad_enabled():
            return checkpoint(work, *arguments, use_reentrant=False)
        return work(*arguments)

    def _embed(self, model: FluxViT, video: Tensor) -> tuple[Tensor, ...]:
        """Unit vectors ``[B, D]`` at each budget, and the mean alignment loss."""
        budgets: list[int | None] = list(model.config.budgets)
        if video.shape[2] == model.config.tubelet_size:
            budgets = [None] * len(budgets)
        samples, _ = model.select_tokens(video, budgets, self.selector)
        vectors, align, anchor = [], video.new_zeros((), dtype=torch.float32), None
        for head, (tokens, _) in enumerate(samples):
            pooled = model.forward_head(model.encode(tokens), head, pre_logits=True)
            vectors.append(self.language.embed_video(model, pooled))
            if anchor is None:
                anchor = F.normalize(pooled.detach().float(), dim=-1)
            else:
                align = align + F.smooth_l1_loss(model.align(pooled, head).float(), anchor)
        return *vectors, align

    def no_weight_decay(self) -> set[str]:
        """Parameters of two or more axes that must not decay."""
        return {f"language.{name}" for name in self.language.no_weight_decay()}

    def lr_scale(self, name: str) -> float:
        """The ratio of a parameter's learning rate to that of the video side's head."""
        return self._text_lr_scale if name.startswith("language.text.") else 1.0


class Captions:
    """Gives the clips of a batch one caption each, drawn among their video's.

    Args:
        manifest: The videos.
        texts: The tokenizer.

    Raises:
        ValueError: A video has no caption.
    """

    def __init__(self, manifest: Manifest, texts: Texts) -> None:
        for entry in manifest.entries:
            if not entry.captions:
                raise ValueError(f"{entry.path} has no caption; leave it out of the manifest")
        self._manifest, self._texts = manifest, texts

    def __call__(self, batch: Clip) -> Tensor:
        """int64 ``[B, 2 + N]``: a number that tells captions apart, tokens of the caption, their ids.

        Clips of the same video get the same. It draws from PyTorch's generator.
        """
        # One number for each clip, whatever its video has: what is drawn later must not depend on it.
        draws = torch.rand(len(batch.item)).tolist()
        chosen: dict[int, str] = {}
        for item, draw in zip(batch.item.tolist(), draws, strict=True):
            captions = self._manifest.entries[item].captions
            chosen.setdefault(item, captions[int(draw * len(captions))])
        texts = [chosen[item] for item in batch.item.tolist()]
        ids, lengths = self._texts(texts)
        numbers = torch.tensor([caption_number(text) for text in texts])
        return torch.cat([numbers[:, None], lengths[:, None], ids], dim=1)


def _parts(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _found(videos: Tensor, texts: Tensor, same: Tensor) -> Tensor:
    """Part of this process's texts whose nearest video has a caption of the same words."""
    return (same[(texts @ videos.t()).argmax(1)] == same).float().mean()
