"""A chat template on a tokenizer: ids, labels and ends as literals, cuts, refusals, and the proof of its tokens."""

import functools
import re

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finllm.errors import UserError
from finllm.text.chat import Chat, hash_of
from finllm.text.tokens import ALL_TURNS, LAST_TURN
from tests.finllm.text.chats import CHATML, ONE, SYSTEM, THREE, chat_tokenizer

EOS, START, END = 0, 1, 2
SPELLS = {**ONE, "id": "spells", "output": "<|im_end|>"}
REFUSES = CHATML + "{% if messages[0].content == 'refuse' %}{{ raise_exception('no') }}{% endif %}"
SO = {"role": "assistant", "content": "So."}
REFUSED = {**ONE, "id": "refused", "instruction": "refuse"}
# Its prompt ends before the line feed, which a model would have to write, and a blank stands before the end
APART = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + ' <|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


def changed(old: str, new: str, template: str = CHATML) -> str:
    assert old in template
    return template.replace(old, new)


@functools.cache
def made(template: str = CHATML, tokenizer=None) -> Chat:
    return Chat(tokenizer or chat_tokenizer(None), template, "own", "the template")


def ids_of(text: str) -> list[int]:
    """ChatML in ids by hand: « and » are control tokens, all else is text, a character an id."""
    vocabulary = chat_tokenizer().get_vocab()
    letters = {"\n": "Ċ", " ": "Ġ"}
    return [{"«": START, "»": END}.get(sign) or vocabulary[letters.get(sign, sign)] for sign in text]


def labels_of(text: str) -> list[int]:
    """The same; what stands in brackets is learned."""
    labels, learned = [], False
    for sign in text:
        if sign in "[]":
            learned = sign == "["
        else:
            labels += ids_of(sign) if learned else [-100]
    return labels


ASKS = "«user\na?»\n«assistant\n[x»]\n«user\nb?»\n«assistant\n[y»]\n«user\nAnd c?»\n«assistant\n[z»]\n"


@pytest.mark.parametrize(("settings", "marked", "lost", "kept"), [
    ((), ASKS, 0, 6), ((None, False, ALL_TURNS), ASKS, 0, 6),
    ((None, False, LAST_TURN), ASKS.replace("[x", "x").replace("[y", "y"), 0, 2),
    ((None, True), f"[{ASKS.replace('[', '').replace(']', '')}]", 0, 6),
    ((23,), ASKS[: ASKS.index("\n«user\nb")], 4, 2), ((22,), ASKS[: ASKS.index("»]\n«user\nb")], 5, 1),
    ((21,), ASKS[: ASKS.index("[")], 6, 0), ((2,), ASKS[: ASKS.index("[")], 6, 0),
    ((22, True), f"[{ASKS[: ASKS.index('»]')].replace('[', '')}]", 5, 1),
    ((60, False, LAST_TURN), ASKS[: ASKS.index("[z")].replace("[x", "x").replace("[y", "y"), 2, 0),
])  # fmt: skip
def test_a_row_in_ids_and_labels(settings: tuple, marked: str, lost: int, kept: int) -> None:
    (encoded,) = made().encode_rows([THREE], *settings)
    ids = ids_of(marked.replace("[", "").replace("]", ""))
    assert encoded == {
        "input_ids": ids, "labels": labels_of(marked), "lost": lost, "kept": kept, "spells": False, "unwritable": "",
        "refused": "",
    }  # fmt: skip


def test_rows_that_cannot_be_asked_hold_nothing_but_the_reason_and_others_keep_their_own_ids() -> None:
    template = made(REFUSES)
    (one,), (spells,), (three,) = (template.encode_rows([row]) for row in (ONE, SPELLS, THREE))
    nothing = {"input_ids": [], "labels": [], "lost": 0, "kept": 0, "spells": False, "unwritable": ""}
    refused = {**nothing, "refused": "it refuses the conversation: no"}
    assert template.encode_rows([REFUSED, ONE, SPELLS, REFUSED, THREE]) == [refused, one, spells, refused, three]
    assert template.encode_rows([REFUSED]) == [refused] and template.encode_rows([SPELLS]) == [spells]
    assert one["input_ids"] == ids_of("«user\nWhy?»\n«assistant\nSo.»\n") and one["spells"] is False
    assert spells["input_ids"] == ids_of("«user\nWhy?»\n«assistant\n<|im_end|>»\n") and spells["spells"] is True
    assert spells["labels"] == labels_of("«user\nWhy?»\n«assistant\n[<|im_end|>»]\n")


