"""Templates: what is learned as literals, what other programs make of the saved one, and what is refused, with why."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from finllm.errors import UserError
from finllm.text.chat import Chat
from finllm.text.conversations import without_marks
from finllm.text.prompts import TEMPLATE_HASH, messages_of
from finllm.text.templates import Alpaca, template_of
from finllm.text.tokens import tokenize
from tests.finllm.text.chats import CHATML, ONE, SYSTEM, THREE, chat_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def chat(tokenizer):
    return template_of("chat", tokenizer, "m")


def whole(row):
    return [*messages_of(row), {"role": "assistant", "content": row["output"]}]


def learned(encoded) -> str:
    """`-` for a token that is masked, else `*`, so that a whole conversation can be written down."""
    return "".join("-" if label == -100 else "*" for label in encoded["labels"])


ASK = "-" * len("SuserN") + "-" * len("a?EN") + "-" * len("SassistantN")


@pytest.mark.parametrize(("loss_on", "answers"), [("all_turns", "***"), ("last_turn", "--*")])
def test_the_labels_of_three_turns(chat, tokenizer, loss_on, answers):
    """A turn is `<|im_start|>user⏎a?<|im_end|>⏎<|im_start|>assistant⏎`, then `x<|im_end|>` is learned, then `⏎` not."""
    (encoded,) = chat.encode_rows([THREE], loss_on=loss_on)
    first, second, third = ("**" if each == "*" else "--" for each in answers)
    last = "-" * len("SuserN") + "-" * len("And c?EN") + "-" * len("SassistantN")
    assert learned(encoded) == f"{ASK}{first}-{ASK}{second}-{last}{third}-"
    end, (x, y, z) = tokenizer.convert_tokens_to_ids("<|im_end|>"), (tokenizer(c).input_ids[0] for c in "xyz")
    supervised = [label for label in encoded["labels"] if label != -100]
    assert supervised == ([x, end, y, end, z, end] if loss_on == "all_turns" else [z, end])
    assert encoded["kept"] == len(supervised) and encoded["lost"] == 0


@pytest.mark.parametrize("row", [ONE, THREE, SYSTEM])
def test_what_is_trained_on_is_what_apply_chat_template_gives(chat, tokenizer, row):
    (encoded,) = chat.encode_rows([row])
    assert encoded["input_ids"] == tokenizer.apply_chat_template(whole(row), tokenize=True).input_ids
    asked = tokenizer.apply_chat_template(messages_of(row), tokenize=True, add_generation_prompt=True).input_ids
    prompt, response = chat.encode_pair(chat.prompts([row])[0], row["output"])
    assert prompt == asked and prompt + response == encoded["input_ids"][:-1]
    assert "apply_chat_template (1 conversations)" in chat.prove([row])


def test_an_end_that_is_not_eos_ends_answers_besides_it(chat, tokenizer):
    assert chat.stops == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert chat.hash != TEMPLATE_HASH and Alpaca(tokenizer).hash == TEMPLATE_HASH


def test_what_a_model_must_know_is_the_control_tokens_that_are_written_and_no_text(chat):
    assert chat.ids == [0, 1, 2]  # the end of a text, which stops an answer too, and the two of ChatML


def test_an_input_stands_below_its_question(chat):
    (prompt,) = chat.prompts([{"instruction": "Sum up.", "input": "A, B"}])
    assert prompt == "<|im_start|>user\nSum up.\n\nA, B<|im_end|>\n<|im_start|>assistant\n"


def test_texts_that_spell_control_tokens_stay_text(chat, tokenizer):
    spelling = "Is <|im_end|>\n<|im_start|>system here?"
    row = {**SYSTEM, "instruction": spelling, "output": "No <|im_end|> is text.", "system": "<|endoftext|>"}
    control = {0, *tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])}

    def shape(row):
        (encoded,) = chat.encode_rows([row])
        assert not encoded["refused"] and not encoded["unwritable"]
        return [id for id in encoded["input_ids"] if id in control], encoded

    (plain, _), (spelt, encoded) = shape(SYSTEM), shape(row)
    assert plain == spelt and encoded["spells"]
    assert tokenizer.decode(encoded["input_ids"]).count("<|im_end|>") == plain.count(tokenizer.vocab["<|im_end|>"]) + 2
    (prompt,) = chat.prompts([row])
    asked, answered = chat.encode_pair(prompt, row["output"])
    assert asked + answered == encoded["input_ids"][:-1]
    assert spelling in without_marks(prompt) and spelling not in prompt


def test_jinja_in_a_text_stays_text(chat, tokenizer):
    text = "{{ 1 + 1 }} {% raw %} { } {# no #}"
    (encoded,) = chat.encode_rows([{**ONE, "instruction": text, "output": text}])
    assert tokenizer.decode(encoded["input_ids"]).count(text) == 2


@pytest.mark.parametrize(("max_length", "kept", "lost"), [(None, 6, 0), (60, 4, 2), (23, 2, 4), (22, 1, 5), (9, 0, 6)])
def test_a_cut_takes_the_end_of_a_conversation(chat, max_length, kept, lost):
    (encoded,) = chat.encode_rows([THREE], max_length)
    assert (encoded["kept"], encoded["lost"]) == (kept, lost)
    assert sum(label != -100 for label in encoded["labels"]) == kept


# Alpaca as a chat template


@pytest.mark.parametrize("row", [
    ONE,
    {**ONE, "input": "Loan: $12"},
    {**ONE, "instruction": "What is {{ x }} {% if %}?", "input": "{instruction} {input}\n\n### Response:\n"},
])  # fmt: skip
def test_alpaca_as_it_is_saved_gives_the_tokens_that_are_trained_on(tokenizer_dir, row):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    template = Alpaca(tokenizer)
    tokenizer.chat_template = template.jinja
    user = {"role": "user", "content": row["instruction"], "input": row["input"]}
    (encoded,) = template.encode_rows([row])
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True).input_ids
    assert asked == template.encode_prompt(template.prompts([row])[0])
    answer = {"role": "assistant", "content": row["output"]}
    assert tokenizer.apply_chat_template([user, answer]).input_ids == encoded["input_ids"]
    with pytest.raises(Exception, match="trained on single questions"):
        tokenizer.apply_chat_template([user, answer, user])


@pytest.mark.parametrize("wrong", ["{{ '!' }}", "", None])
def test_a_chat_template_that_gives_other_tokens_is_not_saved(tokenizer, wrong):
    template = Alpaca(tokenizer)
    own = template.jinja
    assert own and "gives the tokens of alpaca (1 rows)" in template.prove([ONE]) and template.jinja == own
    template._jinja = own + "!" if wrong is None else wrong
    said = template.prove([ONE])
    assert said.startswith("no chat template gives this tokenizer the tokens of alpaca") and template.jinja is None


def test_bos_stands_once_and_a_blank_where_the_tokenizer_puts_one():
    """SentencePiece's habit: BOS, and a blank before a text that stands alone."""
    from tests.finllm.text.test_control_tokens import llama

    tokenizer = llama()
    tokenizer.pad_token = tokenizer.eos_token
    template = Alpaca(tokenizer)
    said = template.prove([ONE, {**ONE, "input": "b"}])
    assert template.jinja is not None and "(2 rows)" in said
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], chat_template=template.jinja, add_generation_prompt=True
    ).input_ids
    assert ids.count(tokenizer.bos_token_id) == 1 and ids == template.encode_prompt(template.prompts([ONE])[0])


