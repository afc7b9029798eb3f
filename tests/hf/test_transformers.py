"""FluxViT in transformers: loading, saving, the pipeline, training, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5")

from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModel, AutoModelForVideoClassification, Trainer, TrainingArguments, pipeline

import fluxvit
from conftest import small_model
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.flux.grid import SamplingGrid
from fluxvit.flux.plan import Cascade, Measured, Plan
from fluxvit.hf import FluxViTConfig, FluxViTForVideoClassification, FluxViTModel, FluxViTVideoProcessor
from fluxvit.hf.model_card import model_card
from fluxvit.synthetic.builder import make_dataset
from fluxvit.synthetic.motionworld import MotionWorldConfig
from fluxvit.video.base import VideoError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three encoded videos."""
    folder = tmp_path_factory.mktemp("motionworld") / "world"
    config = MotionWorldConfig(videos=1, seed=3, difficulty="demo", val=1, test=3)
    make_dataset(folder, config, workers=1, progress=False)
    return [str(path) for path in sorted((folder / "test").glob("*.mp4"))]


def load(folder: Path, **options: Any) -> FluxViTForVideoClassification:
    return FluxViTForVideoClassification.from_pretrained(folder, **options)


def clips(count: int = 2, frames: int = 8, height: int = 24, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, frames, 3, height, width, generator=generator)


def test_folders_of_fluxvit_and_transformers_are_the_same(checkpoint: Path, tmp_path: Path) -> None:
    ours = fluxvit.load(checkpoint)
    assert isinstance(ours, Checkpoint)
    model = load(checkpoint)
    model.save_pretrained(tmp_path / "saved")
    again, back = load(tmp_path / "saved"), fluxvit.load(tmp_path / "saved")
    assert isinstance(back, Checkpoint)
    assert back.digest() == ours.digest() == again.to_checkpoint().digest()
    for field in ("labels", "plans", "grids", "sampling", "selector", "mean", "std", "multi_label"):
        assert getattr(back, field) == getattr(ours, field), field
    expected = ours.model(clips().transpose(1, 2), 12)
    for one in (model, again, FluxViTForVideoClassification.from_checkpoint(ours)):
        out = one(clips(), budget=12)
        assert torch.equal(out.logits, expected.logits)
        assert torch.equal(out.kept, expected.kept)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    assert fluxvit.Predictor(tmp_path / "saved", 12).plan == fluxvit.Predictor(checkpoint, 12).plan


