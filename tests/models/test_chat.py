from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluxvit.checkpoints.chat import ChatCheckpoint
from fluxvit.checkpoints.language_model import load_language_model
from fluxvit.data.questions import pack_turns
from fluxvit.models.chat import Connector, ConnectorConfig, token_positions
from talking import WORDS, saved_chat, tiny_language_model

pytest.importorskip("transformers")


def connector(kind: str) -> Connector:
    torch.manual_seed(0)
    return Connector(ConnectorConfig(24, 8, 20, kind, queries=3, width=16, num_heads=2, scale=0.25))


def test_places_are_the_middles_of_tokens() -> None:
    kept = torch.tensor([[0, 7, 23]])
    places = token_positions(kept, (2, 3, 4), 1)
    expected = torch.tensor([[[0.25, 1 / 6, 1 / 8], [0.25, 3 / 6, 7 / 8], [0.75, 5 / 6, 7 / 8]]])
    torch.testing.assert_close(places, expected)
    everything = token_positions(None, (2, 3, 4), 2)
    assert everything.shape == (2, 24, 3)
    torch.testing.assert_close(everything[1, [0, 7, 23]], expected[0])


@pytest.mark.parametrize("count", [1, 7, 30])
def test_queries_make_as_many_vectors_of_any_number_of_tokens(count: int) -> None:
    made = connector("query")
    tokens, places, pooled = torch.randn(2, count, 24), torch.rand(2, count, 3), torch.randn(2, 8)
    out = made(tokens, places, pooled)
    assert out.shape == (2, 3, 20)
    # The order of tokens says nothing, for they carry their places; these do.
    order = torch.randperm(count)
    torch.testing.assert_close(made(tokens[:, order], places[:, order], pooled), out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made(tokens, places.flip(1) * 0.5, pooled), out, atol=1e-3)
    assert not torch.allclose(made(tokens, places, pooled + torch.randn(2, 8)), out, atol=1e-3)
    # What comes out is as large as the language model's words.
    assert out.std().item() == pytest.approx(0.25, rel=0.1)


def test_the_mlp_makes_a_vector_of_each_token() -> None:
    made = connector("mlp")
    tokens, places, pooled = torch.randn(2, 9, 24), torch.rand(2, 9, 3), torch.randn(2, 8)
    out = made(tokens, places, pooled)
    assert out.shape == (2, 10, 20)
    fourth = made(tokens[:, 4:5], places[:, 4:5], pooled)
    torch.testing.assert_close(fourth, out[:, [0, 5]], rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="choose mlp or query"):
        ConnectorConfig(8, 8, 8, "conv")
    with pytest.raises(ValueError, match="width 10 is no multiple of 4 heads"):
        ConnectorConfig(8, 8, 8, width=10)


def test_answers_have_the_probability_of_each_row_alone(tmp_path: Path) -> None:
    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    chat, language = loaded.model, loaded.language
    before, behind = language.first_turn("what moves ?", loaded.instruction)
    rows = [
        [(behind, language.answer_ids("ball"))],
        [
            (behind, language.answer_ids("the cube")),
            (language.next_turn("which way does it go ?"), language.answer_ids("to the left .")),
            (language.next_turn("what ?"), language.answer_ids("right")),
        ],
        [(behind, language.answer_ids("it")), (language.next_turn("which ?"), language.answer_ids("ball"))],
    ]
    ids, turns, _ = pack_turns(rows)
    seen = torch.randn(3, 5, 32)
    for video in (seen, None):
        found = chat.log_probabilities(before, video, ids, turns > 0)
        assert found.shape == ids.shape
        for row, said in enumerate(rows):
            words = chat.embed_words(torch.cat([before, *(ids for turn in said for ids in turn)]))
            if video is not None:
                words = torch.cat([words[: len(before)], video[row], words[len(before) :]])
            logits = chat.language(inputs_embeds=words[None]).logits[0].log_softmax(-1)
            start, place = len(words) - sum(len(ids) for turn in said for ids in turn), 0
            expected = torch.zeros(ids.shape[1])
            for heard, answer in said:
                for token in answer:
                    spot = place + len(heard)
                    expected[spot] = logits[start + spot - 1, token]
                    place += 1
                place += len(heard)
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    # Nothing stays behind in the language model.
    assert chat.language(input_ids=ids).logits.shape[1] == ids.shape[1]


