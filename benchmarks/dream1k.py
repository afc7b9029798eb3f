"""How much of what happens in a video does a chat model describe? DREAM-1K's AutoDQ with a judge of your own.

A *judge* splits texts into events and decides which events a text mentions. Recall is the share of the
reference's events that the description mentions, precision the share of the description's events that the
reference mentions. Both are averaged over videos, and F1 is computed from these means (Wang et al. 2024,
arXiv 2407.00634). Scores of different judges cannot be compared.

    python benchmarks/dream1k.py runs/chat/last DREAM-1K/test.jsonl --judge smollm2

An interrupted run continues where it was.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from fluxvit.checkpoints.language_model import LanguageModel, load_language_model
from fluxvit.data.manifest import Entry, Manifest, read_manifest, to_record
from fluxvit.data.questions import questions_of
from fluxvit.deploy.chat import Chat, check_answer
from fluxvit.flux.budget import Budget
from fluxvit.utils.files import append_json, lock_file, read_json_lines
from fluxvit.utils.progress import tracked
from fluxvit.video.base import VideoError

DESCRIPTIONS = "descriptions.jsonl"
QUESTION = "Describe the video in detail."
_MOST_EVENTS = 10


class _Row(msgspec.Struct):
    """What a line of the file must have."""

    path: str
    told: str = ""


@dataclass(frozen=True)
class Described:
    """A description, its reference, and the reference's events; without events the judge finds them."""

    description: str
    reference: str
    events: tuple[str, ...] = ()


class LanguageModelJudge:
    """A causal language model that compares texts by what happens in them; larger models judge better."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language

    def events(self, description: str) -> list[str]:
        """The lines that the model writes, ten at most."""
        text = self._answer(
            "List what happens in this text, one short sentence a line, each with one action. Leave out how "
            f"things look, and camera moves.\n\n{description}"
        )
        lines = [re.sub(r"^[\s\d.)*-]+", "", line).strip() for line in text.splitlines()]
        return [line for line in lines if line][:_MOST_EVENTS]

    @torch.inference_mode()
    def entailed(self, description: str, events: Sequence[str]) -> list[bool]:
        """Whether the model finds yes likelier than no."""
        yes, no = (int(self._language.ids(word)[0]) for word in ("Yes", "No"))
        flags = []
        for event in events:
            prompt = f"Text: {description}\n\nDoes the text say that this happens: {event}\nAnswer Yes or No."
            logits = self._language.network(self._ids(prompt), logits_to_keep=1).logits[0, -1]
            flags.append(bool(logits[yes] > logits[no]))
        return flags

    @torch.inference_mode()
    def _answer(self, prompt: str) -> str:
        ids = self._ids(prompt)
        output = self._language.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=256,
            do_sample=False,
            eos_token_id=self._language.stops,
            pad_token_id=self._language.stops[0],
        )
        return self._language.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    def _ids(self, prompt: str) -> torch.Tensor:
        before, behind = self._language.first_turn(prompt)
        return torch.cat([before, behind])[None].to(next(self._language.network.parameters()).device)


class DescriptionScore(NamedTuple):
    """Means over videos, 0 to 1, and their harmonic mean."""

    recall: float
    precision: float
    f1: float


def score_descriptions(described: Sequence[Described], judge: LanguageModelJudge) -> DescriptionScore:
    """Judge descriptions. A text without events has nothing to leave out and nothing wrong: it scores 1.

    Raises:
        ValueError: There are no descriptions.
    """
    if not described:
        raise ValueError("no descriptions to judge")
    shares = []
    for one in described:
        expected = list(one.events) or judge.events(one.reference)
        mentioned = judge.entailed(one.description, expected)
        right = judge.entailed(one.reference, judge.events(one.description))
        shares.append([sum(flags) / len(flags) if flags else 1.0 for flags in (mentioned, right)])
    recall, precision = np.mean(shares, axis=0).tolist()
    f1 = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
    return DescriptionScore(recall, precision, f1)


def describe_videos(
    chat: Chat, manifest: Manifest, out: str | Path, *, limit: int = 256, progress: bool = True
) -> list[Described]:
    """Describe each video, and keep the descriptions in ``descriptions.jsonl``, from which the same call
    continues. The first open question of a video asks for the description, or else `QUESTION`.

    Returns:
        The descriptions of the videos that could be read, in the manifest's order; for the others the file
        has the reason.

    Raises:
        ValueError: ``limit`` is out of range, a video has no caption, the file is of other videos, or another
            run is writing it.
    """
    check_answer(limit)
    path = Path(out) / DESCRIPTIONS
    for entry in manifest.entries:
        if not entry.captions:
            raise ValueError(f"{entry.path} has no caption that tells what a description should say")
    names = [to_record(entry, manifest.root)["path"] for entry in manifest.entries]
    with lock_file(path):
        rows = read_json_lines(path, _Row)
        if [row.get("path") for row in rows] != names[: len(rows)]:
            raise ValueError(f"{path} holds descriptions of other videos; choose another folder or remove it")
        rest = list(zip(names, manifest.entries, strict=True))[len(rows) :]
        for name, entry in tracked(rest, "Describing" if progress else None):
            row = {"path": name, **_describe(chat, entry, limit)}
            append_json(path, row)
            rows.append(row)
    return [
        Described(row["told"], entry.captions[0], tuple(entry.extra.get("events", ())))
        for row, entry in zip(rows, manifest.entries, strict=True)
        if "told" in row
    ]


def _describe(chat: Chat, entry: Entry, limit: int) -> dict[str, str]:
    question = next((q.question for q in questions_of(entry) if not q.choices), QUESTION)
    try:
        chat.watch(entry.path)
    except VideoError as error:
        return {"error": str(error)}
    return {"told": "".join(chat.ask(question, limit=limit)).strip()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="folder of a chat model")
    add("data", help="manifest of the videos; a caption says what a description should say")
    add("--judge", required=True, help="language model: a folder, a .gguf file, a name of the hub, smollm2")
    add("--budget", type=Budget.parse, help="what a clip may cost; default: the largest trained budget")
    add("--limit", type=int, default=256, help="tokens of the longest description")
    add("--language", default="", help="folder or file of the chat model's language model, if it has moved")
    add("--device", default="auto")
    add("--out", default="runs/dream1k", help="folder of the descriptions")
    args = parser.parse_args()

    manifest = read_manifest(args.data, None)
    chat = Chat(args.checkpoint, args.budget, language=args.language, device=args.device)
    described = describe_videos(chat, manifest, args.out, limit=args.limit)
    print(f"{len(described)} videos described, {len(manifest) - len(described)} cannot be read")
    judge = load_language_model(args.judge)
    judge.network.to(chat.device)
    score = score_descriptions(described, LanguageModelJudge(judge))
    print(
        f"F1 {100 * score.f1:.1f} %, recall {100 * score.recall:.1f} %, precision "
        f"{100 * score.precision:.1f} %, judged by {args.judge}"
    )


if __name__ == "__main__":
    main()