def test_auto_classes_load_a_saved_folder_in_a_fresh_process(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    model.save_pretrained(tmp_path / "saved")
    np.save(tmp_path / "video.npy", clips().numpy())
    code = (
        "import sys, numpy, torch, fluxvit.hf\n"
        "from transformers import AutoModelForVideoClassification as Auto\n"
        "torch.set_num_threads(1)  # As in the tests: the order of sums depends on it.\n"
        "model = Auto.from_pretrained('saved')\n"
        "out = model(torch.from_numpy(numpy.load('video.npy')), budget=12)\n"
        "numpy.save('logits.npy', out.logits.detach().numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = model(clips(), budget=12).logits.detach().numpy()
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected)


def test_auto_classes_keep_the_plans(checkpoint: Path, tmp_path: Path) -> None:
    for auto in (AutoModel, AutoModelForVideoClassification):
        auto.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
        assert Checkpoint.load(tmp_path / "saved").plans == Checkpoint.load(checkpoint).plans


@pytest.mark.parametrize("budget", [None, 36, 18, "0.03gflops"])
def test_the_pipeline_answers_as_the_predictor_does(world: list[str], budget: Any) -> None:
    name = "fluxvit_nano_motionworld"
    model = FluxViTForVideoClassification.from_checkpoint(name)
    processor = FluxViTVideoProcessor(model.config, budget)
    classify = pipeline("video-classification", model=model, video_processor=processor)
    spend = fluxvit.Budget.parse(budget) if isinstance(budget, str) else budget
    predict = fluxvit.Predictor(name, spend, precision="fp32", backend="torch")
    for path, answer in zip(world, classify(world), strict=True):
        expected = predict(path).top(5)
        assert [row["label"] for row in answer] == [label for label, _ in expected]
        probabilities = [probability for _, probability in expected]
        assert [row["score"] for row in answer] == pytest.approx(probabilities, abs=1e-5)


def test_the_pipeline_needs_nothing_but_the_folder(world: list[str], tmp_path: Path) -> None:
    model = FluxViTForVideoClassification.from_checkpoint("fluxvit_nano_motionworld")
    model.save_pretrained(tmp_path / "saved")
    classify = pipeline("video-classification", str(tmp_path / "saved"), model_kwargs={"budget": 18})
    processor = FluxViTVideoProcessor(model.config, 18)
    given = pipeline("video-classification", model=model, video_processor=processor)
    for answer, expected in zip(classify(world), given(world), strict=True):
        assert [row["label"] for row in answer] == [row["label"] for row in expected]
        assert [row["score"] for row in answer] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert classify.model.config.budget == 18
    assert classify(world[0], num_frames=16) != classify(world[0])


def test_the_processor_takes_what_the_predictor_takes(checkpoint: Path, clip: Path) -> None:
    processor = FluxViTVideoProcessor.from_pretrained(checkpoint)
    inputs = processor(str(clip), 12)
    assert inputs["pixel_values_videos"].shape == (1, 8, 3, 16, 32)
    assert inputs["budget"] == 12
    for video in (clip, clip.read_bytes(), [clip], {"path": None, "bytes": clip.read_bytes()}):
        assert torch.equal(processor(video, 12)["pixel_values_videos"], inputs["pixel_values_videos"])
    frames = np.zeros((8, 40, 40, 3), np.uint8)
    many = processor([frames, list(frames)])["pixel_values_videos"]
    assert many.shape == (2, 8, 3, 24, 24)
    assert processor(list(frames), num_frames=4, budget=6)["pixel_values_videos"].shape[:2] == (1, 4)
    assert isinstance(processor(frames, return_tensors="np")["pixel_values_videos"], np.ndarray)


def test_grids_may_keep_the_aspect_of_videos(checkpoint: Path) -> None:
    processor = FluxViTVideoProcessor.from_pretrained(checkpoint, 12, keep_aspect=True)
    model = load(checkpoint)
    wide, tall, square = ((20, 30, 60, 3), (20, 90, 30, 3), (20, 40, 40, 3))
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in (wide, tall, square, wide)]
    inputs = processor(videos)  # The grid is 8x16x32: 4 times 8 tokens.
    sizes = [tuple(clip.shape) for clip in inputs["pixel_values_videos"]]
    assert sizes == [(8, 3, 16, 32), (8, 3, 32, 16), (8, 3, 16, 24), (8, 3, 16, 32)]
    assert [len(kept) for kept in model(**inputs).kept] == [12] * 4
    assert processor(videos[0])["pixel_values_videos"].shape == (1, 8, 3, 16, 32)
    assert len(processor(videos[1], 32)["pixel_values_videos"]) == 1  # The whole pool: no patch is lost.


def test_a_budget_is_kept_or_refused(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    processor = FluxViTVideoProcessor.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="budget 500 tokens: the grid 8x24 has 36 tokens"):
        processor(clip, 500)
    with pytest.raises(ValueError, match="milliseconds are measured on a device"):
        processor(clip, "20ms")
    with pytest.raises(ValueError, match="num_frames=len"):
        processor(clip, do_sample_frames=False)
    with pytest.raises(ValueError, match="frames 7 is not a multiple of 2"):
        processor(clip, num_frames=7)
    with pytest.raises(VideoError, match=r"nowhere\.mp4"):
        processor("nowhere.mp4")
    model = load(checkpoint, budget=12)
    assert model(clips()).kept.shape == (2, 12)
    assert model(clips(), budget=6).kept.shape == (2, 6)
    with pytest.raises(ValueError, match="budget 37: clips of 8x24 have a pool of 36 tokens"):
        model(clips(), budget=37)
    with pytest.raises(ValueError, match="a model takes tokens"):
        model(clips(), budget=fluxvit.Budget(gflops=1))
    with pytest.raises(ValueError, match="1 budgets for 2 clips"):
        model(clips(), budget=[6])
    with pytest.raises(ValueError, match=r"\[B, T, C, H, W\]"):
        model(clips()[0])
    with pytest.raises(ValueError, match="attn_implementation 'eager'"):
        load(checkpoint, attn_implementation="eager")
    model.save_pretrained(tmp_path / "saved")
    assert FluxViTVideoProcessor.from_pretrained(tmp_path / "saved")(clip)["budget"] == 12


