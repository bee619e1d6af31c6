"""What tokens are made of each text and row, as literals: control tokens, unknown characters, counts and hashes."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_from_disk
from set_models import byte_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finllm.errors import UserError
from finllm.text import tokens
from finllm.text.templates import Alpaca
from finllm.text.tokens import (
    ALL_TURNS,
    LAST_TURN,
    control_ids,
    count_tokens,
    encode,
    encode_prompt,
    encode_response,
    lengths_of,
    tokenize,
    tokenizer_hash,
)
from tests.finllm.text.chats import THREE

UNKNOWN, BEGIN, STOP = 0, 1, 2


def letters(known: str, unk: str = "<unk>", begins: bool = True, ends: bool = False) -> PreTrainedTokenizerFast:
    """A character an id, from 4 on; others are unknown. It writes `<s>` before a text, and `</s>` after it."""
    vocabulary = {token: id for id, token in enumerate(["<unk>", "<s>", "</s>", "<user>", *known])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    single = ("<s> " if begins else "") + "$A" + (" </s>" if ends else "")
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token=unk)
    found.add_special_tokens({"extra_special_tokens": ["<user>"]})
    return found


def ids_of(known: str, text: str) -> list[int]:
    return [4 + known.index(letter) if letter in known else UNKNOWN for letter in text]


def row(output: str = "ab", id: str = "i", instruction: str = "a") -> dict:
    return {"id": id, "instruction": instruction, "input": "", "output": output}


# Control tokens and unknown characters


@pytest.mark.parametrize(("known", "text", "ids", "spells"), [
    ("ab</s>", "a</s>b", [4, 6, 7, 8, 9, 5], True), ("ab<user>", "<user>", [6, 7, 8, 9, 10, 11], True),
    ("ab", "axb", [4, UNKNOWN, 5], False), ("ab<unk>", "a<unk>b", [4, 6, 7, 8, 9, 10, 5], True),
    ("ab<unk", "a<unk>b", [4, UNKNOWN, 5], False),  # one is unknown either way: it stays as it is by default
    ("ab", "a<unk>b", [4, UNKNOWN, 5], False),  # letter by letter it would be five
    ("ab<unk>", "x<unk>", [UNKNOWN, 6, 7, 8, 9, 10], True),
    ("ab", "a</s>", [4, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN], True),
    ("ab<s>", "<s>x</s>", [6, 7, 8, UNKNOWN, 6, UNKNOWN, 7, 8], True),
])  # fmt: skip
def test_a_text_is_written_without_control_tokens_where_that_can_be(known, text, ids, spells) -> None:
    tokenizer = letters(known)
    assert encode_response(tokenizer, text) == [*ids, STOP]
    assert encode_prompt(tokenizer, text) == [BEGIN, *ids]
    assert encode_prompt(letters(known, ends=True), text) == [BEGIN, *ids]
    assert encode_prompt(letters(known, begins=False), text) == ids
    assert count_tokens(tokenizer, [text, "ab", text]) == [len(ids), 2, len(ids)]
    assert encode(tokenizer, row(text))["spells"] is spells
    assert encode(tokenizer, row(instruction=text))["spells"] is spells


def test_what_is_only_flagged_as_special_is_a_control_token_too() -> None:
    tokenizer = letters("ab<lst>")
    tokenizer.add_tokens([AddedToken("<last>", special=True)])
    assert control_ids(tokenizer) == {UNKNOWN, BEGIN, STOP, 3, 11}
    assert encode_response(tokenizer, "<last>") == [*ids_of("ab<lst>", "<last>"), STOP]


@pytest.mark.parametrize("task", ["<s>", "</s>"])
def test_an_unknown_character_is_refused_where_its_token_controls_something(task: str) -> None:
    tokenizer = letters("ab", unk=task, begins=False)
    assert encode_response(tokenizer, "ab") == [4, 5, STOP]
    with pytest.raises(UserError, match=f"its text holds '{task}', which"):
        encode_response(tokenizer, "axb")


def test_what_cannot_be_written_is_named_once_with_the_end_of_its_text() -> None:
    """A word an id, the control tokens' names included: there are no letters to write them with."""
    vocabulary = {"<unk>": 0, "</s>": 1, "<user>": 2, "a": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<user>"]})
    cannot = "which this tokenizer can only write as a control token"
    text = "b" * 99 + "  a <user> </s> <user>"
    with pytest.raises(UserError) as caught:
        encode_response(tokenizer, text)
    assert str(caught.value) == (
        f"'{'b' * 39} a <user> </s> <user>' was not encoded: its text holds '<user>', '</s>', {cannot}; change the "
        "text, or take a model whose tokenizer has bytes"
    )
    encoded = encode(tokenizer, row("a <user>", instruction="a </s>"))
    assert encoded["unwritable"] == f"its text holds '</s>', '<user>', {cannot}" and encoded["spells"] is False
    assert encode(tokenizer, row("a", instruction="</s>"))["unwritable"] == f"its text holds '</s>', {cannot}"
    assert encode(tokenizer, row("b <unk> a"))["unwritable"] == ""


# Rows


def test_each_row_becomes_ids_and_labels_of_four_bytes_and_counts_go_into_the_report() -> None:
    rows = [row("ab", "x"), row("b", "y"), row("bab", "z")]
    prompt = [BEGIN, *ids_of("ab", tokens.build_prompt("a", ""))]
    written = [[4, 5, STOP], [5, STOP], [5, 4, 5, STOP]]
    for template in (None, Alpaca(letters("ab"))):
        tokenized, report = tokenize(letters("ab"), Dataset.from_list(rows), None, template=template)
        assert tokenized["input_ids"][:] == [prompt + each for each in written]
        assert tokenized["labels"][:] == [[-100] * len(prompt) + each for each in written]
        assert {name: feature.feature.dtype for name, feature in tokenized.features.items()} == {
            "input_ids": "int32", "labels": "int32"
        }  # fmt: skip
        assert (report.supervised_tokens, report.truncated_rows, report.lost_tokens, report.dropped) == (9, 0, 0, [])
        assert report.lengths == lengths_of(tokenized) == [len(prompt) + each for each in (3, 2, 4)]
        _, report = tokenize(letters("ab"), Dataset.from_list(rows), None, prompt_loss=True, template=template)
        assert json.dumps(asdict(report))  # as a run's folder holds it
        assert report.supervised_tokens == 9 + 3 * (len(prompt) - 1)  # nothing is asked before the first token


def test_a_row_that_keeps_one_token_stays_and_one_that_keeps_none_is_dropped_by_name() -> None:
    long = row("ab", "long", instruction="ab")
    split = Dataset.from_list([row("ab", "x"), long, row("b", "y"), long])
    limit = 1 + len(tokens.build_prompt("a", "")) + 1
    tokenized, report = tokenize(letters("ab"), split, limit)
    assert [labels[-1] for labels in tokenized["labels"]] == [4, 5]
    why = f"its prompt has {limit:,} tokens, max_length is {limit:,}: nothing left to learn"
    assert report.dropped == [("long", why), ("long", why)] and report.rows == 4
    assert (report.truncated_rows, report.lost_tokens, report.supervised_tokens) == (2, 3, 2)


class Asking:
    """A template of one token a row, which notes what it was asked for."""

    id, hash, otherwise = "own", "hash", "take another"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def encode_rows(self, rows: list[dict], *settings: object) -> list[dict]:
        self.asked.append((rows, *settings))
        empty = {"lost": 0, "kept": 1, "spells": False, "unwritable": ""}
        return [{"input_ids": [7], "labels": [7], "refused": row["output"], **empty} for row in rows]


def test_a_template_is_asked_with_the_settings_and_its_refusals_are_counted_and_three_named() -> None:
    rows = [row("", "a"), row("", "b")]
    asking = Asking()
    tokenized, report = tokenize(letters("ab"), Dataset.from_list(rows), 5, True, 1, asking, "last_turn")
    assert asking.asked == [(rows, 5, True, "last_turn")] and (ALL_TURNS, LAST_TURN) == ("all_turns", "last_turn")
    assert tokenized["input_ids"][:] == [[7], [7]] and report.supervised_tokens == 0
    asking = Asking()
    tokenize(letters("ab"), Dataset.from_list(rows), None, template=asking)
    assert asking.asked == [(rows, None, False, "all_turns")]
    for bad, said in (
        ("ab", "2 of 3 rows cannot be asked with template own: a: no a; b: no b; take another"),
        ("abc", "3 of 4 rows cannot be asked with template own: a: no a; b: no b; c: no c; take another"),
        ("abcde", "5 of 6 rows cannot be asked with template own: a: no a; b: no b; c: no c; and 2 more; take another"),
    ):
        rows = [*(row(f"no {id}", id) for id in bad), row("", "good")]
        with pytest.raises(UserError) as caught:
            tokenize(letters("ab"), Dataset.from_list(rows), None, template=asking)
        assert str(caught.value) == said
    alpacas = r"^1 of 1 rows cannot be asked with template alpaca: three: it has earlier turns.*; take --template chat"
    with pytest.raises(UserError, match=alpacas):
        tokenize(letters("ab"), Dataset.from_list([THREE]), None)


def test_tokens_of_a_mapped_split_are_found_again_and_another_template_finds_others(tmp_path, monkeypatch) -> None:
    Dataset.from_list([row("", "a"), row("", "b")]).save_to_disk(tmp_path / "split")
    asking, other = Asking(), Asking()
    other.hash = "other"
    for template, times in ((asking, 1), (asking, 1), (other, 1)):
        tokenized, _ = tokenize(letters("ab"), load_from_disk(tmp_path / "split"), None, template=template)
        assert tokenized["input_ids"][:] == [[7], [7]] and len(template.asked) == times
    monkeypatch.setattr(tokens, "__file__", str(tmp_path / "tokens.py"))
    names = []
    for source in ("a", "a", "b"):  # of this package's modules: whoever changes one gets no tokens of before
        (tmp_path / "other.py").write_text(source)
        names.append(tokens._fingerprint(load_from_disk(tmp_path / "split"), letters("ab"), asking, None))
    assert names[0] == names[1] != names[2]


# The hash of a tokenizer


class Written:
    """A tokenizer in Python, with a vocabulary and files of its own."""

    eos_token_id = 0

    def __init__(self, vocabulary: dict[str, int], **files: str) -> None:
        self.vocabulary, self.files = vocabulary, files

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def save_vocabulary(self, folder: str) -> None:
        for name, content in self.files.items():
            (Path(folder) / name).write_text(content)


def test_the_hash_of_a_tokenizer_in_python_is_of_its_class_vocabulary_files_and_end(monkeypatch) -> None:
    first = tokenizer_hash(Written({"a": 1, "b": 2}, one="x", two="y"))
    content = '[["Written", {"a": 1, "b": 2}, ["%s", "%s"]], 0]'
    content %= tuple(hashlib.sha256(file).hexdigest() for file in (b"x", b"y"))
    assert first == hashlib.sha256(content.encode()).hexdigest()
    assert tokenizer_hash(Written({"b": 2, "a": 1}, one="x", two="y")) == first
    other = Written({"a": 1, "b": 2}, one="x", two="y")
    other.eos_token_id = 1
    another = type("Another", (Written,), {})({"a": 1, "b": 2}, one="x", two="y")
    differing = [Written({"a": 1, "b": 3}, one="x", two="y"), Written({"a": 1, "b": 2}, one="x", two="z")]
    differing += [other, another]
    assert len({first, *map(tokenizer_hash, differing)}) == 5
    for names in (("one", "two"), ("two", "one")):  # in the order in which a file system lists them
        monkeypatch.setattr(Path, "iterdir", lambda folder, names=names: (folder / name for name in names))
        assert tokenizer_hash(Written({"a": 1, "b": 2}, one="x", two="y")) == first


def test_the_hash_of_a_fast_tokenizer_is_of_what_decides_ids() -> None:
    tokenizer = letters("ab")
    before = tokenizer_hash(tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.backend_tokenizer.enable_truncation(5)
    assert tokenizer_hash(tokenizer) == before
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    assert content.pop("padding") and content.pop("truncation")
    assert before == hashlib.sha256(json.dumps([content, STOP], sort_keys=True).encode()).hexdigest()
    assert len({before, tokenizer_hash(letters("ba")), tokenizer_hash(letters("ab", begins=False))}) == 3
    assert tokenizer_hash(SimpleNamespace(backend_tokenizer=tokenizer.backend_tokenizer, eos_token_id=0)) != before


def test_texts_are_counted_without_what_a_tokenizer_puts_around_them() -> None:
    assert count_tokens(letters("ab", ends=True), ["ab", "", "a</s>"]) == [2, 0, 5]
    tokenizer = letters("ab")  # and without a word in front that is no control token
    around = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 4)])
    tokenizer.backend_tokenizer.post_processor = around
    assert count_tokens(tokenizer, ["ab", "", "b"]) == [2, 0, 1]
    assert count_tokens(byte_tokenizer(), ["é", "a<|endoftext|>"]) == [2, 14]
