from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from fluxvit.cli.command import parse
from fluxvit.data.texts import Texts, caption_number, reversed_captions
from fluxvit.synthetic.motionworld.language import CLAUSES
from fluxvit.training.recipes import ContrastiveRecipe

SENTENCES = ["A red ball bounces twice.", "The ball moves left, then right!", "a cat"]


def test_words_are_told_apart_and_case_is_not() -> None:
    texts = Texts.of_words(SENTENCES, context=12)
    ids, lengths = texts(["a RED ball", "a cat", "a zebra"])
    assert lengths.tolist() == [4, 3, 3]  # With the end.
    assert len({*ids[0, :4].tolist()}) == 4
    assert ids[0, 3] == ids[1, 2] == ids[2, 2] > 0
    assert ids[1, 3:].tolist() == [0]
    assert torch.equal(texts(["a red ball"])[0], ids[:1])
    assert ids[2, 1] != ids[1, 1]
    # A word that was never seen is the unknown one, whichever it is.
    assert ids[2, 1] == texts(["xylophone"])[0][0, 0]


def test_long_texts_are_cut_and_keep_their_end() -> None:
    texts = Texts.of_words(SENTENCES, context=5)
    ids, lengths = texts(["a red ball bounces twice and twice and twice"])
    assert lengths.tolist() == [5]
    assert ids[0, -1] == texts(["cat"])[0][0, -1]


def test_a_tokenizer_is_written_and_read() -> None:
    texts = Texts.of_words(SENTENCES, context=7)
    again = Texts.from_json(texts.to_json(), context=7)
    for one, other in zip(texts(SENTENCES), again(SENTENCES), strict=True):
        assert torch.equal(one, other)
    assert again.vocab_size == texts.vocab_size
    with pytest.raises(ValueError, match="the tokenizer cannot be read: "):
        Texts.from_json('{"version": "1.0"', 7)


def test_empty_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="a text is empty"):
        Texts.of_words(SENTENCES, 7)(["a cat", " "])


def test_a_tokenizer_of_the_hub_is_taken_from_its_folder(tmp_path) -> None:
    from transformers import PreTrainedTokenizerFast

    library = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=library, unk_token="[UNK]").save_pretrained(tmp_path)
    ids, lengths = Texts.of_hub(str(tmp_path), 8)(["dog cat cow", "cat"])
    assert (ids.tolist(), lengths.tolist()) == ([[2, 1, 0], [1, 0, 0]], [3, 1])
    with pytest.raises(ValueError, match=r"no tokenizer from .*: there is no such folder"):
        Texts.of_hub(str(tmp_path / "nowhere" / "else"), 8)


def test_numbers_tell_captions_apart() -> None:
    assert caption_number("A  ball\nrolls") == caption_number("a ball rolls")
    assert caption_number("a ball rolls") != caption_number("a ball rolled")
    assert 0 <= caption_number("x") < 2**63


def test_every_act_of_motionworld_is_reversed_by_the_recipe() -> None:
    overlay = Path(__file__).parents[2] / "configs" / "overlays" / "motionworld_opposites.yaml"
    opposites = parse("train-contrastive", ContrastiveRecipe, [str(overlay)]).task.opposites
    for act in ("slide", "lift", "depth"):
        for clause, other in zip(CLAUSES[act, 0], CLAUSES[act, 1], strict=True):
            one, two = (text.format(it="the fish") for text in (clause, other))
            assert reversed_captions(one, opposites) == [two]
            assert reversed_captions(two, opposites) == [one]
    assert reversed_captions("the fish spins", opposites) == []