def test_clips_of_several_grids_and_budgets_are_classified_as_each_alone(checkpoint: Path) -> None:
    model = load(checkpoint)
    mixed = [clips(1)[0], clips(1, 4, 16, 32)[0], clips(1, 8, 16, 16)[0]]
    labels = torch.tensor([0, 1, 2])
    out = model(mixed, budget=[12, 6, 16], labels=labels)
    alone = [model(clip[None], budget=tokens) for clip, tokens in zip(mixed, (12, 6, 16), strict=True)]
    torch.testing.assert_close(out.logits, torch.cat([one.logits for one in alone]))
    assert [None if kept is None else len(kept) for kept in out.kept] == [12, 6, None]
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    two = model(clips(), budget=torch.tensor([12, 6]))
    torch.testing.assert_close(two.logits[1:], model(clips()[1:], budget=6).logits)
    features = FluxViTModel.from_pretrained(model.config.name_or_path)
    with pytest.raises(ValueError, match="one grid and one budget"):
        features(mixed)


def test_features_are_those_of_the_network(checkpoint: Path) -> None:
    model = FluxViTModel.from_pretrained(checkpoint)
    out = model(clips(), budget=12, output_hidden_states=True)
    inner = Checkpoint.load(checkpoint).model.forward_intermediates(clips().transpose(1, 2), [0, 1], 12)
    assert torch.equal(out.last_hidden_state, inner.tokens)
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[1], inner.layers[0])
    assert torch.equal(out.kept, inner.kept)
    assert torch.equal(out.pooler_output, model.model(clips().transpose(1, 2), 12).embedding)
    assert isinstance(model(clips(), return_dict=False), tuple)


class Videos(torch.utils.data.Dataset):
    """Clips of two classes, which differ in brightness."""

    def __init__(self, sizes: tuple[int, ...] = (24,)) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        size = self.sizes[index % len(self.sizes)]
        generator = torch.Generator().manual_seed(index)
        video = torch.randn(8, 3, size, size, generator=generator) + 2 * (index % 2)
        return {"labels": index % 2, "pixel_values_videos": video}


