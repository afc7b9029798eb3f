from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_contrastive import stopped_run
from test_recipe import TINY, world
from torch import Tensor

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.language_model import LanguageModel, load_language_model
from fluxvit.cli import main
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.data.questions import pack_turns, questions_of
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Plan
from fluxvit.models.adapters import add_adapters
from fluxvit.training.ema import Ema
from fluxvit.training.recipes import ChatSettings
from fluxvit.training.state import find_state
from fluxvit.training.tasks.chat import ChatTask, Questions
from talking import saved_chat, tiny_language_model

pytest.importorskip("transformers")
assert world  # A fixture.
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "chat").glob("*.yaml"))


def with_budgets(video: Checkpoint, *budgets: int) -> Checkpoint:
    video.model.reset_budgets(budgets)
    return video


def test_a_step_teaches_the_connector_alone(tmp_path: Path) -> None:
    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    chat, language = loaded.model, loaded.language
    chat.connector.requires_grad_(True)
    before, _ = language.first_turn("", loaded.instruction)
    silent = Questions(Manifest((), (), ""), language, ChatSettings(instruction=loaded.instruction))
    first, way = language.first_turn("what moves ?")[1], language.next_turn("which way ?")
    rows = [
        [(first, language.answer_ids("ball")), (way, language.answer_ids("right"))],
        [(first, language.answer_ids("to the left ."))],
    ]
    questions = pack_turns(rows)
    task = ChatTask(with_budgets(loaded.video, 12), chat.connector, silent)
    video = torch.randn(2, 3, 8, 16, 16)
    chat.video.train()
    result = task({"video": video, **questions._asdict()})
    assert not chat.video.training
    seen = chat.look([video], 12)
    found = chat.log_probabilities(before, seen, questions.ids, questions.turns > 0)
    # Three answers, of two, two and five tokens.
    answers = [found[0, 5:7], found[0, -2:], found[1, 5:10]]
    assert all((answer < 0).all() for answer in answers)
    assert sum(map(len, answers)) == (found < 0).sum()
    torch.testing.assert_close(result["loss"], -torch.stack([answer.mean() for answer in answers]).mean())
    torch.testing.assert_close(
        result["answer"], torch.stack([answer.sum().exp() for answer in answers]).mean()
    )
    result["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in chat.connector.parameters())
    assert all(p.grad is None for p in [*chat.video.parameters(), *chat.language.parameters()])
    # The language model is not part of what is saved.
    assert {name.split(".")[0] for name in task.state_dict()} == {"connector", "model"}


def test_every_budget_is_drawn(tmp_path: Path) -> None:
    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    chat, language = loaded.model, loaded.language
    silent = Questions(Manifest((), (), ""), language, ChatSettings())
    task = ChatTask(with_budgets(loaded.video, 12, 6, 3), chat.connector, silent)
    questions = pack_turns([[(language.first_turn("what ?")[1], language.answer_ids("ball"))]])
    video = torch.randn(1, 3, 8, 16, 16)
    losses = set()
    for seed in range(20):
        torch.manual_seed(seed)
        losses.add(round(task({"video": video, **questions._asdict()})["loss"].item(), 5))
    assert len(losses) == 3


def heard_and_said(row: Tensor) -> list[tuple[list[int], list[int]]]:
    """Turns of a packed conversation, padding left out."""
    turns, ids = [], row[0].tolist()
    numbers = row[1].tolist()
    end = 0
    for number in range(1, max(numbers) + 1):
        start = numbers.index(number)
        stop = start + numbers.count(number)
        turns.append((ids[end:start], ids[start:stop]))
        end = stop
    return turns


def conversations(folder: Path, language: LanguageModel, rows: list[dict], **options) -> list[list[Tensor]]:
    """What the clips of a batch are asked, drawn forty times."""
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ChatSettings(**{"with_choices": 0.0, **options})
    questions = Questions(read_manifest(folder / "m.jsonl", None), language, settings)
    drawn = []
    for seed in range(40):
        torch.manual_seed(seed)
        drawn.append(list(torch.stack(questions(torch.arange(len(rows))), dim=1)))
    return drawn


def test_questions_are_drawn_among_the_videos_own(tmp_path: Path) -> None:
    language = ChatCheckpoint.load(saved_chat(tmp_path)).language

    def first(question: str, answer: str) -> tuple[list[int], list[int]]:
        return language.first_turn(question)[1].tolist(), language.answer_ids(answer).tolist()

    def later(question: str, answer: str) -> tuple[list[int], list[int]]:
        return language.next_turn(question).tolist(), language.answer_ids(answer).tolist()

    def drawn(rows: list[dict], **options) -> list[set[str]]:
        found = conversations(tmp_path, language, rows, **options)
        return [{str(heard_and_said(row[i])) for row in found} for i in range(len(rows))]

    def these(*turns: list[tuple[list[int], list[int]]]) -> set[str]:
        return {str(turn) for turn in turns}

    what, way = (
        {"question": "what moves ?", "answer": "ball"},
        {"question": "which way ?", "answer": "left ."},
    )
    rows = [{"path": "a.mp4", "qa": [what, way]}, {"path": "b.mp4", "qa": [what]}]
    moves, left = first("what moves ?", "ball"), first("which way ?", "left .")
    assert drawn(rows) == [these([moves], [left]), these([moves])]
    # A conversation goes on with what stands behind its first question, as long as it may.
    assert drawn(rows, turns=3) == [these([moves, later("which way ?", "left .")]), these([moves])]
    three = [{"path": "a.mp4", "qa": [what, way, what]}]
    both = [[moves, later("which way ?", "left .")], [left, later("what moves ?", "ball")]]
    assert drawn(three, turns=2) == [these(*both)]
    # With choices, of which a part of the questions tells.
    chosen = [{"question": "what ?", "answer": "ball", "choices": ["cube", "ball"]}]
    choices = [{"path": "a.mp4", "qa": chosen}]
    plain, choosing = first("what ?", "ball"), first("what ? Choose: cube; ball.", "ball")
    assert drawn(choices) == [these([plain])]
    assert drawn(choices, with_choices=0.5) == [these([plain], [choosing])]
    assert drawn(choices, with_choices=1.0) == [these([choosing])]
    # Some clips are to be described besides; the other video has no caption.
    rows[0]["captions"] = ["the ball moves", "the cube moves"]
    captions = [("What happens in the video?", text) for text in rows[0]["captions"]]
    described = [[first(*caption)] for caption in captions]
    assert drawn(rows, captions=0.7) == [these([moves], [left], *described), these([moves])]
    afterwards = [[moves, later(*caption)] for caption in captions]
    before = [[first(*caption), later("which way ?", "left .")] for caption in captions]
    assert drawn(rows, captions=1.0, turns=2) == [these(*afterwards, *before), these([moves])]

    # Independent questions all come first, and do not attend to each other.
    several = [{"path": "a.mp4", "qa": [what, way]}]
    assert drawn(several, turns=2, independent=1.0) == [these([moves, left])]
    hearing = {
        str(row[2].tolist())
        for (row,) in conversations(tmp_path, language, several, turns=2, independent=0.5)
    }
    assert len(hearing) == 2


def test_a_connector_is_trained_further(
    world: Path, checkpoint: Path, language: str, tmp_path: Path, capsys
) -> None:
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "first") == 0
    first = tmp_path / "first" / "last"
    options = ("--task.init", str(first), "--optim.lr", "1e-12")
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "second", *options) == 0
    one, two = (
        ChatCheckpoint.load(folder).model.connector for folder in (first, tmp_path / "second" / "last")
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    loaded = Checkpoint.load(first / "video")
    model = loaded.model
    with torch.no_grad():
        model.cls_token.add_(1)
    replace(loaded, model=model).save(tmp_path / "other")
    options = ("--task.init", str(first), "--model.init", str(tmp_path / "other"))
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "third", *options) == 2
    assert "was trained to read another video side" in " ".join(capsys.readouterr().err.split())
    # Plans of the video side stay with it.
    loaded = Checkpoint.load(first / "video")
    model = loaded.model
    planned = replace(loaded, plans=[Plan(SamplingGrid(8, 32, 32), 6)])
    replace(planned, model=model).save(tmp_path / "planned")
    options = ("--task.init", str(first), "--model.init", str(tmp_path / "planned"))
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "fourth", *options) == 0
    assert ChatCheckpoint.load(tmp_path / "fourth" / "last").video.plans == planned.plans
    options = ("--task.init", str(first), "--task.queries", "4")
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "third", *options) == 2
    assert "its connector has another shape" in capsys.readouterr().err


