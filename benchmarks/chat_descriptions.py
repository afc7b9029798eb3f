"""Are a chat model's free descriptions of MotionWorld right? The captions' grammar is the judge.

Each test video is described by the answer to "What happens in the video?". A description is right about the
object if it names the moving one, and its clauses are compared with the acts of the video: which of these it
tells (recall), which of its clauses happened (precision), and whether two acts that it tells rightly stand in
their order. Clauses in other words than those of the captions count as nothing said. The baseline judges
each description by another video.

    python benchmarks/chat_descriptions.py runs/chat_motionworld/last data/mw/test.jsonl --videos 100
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fluxvit.data.manifest import read_manifest
from fluxvit.data.questions import DESCRIBE
from fluxvit.deploy.chat import Chat
from fluxvit.evaluation.metrics import Score
from fluxvit.synthetic.motionworld.acts import ACTS
from fluxvit.synthetic.motionworld.language import CLAUSES
from fluxvit.synthetic.motionworld.shapes import OBJECTS

Told = dict[tuple[str, str], int]
"""Act and orientation of each clause of a description, and where it stands."""


def _pattern(clause: str) -> re.Pattern[str]:
    said = clause.removeprefix("{it} ").removeprefix("{visitor} ")
    return re.compile(r"\b" + re.sub(r"\\\{\w+\\\}", r"[\\w ]+?", re.escape(said)) + r"\b")


PATTERNS = [
    (act, ACTS[act].orientations[orientation], _pattern(clause))
    for (act, orientation), clauses in CLAUSES.items()
    for clause in clauses
]


def told_by(text: str) -> Told:
    """The acts that a description tells."""
    told: Told = {}
    for act, orientation, pattern in PATTERNS:
        if match := pattern.search(text.lower()):
            told.setdefault((act, orientation), match.start())
    return told


def objects_in(text: str) -> list[str]:
    """The objects that a description names, in their order."""
    text = text.lower()
    places = {name: re.search(rf"\b{name.lower()}\b", text) for name in OBJECTS}
    return [name for _, name in sorted((match.start(), name) for name, match in places.items() if match)]


def judge(text: str, video: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """How much of a description is right about a video, as counts of right ones and of all."""
    happened = [(act["act"], act["orientation"]) for act in video["acts"]]
    told = told_by(text)
    right = [act for act in happened if act in told]
    pairs = [told[first] < told[second] for first, second in pairwise(right)]
    named = objects_in(text)[:1] == [video["object_name"]]
    return {
        "object": (int(named), 1),
        "recall": (len(right), len(happened)),
        "precision": (len(right), len(told)),
        "order": (sum(pairs), len(pairs)),
        "all of it": (int(named and sorted(told, key=told.__getitem__) == happened), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="folder of a chat model")
    add("data", help="manifest of MotionWorld's test videos")
    add("--language", default="", help="the language model, if it was moved")
    add("--videos", type=int, default=100, help="the first videos of the manifest")
    add("--budgets", default="72,18", help="tokens of a video")
    args = parser.parse_args()
    entries = read_manifest(args.data, None).entries[: args.videos]
    for budget in map(int, args.budgets.split(",")):
        chat = Chat(args.checkpoint, budget, language=args.language)
        texts = []
        for entry in entries:
            chat.watch(entry.path)
            texts.append("".join(chat.ask(DESCRIBE, limit=80)))
        print(f"{chat.plan.keep} tokens of {chat.plan.grid}: {len(texts)} descriptions")
        for text in texts[:5]:
            print(f"    {text}")
        report("of their own videos", texts, entries)
        report("of the video after", texts, [*entries[1:], entries[0]])


def report(title: str, texts: Sequence[str], entries: Sequence[Any]) -> None:
    """Print what the descriptions get right about these videos."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for text, entry in zip(texts, entries, strict=True):
        for name, (right, total) in judge(text, entry.extra).items():
            counts[name][0] += right
            counts[name][1] += total
    cells = (f"{name} {Score(*count) if count[1] else 'none told'}" for name, count in counts.items())
    print(f"{title:20} {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