@pytest.mark.parametrize("sizes", [(24,), (24, 32)], ids=["one grid", "mixed grids"])
def test_the_trainer_fine_tunes(checkpoint: Path, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    model = load(checkpoint, num_labels=2, ignore_mismatched_sizes=True)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=20,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Videos(sizes),
        eval_dataset=Videos(sizes),
        data_collator=FluxViTVideoProcessor.collate,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert trainer.evaluate()["eval_loss"] < 0.3
    predicted = trainer.predict(Videos(sizes))
    assert predicted.predictions.shape == (32, 2)
    saved = fluxvit.load(tmp_path / "run" / "checkpoint-20")
    assert isinstance(saved, Checkpoint)
    assert saved.labels == []
    assert saved.model.num_classes == 2
    video = Videos()[1]["pixel_values_videos"].transpose(0, 1)[None]
    for out in saved.model(video, [24, 12, 6]):  # Every head was trained.
        assert out.logits.argmax() == 1


def test_checkpointed_blocks_have_the_same_gradients(checkpoint: Path) -> None:
    gradients = []
    for enabled in (False, True):
        model = load(checkpoint).train()
        if enabled:  # The name of transformers before 5.20, or the one after.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert model.model.blocks.grad_checkpointing
        model(clips(), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append(model.model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(*gradients)


def test_training_refuses_pools_smaller_than_the_largest_budget(checkpoint: Path) -> None:
    model = load(checkpoint).train()
    with pytest.raises(ValueError, match="budget 24: clips of 4x16 have a pool of 8 tokens"):
        model(clips(2, 4, 16, 16), labels=torch.tensor([0, 1]))
    assert model(clips(2, 4, 16, 16), budget=6, labels=torch.tensor([0, 1])).loss.requires_grad


def test_measured_accuracy_is_in_the_card_until_the_weights_change(tmp_path: Path) -> None:
    grid = SamplingGrid(8, 24, 24)
    stage = Plan(grid, 12, measured=Measured(correct=3, total=4))
    checkpoint = Checkpoint(
        small_model(),
        plans=[stage],
        cascades=[Cascade((Plan(grid, 6), stage), 0.5, (1.0, 1.0))],
        provenance={"license": "cc0-1.0", "made_by": "a test"},
    )
    model = FluxViTForVideoClassification.from_checkpoint(checkpoint)
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "license: cc0-1.0\n" in card
    assert "| 12 | 8x24 |" in card
    assert "75.0%" in card
    assert '"made_by": "a test"' in card
    assert len(Checkpoint.load(tmp_path / "saved").cascades) == 1
    model.train()(clips(), budget=12)
    assert "75.0%" not in model_card(model.config, "name")
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "README.md").write_text("My own words.")
    model.save_pretrained(tmp_path / "trained")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "trained" / "README.md").read_text() == "My own words."
    assert "75.0%" not in (tmp_path / "saved" / "README.md").read_text()
    trained = Checkpoint.load(tmp_path / "trained")
    assert trained.cascades == []
    assert [plan.measured for plan in trained.plans] == [None]
    assert trained.provenance["license"] == "cc0-1.0"
    assert "trained in transformers" in trained.provenance["made_by"]
    assert trained.provenance["start"] == {"made_by": "a test"}


def test_push_to_hub_uploads_a_folder_that_both_load(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote: dict[str, Path] = {}
    uploads: list[dict[str, Any]] = []

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": f"someone/{repo_id}"})

        def hf_hub_download(self, repo_id: str, name: str, revision: str | None) -> str:
            if name not in remote:
                raise EntryNotFoundError("no such file")
            return str(remote[name])

        def upload_folder(self, *, folder_path: str, **options: Any) -> str:
            uploads.append({"card": (Path(folder_path) / "README.md").exists(), **options})
            assert Checkpoint.load(folder_path).digest() == Checkpoint.load(checkpoint).digest()
            return "address"

    monkeypatch.setattr("fluxvit.hf.modeling.HfApi", Hub)
    model = load(checkpoint)
    assert model.push_to_hub("name", token="secret", revision="v1") == "address"
    for text in (model_card(model.config, "someone/name"), "My own words."):
        remote["README.md"] = tmp_path / "README.md"
        remote["README.md"].write_text(text)
        model.push_to_hub("name", token="secret")
    assert uploads[0] == {
        "card": True,
        "repo_id": "someone/name",
        "commit_message": "Upload model",
        "revision": "v1",
    }
    assert [upload["card"] for upload in uploads] == [True, True, False]


def test_a_clip_may_have_several_classes(tmp_path: Path) -> None:
    model = FluxViTForVideoClassification.from_checkpoint(Checkpoint(small_model(), multi_label=True))
    assert model.config.problem_type == "multi_label_classification"
    labels = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])
    out = model(clips(), budget=12, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(out.logits, labels)
    torch.testing.assert_close(out.loss, expected)
    model.save_pretrained(tmp_path / "saved")
    assert Checkpoint.load(tmp_path / "saved").multi_label
    half = load(tmp_path / "saved", dtype=torch.bfloat16)
    torch.testing.assert_close(half(clips(), budget=12).logits.float(), out.logits, atol=0.02, rtol=0)


def test_labels_of_another_task_replace_the_former_ones(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, id2label={0: "yes", 1: "no"}, ignore_mismatched_sizes=True)
    assert model.config.label2id == {"yes": 0, "no": 1}
    model.save_pretrained(tmp_path / "saved")
    assert Checkpoint.load(tmp_path / "saved").labels == ["yes", "no"]
    weights = [head.fc.weight for head in model.model.heads]
    assert all(weight.shape == (2, 16) and 0.005 < weight.std() < 0.05 for weight in weights)


def test_a_configuration_makes_a_new_model_of_a_named_size() -> None:
    config = FluxViTConfig(model="fluxvit_nano", id2label={0: "yes", 1: "no"})
    model = FluxViTForVideoClassification(config)
    assert model.model.num_classes == 2
    assert config.to_checkpoint().labels == ["yes", "no"]
    reference = fluxvit.create_model("fluxvit_nano", num_classes=2)
    for name, value in model.model.named_parameters():  # The network's own initialisation.
        if value.numel() > 1000:
            spread = float(reference.get_parameter(name).detach().std())
            assert float(value.detach().std()) == pytest.approx(spread, rel=0.1), name
    with pytest.raises(ValueError, match="no classes"):
        FluxViTForVideoClassification(FluxViTConfig(model="fluxvit_nano", num_labels=0))
    with pytest.raises(ValueError, match="depth"):
        FluxViTConfig(model={"depth": "4"})


def test_the_extra_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fluxvit.hf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'fluxvit\[hf\]'"):
        import_module("fluxvit.hf")


def test_remote_code_stands_for_the_import(checkpoint: Path, tmp_path: Path) -> None:
    """Where ``import fluxvit.hf`` cannot be added."""
    load(checkpoint).save_pretrained(tmp_path / "saved")
    code = (
        "import sys\n"
        "from transformers import AutoModelForVideoClassification as Auto\n"
        "model = Auto.from_pretrained('saved', trust_remote_code=True)\n"
        "assert type(model) is sys.modules['fluxvit.hf'].FluxViTForVideoClassification\n"
        "model.save_pretrained('again')\n"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("saved", "again")
    ]
    files[1]["README.md"] = files[1]["README.md"].replace(b"again", b"saved")
    assert files[0] == files[1]