def test_videos_without_questions_are_named(tmp_path: Path) -> None:
    language = ChatCheckpoint.load(saved_chat(tmp_path)).language
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4"}\n')
    with pytest.raises(ValueError, match=r"a\.mp4 has no question"):
        Questions(read_manifest(tmp_path / "m.jsonl", None), language, ChatSettings())
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4", "qa": [{"q": "x"}]}\n')
    with pytest.raises(ValueError, match=r"a\.mp4: qa must be a list of"):
        questions_of(read_manifest(tmp_path / "m.jsonl", None).entries[0])


@pytest.fixture
def language(tmp_path: Path) -> str:
    return str(tiny_language_model(tmp_path / "lm"))


def train_chat(recipe: Path, data: Path, checkpoint: Path, language: str, out: Path, *options: str) -> int:
    folders = ["--data.train", str(data / "train.jsonl"), "--out", str(out), "--model.init", str(checkpoint)]
    small = ["--task.width", "32", "--task.queries", "3", "--task.init", ""]
    small += ["--task.freeze_connector", "false", "--task.adapters.rank", "0", "--language", language]
    return main(["train-chat", str(recipe), *TINY, *folders, *small, *options])


@pytest.mark.parametrize("recipe", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_builds_and_runs(
    recipe: Path, world: Path, checkpoint: Path, language: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train_chat(recipe, world, checkpoint, language, out) == 0
    loaded = ChatCheckpoint.load(out / "last")
    chat, model = loaded.model, loaded.language
    assert (model.source, chat.connector.config.queries) == (language, 3)
    assert chat.connector.config.scale == pytest.approx(model.word_scale)
    assert loaded.provenance["recipe"]["task"]["width"] == 32
    assert find_state(out).about.step == 2
    assert train_chat(recipe, world, checkpoint, language, out) == 0
    assert train_chat(recipe, world, checkpoint, language, out, "--task.queries", "4") == 2


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_a_stopped_run_goes_on_to_the_same_weights(
    world: Path, checkpoint: Path, language: str, tmp_path: Path, ema: str
) -> None:
    options = ("--epochs", "2", "--optim.ema", ema, "--optim.lr", "0.01")
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "whole", *options) == 0
    run = [CONFIGS[0], world, checkpoint, language]
    assert stopped_run(lambda: train_chat(*run, tmp_path / "cut", *options)) == 130
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "cut", *options) == 0
    one, other = (ChatCheckpoint.load(tmp_path / name / "last").model.connector for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_is_exported_is_the_moving_average(
    world: Path, checkpoint: Path, language: str, tmp_path: Path
) -> None:
    state, average = {}, Ema.update

    def by_hand(self, task, step):
        if not state:
            state.update({name: value.clone() for name, value in self.weights.items()})
        average(self, task, step)
        decay = min(0.4, (1 + step) / (10 + step))
        for name, value in task.state_dict().items():
            state[name] = decay * state[name] + (1 - decay) * value

    options = ("--epochs", "2", "--optim.ema", "0.4", "--optim.lr", "0.01")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ema, "update", by_hand)
        assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "run", *options) == 0
    chat = ChatCheckpoint.load(tmp_path / "run" / "last").model
    for name, value in chat.connector.state_dict().items():
        torch.testing.assert_close(value, state[f"connector.{name}"], msg=name)
    # The frozen video side is its own average.
    frozen = Checkpoint.load(checkpoint).model.cls_token
    assert torch.equal(chat.video.cls_token, frozen)


