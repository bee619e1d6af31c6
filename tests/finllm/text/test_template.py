"""The template as Stanford Alpaca published it, word for word; and what the tokens of a split depend on."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from set_models import EOS, byte_tokenizer

from finllm.errors import UserError
from finllm.text import tokens
from finllm.text.prompts import TEMPLATE_HASH, TEMPLATE_ID, WITH_INPUT, WITHOUT_INPUT, build_prompt
from finllm.text.tokens import control_ids, count_tokens, encode, lengths_of, tokenize, tokenizer_hash

ASKED = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nWhat is {a bond}?\n\n### Response:\n"
)
ASKED_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n### Response:\n"
)


def test_the_words_are_alpacas():
    for prompt in (build_prompt("What is {a bond}?"), build_prompt("What is {a bond}?", "")):
        assert prompt == ASKED
    assert build_prompt("Add.", "1 {2}") == ASKED_WITH_INPUT
    assert TEMPLATE_ID == "alpaca"
    assert hashlib.sha256(f"{WITH_INPUT}\0{WITHOUT_INPUT}".encode()).hexdigest() == TEMPLATE_HASH
    assert TEMPLATE_HASH == "61ec00982ab1febe1aac277a0238e46879adf4bf45061ad829e16175a96ee6e7"


@pytest.fixture
def tokenizer():
    found = byte_tokenizer()
    found.pad_token = found.eos_token
    return found


def row(output="£5", instruction="What is {a bond}?", input="", id="i"):
    return {"id": id, "instruction": instruction, "input": input, "output": output}


def test_a_row_in_bytes(tokenizer):
    encoded = encode(tokenizer, row())
    response = [byte + 1 for byte in "£5".encode()] + [EOS]
    assert encoded["input_ids"] == [byte + 1 for byte in ASKED.encode()] + response
    assert encoded["labels"] == [-100] * len(ASKED) + response
    assert (encoded["lost"], encoded["kept"], encoded["spells"], encoded["unwritable"]) == (0, 4, False, "")
    with_input = encode(tokenizer, row(instruction="Add.", input="1 {2}"))
    assert with_input["input_ids"][:-4] == [byte + 1 for byte in ASKED_WITH_INPUT.encode()]
    learned = encode(tokenizer, row(), prompt_loss=True)
    assert learned["labels"] == learned["input_ids"]
    assert count_tokens(tokenizer, ["£5", "", "abc"]) == [3, 0, 3]


def test_what_is_cut_dropped_and_counted(tokenizer):
    outputs = {"whole": "12", "eos": "123", "cut": "123456", "spells": "<|endoftext|>"}
    split = Dataset.from_list([row(output, id=id) for id, output in outputs.items()]
                              + [row("9", instruction="What is {a bond}, and more?", id="gone")])  # fmt: skip
    prompt = len(ASKED)
    tokenized, report = tokenize(tokenizer, split, prompt + 3)
    assert [len(ids) for ids in tokenized["input_ids"]] == [prompt + 3] * 4 == lengths_of(tokenized)
    assert [labels[prompt:] for labels in tokenized["labels"]] == [
        [50, 51, 0], [50, 51, 52], [50, 51, 52], [ord("<") + 1, ord("|") + 1, ord("e") + 1]
    ]  # fmt: skip
    assert (report.rows, report.truncated_rows, report.lost_tokens) == (5, 3, 1 + 4 + 11)
    assert (report.supervised_tokens, report.spells_control, report.max_length) == (12, 1, prompt + 3)
    assert report.lengths == [prompt + 3] * 4 and [id for id, _ in report.dropped] == ["gone"]


def test_a_minimum_of_the_response(tokenizer):
    split = Dataset.from_list([row("1", id="two"), row("12", id="three"), row("123456", id="cut")])
    tokenized, report = tokenize(tokenizer, split, len(ASKED) + 3, minimum_response_tokens=3)
    assert report.dropped == [("two", "its answers have 2 tokens, fewer than 3")] and len(tokenized) == 2
    assert tokenize(tokenizer, split, None)[1].lengths == [len(ASKED) + each for each in (2, 3, 7)]
    for max_length in (500, None):
        with pytest.raises(UserError, match="all 3 rows were dropped: its answers have 2 tokens, fewer than 99; lower"):
            tokenize(tokenizer, split, max_length, minimum_response_tokens=99)
    cut = tokenize(tokenizer, split, len(ASKED) + 2, minimum_response_tokens=2)[1]
    assert cut.dropped == [] and cut.truncated_rows == 2
    said = rf"its prompt has {len(ASKED)} tokens, max_length is {len(ASKED) + 1}: 1 tokens left to learn; raise"
    with pytest.raises(UserError, match=said):
        tokenize(tokenizer, split, len(ASKED) + 1, minimum_response_tokens=2)


def test_special_tokens_that_come_later_are_control_tokens_from_then_on(tokenizer):
    """With the tokenizer's own control tokens known already: by a new task, and by a flag alone."""
    asked = row("<a><b>")
    letters = [byte + 1 for byte in b"<a><b>"]
    assert control_ids(tokenizer) == {EOS} and encode(tokenizer, asked)["spells"] is False
    tokenizer.bos_token = "~"
    assert control_ids(tokenizer) == {EOS, ord("~") + 1}
    for token in ("<a>", "<b>"):
        tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
        found = encode(tokenizer, asked)
        assert found["spells"] is True and found["input_ids"][-7:] == [*letters, EOS]
    tokenizer.add_tokens(["<c>"])  # is text
    assert len(control_ids(tokenizer)) == 4


