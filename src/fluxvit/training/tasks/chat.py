"""Training a connector on questions about videos: what a step computes, and the questions it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
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
from fluxvit.models.chat import Connector, VideoChat, word_scores
from fluxvit.training.recipes import ChatSettings
from fluxvit.training.tasks.base import Batch, Task, substate

# Parts of a batch, each with conversations of about the same length.
_PARTS = 4
# Factor of the cosines of words in the softmax over choices.
_SHARPNESS = 15.0
# Choices of a question, beyond its own.
_MOST_CHOICES = 64


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
        seen, chat = self.look(batch["video"])
        before = self._before.to(seen.device)
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

    def look(self, video: Tensor) -> tuple[Tensor, VideoChat]:
        """The vectors ``[B, N, D]`` of normalised clips at one of the budgets, and the chat model."""
        self.model.eval()
        budgets = self.model.config.budgets
        budget = budgets[int(torch.randint(len(budgets), ()))]
        chat = VideoChat(self.model, self.connector, self.questions.language.network)
        return chat.look([video], budget, self.selector), chat

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


class Choices:
    """Gives each clip of a batch the words of the choices of its video's questions.

    The choices of a question are those of all questions of the same text, so that a video of a fish learns
    that it is none of the other objects. Questions that are answered by yes or no are left out: without the
    question these words say nothing.

    Args:
        manifest: The videos.
        language: The language model whose words they are.

    Attributes:
        ids: int64 ``[V]``, the token ids of all words.

    Raises:
        ValueError: No question has choices.
    """

    def __init__(self, manifest: Manifest, language: LanguageModel) -> None:
        asked = [
            [
                one
                for one in questions_of(entry)
                if one.answer in one.choices and not {"yes", "no"} & {text.lower() for text in one.choices}
            ]
            for entry in manifest.entries
        ]
        if not any(asked):
            raise ValueError("task.loss words needs questions with choices, other than yes and no")
        together: dict[str, dict[str, None]] = {}
        for one in chain(*asked):
            together.setdefault(one.question, {}).update(dict.fromkeys(one.choices))
        numbers: dict[int, int] = {}
        # With a space before it, as inside a sentence.
        texts = {
            text: [numbers.setdefault(token, len(numbers)) for token in language.ids(f" {text}").tolist()]
            for text in dict.fromkeys(chain(*together.values()))
        }
        self.ids = torch.tensor(list(numbers))
        self._asked = []
        for questions in asked:
            rows = []
            for one in questions:
                others = [text for text in together[one.question] if text not in one.choices]
                choices = [*one.choices, *others][: max(_MOST_CHOICES, len(one.choices))]
                rows.append(([texts[text] for text in choices], one.choices.index(one.answer)))
            self._asked.append(rows)

    def __call__(self, items: Tensor) -> dict[str, Tensor]:
        """The choices of these videos ``[B]``: ``words``, int64 ``[B, Q, C, W]``, as indices into `ids`,
        padded with -1; and ``answer``, int64 ``[B, Q]``, the right choice, or -1 where there are fewer
        questions.
        """
        rows = [self._asked[item] for item in items.tolist()]
        choices = [texts for row in rows for texts, _ in row]
        shape = (
            max(map(len, rows)),
            max(map(len, choices), default=1),
            max((len(text) for texts in choices for text in texts), default=1),
        )
        words, answer = torch.full((len(rows), *shape), -1), torch.full((len(rows), shape[0]), -1)
        for number, row in enumerate(rows):
            for place, (texts, right) in enumerate(row):
                answer[number, place] = right
                for choice, text in enumerate(texts):
                    words[number, place, choice, : len(text)] = torch.tensor(text)
        return {"words": words, "answer": answer}


class WordsTask(ChatTask):
    """Trains a connector to say the words of right answers (:func:`~fluxvit.models.chat.word_scores`).

    The language model does not run, only its word embeddings are read, so that a step takes a small part of
    the time of a `ChatTask`'s. The loss is the cross-entropy over the choices of each question.

    Args:
        checkpoint: The video side, frozen except for adapters.
        connector: The connector, which is trained.
        questions: As for `ChatTask`; they are not asked.
        choices: Gives clips the words of their choices.
    """

    def __init__(
        self, checkpoint: Checkpoint, connector: Connector, questions: Questions, choices: Choices
    ) -> None:
        super().__init__(checkpoint, connector, questions)
        self._choices = choices
        words = questions.language.network.get_input_embeddings().weight.detach().float()
        # Beside their mean, words differ little.
        self._mean = words.mean(0)
        self._table = words[choices.ids.to(words.device)] - self._mean

    def collate(self, clips: Clip) -> Batch:
        return {"video": clips.video, **self._choices(clips.item)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the share of the questions whose right choice scores highest."""
        seen, _ = self.look(batch["video"])
        scores = word_scores(seen - self._mean, self._table, batch["words"])
        asked = batch["answer"] >= 0
        scores, answer = _SHARPNESS * scores[asked], batch["answer"][asked]
        # A batch without a question teaches nothing.
        loss = F.cross_entropy(scores, answer) if len(answer) else seen.sum() * 0
        right = (scores.detach().argmax(1) == answer).float().sum() / max(1, len(answer))
        return {"loss": loss, "right": right}


def _ends(turns: Tensor) -> Tensor:
    """Tokens of each conversation ``[B, L]``, up to the last one of an answer."""
    positions = torch.arange(1, turns.shape[1] + 1, device=turns.device)
    return ((turns > 0) * positions).max(1).values