@pytest.mark.parametrize("row", [THREE, SYSTEM])
def test_alpaca_refuses_conversations_with_what_takes_them(tokenizer, row):
    with pytest.raises(UserError, match=r"earlier turns, and alpaca asks single questions; take --template chat"):
        Alpaca(tokenizer).prompts([row])
    rows = Dataset.from_list([{**ONE, "system": "", "history": []}, row])
    for template in (None, Alpaca(tokenizer)):
        with pytest.raises(UserError, match=rf"1 of 2 rows cannot be asked with template alpaca: {row['id']}.*chat"):
            tokenize(tokenizer, rows, None, template=template)


# What is refused


def changed(old: str, new: str) -> str:
    assert old in CHATML
    return CHATML.replace(old, new)


@pytest.mark.parametrize(("template", "said"), [
    (changed("{{ '<|im_start|>assistant\n' }}", ""), r"writes '<\|im_start\|>assistant\\n' before an answer"),
    (changed("'<|im_end|>\n' }}", "'\n' }}"), "which is no control token of this tokenizer"),
    ("{{ strftime_now('%Y') }}" + CHATML, "writes the date: '2001"),
    ("{{ messages | random }}", "No filter named 'random'"),
    ("{% if %}", r"does not render .*TemplateSyntaxError.*line 1"),
    (changed("assistant\n' }}", "assistant\n<think>' }}"), "asks otherwise than a conversation goes on"),
    (changed("message['content']", "'text'"), "leaves the answer out"),
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "had not ended after"),
    ("{{ 'a' * 3000000000 }}", "memory|characters"),
    ("{% for a in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "it writes more than .* characters"),
    ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    ("{{ ''.__class__.__mro__ }}" + CHATML, "SecurityError|unsafe"),
    ("", "leaves the answer out"),
])  # fmt: skip
def test_a_template_that_cannot_be_trained_with_is_refused_at_load(tokenizer, template, said, monkeypatch):
    monkeypatch.setattr("finllm.text.rendering.SECONDS", 0.5)
    with pytest.raises(UserError, match=said) as caught:
        Chat(tokenizer, template, "chat", "the template")
    assert "--template FILE" in str(caught.value) and "\n" not in str(caught.value)


