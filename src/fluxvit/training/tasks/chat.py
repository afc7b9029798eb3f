"""Training a connector on questions about videos: what a step computes, and the questions it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.language_model import LanguageModel
from fluxvit.data.dataset import Clip
from fluxvit.data.manifest import Manifest
from fluxvit.data.questions import DESCRIBE, PackedTurns, pack_turns, questions_of
from fluxvit.models.chat import Connector, VideoChat
from fluxvit.training.recipes import ChatSettings
from fluxvit.training.tasks.base import Batch, Task, substate

# Parts of a batch, each with conversations of about the same length.
_PARTS = 4


class Questions:
    """Gives each clip of a batch a conversation: some of its video's questions, one behind the other.

    Args:
        manifest: The videos.
        language: The language model that reads and answers them.
        settings: How they are asked.

    Raises:
        ValueError: A video has no question.
    """

    def __init__(self, manifest: Manifest, language: LanguageModel, settings: ChatSettings) -> None:
        self._asked = [questions_of(entry) for entry in manifest.entries]
        for entry, asked in zip(manifest.entries, self._asked, strict=True):
            if not asked:
                raise ValueError(f"{entry.path} has no question; leave it out of the manifest")
        self._captions = [entry.captions for entry in manifest.entries]
        self.language, self.settings = language, settings

    def __call__(self, items: Tensor) -> PackedTurns:
        """Conversations about the videos of these numbers ``[B]``. It draws from PyTorch's generator."""
        independent = (torch.rand(len(items)) < self.settings.independent).tolist()
        rows = [
            self._conversation(item, alone) for item, alone in zip(items.tolist(), independent, strict=True)
        ]
        return pack_turns(rows, independent)

    def _conversation(self, item: int, independent: bool) -> list[tuple[Tensor, Tensor]]:
        first, what, which, where, *how = torch.rand(4 + self.settings.turns).tolist()
        asked, captions = self._asked[item], self._captions[item]
        start = int(first * (max(0, len(asked) - self.settings.turns) + 1))
        turns = [
            (one.with_choices if draw < self.settings.with_choices else one.question, one.answer)
            for one, draw in zip(asked[start : start + self.settings.turns], how, strict=False)
        ]
        if captions and what < self.settings.captions:
            turns[int(where * len(turns))] = (DESCRIBE, captions[int(which * len(captions))])
        return [
            (
                self.language.next_turn(question)
                if number and not independent
                else self.language.first_turn(question, self.settings.instruction)[1],
                self.language.answer_ids(answer),
            )
            for number, (question, answer) in enumerate(turns)
        ]


class ChatTask(Task):
    """Trains a connector so that a language model gives the right answers. Both networks stay as they are
    (paper, table 10), except for adapters of either, which are trained too.

    Every step draws one of the budgets, so that one connector serves all.

    Args:
        checkpoint: The video side, frozen except for adapters.
        connector: The connector, which is trained.
        questions: Gives clips their conversations, with the frozen language model that answers.
        adapters: Adapters of the language model, from :func:`~fluxvit.models.adapters.add_adapters`; None if
            it has none.
        adapter_scale: Factor of the output of these adapters.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        connector: Connector,
        questions: Questions,
        adapters: nn.ModuleDict | None = None,
        adapter_scale: float = 1.0,
    ) -> None:
        super().__init__(checkpoint, questions.settings.selector)
        self.connector, self.questions = connector, questions
        self.adapters = nn.ModuleDict() if adapters is None else adapters
        self._before, _ = questions.language.first_turn("", questions.settings.instruction)
        self._adapter_scale = adapter_scale

    def count_macs(self, video: Tensor) -> int:
        return 0  # Most of them are the language model's.

    def collate(self, clips: Clip) -> Batch:
        return {"video": clips.video, **self.questions(clips.item)._asdict()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the mean probability of a full answer, of clips and `PackedTurns` about them."""
        self.model.eval()
        video = batch["video"]
        budgets = self.model.config.budgets
        budget = budgets[int(torch.randint(len(budgets), ()))]
        chat = VideoChat(self.model, self.connector, self.questions.language.network)
        before = self._before.to(video.device)
        seen = chat.look([video], budget, self.selector)
        ends = _ends(batch["turns"])
        likely, lengths = [], []
        # Conversations of about the same length go together, so that little is padding.
        for rows in ends.argsort().split(-(-len(ends) // _PARTS)):
            end = int(ends[rows].max())
            ids, turns, groups = (batch[name][rows, :end] for name in PackedTurns._fields)
            separate = groups if bool((groups > 1).any()) else None
            scores = chat.log_probabilities(before, seen[rows], ids, turns > 0, separate)
            each = F.one_hot(turns)[..., 1:]
            answered = each.any(1)
            likely.append((scores[..., None] * each).sum(1)[answered])
            lengths.append(each.sum(1)[answered])
        # All answers count the same, however long.
        return {
            "loss": -(torch.cat(likely) / torch.cat(lengths)).mean(),
            "answer": torch.cat(likely).detach().exp().mean(),
        }

    def export(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        video = replace(self.checkpoint, model=self._video_model(state))
        with torch.device("meta"):
            connector = Connector(self.connector.config)
        connector.load_state_dict(substate(state, "connector."), assign=True)
        adapters = substate(state, "adapters.")
        # In the file an adapter is the plain product of its matrices.
        ups = [name for name in adapters if name.endswith(".up.weight")]
        adapters |= {name: self._adapter_scale * adapters[name] for name in ups}
        language, instruction = self.questions.language, self.questions.settings.instruction
        chat = VideoChat(video.model, connector, language.network)
        ChatCheckpoint(chat, language, video, instruction, video.provenance, adapters).save(folder)


def _ends(turns: Tensor) -> Tensor:
    """Tokens of each conversation ``[B, L]``, up to the last one of an answer."""
    positions = torch.arange(1, turns.shape[1] + 1, device=turns.device)
    return ((turns > 0) * positions).max(1).values
