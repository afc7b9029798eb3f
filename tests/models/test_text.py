"""Text towers against PyTorch's own transformer, and MobileCLIP's file against its facts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fluxvit.checkpoints.official import text_tower
from fluxvit.models.text import TextConfig, TextTransformer

TINY = TextConfig(vocab_size=50, context=9, embed_dim=128, depth=2, num_heads=2, out_dim=24)


def tower() -> TextTransformer:
    torch.manual_seed(0)
    made = TextTransformer(TINY)
    for parameter in made.parameters():  # Biases start at zero, where mistakes with them cannot be seen.
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def of_pytorch(ours: TextTransformer, ids: Tensor) -> Tensor:
    """Every token's vector, by layers of PyTorch."""
    config = ours.config
    x = ours.tokens.weight[ids] + ours.positions[: ids.shape[1]]
    mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
    for block in ours.blocks:
        layer = nn.TransformerEncoderLayer(
            config.embed_dim,
            config.num_heads,
            4 * config.embed_dim,
            dropout=0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        names = {
            "self_attn.in_proj_weight": "qkv.weight",
            "self_attn.in_proj_bias": "qkv.bias",
            "self_attn.out_proj.weight": "proj.weight",
            "self_attn.out_proj.bias": "proj.bias",
        }
        names |= {f"linear{i}.{x}": f"fc{i}.{x}" for i in (1, 2) for x in ("weight", "bias")}
        names |= {f"norm{i}.{x}": f"norm{i}.{x}" for i in (1, 2) for x in ("weight", "bias")}
        state = block.state_dict()
        layer.load_state_dict({theirs: state[mine] for theirs, mine in names.items()})
        x = layer(x, src_mask=mask, is_causal=True)
    return ours.norm(x) @ ours.proj.weight.t()


def test_the_tower_is_a_causal_transformer_read_at_the_end() -> None:
    ours = tower()
    ids = torch.randint(0, 50, (4, 9))
    lengths = torch.tensor([4, 9, 1, 6])
    expected = of_pytorch(ours, ids)[torch.arange(4), lengths - 1]
    torch.testing.assert_close(ours(ids, lengths), expected, rtol=1e-5, atol=1e-5)


def test_what_follows_the_end_does_not_count() -> None:
    ours = tower()
    ids = torch.randint(0, 50, (1, 9))
    other = ids.clone()
    other[:, 5:] = 7
    lengths = torch.tensor([5])
    torch.testing.assert_close(ours(ids, lengths), ours(other, lengths))
    torch.testing.assert_close(ours(ids, lengths), ours(ids[:, :5], lengths))
    assert not torch.allclose(ours(ids, lengths + 3), ours(other, lengths + 3))


def test_longer_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens for a context of 9"):
        tower()(torch.zeros(1, 10, dtype=torch.int64), torch.tensor([10]))


def mobileclip(ours: TextTransformer, prefix: str = "") -> dict[str, Tensor]:
    """Its weights under MobileCLIP's names."""
    state = ours.state_dict()
    theirs = {
        "embedding_layer.weight": state["tokens.weight"],
        "positional_embedding.pos_embed.pos_embed": state["positions"][None, None],
        "projection_layer": state["proj.weight"].t(),
    }
    for x in ("weight", "bias"):
        theirs[f"final_layer_norm.{x}"] = state[f"norm.{x}"]
        for i in range(ours.config.depth):
            for name, mine in {
                "pre_norm_mha.0": "norm1",
                "pre_norm_mha.1.qkv_proj": "qkv",
                "pre_norm_mha.1.out_proj": "proj",
                "pre_norm_ffn.0": "norm2",
                "pre_norm_ffn.1": "fc1",
                "pre_norm_ffn.4": "fc2",
            }.items():
                theirs[f"transformer.{i}.{name}.{x}"] = state[f"blocks.{i}.{mine}.{x}"]
    return {prefix + name: value for name, value in theirs.items()}


@pytest.mark.parametrize("prefix", ["", "text_encoder.", "model.text_encoder."])
def test_a_file_of_mobileclip_is_read(prefix: str) -> None:
    ours = tower()
    state = mobileclip(ours, prefix)
    if prefix:
        state["image_encoder.stem.weight"] = torch.zeros(3)
    read = text_tower(state)
    assert read.config == TINY
    ids, lengths = torch.randint(0, 50, (3, 9)), torch.tensor([3, 9, 5])
    assert torch.equal(read(ids, lengths), ours(ids, lengths))


def test_at_full_size_it_has_their_tensors_and_parameters() -> None:
    with torch.device("meta"):
        full = TextTransformer(TextConfig())
    theirs = mobileclip(full)
    assert len(theirs) == 149
    assert sum(value.numel() for value in theirs.values()) == 63_428_096
    assert theirs["positional_embedding.pos_embed.pos_embed"].shape == (1, 1, 77, 512)
    assert theirs["transformer.11.pre_norm_ffn.1.weight"].shape == (2048, 512)


def test_other_files_are_refused_by_name() -> None:
    state = mobileclip(tower())
    with pytest.raises(ValueError, match=r"no embedding_layer\.weight among 1 tensors"):
        text_tower({"weight": torch.zeros(2)})
    del state["transformer.1.pre_norm_ffn.4.bias"]
    state["transformer.0.extra"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"1 missing \(blocks\.1\.fc2\.bias\), 1 unexpected \(transformer\.0\.extra"
    ):
        text_tower(state)
