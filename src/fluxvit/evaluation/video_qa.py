"""``fluxvit evaluate-qa``: questions about videos with answers to choose from, at several budgets and blind.

The choices stand in the question, and the one that the language model finds likeliest, with its end, is its
answer: nothing has to be read out of free text. *Blind* it hears the same questions and choices without any
video, which tells how much can be guessed; chance is told, too.

A dual encoder hears no questions: its answer is the choice that is nearest to the video.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.data.questions import Asked, pack_turns, questions_of
from fluxvit.evaluation.config import VideoQAConfig
from fluxvit.evaluation.metrics import Score
from fluxvit.evaluation.retrieval import cosines
from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.utils.files import write_json, write_json_lines
from fluxvit.utils.system import device_name, log_device, usable_device
from fluxvit.utils.terminal import printable
from fluxvit.video.base import VideoError

RESULTS, ANSWERS = "quiz.json", "answers.jsonl"


@dataclass(frozen=True)
class Quiz:
    """What a quiz found; as a string, for people.

    Args:
        results: What ``quiz.json`` holds.
        wrote: Path of the file of results.
    """

    results: dict[str, Any]
    wrote: Path

    def __str__(self) -> str:
        results = self.results
        lines = [
            f"{results['checkpoint']} on {results['data']}: {results['questions']} questions about "
            f"{results['videos']} videos; chance {100 * results['chance']:.1f} %"
        ]
        for row in results["rows"]:
            what = "blind" if row["blind"] else f"{row['keep']} tokens of {row['grid']}"
            score = Score(row["correct"], row["total"])
            lines.append(f"{what:24} {score}")
            if len(row["tasks"]) > 1:
                lines += [
                    f"    {printable(name):36} {100 * a / n:.1f} % of {n}"
                    for name, (a, n) in row["tasks"].items()
                ]
        if results["unreadable"]:
            lines.append(
                f"{len(results['unreadable'])} videos cannot be read; their questions count as wrong"
            )
        return "\n".join([*lines, f"wrote   {self.wrote}"])


def run_quiz(config: VideoQAConfig, progress: bool = True) -> Quiz:
    """Ask all questions that have choices, and write into ``config.out``: ``quiz.json``, and the answer to
    each question, ``answers.jsonl``.

    Raises:
        ValueError: The checkpoint, the manifest or a budget cannot be used; the message says why.
    """
    manifest, asked = _with_choices(config)
    is_dual = DualEncoderCheckpoint.is_in(config.checkpoint)
    if is_dual and config.language:
        raise ValueError(f"{config.checkpoint} is a dual encoder, which brings its text tower: no language")
    device = usable_device(config.device)
    reader = (_DualReader if is_dual else _ChatReader)(config, device)
    budgets = config.budgets or tuple(Budget(tokens=tokens) for tokens in reader.video.model.config.budgets)
    plans = [reader.video.plan(budget, config.grid) for budget in budgets]
    records: list[dict[str, Any]] = [
        {
            "path": str(entry.path),
            "question": question.question,
            "choices": question.choices,
            "answer": question.answer,
            "said": {},
        }
        for entry, questions in zip(manifest.entries, asked, strict=True)
        for question in questions
    ]
    log_device(device)
    rows: list[dict[str, Any]] = []
    for plan, said in reader.answers(manifest, asked, plans, progress):
        tasks: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for question, record, answer in zip(chain(*asked), records, said, strict=True):
            tasks[question.task][0] += answer == question.answer
            tasks[question.task][1] += 1
            record["said"]["blind" if plan is None else f"{plan.keep} of {plan.grid}"] = answer
        rows.append(
            {
                "blind": plan is None,
                "keep": 0 if plan is None else plan.keep,
                "grid": "" if plan is None else str(plan.grid),
                "correct": sum(correct for correct, _ in tasks.values()),
                "total": len(said),
                "tasks": dict(sorted(tasks.items())),
            }
        )
    results = {
        "checkpoint": config.checkpoint,
        "data": config.data,
        "data_digest": manifest.digest,
        "questions_digest": _digest(records),
        "reader": reader.name,
        "videos": len(manifest),
        "questions": sum(map(len, asked)),
        "chance": float(np.mean([1 / len(q.choices) for questions in asked for q in questions])),
        "precision": config.precision,
        "device": device_name(device),
        "unreadable": [
            {"path": str(manifest.entries[i].path), "error": why}
            for i, why in sorted(reader.unreadable.items())
        ],
        "rows": rows,
    }
    path = Path(config.out) / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path.with_name(ANSWERS), records)
    write_json(path, results)
    return Quiz(results, path)


def _with_choices(config: VideoQAConfig) -> tuple[Manifest, list[list[Asked]]]:
    """The videos that are asked about, and of each the questions that have choices."""
    manifest = read_manifest(config.data, None)
    found = []
    for entry in manifest.entries:
        questions = [question for question in questions_of(entry) if question.choices]
        for question in questions:
            if question.choices.count(question.answer) != 1:
                raise ValueError(
                    f"{entry.path}: the answer {question.answer!r} is not one of {list(question.choices)}"
                )
        if questions:
            found.append((entry, questions))
    if not found:
        raise ValueError(f"{config.data}: no question that has choices")
    order = np.random.default_rng(config.seed).permutation(len(found))[: config.videos]
    chosen = [found[i] for i in sorted(order)]
    entries = tuple(entry for entry, _ in chosen)
    digest = manifest.digest if len(entries) == len(manifest) else f"{manifest.digest}-{len(entries)}"
    kept = Manifest(entries, (), digest, manifest.name, manifest.split, manifest.root)
    return kept, [questions for _, questions in chosen]


def _digest(records: Sequence[dict[str, Any]]) -> str:
    """A digest of the questions, which the digest of a manifest does not cover."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record[key] for key in ("question", "choices", "answer")]).encode() + b"\n")
    return digest.hexdigest()[:16]