def test_questions_that_cannot_be_asked_are_named_by_id_or_number() -> None:
    without_id = {key: REFUSED[key] for key in REFUSED if key != "id"}
    with pytest.raises(UserError) as caught:
        made(REFUSES).prompts([ONE, without_id, REFUSED])
    assert str(caught.value) == (
        "2 problems in what is asked with the template: 2: it refuses the conversation: no; refused: it refuses the "
        "conversation: no"
    )
    prompts = ["<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"]
    assert made().prompts([ONE]) == made().prompts([{"instruction": "Why?"}]) == prompts and made().prompts([]) == []
    last = "<|im_start|>user\nAnd c?<|im_end|>\n<|im_start|>assistant\n"
    assert made().prompts([THREE])[0].endswith(f"<|im_start|>assistant\ny<|im_end|>\n{last}")


def test_what_others_read_of_it() -> None:
    template = made()
    assert Chat.takes_history is True and Chat.otherwise == "take the data without these rows, or another template"
    assert (template.id, template.of, template.jinja, template.lead) == ("own", "the template", CHATML, "")
    assert template.hash == hash_of(CHATML) != hash_of(CHATML + " ") and len(template.hash) == 64
    assert hash_of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (template.stops, template.ids) == ([EOS, END], [EOS, START, END])
    ends_in_eos = made(tokenizer=chat_tokenizer(None, eos_token="<|im_end|>"))
    assert (ends_in_eos.stops, ends_in_eos.ids) == ([END], [START, END])


def test_white_space_around_an_answer_is_the_templates_and_learned() -> None:
    template = made(APART)
    assert template.lead == "\n"
    assert template.answer("\nSo. ") == "So." and template.answer("\n\nSo.  ") == "\nSo. "
    assert [template.answer(text) for text in ("So.", " So.\n", "")] == ["So.", " So.\n", ""]
    (encoded,) = template.encode_rows([ONE])
    assert encoded["labels"] == labels_of("«user\nWhy? »\n«assistant[\nSo. »]\n") and encoded["kept"] == 6
    (prompt,) = template.prompts([ONE])
    asked, answered = template.encode_pair(prompt, "So.")
    assert asked == template.encode_prompt(prompt) == ids_of("«user\nWhy? »\n«assistant")
    assert answered == ids_of("\nSo. »")
    assert template.encode_pair(prompt, "<|im_end|>") == (asked, ids_of("\n<|im_end|> »"))


# What ends an answer


def with_more(*, special: str = "", text: str = "", **named: str) -> PreTrainedTokenizerFast:
    tokenizer = chat_tokenizer(None, **named)
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": [special]}, replace_extra_special_tokens=False)
    if text:
        tokenizer.add_tokens([AddedToken(text, normalized=False)])
    return tokenizer


@pytest.mark.parametrize(("tokenizer", "template"), [
    (with_more(text="<tool>"), CHATML),  # a word, which controls nothing
    (with_more(text="  "), changed("message['content']", "message['content']  ")),  # blanks, which Jinja has too
    (with_more(text="<end>"), changed("<|im_end|>", "<end>")),  # a word, which the template writes as its end
    (with_more(special="<tool>"), CHATML), (with_more(text="<tool>"), CHATML + "{# <tool> #}"),
])  # fmt: skip
def test_an_answer_ends_in_the_token_that_the_template_writes(tokenizer, template: str) -> None:
    made_of_it = made(template, tokenizer)
    (encoded,) = made_of_it.encode_rows([{**ONE, "output": "So  <tool>."}])
    end = tokenizer.convert_tokens_to_ids("<end>" if "<end>" in template else "<|im_end|>")
    assert not encoded["refused"] and made_of_it.stops == [EOS, end] and made_of_it.ids == sorted({EOS, START, end})
    assert [label for label in encoded["labels"] if label != -100][-1] == end == encoded["labels"][-2]
    controls = encoded["spells"]  # then it is written in letters
    assert controls == ("<tool>" in template or "<tool>" in tokenizer.extra_special_tokens)
    tool = tokenizer.get_vocab().get("<tool>")
    assert (tool in encoded["input_ids"]) == (tool is not None and not controls)


