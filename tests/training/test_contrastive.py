from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_recipe import TINY, world
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.cli import main
from fluxvit.cli.command import parse
from fluxvit.data.manifest import Manifest, read_manifest
from fluxvit.data.texts import caption_number
from fluxvit.evaluation.config import RetrievalConfig
from fluxvit.evaluation.language.retrieval import run_retrieval
from fluxvit.flux.grid import SamplingGrid
from fluxvit.models.dual_encoder import DualEncoder
from fluxvit.training import trainer
from fluxvit.training.ema import Ema
from fluxvit.training.recipes import ContrastiveRecipe, ContrastiveSettings
from fluxvit.training.state import find_state
from fluxvit.training.tasks.base import Batch
from fluxvit.training.tasks.contrastive import Captions, ContrastiveTask
from fluxvit.utils.distributed import ALONE
from fluxvit.video.reader import open_video
from language import SENTENCES, small_encoder

sys.path.append(str(Path(__file__).parents[1] / "video"))
from clips import save_image

assert world  # A fixture.
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "contrastive").glob("*.yaml"))
SETTINGS = {"budgets": [12, 8, 4], "embed_dim": 32, "depth": 1, "pool_dim": 16, "pool_heads": 2}
WORDS = ["--text.kind", "words", "--text.width", "32", "--text.depth", "1", "--text.context", "40"]
WORDS += ["--text.trained_blocks", "-1"]


def task_of(encoder: DualEncoder, **options) -> ContrastiveTask:
    captions = Captions(Manifest((), (), ""), small_encoder()[1])
    return ContrastiveTask(
        Checkpoint(encoder.video), encoder.language, captions, ALONE, ContrastiveSettings(**options)
    )


def batch_of(video: Tensor, sentences: list[str]) -> Batch:
    captions = Captions(Manifest((), (), ""), small_encoder()[1])
    return {"video": video, **captions.encode(sentences)}


def test_a_step_is_what_it_says() -> None:
    encoder, texts = small_encoder()
    task = task_of(encoder, align_weight=3.0)
    sentences = [*SENTENCES[:4], SENTENCES[1]]  # One caption occurs twice.
    video = torch.randn(5, 3, 8, 32, 32)
    result = task(batch_of(video, sentences))

    words = encoder.embed_text(*texts(sentences))
    same = torch.tensor([[a == b for a in sentences] for b in sentences]) & ~torch.eye(5, dtype=torch.bool)
    expected, anchor = torch.zeros(()), None
    for head, budget in enumerate((24, 12, 6)):
        pooled = encoder.video(video, budget, head).embedding
        vectors = encoder.language.embed_video(encoder.video, pooled)
        cosines = encoder.language.scale * vectors @ words.t()
        cosines = cosines.masked_fill(same, -torch.inf)
        truth = torch.arange(5)
        expected += (F.cross_entropy(cosines, truth) + F.cross_entropy(cosines.t(), truth)) / 2
        if anchor is None:
            anchor = F.normalize(pooled, dim=-1)
        else:
            expected += 3 * F.smooth_l1_loss(encoder.video.align(pooled, head), anchor)
        nearest = [sentences[i] for i in (words @ vectors.t()).argmax(1)]
        found = sum(one == other for one, other in zip(nearest, sentences, strict=True)) / 5
        assert result[f"recall@{budget}"].item() == pytest.approx(found)
    torch.testing.assert_close(result["loss"], expected, rtol=1e-5, atol=1e-6)
    assert result["temperature"].item() == pytest.approx(0.07)


def test_every_gradient_that_is_waited_for_comes() -> None:
    encoder, _ = small_encoder()
    task = task_of(encoder, align_weight=0)
    task(batch_of(torch.randn(3, 3, 8, 32, 32), SENTENCES[:3]))["loss"].backward()
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


def test_of_an_image_all_tokens_are_kept() -> None:
    encoder, _ = small_encoder()
    task = task_of(encoder)
    image = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 2, -1, -1)
    before = task(batch_of(image, SENTENCES[:2]))["loss"]
    # Sixteen tokens; of a video the smallest budget, 6, would not see most of them.
    changed = image.clone()
    changed[..., 24:, :] += 1
    after = task(batch_of(changed, SENTENCES[:2]))
    assert before.isfinite()
    assert abs(after["loss"] - before) > 1e-4


def test_frozen_parts_stay_and_drop_no_path() -> None:
    encoder, _ = small_encoder()
    encoder.video.requires_grad_(False)
    encoder.train()
    task = task_of(encoder)
    task(batch_of(torch.randn(2, 3, 8, 32, 32), SENTENCES[:2]))["loss"].backward()
    assert not encoder.video.training
    assert all(parameter.grad is None for parameter in encoder.video.parameters())
    assert encoder.language.video_proj.weight.grad is not None


