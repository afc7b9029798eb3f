"""``fluxvit evaluate-qa``: questions about videos with answers to choose from, at several budgets and blind.

The choices stand in the question, and the choice that the language model finds likeliest, with its end, is
its answer, so that nothing has to be read out of free text. *Blind* it gets the same questions and choices
without a video, which shows how much can be guessed. The results also state chance.

A dual encoder reads no questions: its answer is the choice that is nearest to the video.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.data.questions import Question, pack_turns, questions_of
from fluxvit.evaluation.config import RetrievalConfig, VideoQAConfig
from fluxvit.evaluation.language.retrieval import cosines, unreadable_rows
from fluxvit.evaluation.metrics import Score
from fluxvit.flux.budget import Budget
from fluxvit.flux.plan import Plan
from fluxvit.models.finite import check_finite
from fluxvit.models.inference import form
from fluxvit.utils.files import write_json, write_json_lines
from fluxvit.utils.progress import tracked
from fluxvit.utils.system import device_name, log_device, usable_device
from fluxvit.utils.terminal import printable
from fluxvit.video.base import VideoError

RESULTS, ANSWERS = "video_qa.json", "answers.jsonl"


@dataclass(frozen=True)
class VideoQA:
    """The results of a test; as a string, for people.

    Args:
        results: The content of ``video_qa.json``.
        path: Path of that file.
    """

    results: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        results = self.results
        lines = [
            f"{results['checkpoint']} on {results['data']}: {results['questions']} questions about "
            f"{results['videos']} videos; chance {100 * results['chance']:.1f} %"
        ]
        for row in results["rows"]:
            what = "blind" if row["blind"] else f"{row['keep']} tokens of {row['grid']}"
            lines.append(f"{what:24} {Score(row['correct'], row['total'])}")
            if len(row["tasks"]) > 1:
                lines += [
                    f"    {printable(name):36} {100 * a / n:.1f} % of {n}"
                    for name, (a, n) in row["tasks"].items()
                ]
        if lost := len(results["unreadable"]):
            lines.append(f"{lost} videos cannot be read; their questions count as wrong")
        return "\n".join([*lines, f"wrote   {self.path}"])


def run_video_qa(config: VideoQAConfig, progress: bool = True) -> VideoQA:
    """Ask all questions that have choices, and write ``video_qa.json`` and the answer to each question,
    ``answers.jsonl``, into ``config.out``.

    Raises:
        ValueError: The checkpoint, the manifest or a budget cannot be used; the message says why.
    """
    manifest, asked = _with_choices(config)
    is_dual = DualEncoderCheckpoint.is_in(config.checkpoint)
    if is_dual and config.language:
        raise ValueError(f"{config.checkpoint} is a dual encoder, which brings its text tower: no language")
    device = usable_device(config.device)
    reader = (_DualReader if is_dual else _ChatReader)(config, device)
    budgets = config.budgets or tuple(
        Budget(tokens=tokens) for tokens in dict.fromkeys(reader.video.default_budgets(config.grid))
    )
    plans = [reader.video.plan(budget, config.grid) for budget in budgets]
    records: list[dict[str, Any]] = [
        {
            "path": str(entry.path),
            "question": question.question,
            "choices": question.choices,
            "answer": question.answer,
            "answers": {},
        }
        for entry, questions in zip(manifest.entries, asked, strict=True)
        for question in questions
    ]
    log_device(device)
    rows: list[dict[str, Any]] = []
    for plan, answers in reader.answers(manifest, asked, plans, progress):
        tasks: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for question, record, answer in zip(chain(*asked), records, answers, strict=True):
            tasks[question.task][0] += answer == question.answer
            tasks[question.task][1] += 1
            record["answers"]["blind" if plan is None else f"{plan.keep} of {plan.grid}"] = answer
        rows.append(
            {
                "blind": plan is None,
                "keep": 0 if plan is None else plan.keep,
                "grid": "" if plan is None else str(plan.grid),
                "correct": sum(correct for correct, _ in tasks.values()),
                "total": len(answers),
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
        "questions": len(records),
        "chance": float(np.mean([1 / len(record["choices"]) for record in records])),
        "precision": form(reader.video.model),
        "device": device_name(device),
        "unreadable": unreadable_rows(manifest, reader.unreadable),
        "rows": rows,
    }
    path = Path(config.out) / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path.with_name(ANSWERS), records)
    write_json(path, results)
    return VideoQA(results, path)


def _with_choices(config: VideoQAConfig) -> tuple[Manifest, list[list[Question]]]:
    """The videos that have questions with choices, and these questions of each."""
    manifest = read_manifest(config.data, None)
    asked = []
    for entry in manifest.entries:
        questions = [question for question in questions_of(entry) if question.choices]
        for question in questions:
            if question.choices.count(question.answer) != 1:
                raise ValueError(
                    f"{entry.path}: the answer {question.answer!r} is not one of {list(question.choices)}"
                )
        if questions:
            asked.append((entry, questions))
    if not asked:
        raise ValueError(f"{config.data}: no question that has choices")
    order = np.random.default_rng(config.seed).permutation(len(asked))[: config.videos]
    entries, chosen = zip(*(asked[i] for i in sorted(order)), strict=True)
    digest = manifest.digest if len(entries) == len(manifest) else f"{manifest.digest}-{len(entries)}"
    return replace(manifest, entries=entries, digest=digest), list(chosen)


def _digest(records: Sequence[dict[str, Any]]) -> str:
    """A digest of the questions, which the digest of a manifest does not cover."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record[key] for key in ("question", "choices", "answer")]).encode() + b"\n")
    return digest.hexdigest()[:16]


