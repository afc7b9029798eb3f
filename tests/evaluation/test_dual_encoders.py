from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fluxvit
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.cli import main
from fluxvit.data.dataset import ClipDataset, ClipRequest
from fluxvit.data.manifest import read_manifest
from fluxvit.evaluation.language.retrieval import both_directions
from fluxvit.evaluation.language.zero_shot import TEMPLATES, embed_classes, plain_name
from fluxvit.flux.grid import SamplingGrid
from fluxvit.video.transforms import normalize
from fluxvit.video.writer import write_video
from language import SENTENCES, saved_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_encoder(tmp_path_factory.mktemp("dual") / "last")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of noise, one or two captions each."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(10):
        write_video(folder / f"{i}.mp4", rng.integers(0, 255, (10, 32, 32, 3), dtype=np.uint8), 10)
        rows.append({"path": f"{i}.mp4", "captions": SENTENCES[i : i + 1 + i % 2]})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "test.jsonl"


def ranks_by_hand(similarity: np.ndarray, right: list[set[int]]) -> list[int]:
    """Of each row: one, and one more for each wrong column as similar as the best right one, or more."""
    found = []
    for row, answers in zip(similarity, right, strict=True):
        best = max(row[i] for i in answers)
        found.append(1 + sum(row[i] >= best for i in range(len(row)) if i not in answers))
    return found


def test_figures_are_those_of_the_vectors(encoder: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(["evaluate-retrieval", str(encoder), str(videos), "--budgets", "24,12", "--out", str(out)]) == 0
    )
    found = json.loads((out / "retrieval.json").read_text())
    assert (found["videos"], found["captions"]) == (10, 15)
    kinds = [(row["budget"], row["kind"]) for row in found["rows"]]
    assert kinds == [(budget, kind) for budget in (24, 12) for kind in ("plain", "optimised")]
    loaded = DualEncoderCheckpoint.load(encoder)
    both = loaded.model
    manifest = read_manifest(videos, None)
    sentences = [text for entry in manifest.entries for text in entry.captions]
    # Equal captions are right for each of their videos.
    shows = [{i for i, entry in enumerate(manifest.entries) if text in entry.captions} for text in sentences]
    assert found["shared_captions"] == sum(len(videos) > 1 for videos in shows) > 0
    words = both.embed_text(*loaded.texts(sentences)).detach()
    for row in found["rows"]:
        grid = SamplingGrid.parse(row["grid"])
        clips = [ClipDataset(manifest)[ClipRequest(i, grid)].video for i in range(10)]
        video = normalize(torch.stack(clips), loaded.video.mean, loaded.video.std)
        with torch.no_grad():
            vectors = both.embed_video(video, row["keep"])
        cosines = (words @ vectors.t()).double().numpy()  # [captions, videos]
        to_video, to_text = cosines, cosines.T
        shown_by = [{q for q, shown in enumerate(shows) if v in shown} for v in range(10)]
        for way, similarity, right in (
            ("text_to_video", to_video, shows),
            ("video_to_text", to_text, shown_by),
        ):
            ranks = np.array(ranks_by_hand(similarity, right))
            for count in (1, 5, 10):
                assert row[way][f"r{count}"] == pytest.approx(100 * (ranks <= count).mean())
            assert row[way]["median_rank"] == np.median(ranks)
            assert row[way]["mean_rank"] == pytest.approx(ranks.mean())


def test_unreadable_videos_rank_last(encoder: Path, videos: Path, tmp_path: Path, capsys) -> None:
    lines = [json.loads(line) for line in videos.read_text().splitlines()]
    for line in lines:
        line["path"] = str(videos.parent / line["path"])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    lines[3]["path"] = str(tmp_path / "broken.mp4")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["evaluate-retrieval", str(encoder), str(tmp_path / "test.jsonl"), "--budgets", "24"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "1 videos cannot be read and rank last" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert found["unreadable"][0]["path"].endswith("broken.mp4")


def test_a_lost_video_ranks_behind_all_others() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.2], [float("nan")] * 3, [0.3, 0.2, 0.8]])
    found = both_directions(similarity, [[0], [1], [2]])
    for way in ("text_to_video", "video_to_text"):
        assert found[way]["mean_rank"] == pytest.approx((1 + 3 + 1) / 3)
        assert found[way]["r1"] == pytest.approx(200 / 3)


