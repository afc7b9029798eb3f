"""The first stage of a connector, which says the words of right answers; the language model does not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_chat_training import CONFIGS, language, train_chat
from test_recipe import world
from torch.nn import functional as F

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.models.chat import word_scores
from fluxvit.training.recipes import ChatSettings
from fluxvit.training.tasks.chat import Choices, Questions, WordsTask
from talking import saved_chat

pytest.importorskip("transformers")
assert world
assert language  # Fixtures.


def manifest_of(folder: Path, *questions: list[dict]) -> Manifest:
    rows = [{"path": f"{number}.mp4", "qa": qa} for number, qa in enumerate(questions)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(folder / "m.jsonl", None)


WHICH = {"question": "what moves ?", "answer": "ball", "choices": ["the cube", "ball"]}
WAY = {"question": "which way ?", "answer": "left", "choices": ["left", "right", "to"]}
WHETHER = {"question": "does it go ?", "answer": "yes", "choices": ["yes", "no"]}
OPEN = {"question": "what ?", "answer": "it"}


def test_a_text_scores_by_the_nearest_vector_to_each_of_its_words() -> None:
    east, north = torch.eye(2)
    seen = torch.stack([2 * east, -north])[None]
    table = torch.stack([east, north, -east])
    words = torch.tensor([[[[0, 1], [2, -1], [-1, -1]]]])
    torch.testing.assert_close(word_scores(seen, table, words), torch.tensor([[[0.5, 0.0, -torch.inf]]]))


def test_choices_are_those_of_all_questions_of_the_same_text(tmp_path: Path) -> None:
    tongue = ChatCheckpoint.load(saved_chat(tmp_path)).language
    other = {"question": "which way ?", "answer": "it", "choices": ["it", "to"]}
    choices = Choices(manifest_of(tmp_path, [WHETHER, OPEN, WHICH, WAY], [OPEN], [other]), tongue)
    packed = choices(torch.tensor([2, 1, 0]))
    texts = [
        [[tongue.tokenizer.decode(choices.ids[text[text >= 0]]) for text in texts] for texts in questions]
        for questions in packed["words"]
    ]
    assert texts == [
        [["it", "to", "left", "right"], [""] * 4],
        [[""] * 4] * 2,
        [["the cube", "ball", "", ""], ["left", "right", "to", "it"]],
    ]
    assert packed["answer"].tolist() == [[0, -1], [-1, -1], [1, 0]]
    with pytest.raises(ValueError, match="needs questions with choices"):
        Choices(manifest_of(tmp_path, [WHETHER, OPEN]), tongue)


def test_the_words_of_right_choices_are_learned_without_the_language_model(tmp_path: Path) -> None:
    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    chat, tongue = loaded.model, loaded.language
    loaded.video.model.reset_budgets([12])
    table = chat.language.get_input_embeddings().weight
    chat.connector.start_as_words(table)
    chat.connector.requires_grad_(True)
    choices = Choices(manifest_of(tmp_path, [WHICH], [WAY], [OPEN]), tongue)
    silent = Questions(Manifest((), (), ""), tongue, ChatSettings())
    task = WordsTask(loaded.video, chat.connector, silent, choices)
    video = torch.randn(3, 3, 8, 16, 16)
    batch = {"video": video, **choices(torch.tensor([0, 1, 2]))}
    chat.language.forward = None  # type: ignore[method-assign]
    result = task(batch)
    seen = F.normalize(chat.look([video], 12) - table.mean(0), dim=-1)
    words = F.normalize(table - table.mean(0), dim=-1)

    def score(clip: int, text: str) -> torch.Tensor:
        return 15 * (seen[clip] @ words[tongue.ids(text)].T).amax(0).mean()

    logits = [
        torch.stack([score(clip, text) for text in one["choices"]]) for clip, one in enumerate((WHICH, WAY))
    ]
    right = (one["choices"].index(one["answer"]) for one in (WHICH, WAY))
    expected = torch.stack([F.cross_entropy(a, torch.tensor(b)) for a, b in zip(logits, right, strict=True)])
    torch.testing.assert_close(result["loss"], expected.mean())
    optimizer = torch.optim.Adam(chat.connector.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        result = task(batch)
        result["loss"].backward()
        optimizer.step()
    assert result["right"] == 1
    assert result["loss"] < 0.3 * expected.mean()
    assert all(p.grad is None for p in [*chat.video.parameters(), *chat.language.parameters()])
    nothing = task({"video": video[2:], **choices(torch.tensor([2]))})
    assert (nothing["loss"], nothing["right"]) == (0, 0)


def test_a_stage_of_words_comes_before_one_of_answers(
    world: Path, checkpoint: Path, language: str, tmp_path: Path, capsys
) -> None:
    recipe, run = CONFIGS[0], tmp_path / "words"
    words = ("--task.loss", "words", "--optim.lr", "0.001")
    assert train_chat(recipe, world, checkpoint, language, run, *words) == 0
    options = ("--task.loss", "answers", "--task.init", str(run / "last"))
    assert train_chat(recipe, world, checkpoint, language, tmp_path / "answers", *options) == 0
    first, second = (ChatCheckpoint.load(tmp_path / name / "last").model for name in ("words", "answers"))
    # It starts as words of the language model, whose mean is not zero.
    mean = first.language.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(first.connector.norm_out.bias, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(second.connector.norm_out.bias, mean, rtol=0, atol=0.03)
    adapters = ("--task.adapters.rank", "2")
    assert train_chat(recipe, world, checkpoint, language, tmp_path / "no", *words, *adapters) == 2
    assert "does not run the language model" in " ".join(capsys.readouterr().err.split())
