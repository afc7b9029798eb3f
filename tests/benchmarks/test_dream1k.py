from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dream1k import Described, LanguageModelJudge, describe_videos, main, score_descriptions
from fluxvit.checkpoints.language_model import load_language_model
from fluxvit.data.manifest import read_manifest
from fluxvit.deploy.chat import Chat
from fluxvit.video.writer import write_video
from talking import saved_chat, tiny_language_model

pytest.importorskip("transformers")


class Words(LanguageModelJudge):
    """Sentences are events, and a text tells of those whose words it has."""

    def __init__(self) -> None:
        pass

    def events(self, description: str) -> list[str]:
        return [part.strip() for part in description.split(".") if part.strip()]

    def entailed(self, description: str, events: Sequence[str]) -> list[bool]:
        words = set(description.lower().replace(".", " ").split())
        return [set(event.lower().replace(".", " ").split()) <= words for event in events]


def test_recall_and_precision_are_means_and_f1_is_of_them() -> None:
    described = [
        Described(
            "a dog runs. a cat sits. a bird sings", "a dog runs. a cat sits", ("a dog runs", "a cat sits")
        ),
        Described("a dog runs", "a dog runs. a dog barks. a dog eats. a dog sleeps"),
    ]
    score = score_descriptions(described, Words())
    assert score.recall == pytest.approx((1 + 1 / 4) / 2)
    assert score.precision == pytest.approx((2 / 3 + 1) / 2)
    assert score.f1 == pytest.approx(2 * 0.625 * (5 / 6) / (0.625 + 5 / 6))
    nothing = score_descriptions([Described("", "a dog runs")], Words())
    assert (nothing.recall, nothing.precision, nothing.f1) == (0, 1, 0)
    with pytest.raises(ValueError, match="no descriptions"):
        score_descriptions([], Words())


def test_a_language_model_judges(tmp_path: Path) -> None:
    language = load_language_model(str(tiny_language_model(tmp_path)))
    judge = LanguageModelJudge(language)
    answers = judge.entailed("the ball moves left", ["ball", "cube", "to the right"])
    assert len(answers) == 3
    assert all(isinstance(answer, bool) for answer in answers)
    judge._answer = lambda prompt: "1. A dog runs.\n\n- It sits\n   \n" + "* more\n" * 20  # type: ignore[method-assign]
    assert judge.events("text")[:3] == ["A dog runs.", "It sits", "more"]
    assert len(judge.events("text")) == 10


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3):
        write_video(tmp_path / f"{i}.mp4", rng.integers(0, 255, (10, 32, 32, 3), dtype=np.uint8), 10)
        rows.append({"path": f"{i}.mp4", "captions": ["the ball moves"], "events": ["ball moves"]})
    (tmp_path / "1.mp4").write_bytes(b"broken")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "test.jsonl"


def test_descriptions_are_kept_as_they_are_said(videos: Path, tmp_path: Path, monkeypatch) -> None:
    chat = Chat(saved_chat(tmp_path), 12)
    manifest = read_manifest(videos, None)
    asked: list[str] = []
    ask = Chat.ask

    def stopping(self: Chat, question: str, **options: object):
        asked.append(question)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(self, question, **options)

    monkeypatch.setattr(Chat, "ask", stopping)
    with pytest.raises(KeyboardInterrupt):
        describe_videos(chat, manifest, tmp_path / "out", limit=5, progress=False)
    described = describe_videos(chat, manifest, tmp_path / "out", limit=5, progress=False)
    assert asked == ["Describe the video in detail."] * 3  # The first, the last, and the last again.
    assert [(one.reference, one.events) for one in described] == [("the ball moves", ("ball moves",))] * 2
    rows = [json.loads(line) for line in (tmp_path / "out" / "descriptions.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["0.mp4", "1.mp4", "2.mp4"]
    assert "told" not in rows[1]
    assert "1.mp4" in rows[1]["error"]
    other = videos.with_name("other.jsonl")
    other.write_text(videos.read_text().splitlines()[2] + "\n")
    with pytest.raises(ValueError, match="descriptions of other videos"):
        describe_videos(chat, read_manifest(other, None), tmp_path / "out", progress=False)


def test_the_script(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    command = [str(saved_chat(tmp_path)), str(videos), "--budget", "6", "--limit", "4", "--device", "cpu"]
    command += ["--judge", str(tmp_path / "lm"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["dream1k.py", *command])
    main()
    out = capsys.readouterr().out
    assert "2 videos described, 1 cannot be read" in out
    assert "judged by" in out
