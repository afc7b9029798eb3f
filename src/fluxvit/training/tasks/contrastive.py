"""Contrastive training of a dual encoder: what a step computes, and the captions that it computes it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint, copy_language
from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Manifest
from fluxvit.data.texts import Texts, caption_number, reversed_captions
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.training.recipes import ContrastiveSettings
from fluxvit.training.tasks.base import Batch, Task, pooled_at_budgets, substate
from fluxvit.utils.distributed import World


class Captions:
    """Draws a caption for each clip of a batch among the captions of its video.

    Args:
        manifest: The videos.
        texts: The tokenizer.
        opposites: Groups of opposite words (`reversed_captions`), which make hard negatives.

    Raises:
        ValueError: A video has no caption.
    """

    def __init__(self, manifest: Manifest, texts: Texts, opposites: Sequence[Mapping[str, str]] = ()) -> None:
        for entry in manifest.entries:
            if not entry.captions:
                raise ValueError(f"{entry.path} has no caption; leave it out of the manifest")
        self.manifest, self.texts, self.opposites = manifest, texts, opposites

    def __call__(self, items: Tensor) -> Batch:
        """Captions of the videos of these numbers ``[B]``: ``caption`` int64 ``[B]``, the same number for the
        same words; ``ids`` int64 ``[B, N]`` and ``lengths`` int64 ``[B]``, as a text tower takes them.

        With opposites also ``reversed_caption``, ``reversed_ids`` and ``reversed_lengths``, those of each
        caption with one group of words reversed, which is drawn; the caption itself if there is none.

        Clips of the same video get the same caption. It draws from PyTorch's generator.
        """
        # One number for each clip: later draws must not depend on how many captions a video has.
        draws = torch.rand(len(items)).tolist()
        chosen: dict[int, str] = {}
        for item, draw in zip(items.tolist(), draws, strict=True):
            captions = self.manifest.entries[item].captions
            chosen.setdefault(item, captions[int(draw * len(captions))])
        captions = [chosen[item] for item in items.tolist()]
        batch = self.encode(captions)
        if self.opposites:
            reverse: dict[str, str] = {}
            for caption, draw in zip(captions, torch.rand(len(captions)).tolist(), strict=True):
                found = reversed_captions(caption, self.opposites) or [caption]
                reverse.setdefault(caption, found[int(draw * len(found))])
            others = self.encode([reverse[caption] for caption in captions])
            batch = {**batch, **{f"reversed_{name}": values for name, values in others.items()}}
        return batch

    def encode(self, captions: Sequence[str]) -> Batch:
        """The same for one caption of each clip."""
        ids, lengths = self.texts(captions)
        numbers = torch.tensor([caption_number(text) for text in captions])
        return {"caption": numbers, "lengths": lengths, "ids": ids}


class ContrastiveTask(Task):
    """Contrastive training at one or several token budgets at once (paper table 16 and section 3; where they
    are silent, as in tuning).

    Each budget of the model sees the same clips and captions, and pools by its own head; one projection
    serves all. The loss is the sum of the budgets' contrastive losses, plus the alignment of the pooled
    vector of each smaller budget with that of the largest (`pooled_at_budgets`). All tokens of an image, a
    clip of a single token frame, are kept: it has no change to select by. A clip's caption with some words
    reversed, if the captions come with one, is a further negative of that clip (as in NegCLIP, arXiv
    2210.01936).

    Args:
        checkpoint: The video side.
        language: The language side, which is trained beside it.
        captions: Gives clips their captions.
        world: The processes whose clips make up a batch.
        settings: The settings of the loss.
        text_lr_scale: Ratio of the text tower's learning rate to that of the other parameters.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        language: LanguageSide,
        captions: Captions,
        world: World,
        settings: ContrastiveSettings = ContrastiveSettings(),  # noqa: B008
        text_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(checkpoint, settings.selector)
        self.language, self.captions, self._world = language, captions, world
        self.settings, self._text_lr_scale = settings, text_lr_scale

    def collate(self, clips: Clip) -> Batch:
        return {"video": clips.video, **self.captions(clips.item)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the recall at each budget, of clips and their captions as `Captions` gives them."""
        video, same = batch["video"], batch["caption"]
        if not any(parameter.requires_grad for parameter in self.model.blocks.parameters()):
            self.model.eval()  # A frozen trunk drops no path.
        texts = self.language.embed_text(batch["ids"], batch["lengths"])
        negatives = None
        if "reversed_ids" in batch:
            others = self.language.embed_text(batch["reversed_ids"], batch["reversed_lengths"])
            negatives = others, batch["reversed_caption"]
        budgets: list[int | None] = list(self.model.config.budgets)
        if video.shape[2] == self.model.config.tubelet_size:
            budgets = [None] * len(budgets)
        vectors, align = [], video.new_zeros((), dtype=torch.float32)
        for pooled, alignment in pooled_at_budgets(self.model, video, budgets, self.selector):
            vectors.append(self.language.embed_video(self.model, pooled))
            align = align + alignment
        loss = self.settings.align_weight * align
        result: dict[str, Tensor] = {}
        for budget, videos in zip(self.model.config.budgets, vectors, strict=True):
            loss = loss + contrastive_loss(videos, texts, self.language.scale, same, self._world, negatives)
            result[f"recall@{budget}"] = _recall(videos.detach(), texts.detach(), same)
        return {"loss": loss, **result, "temperature": 1 / self.language.scale.detach()}

    def lr_scale(self, name: str) -> float:
        return self._text_lr_scale if name.startswith("language.text.") else 1.0

    def network(self, state: Mapping[str, Tensor]) -> DualEncoder:
        language = copy_language(self.language, substate(state, "language."))
        return DualEncoder(self._video_model(state), language.to(state["language.sharpness"].device)).eval()

    def export(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        network = self.network(state)
        video = replace(self.checkpoint, model=network.video)
        DualEncoderCheckpoint(network, self.captions.texts, video, video.provenance).save(folder)


def _recall(videos: Tensor, texts: Tensor, same: Tensor) -> Tensor:
    """Part of this process's texts whose nearest video has a caption of the same words."""
    return (same[(texts @ videos.t()).argmax(1)] == same).float().mean()


def contrastive_loss(
    video: Tensor,
    text: Tensor,
    scale: Tensor,
    same: Tensor,
    world: World,
    negatives: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """InfoNCE over the joint batch of all processes, as in CLIP (arXiv 2103.00020): the mean over both
    directions of the cross-entropy of a row's partner among all candidates.

    Averaging gradients over the processes, as data parallelism does, gives the gradient of the loss of the
    joint batch.

    Args:
        video, text: Unit vectors ``[B, D]``; rows of the same number belong together. All processes have as
            many.
        scale: Factor of the cosines, a scalar: one over the temperature.
        same: int64 ``[B]``: pairs of the same number say the same (a caption that occurs twice, two clips of
            a video) and are not negatives of each other.
        world: Processes that make up the batch; each gets the loss of its own rows.
        negatives: A further text of each video ``[B, D]`` that does not belong to it, and its number ``[B]``;
            one with the number of the video's own text does not count.
    """
    video, text = video.float(), text.float()
    all_same = _gather(same, world)
    own = world.rank * len(video) + torch.arange(len(video), device=video.device)
    twins = (same[:, None] == all_same) & ~F.one_hot(own, len(all_same)).bool()
    total = video.new_zeros(())
    for rows, candidates in ((video, _gather(text, world)), (text, _gather(video, world))):
        logits = (scale * (rows @ candidates.t())).masked_fill(twins, -torch.inf)
        if rows is video and negatives is not None:
            further = scale * (video * negatives[0].float()).sum(1)
            further = further.masked_fill(negatives[1] == same, -torch.inf)
            logits = torch.cat([logits, further[:, None]], dim=1)
        total = total + F.cross_entropy(logits, own, reduction="sum")
    return total / (2 * len(video))


def _gather(rows: Tensor, world: World) -> Tensor:
    """``[B, ...]`` of each process to ``[W * B, ...]`` in all of them; gradients go back to their process."""
    return rows if world.size == 1 else torch.cat(all_gather(rows))
