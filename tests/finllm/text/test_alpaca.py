"""Alpaca on tokenizers of several habits: the chat template that is saved, the proof of it, and what is refused."""

import string

import pytest
from set_models import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finllm.errors import UserError
from finllm.text import templates
from finllm.text.prompts import ROLES_TAKE, TEMPLATE_HASH, alpaca_as_jinja, build_prompt
from finllm.text.templates import TRIED, Alpaca, template_of
from tests.finllm.text.chats import ONE, THREE, chat_tokenizer

SPELLS = {**ONE, "id": "spells", "output": "So </s>."}


def characters(pre_tokenizer, *before: str) -> PreTrainedTokenizerFast:
    """A token for each character; `before` stands before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = [*string.printable, "▁", *pre_tokenizers.ByteLevel.alphabet()]
    trainer = trainers.BpeTrainer(vocab_size=9, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet,
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator([], trainer)
    if before:
        ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(before)]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{' '.join(before)} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def byte_level(*before: str) -> PreTrainedTokenizerFast:
    return characters(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), *before)


def metaspace(scheme: str, *before: str) -> PreTrainedTokenizerFast:
    """A blank before a text that stands alone: before each part between control tokens, or before the first."""
    return characters(pre_tokenizers.Metaspace(prepend_scheme=scheme), *before)


def whole_words(*more: str) -> PreTrainedTokenizerFast:
    """A word an id, and no way to write a control token as text."""
    rows = [ONE, *TRIED]
    texts = [build_prompt(row["instruction"], row["input"]) + row["output"] for row in rows]
    words = ["<unk>", "</s>", *dict.fromkeys([*" ".join(texts).split(), *more])]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


HABITS = {
    "nothing": (byte_level(), ("", "", "")),
    "BOS": (byte_level("<s>"), ("<s>", "", "")),
    "BOS twice": (byte_level("<s>", "<s>"), ("<s><s>", "", "")),
    "a blank before each part": (metaspace("always"), ("", "", " ")),
    "BOS and a blank before each part": (metaspace("always", "<s>"), ("<s>", "", " ")),
    "BOS and a blank before prompts": (byte_level("<s>", "Ġ"), ("<s>", " ", "")),
    "BOS and a blank before the first part": (metaspace("first", "<s>"), ("<s>", " ", " ")),
    "words": (whole_words("a"), ("", "", "")),
}  # of a tokenizer, and what a chat template has to write for it


@pytest.mark.parametrize("habit", HABITS)
def test_the_chat_template_writes_what_a_tokenizer_puts_before_a_text(habit: str) -> None:
    tokenizer, around = HABITS[habit]
    template = Alpaca(tokenizer)
    assert template.jinja == alpaca_as_jinja(*around)
    for row in (ONE, {**ONE, "input": "So."}):
        asked = {"role": "user", "content": row["instruction"], "input": row["input"]}
        messages = [asked, {"role": "assistant", "content": row["output"]}]
        (encoded,) = template.encode_rows([row])
        prompt, response = template.encode_pair(build_prompt(row["instruction"], row["input"]), row["output"])
        whole = tokenizer.apply_chat_template(messages, chat_template=template.jinja).input_ids
        assert whole == encoded["input_ids"] == prompt + response
        assert encoded["labels"] == [-100] * len(prompt) + response
    assert template.prove([ONE] * 20) == "the chat template that is saved gives the tokens of alpaca (16 rows)"


def test_no_chat_template_is_saved_where_none_gives_these_tokens() -> None:
    template = Alpaca(byte_level("<s>", "Ġ", "Ġ"))  # two blanks
    assert template.jinja is None
    none = "no chat template gives this tokenizer the tokens of alpaca, so none is saved with the model"
    assert template.prove([ONE]) == template.prove([]) == none


RIGHT = alpaca_as_jinja("<s>", "", "")
WHILE_ASKED, WHILE_ANSWERED = "messages | length == 1", "messages | length == 2"


@pytest.mark.parametrize(("more", "same"), [
    ("", True),
    ("{% if add_generation_prompt %}!{% endif %}", False),
    ("{% if not add_generation_prompt %}!{% endif %}", False),
    (f"{{% if add_generation_prompt and {WHILE_ANSWERED} %}}!{{% endif %}}", True),
    (f"{{% if not add_generation_prompt and {WHILE_ASKED} %}}!{{% endif %}}", True),
    ("{% if messages[0].content == 'What is a bond?' %}!{% endif %}", False),
    ("{% if messages[0].input %}!{% endif %}", False),
])  # fmt: skip
def test_both_the_question_and_the_whole_must_have_the_tokens_that_are_trained_on(monkeypatch, more, same) -> None:
    monkeypatch.setattr(templates, "alpaca_as_jinja", lambda *around: RIGHT + more)
    assert Alpaca(byte_level("<s>")).jinja == (RIGHT + more if same else None)


def test_rows_that_have_no_such_tokens_prove_nothing_and_are_left_out() -> None:
    for tokenizer, left_out in ((byte_level("<s>"), [SPELLS, THREE]), (whole_words("So"), [{**ONE, "output": "</s>"}])):
        template = Alpaca(tokenizer)
        said = template.prove([ONE, *left_out, {key: ONE[key] for key in ("instruction", "input", "output")}])
        assert said == "the chat template that is saved gives the tokens of alpaca (2 rows)" and template.jinja


def test_without_a_tokenizer_it_only_writes_prompts() -> None:
    template = Alpaca()
    assert (template.stops, template.ids, template.jinja, template.lead) == ([], [], None, "")
    rows = [{"instruction": "a"}, {"instruction": "a", "input": None}, {"instruction": "a", "input": "b"}]
    assert template.prompts(rows) == [build_prompt("a"), build_prompt("a"), build_prompt("a", "b")]
    assert template.prompts(rows[:0]) == []


def test_what_others_read_of_it() -> None:
    tokenizer = chat_tokenizer(eos_token="<|im_end|>")
    template = template_of("alpaca", tokenizer, "m")
    assert isinstance(template, Alpaca) and template.tokenizer is tokenizer
    assert template.stops == template.ids == [tokenizer.eos_token_id] == [2]
    assert (template.id, template.hash, template.otherwise) == ("alpaca", TEMPLATE_HASH, ROLES_TAKE)
    assert template.takes_history is False and template_of("chat", tokenizer, "m").takes_history is True
    assert template.answer(" \nSo.\n") == " \nSo.\n"


def test_rows_are_encoded_as_they_are_asked_for() -> None:
    tokenizer = byte_tokenizer()
    (whole,), (cut,) = (
        Alpaca(tokenizer).encode_rows([ONE], *limit) for limit in ((), (len(build_prompt("Why?")) + 1,))
    )
    prompt = [byte + 1 for byte in build_prompt("Why?").encode()]
    learned = [ord("S") + 1, ord("o") + 1, ord(".") + 1, 0]
    assert (whole["input_ids"], whole["labels"]) == (prompt + learned, [-100] * len(prompt) + learned)
    assert (cut["input_ids"], cut["lost"], cut["kept"]) == (prompt + learned[:1], 3, 1)
    (all_of_it,) = Alpaca(tokenizer).encode_rows([ONE], None, True)
    assert all_of_it["labels"] == prompt + learned


def test_each_row_that_is_no_single_question_is_named_by_its_id_or_its_number_and_the_way_out_once() -> None:
    why = "it has earlier turns, and alpaca asks single questions"
    without_id = {key: THREE[key] for key in THREE if key != "id"}
    with pytest.raises(UserError) as caught:
        Alpaca().prompts([ONE, without_id, {**THREE, "id": "bad"}])
    assert str(caught.value) == (
        f"2 problems in what is asked with template alpaca: 2: {why}; bad: {why}; {ROLES_TAKE}"
    )
    with pytest.raises(UserError, match=f"4: {why}; 5: {why}; and 4 more; ") as caught:
        Alpaca().prompts([without_id] * 9)
    assert str(caught.value).endswith(f"; {ROLES_TAKE}")
