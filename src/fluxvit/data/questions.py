"""Questions about videos, as manifests have them under ``qa``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxvit.data.manifest import Entry

DESCRIBE = "What happens in the video?"
"""The question whose answer is a caption."""


@dataclass(frozen=True)
class Asked:
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


def questions_of(entry: Entry) -> list[Asked]:
    """The questions of a manifest's entry, from its key ``qa``.

    Raises:
        ValueError: They are not of the form ``[{"question": ..., "answer": ..., "choices": [...]}, ...]``.
    """
    rows: Any = entry.extra.get("qa", [])
    try:
        questions = [
            Asked(row["question"], row["answer"], tuple(row.get("choices", ())), row.get("task", ""))
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


def pack_turns(rows: Sequence[Sequence[tuple[Tensor, Tensor]]], independent: Sequence[bool] = ()) -> Tensor:
    """Pack conversations into one tensor.

    Args:
        rows: For each conversation its turns: the ids ``[L]`` that the model reads and those that it learns
            to say.
        independent: For each conversation, whether its turns do not attend to each other; by default they do.

    Returns:
        int64 ``[B, 3, L]``, padded with 0 at the end: the ids; the number of the turn, from 1, in which a
        token is said, and 0 for tokens that are only read; and group numbers, where tokens attend only to
        tokens of their own group.
    """
    longest = max(sum(len(read) + len(answer) for read, answer in turns) for turns in rows)
    packed = torch.zeros(len(rows), 3, longest, dtype=torch.int64)
    for row, turns, is_independent in zip(packed, rows, independent or [False] * len(rows), strict=True):
        end = 0
        for number, (read, answer) in enumerate(turns, 1):
            start, first = end + len(read), end
            row[0, end:start] = read
            end = start + len(answer)
            row[0, start:end], row[1, start:end] = answer, number
            row[2, first:end] = number if is_independent else 1
    return packed