def test_adapters_are_trained_and_kept(world: Path, checkpoint: Path, language: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = (
        "--task.adapters.rank",
        "2",
        "--task.adapters.alpha",
        "6",
        "--optim.lr",
        "0.05",
        "--epochs",
        "3",
    )
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "run", *options) == 0
    loaded = ChatCheckpoint.load(tmp_path / "run" / "last")
    chat, model = loaded.model, loaded.language
    plain = load_language_model(language)
    words = chat.embed_words(model.ids("what moves ?"))[None]
    with torch.no_grad():
        adapted, bare = (net(inputs_embeds=words).logits for net in (chat.language, plain.network))
    assert (adapted - bare).abs().max() > 1e-3
    # By hand: what each adapter adds to its layer.
    state = safetensors.torch.load_file(tmp_path / "run" / "last" / "connector.safetensors")
    for path, layer in plain.network.named_modules():
        if path.endswith(("q_proj", "v_proj")):
            down, up = (state[f"adapters.{path.replace('.', '/')}.{way}.weight"] for way in ("down", "up"))
            layer.weight.data += up @ down
    with torch.no_grad():
        torch.testing.assert_close(plain.network(inputs_embeds=words).logits, adapted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="has no linear layers called q_proj or v_proj"):
        add_adapters(torch.nn.Linear(2, 2), 2, 2, ["q_proj", "v_proj"])