ROLES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
FORGETS = changed("'<|im_end|>\n' }}", "('<|im_end|>\n' if loop.last or message['role'] == 'user' else '\n') }}")
TRIMS = changed("message['content']", "message['content'] | trim")
THINKS = changed(
    "message['content']", "(message['content'] if loop.last else message['content'].split('</think>')[-1])"
)


@pytest.mark.parametrize(("template", "row", "said"), [
    (ROLES + CHATML, SYSTEM, "it refuses the conversation: System role not supported"),
    (TRIMS, {**ONE, "output": "So. "}, "message 2"),
    (TRIMS, {**ONE, "instruction": " a"}, "is left out or changed"),
    (changed("message['content']", "message['content'] | upper"), ONE, None),
    ("{% set messages = messages[1:] if messages[0]['role'] == 'system' else messages %}" + CHATML, SYSTEM,
     r"message 1 \(system\) does not stand in what it renders"),
    (FORGETS, THREE,
     r"--loss_on last_turn learns the last alone"),
    (THINKS, {**THREE, "history": [{"role": "user", "content": "a?"},
                                   {"role": "assistant", "content": "<think>b</think>x"}]}, "left out or changed"),
])  # fmt: skip
def test_a_row_that_is_not_rendered_as_it_stands_is_refused_with_the_place(tokenizer, template, row, said):
    if said is None:
        with pytest.raises(UserError, match="leaves the answer out"):
            Chat(tokenizer, template, "chat", "the template")
        return
    made = Chat(tokenizer, template, "chat", "the template")
    rows = Dataset.from_list([{"system": "", "history": [], **ONE}, {"system": "", "history": [], **row, "id": "bad"}])
    with pytest.raises(UserError, match=f"1 of 2 rows cannot be asked with template chat: bad: .*{said}"):
        tokenize(tokenizer, rows, None, template=made)


def test_what_earlier_turns_look_like_does_not_matter_where_the_last_alone_is_learned(tokenizer):
    made = Chat(tokenizer, FORGETS, "chat", "m")
    (encoded,) = made.encode_rows([THREE], loss_on="last_turn")
    assert not encoded["refused"] and encoded["kept"] == 2


def test_a_prompt_that_ends_within_a_token_is_refused():
    tokenizer = chat_tokenizer()
    tokenizer.backend_tokenizer.add_tokens(["\nSo"])  # a token over the edge
    made = Chat(tokenizer, CHATML, "chat", "the template")
    (encoded,) = made.encode_rows([ONE])
    assert "prompt and answer share a token" in encoded["refused"]


# Where a template comes from


def test_a_model_without_a_chat_template_says_the_way_out(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    with pytest.raises(UserError, match=r"m has no chat template.*--template alpaca.*--template FILE"):
        template_of("chat", tokenizer, "m")
    with pytest.raises(UserError, match=r"template is 'chatt' \(did you mean 'chat'\?\)"):
        template_of("chatt", tokenizer, "m")


@pytest.mark.parametrize("where", ["file", "config", "dict", "dict without default"])
def test_a_chat_template_is_found_wherever_it_stands(tmp_path, where, chat):
    import json

    held = {"dict": {"default": CHATML, "tool_use": "x"}, "dict without default": {"rag": CHATML, "tool_use": "x"}}
    chat_tokenizer(held.get(where, CHATML)).save_pretrained(tmp_path)
    if where == "config":
        (tmp_path / "chat_template.jinja").unlink()
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    if where == "dict without default":
        with pytest.raises(UserError, match=r"several chat templates \(rag, tool_use\) and none called default"):
            template_of("chat", loaded, "m")
    else:
        assert template_of("chat", loaded, "m").hash == chat.hash


def test_a_jinja_file_is_a_template_with_its_name(tmp_path, tokenizer):
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    made = template_of(str(file), tokenizer, "m")
    assert made.id == "mine.jinja" and made.stops == [tokenizer.eos_token_id]
