"""Figures of proofs are plain numbers, which json can hold; a vocabulary is read from its first entry to its last."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from finllm.errors import UserError
from finllm.models.proofs import Proof, future_difference, head_difference, tokenizer_fits


class Moving(nn.Module):
    """Each position's logits are those of the next token too."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)

    def base_model(self, input_ids, use_cache):
        return SimpleNamespace(last_hidden_state=self.body(input_ids))

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        logits = self.head(self.body(input_ids))
        return SimpleNamespace(logits=logits + torch.roll(logits, -1, 1))


def test_figures_are_plain_numbers():
    model = Moving()
    moved, rounding, _ = future_difference(model, [0, 1, 2, 3], 2, 1e-4)
    figures = [moved, rounding, head_difference(model, torch.arange(4).view(1, 4))]
    assert [type(figure) for figure in figures] == [float] * 3 and moved > 0 and figures[2] > 0
    assert json.loads(json.dumps([Proof("n", each, 1.0, True, "s").as_json()["figure"] for each in figures])) == figures


@pytest.mark.parametrize("names", [{"s": 2, "a": 0, "b": 1}, {"a": 0, "s": 2, "b": 1}, {"a": 0, "b": 1, "s": 2}])
def test_a_token_without_a_row_is_found_wherever_it_stands(names):
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=0, pad_token_id=0, unk_token_id=None, eos_token="a",
                                all_special_ids=[0], added_tokens_decoder={}, get_vocab=lambda: names)  # fmt: skip
    embedding = SimpleNamespace(weight=torch.zeros(2, 1))
    model = SimpleNamespace(get_input_embeddings=lambda: embedding, config=SimpleNamespace(name_or_path="m"))
    with pytest.raises(UserError, match="has 1 tokens beyond the model's embedding, up to 's' with id 2"):
        tokenizer_fits(tokenizer, model)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_added_special_tokens_stay_text_wherever_they_stand(place):
    ids = [5, 6, 7]
    added = {id: SimpleNamespace(special=True) for id in ids[place:] + ids[:place]}
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=0, pad_token_id=0, unk_token_id=None, eos_token="a",
                                all_special_ids=[0], added_tokens_decoder=added,
                                get_vocab=lambda: {"a": 0, "x": 5, "y": 6, "z": 7})  # fmt: skip
    embedding = SimpleNamespace(weight=torch.zeros(1, 1))
    model = SimpleNamespace(get_input_embeddings=lambda: embedding, config=SimpleNamespace(name_or_path="m"))
    assert tokenizer_fits(tokenizer, model) is None
