"""What do the vectors of a chat model's connector say by themselves? The language model does not run.

Each multiple-choice question is answered by the choice whose words are nearest to the vectors, as in the
first stage of training (`task.loss: words`). Compared with `fluxvit evaluate-qa`, this shows whether what a
video side knows is lost before or after the connector. It takes a minute where that takes many.

    python benchmarks/chat_words.py runs/chat_motionworld_words/last data/mw/test.jsonl
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import read_manifest
from fluxvit.data.questions import questions_of
from fluxvit.evaluation.metrics import Score
from fluxvit.flux.budget import Budget
from fluxvit.models.chat import word_scores


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a chat model")
    parser.add_argument("data", help="manifest of videos with multiple-choice questions")
    parser.add_argument("--language", default="", help="the language model, if it was moved")
    args = parser.parse_args()
    loaded = ChatCheckpoint.load(args.checkpoint, language=args.language)
    chat, language, video = loaded.model, loaded.language, loaded.video
    table = chat.language.get_input_embeddings().weight.float()
    mean = table.mean(0)
    manifest = read_manifest(args.data, None)
    dataset = ClipDataset(manifest, sampling=video.sampling)
    for tokens in video.default_budgets():
        plan = video.plan(Budget(tokens=tokens))
        found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for item, entry in enumerate(manifest.entries):
            clip = video.normalize(dataset[ClipRequest(item, plan.grid)].video[None])
            seen = chat.look([clip], plan.keep, plan.selector) - mean
            for question in questions_of(entry):
                texts = [language.ids(f" {choice}") for choice in question.choices]
                if not texts:
                    continue
                ids, words = torch.cat(texts).unique(return_inverse=True)
                rows = torch.nn.utils.rnn.pad_sequence(
                    list(words.split([len(text) for text in texts])), batch_first=True, padding_value=-1
                )
                best = int(word_scores(seen, table[ids] - mean, rows[None, None]).argmax())
                found[question.task][0] += question.choices[best] == question.answer
                found[question.task][1] += 1
        print(f"{plan.keep} tokens of {plan.grid}")
        for task, (right, total) in sorted(found.items()):
            print(f"    {task:12} {Score(right, total)}", flush=True)


if __name__ == "__main__":
    main()
