"""``fluxvit quiz``: questions about videos with answers to choose from, at several budgets and blind.

The choices stand in the question, and the one that the language model finds likeliest, with its end, is its
answer: nothing has to be read out of free text. *Blind* it hears the same questions and choices without any
video, which tells how much can be guessed; chance is told, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fluxvit.chat_checkpoints import load_chat
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.data.questions import Asked, pack_turns, questions_of
from fluxvit.deploy.latency import device_name
from fluxvit.deploy.predictor import choose_plan
from fluxvit.evaluation.classification import Score
from fluxvit.files import write_json, write_json_lines
from fluxvit.flux.budget import Budget, Plan
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.chat import VideoChat
from fluxvit.models.language_model import LanguageModel
from fluxvit.video.base import VideoError
from fluxvit.video.transforms import normalize

RESULTS, ANSWERS = "quiz.json", "answers.jsonl"


@dataclass(frozen=True)
class QuizConfig:
    """A quiz.

    Args:
        checkpoint: A chat model's folder.
        data: Manifest of the videos, with questions (``qa``) that have choices.
        budgets: What a clip may cost; empty: the token budgets that the video side was trained for.
        grid: Sampling of all budgets; None: the plans of the checkpoint.
        videos: So many of the manifest, drawn at random; None: all.
        seed: Of the draw.
        language: Where the language model is now, if not where the checkpoint says.
        precision: ``fp32`` or ``bf16``.
        out: Folder to write.
        device: Where to run.

    Raises:
        ValueError: A setting is out of its range.
    """

    checkpoint: str
    data: str
    budgets: tuple[Budget, ...] = ()
    grid: SamplingGrid | None = None
    videos: int | None = None
    seed: int = 0
    language: str = ""
    precision: str = "fp32"
    out: str = "runs/quiz"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision {self.precision!r}: choose fp32 or bf16")
        if self.videos is not None and self.videos < 1:
            raise ValueError(f"videos is {self.videos}; it must be at least 1")


@dataclass(frozen=True)
class Quiz:
    """What a quiz found; as a string, for people.

    Args:
        results: What ``quiz.json`` holds.
        wrote: That file.
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
                    f"    {name:36} {100 * a / n:.1f} % of {n}" for name, (a, n) in row["tasks"].items()
                ]
        if results["unreadable"]:
            lines.append(
                f"{len(results['unreadable'])} videos cannot be read; their questions count as wrong"
            )
        return "\n".join([*lines, f"wrote   {self.wrote}"])


def run_quiz(config: QuizConfig, progress: bool = True) -> Quiz:
    """Ask all questions that have choices, and write into ``config.out``: ``quiz.json``, and the answer to
    each question, ``answers.jsonl``.

    Raises:
        ValueError: The checkpoint, the manifest or a budget cannot be used; the message says why.
    """
    chat, language, info = load_chat(config.checkpoint, config.language, config.device)
    manifest, asked = _with_choices(config)
    budgets = config.budgets or tuple(Budget(tokens=tokens) for tokens in chat.video.config.budgets)
    plans = [choose_plan(chat.video, info.video, budget, config.grid) for budget in budgets]
    dataset, place = ClipDataset(manifest), torch.device(config.device)
    unreadable: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
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
    choose = _Chooser(chat, language, info.instruction, config.precision, place)
    for plan in [None, *plans]:
        title = "Blind" if plan is None else f"{plan.keep} tokens"

        def see(item: int, plan: Plan | None = plan) -> Tensor | None:
            if plan is None:
                return None
            video = dataset[ClipRequest(item, plan.grid)].video[None].to(place)
            video = normalize(video, info.video.mean, info.video.std)
            return chat.look([video], plan.keep, plan.selector)

        said = _ask_all(choose, see, asked, unreadable, title if progress else None)
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
        "language": language.source,
        "videos": len(manifest),
        "questions": sum(map(len, asked)),
        "chance": float(np.mean([1 / len(q.choices) for questions in asked for q in questions])),
        "precision": config.precision,
        "device": device_name(place),
        "unreadable": [
            {"path": str(manifest.entries[i].path), "error": why} for i, why in sorted(unreadable.items())
        ],
        "rows": rows,
    }
    path = Path(config.out) / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path.with_name(ANSWERS), records)
    write_json(path, results)
    return Quiz(results, path)


def _with_choices(config: QuizConfig) -> tuple[Manifest, list[list[Asked]]]:
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


def _ask_all(
    choose: _Chooser,
    see: Callable[[int], Tensor | None],
    asked: Sequence[Sequence[Asked]],
    unreadable: dict[int, str],
    title: str | None,
) -> list[str | None]:
    """Of each question what was chosen; None: its video cannot be read."""
    console = Console(stderr=True)
    hidden = title is None or not console.is_terminal
    said: list[str | None] = []
    for item, questions in enumerate(
        track(asked, title or "", console=console, transient=True, disable=hidden)
    ):
        try:
            said += [None] * len(questions) if item in unreadable else choose(see(item), questions)
        except VideoError as error:
            unreadable[item] = str(error)
            said += [None] * len(questions)
    return said


@dataclass(frozen=True)
class _Chooser:
    """Answers questions by the likeliest choice."""

    chat: VideoChat
    language: LanguageModel
    instruction: str
    precision: str
    place: torch.device

    @torch.inference_mode()
    def __call__(self, seen: Tensor | None, questions: Sequence[Asked]) -> list[str]:
        rows, owners = [], []
        for number, question in enumerate(questions):
            before, prompt = self.language.first_turn(question.with_choices, self.instruction)
            rows += [[(prompt, self.language.answer_ids(choice))] for choice in question.choices]
            owners += [number] * len(question.choices)
        ids, turns = pack_turns(rows).to(self.place).unbind(1)
        with torch.autocast(self.place.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.chat.log_probabilities(
                before.to(self.place),
                None if seen is None else seen.expand(len(rows), -1, -1),
                ids,
                turns > 0,
            )
        totals = found.sum(1).tolist()
        said = []
        for number, question in enumerate(questions):
            scores = [total for total, owner in zip(totals, owners, strict=True) if owner == number]
            said.append(question.choices[int(np.argmax(scores))])
        return said
