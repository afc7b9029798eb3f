from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.cli import main
from fluxvit.deploy.chat import Chat
from fluxvit.evaluation.config import VideoQAConfig
from fluxvit.evaluation.language.video_qa import run_video_qa
from fluxvit.models.chat import VideoChat
from fluxvit.video.writer import write_video
from talking import saved_chat, tiny_language_model

pytest.importorskip("transformers")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved_chat(tmp_path)


def test_a_video_is_encoded_once_and_every_question_goes_on(
    checkpoint: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    look = VideoChat.look
    monkeypatch.setattr(VideoChat, "look", lambda self, *a: looks.append(1) or look(self, *a))
    chat = Chat(checkpoint, 12)
    assert chat.watch(clip) == 5
    first = "".join(chat.ask("what moves ?", limit=8))
    second = "".join(chat.ask("which way ?", limit=8))
    assert looks == [1]
    assert first
    assert second
    before, behind = chat.language.first_turn("what moves ?", "answer briefly")
    chat.watch(clip)  # Forgets what was said.
    lengths = [chat._cache.get_seq_length()]
    assert lengths == [len(before) + 5]
    for question, asked in (
        ("what moves ?", behind),
        ("which way ?", chat.language.next_turn("which way ?")),
    ):
        told = "".join(chat.ask(question, limit=8))
        lengths.append(chat._cache.get_seq_length())
        # The question, its answer, and the answer's end unless it was cut off.
        assert 1 <= lengths[-1] - lengths[-2] - len(asked) <= 8
        assert told == {"what moves ?": first, "which way ?": second}[question]
    assert looks == [1, 1]


def test_long_videos_are_looked_at_in_parts(checkpoint: Path, clip: Path) -> None:
    chat = Chat(checkpoint, 12)
    chat.watch(clip, clips=3)
    assert chat._cache.get_seq_length() == len(chat.language.first_turn("", "answer briefly")[0]) + 5
    with pytest.raises(ValueError, match="clips is 0, expected an integer from 1"):
        chat.watch(clip, clips=0)
    with pytest.raises(ValueError, match="the question is empty"):
        next(chat.ask(" "))
    with pytest.raises(ValueError, match="call watch first"):
        next(Chat(checkpoint).ask("what ?"))


def test_the_command(
    checkpoint: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    command = ["chat", str(clip), "--checkpoint", str(checkpoint), "--limit", "6"]
    assert main([*command, "--budget", "12", "what moves ?", "which way ?"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{clip}: 12 tokens of 8x16x32, 5 vectors for")
    assert out[1] == "> what moves ?"
    assert "> which way ?" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("what moves ?\n\nnot asked\n"))
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for wrong, message in (
        (["--limit", "0"], "limit is 0, expected an integer from 1"),
        (["--clips", "0"], "clips is 0, expected an integer from 1"),
        (["--checkpoint", str(tmp_path)], "no chat model, which `fluxvit train-chat` makes"),
        (["--language", str(tmp_path / "no" / "lm")], "no language model from"),
    ):
        assert main([*command, "what ?", *wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_language_model_of_another_width_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = tiny_language_model(tmp_path / "wide", width=64)
    with pytest.raises(ValueError, match=r"its words are 64 wide, and the connector .* makes 32"):
        ChatCheckpoint.load(checkpoint, language=str(other))
    (checkpoint / "connector.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        ChatCheckpoint.load(checkpoint)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        write_video(tmp_path / f"{i}.mp4", rng.integers(0, 255, (10, 32, 32, 3), dtype=np.uint8), 10)
        asked = [
            {"question": "what moves ?", "answer": "ball", "choices": ["cube", "ball"], "task": "things"},
            {
                "question": "which way ?",
                "answer": "right",
                "choices": ["left", "right", "to"],
                "task": "ways",
            },
            {"question": "open ?", "answer": "yes"},
        ]
        rows.append({"path": f"{i}.mp4", "qa": asked[: 1 + i % 3]})
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "qa.jsonl"


def test_the_likeliest_choices_count(checkpoint: Path, videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["evaluate-qa", str(checkpoint), str(videos), "--budgets", "24,6", "--out", str(out)]) == 0
    assert "blind" in capsys.readouterr().out
    found = json.loads((out / "video_qa.json").read_text())
    assert (found["questions"], found["videos"]) == (6, 4)
    assert found["chance"] == pytest.approx((4 / 2 + 2 / 3) / 6)
    assert [(row["blind"], row["keep"]) for row in found["rows"]] == [(True, 0), (False, 24), (False, 6)]

    loaded = ChatCheckpoint.load(checkpoint)
    chat, language = loaded.model, loaded.language
    blind = found["rows"][0]

    def score(question: str, choice: str) -> float:
        before, prompt = language.first_turn(question, loaded.instruction)
        answer = language.answer_ids(choice)
        words = chat.embed_words(torch.cat([before, prompt, answer]))[None]
        logits = chat.language(inputs_embeds=words).logits[0].log_softmax(-1)
        return float(logits[-1 - len(answer) : -1].gather(1, answer[:, None]).sum())

    asked = "what moves ? Choose: cube; ball.", "which way ? Choose: left; right; to."
    things = max(["cube", "ball"], key=lambda choice: score(asked[0], choice)) == "ball"
    ways = max(["left", "right", "to"], key=lambda choice: score(asked[1], choice)) == "right"
    assert blind["tasks"] == {"things": [4 * things, 4], "ways": [2 * ways, 2]}
    assert blind["correct"] == 4 * things + 2 * ways
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [(row["question"], row["answer"]) for row in answers[:2]] == [
        ("what moves ?", "ball"),
        ("what moves ?", "ball"),
    ]
    for row, name in zip(found["rows"], answers[0]["answers"], strict=True):
        assert row["correct"] == sum(answer["answers"][name] == answer["answer"] for answer in answers)


def test_choices_are_needed_and_broken_videos_count_as_wrong(
    checkpoint: Path, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "2.mp4").write_bytes(b"broken")
    tested = run_video_qa(
        VideoQAConfig(str(checkpoint), str(videos), out=str(tmp_path / "out")), progress=False
    )
    assert [Path(row["path"]).name for row in tested.results["unreadable"]] == ["2.mp4"]
    assert all(row["total"] == 6 for row in tested.results["rows"])
    assert "count as wrong" in str(tested)
    last = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    lost = [row["answers"] for row in last if row["path"].endswith("2.mp4")]
    assert lost
    for said in lost:
        assert said.pop("blind")
        assert said
        assert not any(said.values())
    some = run_video_qa(
        VideoQAConfig(str(checkpoint), str(videos), videos=2, out=str(tmp_path / "some")), False
    )
    assert some.results["videos"] == 2
    rows = [{"path": "0.mp4", "qa": [{"question": "a", "answer": "b"}]}]
    videos.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="no question that has choices"):
        run_video_qa(VideoQAConfig(str(checkpoint), str(videos)))
    rows[0]["qa"][0]["choices"] = ["c", "d"]
    videos.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="the answer 'b' is not one of"):
        run_video_qa(VideoQAConfig(str(checkpoint), str(videos)))