def test_an_end_that_is_within_another_token_ends_nothing() -> None:
    template = made(tokenizer=with_more(text=".<|im_end|>"))
    one, three = template.encode_rows([ONE, {**THREE, "history": [*THREE["history"][:3], SO]}])
    said = "the answer does not end in '<|im_end|>', but in {}, '{}', 'Ċ'"
    assert one["refused"] == said.format("'o'", ".<|im_end|>")
    assert three["refused"] == said.format("'z'", "<|im_end|>")


def test_every_control_token_that_is_written_is_one_that_a_model_must_know() -> None:
    tokenizer = with_more(special="<last>", bos_token="<first>")
    template = made("{{ bos_token }}" + CHATML + "{% if not add_generation_prompt %}<last>{% endif %}", tokenizer)
    more = tokenizer.convert_tokens_to_ids(["<first>", "<last>"])
    assert template.ids == sorted([EOS, START, END, *more])


def test_a_token_that_the_tokenizer_alone_writes_is_none_of_the_templates() -> None:
    """As many begin every text with, which a template that begins otherwise does without."""
    tokenizer = with_more(bos_token="<first>")
    first = tokenizer.convert_tokens_to_ids("<first>")
    begins = processors.TemplateProcessing("<first> $A", special_tokens=[("<first>", first)])
    tokenizer.backend_tokenizer.post_processor = begins
    assert tokenizer("a").input_ids[0] == first
    assert made(CHATML, tokenizer).ids == sorted([EOS, START, END])


def test_a_word_that_ends_answers_may_be_the_first_that_was_added() -> None:
    vocabulary = {"<e>": 0, "</s>": 1, "<unk>": 2, "user": 3, "assistant": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens(["<e>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    template = made(BY_WORDS, fast)
    assert template.stops == [1, 0] and template.ids == [0, 1, 2]
    assert template.encode_rows([ONE])[0]["labels"] == [-100, -100, -100, -100, 2, 0]


def test_an_answer_may_be_empty_and_ends_all_the_same() -> None:
    (encoded,) = made().encode_rows([{**ONE, "output": ""}])
    assert encoded["labels"] == labels_of("«user\nWhy?»\n«assistant\n[»]\n") and encoded["kept"] == 1


def test_what_a_tokenizer_puts_around_a_text_by_itself_is_not_in_a_conversation() -> None:
    tokenizer = chat_tokenizer(None)
    end = "<|endoftext|>"
    around = processors.TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, EOS)])
    tokenizer.backend_tokenizer.post_processor = around
    template = made(CHATML, tokenizer)
    for row in (ONE, SPELLS):
        (encoded,), (plain,) = template.encode_rows([row]), made().encode_rows([row])
        assert encoded == plain and EOS not in encoded["input_ids"]
        (prompt,) = template.prompts([row])
        asked, answered = template.encode_pair(prompt, row["output"])
        assert asked == template.encode_prompt(prompt) and asked + answered == encoded["input_ids"][:-1]


def words(*more: str, unk: str = "<unk>") -> PreTrainedTokenizerFast:
    """A word an id: no control token can be written as text."""
    names = ["<unk>", "</s>", "<e>", "user", "assistant", "Why?", "So.", *more]
    tokenizer = Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk, eos_token="</s>")
    found.add_special_tokens({"extra_special_tokens": ["<e>"]})
    return found


BY_WORDS = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' <e> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def test_a_text_that_only_a_control_token_could_write_is_no_text_and_an_unknown_word_is() -> None:
    template = made(BY_WORDS, words())
    one, bad, unknown = template.encode_rows([ONE, {**ONE, "output": "So. <e> So."}, {**ONE, "output": "So. what"}])
    assert one["input_ids"] == [3, 5, 2, 4, 6, 2] and one["labels"] == [-100, -100, -100, -100, 6, 2]
    said = "its text holds a control token's name, which this tokenizer can only write as that token (Can't sanitize"
    assert bad["unwritable"].startswith(said) and (bad["input_ids"], bad["refused"], bad["spells"]) == ([], "", False)
    assert unknown["labels"][4:] == [6, 0, 2] and not unknown["refused"]
    with pytest.raises(UserError, match=re.escape(said)):
        template.encode_pair(template.prompts([ONE])[0], "<e>")