def test_captions_are_drawn_among_the_videos_own(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "captions": ["a red ball spins", "a blue ball spins"]},
        {"path": "b.mp4", "captions": ["a cube"]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, texts = small_encoder()
    captions = Captions(read_manifest(tmp_path / "m.jsonl", None), texts)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = captions(torch.tensor([0, 1, 0, 1]))
        numbers, lengths, ids = drawn["caption"], drawn["lengths"], drawn["ids"]
        assert numbers[0] == numbers[2]  # The same video, the same caption.
        assert torch.equal(ids[0], ids[2])
        assert numbers[1] == caption_number("a cube")
        assert torch.equal(ids[1, : lengths[1]], texts(["a cube"])[0][0])
        seen.add(numbers[0].item())
    assert seen == {caption_number(text) for text in rows[0]["captions"]}
    (tmp_path / "m.jsonl").write_text('{"path": "a.mp4"}\n')
    with pytest.raises(ValueError, match=r"a\.mp4 has no caption"):
        Captions(read_manifest(tmp_path / "m.jsonl", None), texts)


def test_reversed_captions_are_hard_negatives(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "captions": ["the ball moves Up, then left"]},
        {"path": "b.mp4", "captions": ["a cube"]},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder, texts = small_encoder()
    opposites = ({"up": "down"}, {"right": "left"})
    captions = Captions(read_manifest(tmp_path / "m.jsonl", None), texts, opposites)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        batch = captions(torch.tensor([0, 1, 0]))
        assert batch["reversed_caption"][1] == batch["caption"][1]  # Nothing of it can be reversed.
        assert batch["reversed_caption"][0] == batch["reversed_caption"][2]
        seen.add(batch["reversed_caption"][0].item())
    wanted = ("the ball moves down, then left", "the ball moves up, then right")
    assert seen == {caption_number(text) for text in wanted}
    with pytest.raises(ValueError, match=r"opposites\[0\] is {}, expected an object that is not empty"):
        ContrastiveSettings(opposites=({},))
    video, task = torch.randn(3, 3, 8, 32, 32), task_of(encoder)
    plain = {name: values for name, values in batch.items() if not name.startswith("reversed")}
    assert task({"video": video, **batch})["loss"] > task({"video": video, **plain})["loss"]


def train_contrastive(recipe: Path, data: Path, out: Path, *options: str) -> int:
    """Two steps of a recipe with a small text tower."""
    folders = ["--data.train", str(data / "train.jsonl"), "--out", str(out)]
    model = ["--model.init", "", "--model.settings", json.dumps(SETTINGS), "--images", ""]
    model += ["--val", ""]
    text = ["--text.source", "", "--text.tokenizer", "", *WORDS]
    return main(["train-contrastive", str(recipe), *TINY, *folders, *model, *text, *options])


@pytest.mark.parametrize("recipe", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_parses_builds_and_runs(recipe: Path, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train_contrastive(recipe, world, out) == 0
    loaded = DualEncoderCheckpoint.load(out / "last")
    encoder = loaded.model
    assert encoder.video.config.budgets == (12, 8, 4)
    assert loaded.provenance["recipe"]["text"]["kind"] == "words"
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"recall@12", "recall@4", "temperature"} < set(rows[0])
    assert find_state(out).about.step == 2
    # The same command has nothing left to do; another recipe is refused.
    assert train_contrastive(recipe, world, out) == 0
    assert train_contrastive(recipe, world, out, "--task.dim", "7") == 2


RECIPE = CONFIGS[-1]


def stopped_run(run: Callable[[], int]) -> int:
    """The exit status of a run that gets Ctrl-C in its second step."""
    step = trainer.Trainer._step

    def stop(self, *arguments):
        if arguments[2] == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", stop)
        return run()


def test_images_take_turns_with_videos_and_a_second_stage_goes_on(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    images = []
    for row in rows[:8]:
        path = tmp_path / f"{Path(row['path']).stem}.png"
        with open_video(world / row["path"]) as reader:
            save_image(path, reader.read(np.zeros(1))[0])
        images.append({"path": str(path), "captions": row["captions"][:1]})
    (tmp_path / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in images))
    mixed = ["--images", str(tmp_path / "images.jsonl"), "--optim.log_every", "1"]
    assert train_contrastive(RECIPE, world, tmp_path / "first", *mixed) == 0
    log = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [0, 1, 2, 3]  # As many again as of videos alone.

    # The second stage keeps the text tower and the shared space of the first.
    first = DualEncoderCheckpoint.load(tmp_path / "first" / "last").model
    again = [
        "--model.init",
        str(tmp_path / "first" / "last"),
        "--model.settings",
        "{}",
        "--optim.lr",
        "1e-30",
    ]
    assert train_contrastive(RECIPE, world, tmp_path / "second", *again) == 0
    loaded = DualEncoderCheckpoint.load(tmp_path / "second" / "last")
    second = loaded.model
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, msg=name)
    assert loaded.texts.context == 40


def test_a_stopped_run_goes_on_to_the_same_weights(world: Path, tmp_path: Path) -> None:
    assert train_contrastive(RECIPE, world, tmp_path / "whole", "--epochs", "2") == 0
    assert stopped_run(lambda: train_contrastive(RECIPE, world, tmp_path / "cut", "--epochs", "2")) == 130
    assert DualEncoderCheckpoint.load(tmp_path / "cut" / "last")
    assert train_contrastive(RECIPE, world, tmp_path / "cut", "--epochs", "2") == 0
    one, other = (
        DualEncoderCheckpoint.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_exported_is_the_moving_average_of_both_towers(world: Path, tmp_path: Path) -> None:
    options = ("--optim.ema", "0.4", "--optim.lr", "0.01", "--epochs", "2")
    update, expected = Ema.update, {}

    def by_hand(self, task, step):
        if not expected:
            expected.update({name: value.clone() for name, value in self.weights.items()})
        update(self, task, step)
        decay = min(0.4, (1 + step) / (10 + step))
        for name, value in task.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ema, "update", by_hand)
        assert train_contrastive(RECIPE, world, tmp_path / "whole", *options) == 0
    encoder = DualEncoderCheckpoint.load(tmp_path / "whole" / "last").model
    for prefix, module in (("model.", encoder.video), ("language.", encoder.language)):
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, expected[prefix + name], msg=name)
    # The average is not what the last step left behind, in neither tower.
    assert train_contrastive(RECIPE, world, tmp_path / "plain", *options[2:]) == 0
    plain = DualEncoderCheckpoint.load(tmp_path / "plain" / "last").model
    for name in ("video.cls_token", "language.text_proj.weight"):
        assert not torch.equal(plain.state_dict()[name], encoder.state_dict()[name])
    # A run that was stopped goes on to the same average.
    assert stopped_run(lambda: train_contrastive(RECIPE, world, tmp_path / "cut", *options)) == 130
    assert train_contrastive(RECIPE, world, tmp_path / "cut", *options) == 0
    again = DualEncoderCheckpoint.load(tmp_path / "cut" / "last").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in encoder.state_dict().items())