def test_each_thing_that_tokens_depend_on_gives_them_another_name(tokenizer, monkeypatch):
    """So that no cache hands out the tokens of another tokenizer, template, max_length or mask."""
    split = Dataset.from_list([row("12"), row("123")])

    def name(max_length, prompt_loss, of=split, by=tokenizer, template=None, loss_on="all_turns"):
        return tokens._fingerprint(of, by, template, max_length, prompt_loss, loss_on)

    before = name(64, False)
    assert name(64, False) == before and len(before) == 32
    other = byte_tokenizer()
    other.pad_token = other.eos_token = "a"
    names = {before, name(65, False), name(None, False), name(64, True), name(64, False, by=other),
             name(64, False, of=split.select([0])), name(64, False, loss_on="last_turn"),
             name(64, False, template=SimpleNamespace(hash="another template"))}  # fmt: skip
    monkeypatch.setattr(tokens, "TEMPLATE_HASH", "another")
    names.add(name(64, False))
    assert len(names) == 9
    given = {}
    monkeypatch.setattr(Dataset, "map", lambda self, *_, **how: given.update(how) or self)
    with pytest.raises(ValueError, match="'refused' doesn't exist"):  # what is read of the tokens first
        tokenize(tokenizer, split, 65, True)
    assert given["new_fingerprint"] == name(65, True)


def test_the_hash_of_a_tokenizer(tokenizer):
    before = tokenizer_hash(tokenizer)
    assert tokenizer_hash(byte_tokenizer()) == before and len(before) == 64
    tokenizer("abc", truncation=True, max_length=1)
    tokenizer.pad({"input_ids": [[1], [1, 2]]}, padding_side="left")
    assert tokenizer_hash(tokenizer) == before
    tokenizer.eos_token = "a"
    assert tokenizer_hash(tokenizer) != before
    added = byte_tokenizer()
    added.add_tokens(["<new>"])
    assert tokenizer_hash(added) != before


def test_a_text_that_spells_a_control_token_is_text(tokenizer):
    encoded = encode(tokenizer, row("a<|endoftext|>", instruction="<|endoftext|>"))
    assert encoded["input_ids"].count(EOS) == 1 and encoded["input_ids"][-1] == EOS and encoded["spells"]
    assert count_tokens(tokenizer, ["a<|endoftext|>"]) == [14]
    chat = byte_tokenizer()
    chat.pad_token = chat.eos_token
    chat.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    encoded = encode(chat, row("<|user|>"))
    assert encoded["kept"] == 9 and encoded["spells"] and np.max(encoded["input_ids"]) < 257
