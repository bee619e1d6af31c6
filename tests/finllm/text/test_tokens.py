"""The mask, as literals: what is learned, what is not, and what a cut takes."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from finllm.errors import UserError
from finllm.text.prompts import build_prompt
from finllm.text.tokens import count_tokens, encode, encode_prompt, tokenize

EXAMPLE = {"instruction": "Add.", "input": "1 2", "output": "3 b"}


class Words:
    """A tokenizer whose ids can be written down: a word an id, in the order of first sight, EOS = pad = 0."""

    eos_token_id = pad_token_id = 0
    all_special_ids, added_tokens_decoder, special_tokens_map = [0], {}, {"eos_token": "end"}
    unk_token = unk_token_id = None

    def __init__(self):
        self.ids: dict[str, int] = {}

    def get_vocab(self):
        return {}

    def save_vocabulary(self, folder):
        """Nothing but the order of sight decides an id."""

    def __call__(self, text, add_special_tokens=True):
        words = text.replace("\n", " \n ").split(" ")
        ids = [self.ids.setdefault(word, len(self.ids) + 1) for word in words if word]
        return type("Encoding", (), {"input_ids": ids})


def short(monkeypatch) -> Words:
    """The template cut down to `Q: instruction input A:`, so that labels fit on a line."""
    monkeypatch.setattr("finllm.text.tokens.build_prompt", lambda instruction, input: f"Q: {instruction} {input} A:")
    return Words()


def test_labels_are_minus_100_on_the_prompt_and_the_ids_on_response_and_eos(monkeypatch):
    encoded = encode(short(monkeypatch), EXAMPLE)
    assert encoded["input_ids"] == [1, 2, 3, 4, 5, 6, 7, 0]
    assert encoded["labels"] == [-100, -100, -100, -100, -100, 6, 7, 0]
    assert encoded["lost"] == 0


def test_prompt_loss_is_an_option(monkeypatch):
    assert encode(short(monkeypatch), EXAMPLE, prompt_loss=True)["labels"] == [1, 2, 3, 4, 5, 6, 7, 0]


@pytest.mark.parametrize(
    ("max_length", "labels", "lost"),
    [(8, [6, 7, 0], 0), (7, [6, 7], 1), (6, [6], 2), (5, [], 3), (2, [], 3)],
)
def test_a_cut_takes_eos_first_so_nothing_is_taught_to_stop_early(monkeypatch, max_length, labels, lost):
    encoded = encode(short(monkeypatch), EXAMPLE, max_length)
    assert encoded["labels"] == [-100] * 5 + labels
    assert encoded["lost"] == lost
    assert encoded["kept"] == len(labels)


def test_the_report_counts_every_cut_and_drop_with_its_reason(monkeypatch):
    rows = [
        {"id": "whole", "instruction": "a", "input": "b", "output": "c"},
        {"id": "cut", "instruction": "a", "input": "b", "output": "c d e"},
        {"id": "gone", "instruction": "a a a a a", "input": "b", "output": "c"},
    ]
    tokenized, report = tokenize(short(monkeypatch), Dataset.from_list(rows), max_length=6)
    assert tokenized["labels"][:] == [[-100, -100, -100, -100, 4 + 1, 0], [-100, -100, -100, -100, 5, 6]]
    assert (report.rows, report.truncated_rows, report.lost_tokens, report.supervised_tokens) == (3, 1, 2, 4)
    assert report.dropped == [("gone", "its prompt has 8 tokens, max_length is 6: nothing left to learn")]


def test_a_split_of_which_nothing_is_left_is_refused(monkeypatch):
    rows = Dataset.from_list([{"id": "gone", **EXAMPLE}])
    with pytest.raises(UserError, match=r"all 1 rows were dropped: its prompt has 5 tokens.*raise max_length"):
        tokenize(short(monkeypatch), rows, max_length=4)


RESPONSES = ["An ETF", "$1,234.56 × 2", "(a) yes", "é", "#hash", "```code```", "42", "'quoted'", "£5"]


@pytest.mark.parametrize("input", ["", "Loan: $12,000"])
@pytest.mark.parametrize("response", RESPONSES)
def test_the_prompt_ends_on_a_token_boundary(tokenizer_dir, input, response):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    prompt = build_prompt("What is it?", input)
    apart = tokenizer(prompt).input_ids + tokenizer(response).input_ids
    assert apart == tokenizer(prompt + response).input_ids
    assert (
        apart == encode(tokenizer, {"instruction": "What is it?", "input": input, "output": response})["input_ids"][:-1]
    )


def test_eos_is_learned_although_the_pad_token_is_eos(gpt2_dir):
    """What the first notebook got wrong: GPT-2 pads with EOS, and a mask by id takes the EOS that is to be learned."""
    from finllm.models.find import load_tokenizer

    tokenizer = load_tokenizer(str(gpt2_dir))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode(tokenizer, EXAMPLE)
    assert encoded["labels"][-1] == tokenizer.eos_token_id


def test_a_tokenizer_that_appends_eos_does_not_end_the_prompt_with_it():
    class Ends(Words):
        def __call__(self, text, add_special_tokens=True):
            return type("Encoding", (), {"input_ids": [*super().__call__(text).input_ids, self.eos_token_id]})

    assert encode_prompt(Ends(), "a b") == [1, 2]


def test_count_tokens_of_nothing_is_nothing(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert count_tokens(tokenizer, []) == []
    assert count_tokens(tokenizer, ["a", ""]) == [1, 0]
