"""Contrastive training of a dual encoder: what a step computes, and the captions that it computes it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint, copy_language
from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Manifest
from fluxvit.data.texts import Texts, caption_number
from fluxvit.flux.selection import Selector
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.training.tasks.base import Batch, Task, pooled_at_budgets, substate
from fluxvit.training.tasks.contrastive_losses import LOSSES, contrastive_loss
from fluxvit.utils.distributed import World

T = TypeVar("T")


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
        self.manifest, self.texts = manifest, texts

    def __call__(self, items: Tensor) -> Batch:
        """Captions of the videos of these numbers ``[B]``: ``caption`` int64 ``[B]``, the same number for the
        same words; ``ids`` int64 ``[B, N]`` and ``lengths`` int64 ``[B]``, as a text tower takes them.

        Clips of the same video get the same caption. It draws from PyTorch's generator.
        """
        # One number for each clip, whatever its video has: what is drawn later must not depend on it.
        draws = torch.rand(len(items)).tolist()
        chosen: dict[int, str] = {}
        for item, draw in zip(items.tolist(), draws, strict=True):
            captions = self.manifest.entries[item].captions
            chosen.setdefault(item, captions[int(draw * len(captions))])
        return self.encode([chosen[item] for item in items.tolist()])

    def encode(self, captions: Sequence[str]) -> Batch:
        """The same for one caption of each clip."""
        ids, lengths = self.texts(captions)
        numbers = torch.tensor([caption_number(text) for text in captions])
        return {"caption": numbers, "lengths": lengths, "ids": ids}


class ContrastiveTask(Task):
    """Contrastive training at one or several token budgets at once (paper table 16 and section 3; where they
    are silent, as in tuning).

    Each of the model's budgets sees the same clips and captions, and pools by its own head; one projection
    serves all. The loss is the sum of the budgets' contrastive losses, plus the alignment of each smaller
    budget's pooled vector with the largest's (`pooled_at_budgets`). Of a single token frame, an image, all
    tokens are kept: there is no change to select by.

    Args:
        checkpoint: The video side.
        language: The language side, which is trained beside it.
        captions: Gives clips their captions.
        world: The processes whose clips are told apart.
        loss: ``infonce`` or ``sigmoid``.
        align_weight: Weight of the alignment.
        selector: Selector of the tokens that are kept.
        chunk: Clips whose activations are held at a time; the encoders then run twice, once for the loss and
            once more, chunk by chunk, for its gradients (as GradCache, arXiv 2101.06983). 0: all.
        text_lr_scale: Ratio of the text tower's learning rate to that of the other parameters.

    Raises:
        ValueError: The loss is unknown, or chunk is negative.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        language: LanguageSide,
        captions: Captions,
        world: World,
        *,
        loss: str = "infonce",
        align_weight: float = 1.0,
        selector: str | Selector = "group_dynamic",
        chunk: int = 0,
        text_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(checkpoint)
        if loss not in LOSSES:
            raise ValueError(f"loss {loss!r}: choose {' or '.join(LOSSES)}")
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}; it must be at least 0")
        self.language, self.captions, self._world = language, captions, world
        self.loss, self.align_weight, self.selector, self.chunk = loss, align_weight, selector, chunk
        self._text_lr_scale = text_lr_scale
        # InfoNCE has no use for it; data parallelism waits for the gradient of all that is trained.
        language.bias.requires_grad_(loss == "sigmoid")

    def collate(self, clips: Clip) -> Batch:
        return {"video": clips.video, **self.captions(clips.item)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the recall at each budget, of clips and their captions as `Captions` gives them."""
        video, same = batch["video"], batch["caption"]
        if not any(parameter.requires_grad for parameter in self.model.blocks.parameters()):
            self.model.eval()  # A frozen trunk drops no path.
        size = self.chunk or len(video)
        texts = torch.cat(
            [
                self._run(self.language.embed_text, *part)
                for part in _parts(size, batch["ids"], batch["lengths"])
            ]
        )
        parts = [self._run(self._embed, *part) for part in _parts(size, video)]
        shares = [len(part[0]) / len(video) for part in parts]
        align = sum(
            (share * part[-1] for share, part in zip(shares, parts, strict=True)), texts.new_zeros(())
        )
        loss = self.align_weight * align
        result: dict[str, Tensor] = {}
        budgets = self.model.config.budgets
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

    def _embed(self, video: Tensor) -> tuple[Tensor, ...]:
        """Unit vectors ``[B, D]`` at each budget, and the sum of the alignment losses."""
        budgets: list[int | None] = list(self.model.config.budgets)
        if video.shape[2] == self.model.config.tubelet_size:
            budgets = [None] * len(budgets)
        vectors, align = [], video.new_zeros((), dtype=torch.float32)
        for pooled, alignment in pooled_at_budgets(self.model, video, budgets, self.selector):
            vectors.append(self.language.embed_video(self.model, pooled))
            align = align + alignment
        return *vectors, align

    def lr_scale(self, name: str) -> float:
        return self._text_lr_scale if name.startswith("language.text.") else 1.0

    def network(self, state: Mapping[str, Tensor]) -> DualEncoder:
        language = copy_language(self.language, substate(state, "language."))
        return DualEncoder(self._video_model(state), language.to(state["language.sharpness"].device)).eval()

    def export(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        network = self.network(state)
        video = replace(self.checkpoint, model=network.video)
        DualEncoderCheckpoint(network, self.captions.texts, video, video.provenance).save(folder)


def _parts(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _found(videos: Tensor, texts: Tensor, same: Tensor) -> Tensor:
    """Part of this process's texts whose nearest video has a caption of the same words."""
    return (same[(texts @ videos.t()).argmax(1)] == same).float().mean()
