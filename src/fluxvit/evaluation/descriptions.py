"""Descriptions of videos, and how much of what happens they tell (DREAM-1K's AutoDQ).

A *judge* cuts texts into events and says which events a text tells of. Recall is the part of the reference's
events that the description tells of, precision the part of the description's events that the reference tells
of; both are averaged over videos, and F1 is of these means (Wang et al. 2024, arXiv 2407.00634). Scores of
different judges do not compare.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from rich.console import Console
from rich.progress import track

from fluxvit.checkpoints.language_model import LanguageModel, load_language_model
from fluxvit.data.manifest import Entry, Manifest, read_manifest, to_record
from fluxvit.data.questions import questions_of
from fluxvit.deploy.chat import Chat, check_answer
from fluxvit.evaluation.config import DescriptionsConfig
from fluxvit.utils.files import append_json, lock_file, read_json_lines
from fluxvit.utils.system import log_device
from fluxvit.video.base import VideoError

DESCRIPTIONS = "descriptions.jsonl"
QUESTION = "Describe the video in detail."
_MOST_EVENTS = 10


class _Row(msgspec.Struct):
    """What a line of the file must have."""

    path: str
    told: str = ""


class Judge(Protocol):
    """Compares texts by what happens in them."""

    def events(self, description: str) -> list[str]:
        """What happens in a text, one sentence each."""
        ...

    def entailed(self, description: str, events: Sequence[str]) -> list[bool]:
        """Whether a text tells of each event."""
        ...


@dataclass(frozen=True)
class Described:
    """A description, what it should say, and the events in that; none: the judge finds them."""

    told: str
    reference: str
    events: tuple[str, ...] = ()


@dataclass(frozen=True)
class DescriptionScore:
    """Means over videos, 0 to 1."""

    recall: float
    precision: float

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 0 if both are."""
        total = self.recall + self.precision
        return 2 * self.recall * self.precision / total if total else 0.0


def score_descriptions(described: Sequence[Described], judge: Judge) -> DescriptionScore:
    """Judge descriptions. A text in which nothing happens leaves nothing out, and says nothing wrong: 1.

    Raises:
        ValueError: There are none.
    """
    if not described:
        raise ValueError("no descriptions to judge")
    recalls, precisions = [], []
    for one in described:
        wanted = list(one.events) or judge.events(one.reference)
        recalls.append(_part(judge.entailed(one.told, wanted)))
        precisions.append(_part(judge.entailed(one.reference, judge.events(one.told))))
    return DescriptionScore(sum(recalls) / len(recalls), sum(precisions) / len(precisions))


def _part(found: Sequence[bool]) -> float:
    return sum(found) / len(found) if found else 1.0


class LanguageModelJudge:
    """A causal language model as a judge; the larger, the better.

    Args:
        language: The model.
    """

    def __init__(self, language: LanguageModel) -> None:
        self._language = language

    def events(self, description: str) -> list[str]:
        """Lines that the model writes, ten at most."""
        text = self._answer(
            "List what happens in this text, one short sentence a line, each with one action. Leave out how "
            f"things look, and camera moves.\n\n{description}"
        )
        lines = [re.sub(r"^[\s\d.)*-]+", "", line).strip() for line in text.splitlines()]
        return [line for line in lines if line][:_MOST_EVENTS]

    def entailed(self, description: str, events: Sequence[str]) -> list[bool]:
        """Whether the model finds yes likelier than no."""
        yes, no = (int(self._language.ids(word)[0]) for word in ("Yes", "No"))
        found = []
        for event in events:
            prompt = f"Text: {description}\n\nDoes the text say that this happens: {event}\nAnswer Yes or No."
            logits = self._logits(prompt)
            found.append(bool(logits[yes] > logits[no]))
        return found

    @torch.inference_mode()
    def _logits(self, prompt: str) -> torch.Tensor:
        return self._language.network(self._ids(prompt), logits_to_keep=1).logits[0, -1]

    @torch.inference_mode()
    def _answer(self, prompt: str) -> str:
        ids = self._ids(prompt)
        made = self._language.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=256,
            do_sample=False,
            eos_token_id=self._language.stops,
            pad_token_id=self._language.stops[0],
        )
        return self._language.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    def _ids(self, prompt: str) -> torch.Tensor:
        before, behind = self._language.first_turn(prompt)
        place = next(self._language.network.parameters()).device
        return torch.cat([before, behind])[None].to(place)


def describe_videos(
    chat: Chat, manifest: Manifest, out: str | Path, *, limit: int = 256, progress: bool = True
) -> list[Described]:
    """A description of each video, kept in ``descriptions.jsonl`` as soon as it is said: the same call goes
    on where it was. The first open question of a video asks for it, or else `QUESTION`.

    Returns:
        Those of videos that could be read, in the manifest's order; of the others the file says why.

    Raises:
        ValueError: ``limit`` is out of range, the file is of other videos, or another run is writing it.
    """
    check_answer(limit)
    path = Path(out) / DESCRIPTIONS
    with lock_file(path):
        return _describe_videos(chat, manifest, path, limit, progress)


def _describe_videos(
    chat: Chat, manifest: Manifest, path: Path, limit: int, progress: bool
) -> list[Described]:
    names = [to_record(entry, manifest.root)["path"] for entry in manifest.entries]
    rows = read_json_lines(path, _Row)
    if [row.get("path") for row in rows] != names[: len(rows)]:
        raise ValueError(f"{path} holds descriptions of other videos; choose another folder or remove it")
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    rest = list(zip(names, manifest.entries, strict=True))[len(rows) :]
    for name, entry in track(rest, "Describing", console=console, transient=True, disable=hidden):
        row = {"path": name, **_say(chat, entry, limit)}
        append_json(path, row)
        rows.append(row)
    return [
        Described(row["told"], _reference(entry), tuple(entry.extra.get("events", ())))
        for row, entry in zip(rows, manifest.entries, strict=True)
        if "told" in row
    ]


def _say(chat: Chat, entry: Entry, limit: int) -> dict[str, str]:
    question = next((q.question for q in questions_of(entry) if not q.choices), QUESTION)
    try:
        chat.watch(entry.path)
    except VideoError as error:
        return {"error": str(error)}
    return {"told": "".join(chat.ask(question, limit=limit)).strip()}


def _reference(entry: Entry) -> str:
    if not entry.captions:
        raise ValueError(f"{entry.path} has no caption that tells what a description should say")
    return entry.captions[0]


def run_descriptions(config: DescriptionsConfig) -> str:
    """Describe the videos of a manifest and judge the descriptions; returns the figures, for people.

    Raises:
        ValueError: The chat model, the manifest or the judge cannot be used.
    """
    check_answer(config.limit)
    manifest = read_manifest(config.data, None)
    chat = Chat(
        config.checkpoint, config.budget, grid=config.grid, language=config.language, device=config.device
    )
    log_device(chat.device)
    described = describe_videos(chat, manifest, config.out, limit=config.limit)
    lost = len(manifest) - len(described)
    lines = [f"{len(described)} videos described" + (f", {lost} cannot be read" if lost else "")]
    if config.judge:
        model = load_language_model(config.judge)
        model.network.to(chat.device)
        score = score_descriptions(described, LanguageModelJudge(model))
        lines.append(
            f"F1 {100 * score.f1:.1f} %, recall {100 * score.recall:.1f} %, precision "
            f"{100 * score.precision:.1f} %, judged by {config.judge}"
        )
    return "\n".join([*lines, f"wrote   {Path(config.out) / DESCRIPTIONS}"])