@pytest.mark.parametrize("end", ["<e>", "</s>"])
def test_an_unknown_word_whose_token_ends_answers_cannot_be_written(end) -> None:
    template = made(BY_WORDS, words(unk=end))
    said = f"its text holds what this tokenizer can only write as {end!r}, which ends an answer"
    rows = [ONE, *({**ONE, "output": text} for text in ("So. what So.", "what")), {**ONE, "instruction": "what Why?"}]
    known, *others = template.encode_rows(rows)
    assert known["input_ids"] == [3, 5, 2, 4, 6, 2] and not known["unwritable"]
    assert [(each["unwritable"], each["refused"], each["input_ids"]) for each in others] == [(said, "", [])] * 3
    assert template.ids == [1, 2]  # of words that nobody asked for, unknown ones among them
    (prompt,) = template.prompts([ONE])
    assert template.encode_pair(prompt, "So. So.") == ([3, 5, 2, 4], [6, 6, 2])
    for asked, answered in ((prompt, "So. what"), (template.prompts([rows[-1]])[0], "So.")):
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            template.encode_pair(asked, answered)
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        template.encode_prompt(template.prompts([rows[-1]])[0])


def test_an_unknown_word_where_one_token_has_all_these_tasks() -> None:
    by_eos = BY_WORDS.replace("<e>", "</s>")
    known, unknown = made(by_eos, words(unk="</s>")).encode_rows([ONE, {**ONE, "output": "what"}])
    assert known["input_ids"] == [3, 5, 1, 4, 6, 1] and unknown["unwritable"]


def test_an_unknown_letter_beside_the_name_of_its_token() -> None:
    letters = {letter: id for id, letter in enumerate(["<e>", "</s>", *sorted(set("user assistant Why? So. <e>"))])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<e>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<e>", eos_token="</s>")
    fast.add_special_tokens({"extra_special_tokens": ["<e>"]})
    rows = [{**ONE, "output": text} for text in ("So.", "So. <e>", "So. <e> é")]
    plain, named, unknown = made(BY_WORDS, fast).encode_rows(rows)
    assert [each["input_ids"].count(0) for each in (plain, named)] == [2, 2] and named["spells"]
    assert len(named["input_ids"]) == len(plain["input_ids"]) + len(" <e>") and not named["unwritable"]
    assert unknown["unwritable"].endswith("can only write as '<e>', which ends an answer")


def test_a_prompt_whose_end_is_within_a_token_is_shown() -> None:
    tokenizer = with_more(text="\nSo")
    template = made(CHATML, tokenizer)
    (encoded,) = template.encode_rows([ONE])
    apart = "the prompt alone has 'Ċ', the whole '\\nSo', '.', '<|im_end|>'"
    (refused,) = made(REFUSES).encode_rows([REFUSED])
    assert encoded == {**refused, "refused": f"prompt and answer share a token: {apart}"}


def test_the_first_sixteen_rows_that_can_be_written_are_held_against_transformers(monkeypatch) -> None:
    tokenizer = chat_tokenizer("{{ 'another template' }}")
    template, calls, own = made(REFUSES, tokenizer), [], tokenizer.apply_chat_template

    def noted(messages, **settings):
        calls.append((len(messages), settings["add_generation_prompt"]))
        return own(messages, **settings)

    monkeypatch.setattr(tokenizer, "apply_chat_template", noted)
    said = "the tokens of prompts and answers are those of apply_chat_template ({} conversations), and an answer "
    said += "ends in '<|im_end|>'"
    assert template.prove([ONE, SPELLS, REFUSED, SYSTEM]) == said.format(2)
    assert calls == [(2, False), (1, True), (7, False), (6, True)]
    assert template.prove([ONE] * 20) == said.format(16) and template.prove([]) == said.format(0)
    by_words = made(BY_WORDS, words())
    assert "(1 conversations)" in by_words.prove([{**ONE, "output": "<e>"}, ONE])


@pytest.mark.parametrize(("asks", "place"), [(True, 22), (False, 27)])
def test_tokens_that_are_not_those_of_transformers_are_shown(monkeypatch, asks: bool, place: int) -> None:
    tokenizer = chat_tokenizer()
    template, own = made(CHATML, tokenizer), tokenizer.apply_chat_template

    def another(messages, **settings):
        found = own(messages, **settings)
        if settings["add_generation_prompt"] is asks:
            found["input_ids"] = [*found.input_ids[:-1], *ids_of(" ")]
        return found

    monkeypatch.setattr(tokenizer, "apply_chat_template", another)
    with pytest.raises(UserError) as caught:
        template.prove([ONE])
    assert str(caught.value).startswith(
        f"the template is rendered otherwise by transformers than here: row one, token {place}: 'Ġ', here 'Ċ'; copy"
    )
