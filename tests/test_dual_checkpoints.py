from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import fluxvit
from fluxvit.dual_checkpoints import is_dual, load_dual, save_dual
from fluxvit.models.dual_encoder import DualEncoder, LanguageSide
from fluxvit.models.huggingface_text import HuggingFaceText
from language import SENTENCES, saved_encoder, small_encoder


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    encoder, texts = small_encoder()
    read, info = load_dual(folder)
    assert is_dual(folder)
    assert not is_dual(folder / "video")
    video = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(read.embed_video(video, 6), encoder.embed_video(video, 6))
    assert torch.equal(read.embed_text(*info.texts(SENTENCES)), encoder.embed_text(*texts(SENTENCES)))
    assert torch.equal(read.language.scale, encoder.language.scale)
    assert info.provenance == {"made_by": "tests"}
    assert [plan.keep for plan in info.video.plans] == [12]
    # The video side is an ordinary checkpoint.
    assert fluxvit.load(folder / "video").num_classes == 0
    # It is replaced as a whole.
    save_dual(folder, read, info)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dual"]


def test_with_a_network_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder, texts = small_encoder()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40
    )
    tower = HuggingFaceText(transformers.BertModel(config), "mean", 9)
    encoder = DualEncoder(encoder.video, LanguageSide(tower, 16, 12)).eval()
    _, info = load_dual(saved_encoder(tmp_path / "words"))
    read, _ = load_dual(save_dual(tmp_path / "dual", encoder, info))
    assert torch.equal(read.embed_text(*texts(SENTENCES)), encoder.embed_text(*texts(SENTENCES)))


def test_damaged_folders_are_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(
        ValueError, match="no dual encoder, which `fluxvit contrast` makes: it is a checkpoint w"
    ):
        load_dual(checkpoint)
    with pytest.raises(ValueError, match=r"nowhere: no dual encoder.*: it is none"):
        load_dual(tmp_path / "nowhere")
    encoder, _ = small_encoder()
    _, info = load_dual(saved_encoder(tmp_path / "dual"))
    with pytest.raises(ValueError, match="holds something else than a dual encoder"):
        save_dual(checkpoint, encoder, info)
    for name, damage, message in (
        ("language.safetensors", b"\x00" * 20, "damaged or not a safetensors file"),
        ("tokenizer.json", b"{", "tokenizer.json: the tokenizer cannot be read"),
        ("language.json", b'{"format": 2}', "format 2, this version of fluxvit reads 1"),
        ("language.json", b"[", "cannot be read as JSON"),
    ):
        folder = saved_encoder(tmp_path / "damaged")
        (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            load_dual(folder)
    (saved_encoder(tmp_path / "damaged") / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"is not complete: .*tokenizer\.json cannot be read"):
        load_dual(tmp_path / "damaged")
    folder = saved_encoder(tmp_path / "damaged")
    facts = json.loads((folder / "language.json").read_text())
    (folder / "language.json").write_text(json.dumps({**facts, "dim": 13}))
    with pytest.raises(ValueError, match="disagree: "):
        load_dual(folder)


def test_commands_for_videos_alone_are_told_where_the_video_side_is(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "dual")
    with pytest.raises(ValueError, match=r"has no config\.json; its video side is one: .*dual/video"):
        fluxvit.load(folder)