class _ChatReader:
    """Answers by the likeliest choice."""

    def __init__(self, config: VideoQAConfig, device: torch.device) -> None:
        chat = ChatCheckpoint.load(config.checkpoint, device, language=config.language)
        self._chat, self._language, self.video = chat.model, chat.language, chat.video
        self.name, self._instruction = chat.language.source, chat.instruction
        self._precision = config.precision
        self._place = device
        self.unreadable: dict[int, str] = {}

    def answers(
        self, manifest: Manifest, asked: Sequence[Sequence[Asked]], plans: Sequence[Plan], progress: bool
    ) -> Iterator[tuple[Plan | None, list[str | None]]]:
        """What is chosen blind, and at each plan; None: the video cannot be read."""
        dataset = ClipDataset(manifest, sampling=self.video.sampling)
        console = Console(stderr=True)
        hidden = not progress or not console.is_terminal
        for plan in [None, *plans]:
            title = "Blind" if plan is None else f"{plan.keep} tokens"
            said: list[str | None] = []
            for item, questions in enumerate(
                track(asked, title, console=console, transient=True, disable=hidden)
            ):
                try:
                    seen = None if plan is None else self._look(dataset, item, plan)
                except VideoError as error:
                    self.unreadable[item] = str(error)
                    said += [None] * len(questions)
                else:
                    said += self._choose(seen, questions)
            yield plan, said

    @torch.inference_mode()
    def _look(self, dataset: ClipDataset, item: int, plan: Plan) -> Tensor:
        video = self.video.normalize(dataset[ClipRequest(item, plan.grid)].video[None])
        return self._chat.look([video], plan.keep, plan.selector)

    @torch.inference_mode()
    def _choose(self, seen: Tensor | None, questions: Sequence[Asked]) -> list[str]:
        rows, owners = [], []
        for number, question in enumerate(questions):
            before, prompt = self._language.first_turn(question.with_choices, self._instruction)
            rows += [[(prompt, self._language.answer_ids(choice))] for choice in question.choices]
            owners += [number] * len(question.choices)
        ids, turns, _ = (tensor.to(self._place) for tensor in pack_turns(rows))
        with torch.autocast(self._place.type, torch.bfloat16, enabled=self._precision == "bf16"):
            found = self._chat.log_probabilities(
                before.to(self._place),
                None if seen is None else seen.expand(len(rows), -1, -1),
                ids,
                turns > 0,
            )
        totals = check_finite(found.sum(1), "answers").tolist()
        said = []
        for number, question in enumerate(questions):
            scores = [total for total, owner in zip(totals, owners, strict=True) if owner == number]
            said.append(question.choices[int(np.argmax(scores))])
        return said


class _DualReader:
    """Answers by the choice that is nearest to the video."""

    name = "dual encoder"

    def __init__(self, config: VideoQAConfig, device: torch.device) -> None:
        self._dual, self._precision = DualEncoderCheckpoint.load(config.checkpoint, device), config.precision
        self.video = self._dual.video
        self.unreadable: dict[int, str] = {}

    def answers(
        self, manifest: Manifest, asked: Sequence[Sequence[Asked]], plans: Sequence[Plan], progress: bool
    ) -> Iterator[tuple[Plan | None, list[str | None]]]:
        """What is chosen at each plan; None: the video cannot be read."""
        choices = list(dict.fromkeys(text for one in chain(*asked) for text in one.choices))
        columns = {text: number for number, text in enumerate(choices)}
        checkpoint = self._dual.classifier(self._dual.embed_texts(choices))
        found, self.unreadable = cosines(
            checkpoint, manifest, plans, precision=self._precision, progress=progress
        )
        for plan, similarity in zip(plans, found, strict=True):
            said: list[str | None] = []
            for item, (questions, row) in enumerate(zip(asked, similarity, strict=True)):
                for one in questions:
                    best = int(row[[columns[text] for text in one.choices]].argmax())
                    said.append(None if item in self.unreadable else one.choices[best])
            yield plan, said