_Asked = Sequence[Sequence[Question]]  # The questions of each video.
_Answers = Iterator[tuple[Plan | None, list[str | None]]]  # The answers at each plan, or without the video.


class _ChatReader:
    """Answers by the likeliest choice."""

    def __init__(self, config: VideoQAConfig, device: torch.device) -> None:
        loaded = ChatCheckpoint.load(config.checkpoint, device, language=config.language)
        chat = loaded.prepared(config.precision)
        self._chat, self._language, self.video = chat.model, chat.language, chat.video
        self.name, self._instruction = chat.language.source, chat.instruction
        self._device, self._bf16 = device, config.precision == "bf16"
        self.unreadable: dict[int, str] = {}

    def answers(self, manifest: Manifest, asked: _Asked, plans: Sequence[Plan], progress: bool) -> _Answers:
        """The choices blind and at each plan; None if the video cannot be read."""
        dataset = ClipDataset(manifest, sampling=self.video.sampling)
        for plan in [None, *plans]:
            title = "Blind" if plan is None else f"{plan.keep} tokens"
            answers: list[str | None] = []
            for item, questions in enumerate(tracked(asked, title if progress else None)):
                try:
                    seen = None if plan is None else self._look(dataset, item, plan)
                except VideoError as error:
                    self.unreadable[item] = str(error)
                    answers += [None] * len(questions)
                else:
                    answers += self._choose(seen, questions)
            yield plan, answers

    @torch.inference_mode()
    def _look(self, dataset: ClipDataset, item: int, plan: Plan) -> Tensor:
        video = self.video.normalize(dataset[ClipRequest(item, plan.grid)].video[None])
        return self._chat.look([video], plan.keep, plan.selector)

    @torch.inference_mode()
    def _choose(self, seen: Tensor | None, questions: Sequence[Question]) -> list[str]:
        rows = []
        for question in questions:
            before, prompt = self._language.first_turn(question.with_choices, self._instruction)
            rows += [[(prompt, self._language.answer_ids(choice))] for choice in question.choices]
        ids, turns, _ = (tensor.to(self._device) for tensor in pack_turns(rows))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            scores = self._chat.log_probabilities(
                before.to(self._device),
                None if seen is None else seen.expand(len(rows), -1, -1),
                ids,
                turns > 0,
            )
        totals = check_finite(scores.sum(1), "answers").cpu().split([len(q.choices) for q in questions])
        return [q.choices[int(total.argmax())] for q, total in zip(questions, totals, strict=True)]


class _DualReader:
    """Answers by the choice that is nearest to the video."""

    name = "dual encoder"

    def __init__(self, config: VideoQAConfig, device: torch.device) -> None:
        self._dual = DualEncoderCheckpoint.load(config.checkpoint, device)
        self.video = self._dual.video
        self._options = RetrievalConfig(config.checkpoint, config.data, precision=config.precision)
        self.unreadable: dict[int, str] = {}

    def answers(self, manifest: Manifest, asked: _Asked, plans: Sequence[Plan], progress: bool) -> _Answers:
        """The choices at each plan; None if the video cannot be read."""
        choices = list(dict.fromkeys(text for one in chain(*asked) for text in one.choices))
        columns = {text: number for number, text in enumerate(choices)}
        checkpoint = self._dual.classifier(self._dual.embed_texts(choices))
        similarities, self.unreadable = cosines(checkpoint, manifest, plans, self._options, progress)
        for plan, similarity in zip(plans, similarities, strict=True):
            answers: list[str | None] = []
            for item, (questions, row) in enumerate(zip(asked, similarity, strict=True)):
                for one in questions:
                    best = int(row[[columns[text] for text in one.choices]].argmax())
                    answers.append(None if item in self.unreadable else one.choices[best])
            yield plan, answers