def test_a_dual_encoder_chooses_the_nearest_answer(
    encoder: Path, videos: Path, tmp_path: Path, capsys
) -> None:
    texts = SENTENCES[:6]
    rows = [
        {
            "path": str(videos.parent / f"{i}.mp4"),
            "qa": [
                {"question": "what?", "answer": texts[i], "choices": texts[i : i + 3]},
                {"question": "which?", "answer": texts[5], "choices": [texts[0], texts[5]]},
            ],
        }
        for i in range(3)
    ]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows.append({**rows[0], "path": str(tmp_path / "broken.mp4")})
    (tmp_path / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate-qa", str(encoder), str(tmp_path / "mc.jsonl"), "--budgets", "24,6"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "1 videos cannot be read; their questions count as wrong" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "video_qa.json").read_text())
    assert [(row["blind"], row["keep"], row["total"]) for row in found["rows"]] == [
        (False, 24, 8),
        (False, 6, 8),
    ]
    loaded = DualEncoderCheckpoint.load(encoder)
    both = loaded.model
    words = dict(zip(texts, loaded.embed_texts(texts), strict=True))
    manifest = read_manifest(tmp_path / "mc.jsonl", None)
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    for row in found["rows"]:
        grid = SamplingGrid.parse(row["grid"])
        name = f"{row['keep']} of {row['grid']}"
        right = 0
        for number, answer in enumerate(answers[:6]):
            clip = ClipDataset(manifest)[ClipRequest(number // 2, grid)].video[None]
            video = normalize(clip, loaded.video.mean, loaded.video.std)
            vector = both.embed_video(video, row["keep"])[0].detach()
            best = max(answer["choices"], key=lambda text: float(words[text] @ vector))
            assert answer["answers"] == {**answer["answers"], name: best}
            right += best == answer["answer"]
        assert row["correct"] == right
        assert [answer["answers"][name] for answer in answers[6:]] == [None, None]
    assert main([*command, "--language", "elsewhere"]) == 2
    assert "is a dual encoder, which brings its text tower" in capsys.readouterr().err


def test_captions_are_needed(encoder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "bare.jsonl").write_text('{"path": "a.mp4"}\n')
    for command in ("evaluate-retrieval", "optimize"):
        assert main([command, str(encoder), str(tmp_path / "bare.jsonl")]) == 2
        assert "a.mp4 has no caption" in capsys.readouterr().err


def test_a_classifier_of_texts_gives_scaled_cosines(encoder: Path) -> None:
    loaded = DualEncoderCheckpoint.load(encoder)
    both = loaded.model
    vectors = loaded.embed_texts(SENTENCES)
    model = loaded.classifier(vectors).model
    video = torch.randn(3, 3, 8, 32, 32)
    for budget in (24, 6):
        cosines = both.embed_video(video, budget) @ vectors.t()
        torch.testing.assert_close(model(video, budget).logits, both.language.scale * cosines)
    # It shares what it does not change.
    assert model.blocks[0].mlp.fc1.weight.data_ptr() == both.video.blocks[0].mlp.fc1.weight.data_ptr()


def test_templates_are_averaged_as_it_is_said(encoder: Path) -> None:
    loaded = DualEncoderCheckpoint.load(encoder)
    templates = ["a {}", "{} moves left", "a red {}"]
    names = ["ball", "cube"]
    rows = torch.stack([loaded.embed_texts([t.replace("{}", name) for t in templates]) for name in names])
    video = F.normalize(torch.randn(4, 12), dim=-1)
    scores = embed_classes(loaded, names, templates, "scores")
    torch.testing.assert_close(video @ scores.t(), torch.einsum("bd,ntd->bnt", video, rows).mean(-1))
    embeddings = embed_classes(loaded, names, templates, "embeddings")
    torch.testing.assert_close(embeddings, F.normalize(rows.mean(1), dim=-1))
    assert len(set(TEMPLATES)) == 16
    for bad in ("no place", "{} and {}"):
        with pytest.raises(ValueError, match="must have one "):
            embed_classes(loaded, names, [bad])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("brush_hair", "brush hair"),
        ("adult+male+speaking", "adult male speaking"),
        ("abseiling", "abseiling"),
        ("Putting something on a surface", "Putting something on a surface"),
        ("TaiChi", "tai chi"),
        ("playing the DJ", "playing the DJ"),
    ],
)
def test_class_names_become_words(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_classes_of_words_are_an_ordinary_checkpoint(
    encoder: Path, videos: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "names.txt").write_text("ball\ncube\n")
    folder = tmp_path / "zero"
    assert main(["zero-shot", str(encoder), str(tmp_path / "names.txt"), "--out", str(folder)]) == 0
    loaded = Checkpoint.load(folder)
    model = loaded.model
    assert loaded.labels == ["ball", "cube"]
    assert loaded.provenance["classes"]["average"] == "embeddings"
    assert [plan.keep for plan in loaded.plans] == [12]
    dual = DualEncoderCheckpoint.load(encoder)
    both = dual.model
    vectors = embed_classes(dual, ["ball", "cube"])
    video = torch.randn(2, 3, 8, 24, 24)
    torch.testing.assert_close(
        model(video, 12).logits, both.language.scale * both.embed_video(video, 12) @ vectors.t()
    )
    lines = [json.loads(line) for line in videos.read_text().splitlines()]
    labelled = [{"path": str(videos.parent / line["path"]), "label": i % 2} for i, line in enumerate(lines)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in labelled))
    command = ["evaluate", str(folder), str(tmp_path / "test.jsonl"), "--budgets", "12", "--latency=false"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert main(["predict", labelled[0]["path"], "--checkpoint", str(folder)]) == 0
    assert "ball" in capsys.readouterr().out
    # A manifest that names its classes will do, too; one that does not is refused.
    assert main(["zero-shot", str(encoder), str(tmp_path / "test.jsonl"), "--out", str(folder)]) == 2
    assert "does not name its classes" in capsys.readouterr().err
    assert fluxvit.load(folder).model.num_classes == 2


def test_plans_are_searched_by_captions_and_written_to_the_video_side(
    videos: Path, tmp_path: Path, capsys
) -> None:
    folder = saved_encoder(tmp_path / "dual")
    command = ["optimize", str(folder), str(videos), "--budgets", "6", "--frames", "4,8", "--sizes", "16,24"]
    assert main([*command, "--out", str(tmp_path / "search")]) == 0
    assert str(folder / "video") in capsys.readouterr().out
    loaded = DualEncoderCheckpoint.load(folder)
    assert not [
        path for path in (tmp_path / "search").iterdir() if path.is_dir()
    ]  # No checkpoint of its own.
    # The plan for another budget stays.
    assert [plan.keep for plan in loaded.video.plans] == [12, 6]
    plan = loaded.video.plans[1]
    both = DualEncoderCheckpoint.load(folder).model
    manifest = read_manifest(videos, None)
    firsts = [entry.captions[0] for entry in manifest.entries]
    words = loaded.embed_texts(firsts)
    clips = [ClipDataset(manifest)[ClipRequest(i, plan.grid)].video for i in range(10)]
    video = normalize(torch.stack(clips), loaded.video.mean, loaded.video.std)
    with torch.no_grad():
        vectors = both.embed_video(video, plan.keep, plan.head, plan.selector)
    right = int(((vectors @ words.t()).argmax(1) == torch.arange(10)).sum())
    assert (plan.measured.correct, plan.measured.total) == (right, 10)
    assert json.loads((folder / "video" / "optimize.json").read_text())["data"]["clips"] == 10
    assert main([*command, "--to", str(tmp_path / "copy")]) == 2


def test_info_of_a_dual_encoder_is_that_of_its_video_side(
    encoder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["info", str(encoder)]) == 0
    whole = capsys.readouterr().out
    assert main(["info", str(encoder / "video")]) == 0
    video = capsys.readouterr().out
    assert whole.splitlines()[1:] == video.splitlines()[1:]
    assert "parameters" in whole
