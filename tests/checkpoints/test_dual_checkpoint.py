from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fluxvit
from fluxvit.checkpoints.checkpoint import Checkpoint
from fluxvit.checkpoints.dual_encoder import DualEncoderCheckpoint
from fluxvit.checkpoints.huggingface_text import HuggingFaceText
from fluxvit.data.texts import Texts
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from language import SENTENCES, saved_encoder, small_encoder


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    encoder, texts = small_encoder()
    loaded = DualEncoderCheckpoint.load(folder)
    read = loaded.model
    assert DualEncoderCheckpoint.is_in(folder)
    assert not DualEncoderCheckpoint.is_in(folder / "video")
    video = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(read.embed_video(video, 6), encoder.embed_video(video, 6))
    assert torch.equal(read.embed_text(*loaded.texts(SENTENCES)), encoder.embed_text(*texts(SENTENCES)))
    assert torch.equal(read.language.scale, encoder.language.scale)
    assert loaded.provenance == {"made_by": "tests"}
    assert [plan.keep for plan in loaded.video.plans] == [12]
    # The video side is an ordinary checkpoint.
    assert fluxvit.load(folder / "video").model.num_classes == 0
    assert isinstance(fluxvit.load(folder), DualEncoderCheckpoint)
    # It is replaced as a whole.
    loaded.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dual"]


def test_the_inference_form_embeds_the_same_and_has_no_digest(tmp_path: Path) -> None:
    loaded = DualEncoderCheckpoint.load(saved_encoder(tmp_path / "dual"))
    prepared, video = loaded.prepared("fp32"), torch.randn(2, 3, 4, 16, 16)
    assert prepared.video.model is prepared.model.video
    with torch.inference_mode():
        expected = loaded.model.embed_video(video, 6)
        assert torch.allclose(prepared.model.embed_video(video, 6), expected, atol=1e-5)
    assert torch.equal(prepared.embed_texts(SENTENCES), loaded.embed_texts(SENTENCES))
    for use in (
        prepared.digest,
        prepared.video.digest,
        lambda: prepared.classifier(loaded.embed_texts(SENTENCES)),
        lambda: prepared.save(tmp_path / "copy"),
    ):
        with pytest.raises(ValueError, match="use the checkpoint that it was prepared from"):
            use()
    assert not (tmp_path / "copy").exists()


def test_with_a_network_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder, texts = small_encoder()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40
    )
    tower = HuggingFaceText(transformers.BertModel(config), "mean", 9)
    encoder = DualEncoder(encoder.video, LanguageSide(tower, 16, 12)).eval()
    folder = DualEncoderCheckpoint(encoder, texts, Checkpoint(encoder.video)).save(tmp_path / "dual")
    read = DualEncoderCheckpoint.load(folder).model
    assert torch.equal(read.embed_text(*texts(SENTENCES)), encoder.embed_text(*texts(SENTENCES)))


def test_damaged_folders_are_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(
        ValueError, match="no dual encoder, which `fluxvit train-contrastive` makes: it is a checkpoint w"
    ):
        DualEncoderCheckpoint.load(checkpoint)
    with pytest.raises(ValueError, match=r"nowhere: no dual encoder.*: it is none"):
        DualEncoderCheckpoint.load(tmp_path / "nowhere")
    loaded = DualEncoderCheckpoint.load(saved_encoder(tmp_path / "dual"))
    with pytest.raises(ValueError, match="holds something else than a dual encoder"):
        loaded.save(checkpoint)
    for name, damage, message in (
        ("language.safetensors", b"\x00" * 20, "damaged or not a safetensors file"),
        ("tokenizer.json", b"{", "tokenizer.json: the tokenizer cannot be read"),
        ("language.json", b'{"format": 2}', "format 2, this version of fluxvit reads 1"),
        ("language.json", b"[", "cannot be read as JSON"),
    ):
        folder = saved_encoder(tmp_path / "damaged")
        (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            DualEncoderCheckpoint.load(folder)
    (saved_encoder(tmp_path / "damaged") / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"is not complete: .*tokenizer\.json cannot be read"):
        DualEncoderCheckpoint.load(tmp_path / "damaged")
    folder = saved_encoder(tmp_path / "damaged")
    facts = json.loads((folder / "language.json").read_text())
    (folder / "language.json").write_text(json.dumps({**facts, "dim": 13}))
    with pytest.raises(ValueError, match="disagree: "):
        DualEncoderCheckpoint.load(folder)


def test_commands_for_videos_alone_are_told_where_the_video_side_is(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    with pytest.raises(ValueError, match=r"has no config\.json; its video side is one: .*dual/video"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("part", ["whole", "video", "language", "text blocks"])
def test_wrapped_encoders_are_written_so_that_they_can_be_read(part: str, tmp_path: Path) -> None:
    encoder, texts = small_encoder()
    wanted = encoder.state_dict()
    whole: torch.nn.Module = encoder
    if part == "whole":
        whole = torch.compile(torch.nn.DataParallel(encoder))
    elif part == "text blocks":
        for i, block in enumerate(encoder.language.text.blocks):
            encoder.language.text.blocks[i] = torch.compile(block)
    else:
        setattr(encoder, part, torch.compile(getattr(encoder, part)))
    DualEncoderCheckpoint(whole, texts, Checkpoint(encoder.video)).save(tmp_path / "dual")
    found = DualEncoderCheckpoint.load(tmp_path / "dual").model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dim": 12.0}, "dim is 12.0, expected an integer from 1"),
        ({"dim": 10**9}, "dim is 1000000000, expected"),
        ({"least_temperature": 0}, "least_temperature is 0, expected a number above 0"),
        ({"context": "9"}, "context is '9', expected"),
        ({"text": None}, "text is None, expected an object"),
        ({"text": {"kind": "lstm"}}, "text: kind is 'lstm', expected 'transformer' or 'huggingface'"),
        ({"text": {"kind": "transformer", "depth": 10**6}}, "text: depth is 1000000, expected"),
        ({"text": {"kind": "transformer", "speed": 1}}, "text: it has no setting called 'speed'"),
        ({"text": {"kind": "transformer", "vocab_size": 10**7, "embed_dim": 4096}}, "disagree: a network of"),
        ({"text": {"kind": "huggingface", "config": {}}}, "text: pooling is missing"),
        ({"provenance": []}, "provenance is .*, expected an object"),
    ],
)
def test_bad_descriptions_are_named(change: dict, reason: str, tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    facts = json.loads((folder / "language.json").read_text())
    (folder / "language.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(ValueError, match=rf"language\.json: .*{reason}"):
        DualEncoderCheckpoint.load(folder)


def test_a_tokenizer_of_another_tower_is_refused(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    (folder / "tokenizer.json").write_text(Texts.of_words([f"word{i}" for i in range(99)], 9).to_json())
    with pytest.raises(
        ValueError, match=r"tokenizer\.json has token ids up to 101, and the text tower knows"
    ):
        DualEncoderCheckpoint.load(folder)