def test_validation_keeps_the_best(world: Path, tmp_path: Path) -> None:
    options = ["--val", str(world / "val.jsonl"), "--evaluation.grid", "4x16", "--epochs", "3"]
    options += ["--evaluation.every_epochs", "1"]
    assert train_contrastive(RECIPE, world, tmp_path / "run", *options, "--optim.lr", "0.01") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    best = DualEncoderCheckpoint.load(tmp_path / "run" / "best").model
    found = run_retrieval(
        RetrievalConfig(
            str(tmp_path / "run" / "best"),
            str(world / "val.jsonl"),
            grid=SamplingGrid(4, 16, 16),
            out=str(tmp_path / "out"),
        ),
        progress=False,
    )
    kept = max(rows, key=lambda row: row["mean"])
    for budget in best.video.config.budgets:
        (row,) = (row for row in found.results["rows"] if row["budget"] == budget and row["kind"] != "plain")
        assert row["grid"] == "4x16"
        mean = (row["text_to_video"]["r1"] + row["video_to_text"]["r1"]) / 200
        assert kept[f"recall@{budget}"] == pytest.approx(mean, abs=1e-6)
    assert {"mean", "recall@12", "recall@8", "recall@4"} < set(rows[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.accumulate", "2"], "compares all clips of a step"),
        (["--text.kind", "elmo"], "expected one of huggingface, minilm, mobileclip, words"),
        (["--text.kind", "huggingface"], "needs text.source"),
        (["--text.source", "x"], "words has no use for text.source"),
        (["--task.video", "some"], "expected one of all, head, none"),
        (["--text.trained_blocks", "3"], "the last 3 blocks of a text tower that has 1"),
        (["--data.train", "nowhere.jsonl"], "no such manifest"),
    ],
)
def test_bad_recipes_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert train_contrastive(RECIPE, world, tmp_path / "run", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_videos_without_captions_are_left_out(world: Path, tmp_path: Path, caplog) -> None:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["path"] = str(world / row["path"])
    for row in rows[:3]:
        row["captions"] = []
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train_contrastive(RECIPE, tmp_path, tmp_path / "run") == 0
    assert "3 videos have no caption and are left out" in caplog.text
    for row in rows:
        row["captions"] = []
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train_contrastive(RECIPE, tmp_path, tmp_path / "other") == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_makes_sense_at_its_own_size(path: Path) -> None:
    recipe = parse("train-contrastive", ContrastiveRecipe, [str(path)])
    assert len(recipe.model.settings.budgets or range(3)) == 3
    assert recipe.augment.flip == 0  # Captions tell left from right.
    if "clip_" in path.stem:
        grids = recipe.grids
        ranges = (grids.frames, grids.sizes, grids.min_tokens, grids.max_tokens)
        assert ranges == ((4, 26, 2), (168, 280, 28), 2048, 4096)