def test_adapters_are_trained_further(
    world: Path, checkpoint: Path, language: str, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("peft")
    first, further = tmp_path / "first", tmp_path / "further"
    rank = ("--task.adapters.rank", "2", "--task.adapters.alpha", "6", "--optim.lr", "0.05")
    assert train_chat(CONFIGS[0], world, checkpoint, language, first, *rank) == 0
    options = ("--task.init", str(first / "last"), *rank, "--optim.lr", "1e-12")
    assert train_chat(CONFIGS[0], world, checkpoint, language, further, *options) == 0
    before, after = (
        safetensors.torch.load_file(folder / "last" / "connector.safetensors") for folder in (first, further)
    )
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
    frozen = ("--task.freeze_connector", "true")
    options = ("--task.init", str(first / "last"), *rank)
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "frozen", *options, *frozen) == 0
    after = safetensors.torch.load_file(tmp_path / "frozen" / "last" / "connector.safetensors")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {name for name in before if name.startswith("connector.")}
    # A connector that was trained beside adapters says little without them.
    for wrong in (("--task.adapters.rank", "0"), ("--task.adapters.layers", "[q_proj]")):
        argv = (*options, *wrong)
        assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "no", *argv) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "has adapters of rank 2 for q_proj, v_proj; set task.adapters.rank" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init", ""], "name the checkpoint whose frozen features"),
        (["--task.connector", "conv"], "expected one of query, mlp"),
        (["--task.with_choices", "2"], "expected a number from 0 to 1"),
        (["--task.turns", "0"], "task.turns is 0, expected an integer from 1"),
        (["--task.independent", "-1"], "expected a number from 0 to 1"),
        (["--task.init", "no/such/chat"], "no/such/chat: no chat model"),
        (["--task.freeze_connector", "true"], "task.freeze_connector needs task.init, and task.adapters"),
        (["--language", "no/such/folder/here"], "no language model from"),
    ],
)
def test_bad_recipes_are_refused(
    world: Path, checkpoint: Path, language: str, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    assert train_chat(CONFIGS[0], world, checkpoint, language, tmp_path / "run", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
