"""Questions about videos, as manifests have them under ``qa``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxvit.data.manifest import Entry

DESCRIBE = "What happens in the video?"
"""The question whose answer is a caption."""


@dataclass(frozen=True)
class Question:
    """A question about a video.

    Args:
        question: The question.
        answer: The right answer.
        choices: The answers to choose from; empty for an open question.
        task: The task that it belongs to, if there are several.
    """

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    task: str = ""

    @property
    def with_choices(self) -> str:
        """The question with its choices, if it has any."""
        return f"{self.question} Choose: {'; '.join(self.choices)}." if self.choices else self.question


def questions_of(entry: Entry) -> list[Question]:
    """The questions of a manifest's entry, from its key ``qa``.

    Raises:
        ValueError: They are not of the form ``[{"question": ..., "answer": ..., "choices": [...]}, ...]``.
    """
    rows: Any = entry.extra.get("qa", [])
    try:
        questions = [
            Question(row["question"], row["answer"], tuple(row.get("choices", ())), row.get("task", ""))
            for row in rows
        ]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f'{entry.path}: qa must be a list of {{"question": ..., "answer": ...}}, not {str(rows)[:80]}'
        ) from None
    for question in questions:
        texts = (question.question, question.answer, question.task, *question.choices)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{entry.path}: a question of its qa has something else than texts: {question}")
    return questions


class PackedTurns(NamedTuple):
    """Conversations, int64 ``[B, L]`` each, padded with 0 at the end.

    ``ids`` are the tokens. ``turns`` is the number of the turn, from 1, for tokens of an answer, and 0 for
    tokens that are only read. ``groups`` are attention groups: tokens attend only to tokens of their own.
    """

    ids: Tensor
    turns: Tensor
    groups: Tensor


def pack_turns(
    rows: Sequence[Sequence[tuple[Tensor, Tensor]]], independent: Sequence[bool] = ()
) -> PackedTurns:
    """Pack conversations into tensors.

    Args:
        rows: For each conversation its turns: the ids ``[L]`` that the model reads and those that it learns
            to say.
        independent: For each conversation, whether its turns do not attend to each other; by default they do.
    """
    longest = max(sum(len(read) + len(answer) for read, answer in turns) for turns in rows)
    packed = torch.zeros(3, len(rows), longest, dtype=torch.int64)
    independent = independent or [False] * len(rows)
    for row, turns, is_independent in zip(packed.unbind(1), rows, independent, strict=True):
        end = 0
        for number, (read, answer) in enumerate(turns, 1):
            start, first = end + len(read), end
            row[0, end:start] = read
            end = start + len(answer)
            row[0, start:end], row[1, start:end] = answer, number
            row[2, first:end] = number if is_independent else 1
    return PackedTurns(*packed)