def test_turns_are_numbered_and_padded_behind() -> None:
    one, two, three = torch.tensor([5]), torch.tensor([6, 7]), torch.tensor([8, 9, 10])
    packed = pack_turns([[(two, one), (one, three)], [(three, two)]])
    assert packed.ids.tolist() == [[6, 7, 5, 5, 8, 9, 10], [8, 9, 10, 6, 7, 0, 0]]
    assert packed.turns.tolist() == [[0, 0, 1, 0, 2, 2, 2], [0, 0, 0, 1, 1, 0, 0]]
    assert packed.groups.tolist() == [[1] * 7, [1] * 5 + [0] * 2]
    packed = pack_turns([[(two, one), (one, three)], [(three, two)]], [True, False])
    assert packed.groups.tolist() == [[1] * 3 + [2] * 4, [1] * 5 + [0] * 2]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_turns_that_do_not_hear_one_another(tmp_path: Path, attention: str) -> None:
    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    chat, language = loaded.model, loaded.language
    chat.language.set_attn_implementation(attention)
    before, behind = language.first_turn("what moves ?")
    other = language.first_turn("which way does it go ?")[1]
    turns = [
        (behind, language.answer_ids("the ball")),
        (other, language.answer_ids("to the left .")),
        (behind, language.answer_ids("it")),
    ]
    ids, said, hearing = pack_turns([turns, turns[:1]], [True, False])
    seen = torch.randn(2, 5, 32)
    found = chat.log_probabilities(before, seen, ids, said > 0, hearing)
    for row, count in ((0, 3), (1, 1)):
        for number in range(count):
            alone, spoken, _ = pack_turns([[turns[number]]])
            expected = chat.log_probabilities(before, seen[row : row + 1], alone, spoken > 0)
            torch.testing.assert_close(
                found[row, said[row] == number + 1], expected[spoken > 0], rtol=1e-4, atol=1e-5
            )
    assert (found[said == 0] == 0).all()


def greedy(chat, embeddings: Tensor, stop: list[int], limit: int) -> list[int]:
    """By going through everything again for each word."""
    said: list[int] = []
    while len(said) < limit:
        token = int(chat.language(inputs_embeds=embeddings).logits[0, -1].argmax())
        if token in stop:
            break
        said.append(token)
        embeddings = torch.cat([embeddings, chat.embed_words(torch.tensor([[token]]))], dim=1)
    return said


def test_what_was_said_is_gone_through_once(tmp_path: Path) -> None:
    from transformers import DynamicCache

    loaded = ChatCheckpoint.load(saved_chat(tmp_path))
    chat, language = loaded.model, loaded.language
    stop, cache = language.stops, DynamicCache()
    first, second = torch.randn(1, 9, 32), torch.randn(1, 4, 32)
    one = list(chat.generate(first, cache, stop=stop, limit=6))
    assert one == greedy(chat, first, stop, 6)
    # Its end is in the cache, too: that it stopped, or the last word before the limit.
    end = [] if len(one) == 6 else [stop[0]]
    said = chat.embed_words(torch.tensor([[*one, *end]], dtype=torch.int64))
    two = list(chat.generate(second, cache, stop=stop, limit=6))
    assert two == greedy(chat, torch.cat([first, said, second], dim=1), stop, 6)
    torch.manual_seed(0)
    drawn = list(chat.generate(first, DynamicCache(), stop=[], limit=20, temperature=5.0))
    assert len(set(drawn)) > 3


def test_several_clips_are_seen_in_their_order(tmp_path: Path) -> None:
    chat = ChatCheckpoint.load(saved_chat(tmp_path, "mlp")).model
    one, other = torch.randn(2, 1, 3, 8, 16, 16).unbind(0)
    both = chat.look([one, other], 6)
    assert both.shape == (1, 13, 32)
    # Now it is the first half.
    assert not torch.allclose(both[:, 1:7], chat.look([one], 6)[:, 1:], atol=1e-4)
    swapped = chat.look([other, one], 6)
    torch.testing.assert_close(both[:, :1], swapped[:, :1])
    assert not torch.allclose(both[:, 1:7], swapped[:, 7:], atol=1e-4)


def test_turns_are_those_of_the_template(tmp_path: Path) -> None:
    language = load_language_model(str(tiny_language_model(tmp_path)))

    def text(ids: Tensor) -> str:
        return " ".join(WORDS[i] for i in ids)

    before, behind = language.first_turn("what moves ?", "answer briefly")
    assert text(before) == "<system> answer briefly <end> <user>"
    assert text(behind) == "what moves ? <end> <assistant>"
    assert text(language.first_turn("what ?")[0]) == "<user>"
    assert text(language.answer_ids("the ball")) == "the ball <end>"
    # Behind an answer whose end was said already.
    assert text(language.next_turn("which way ?")) == "<user> which way ? <end> <assistant>"
    assert language.stops == [WORDS.index("<end>")]


def test_wrong_language_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no language model from '.*nowhere/at/all'"):
        load_language_model(str(tmp_path / "nowhere" / "at" / "all"))
    folder = tiny_language_model(tmp_path / "lm")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        load_language_model(str(folder))
