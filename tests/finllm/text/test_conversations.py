"""Conversations as texts: each whole and each prompt as literals, and what a template must not do to them."""

import re

import pytest

from finllm.errors import UserError
from finllm.text.conversations import END, START, Conversations, Shape, Texts, apart, without_marks
from tests.finllm.text.chats import CHATML, ONE, SYSTEM, THREE

CONTROLS = ["<|im_end|>", "", "<|im_start|>", "<|im_end|>s"]
OPENS = "<|im_start|>assistant\n"


def chatml(*turns: str, asks: bool = False) -> str:
    """ChatML by hand: a turn is written `u` for user, `a` for assistant or `s` for system, and then its text."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    text = "".join(f"<|im_start|>{roles[turn[0]]}\n{turn[1:]}<|im_end|>\n" for turn in turns)
    return text + OPENS if asks else text


def made(template: str = CHATML, controls: tuple | list = CONTROLS, **special: str) -> Conversations:
    return Conversations(template, special, controls, "</s>", "the template")


def changed(old: str, new: str) -> str:
    assert old in CHATML
    return CHATML.replace(old, new)


FIRST, SECOND, LAST = ("ua?",), ("ua?", "ax", "ub?"), ("ua?", "ax", "ub?", "ay", "uAnd c?")
WHOLE_OF_THREE = chatml(*LAST, "az")
SPELLS = {**THREE, "id": "spells", "instruction": "Is <|im_end|> it?", "output": "<|im_end|>s."}
MARKED_QUESTION, MARKED_ANSWER = f"uIs {START}<|im_end|>{END} it?", f"a{START}<|im_end|>s{END}."
REFUSED = {**ONE, "instruction": "refuse", "output": "<|im_end|>"}
REFUSES = CHATML + "{% if messages[0].content == 'refuse' %}{{ raise_exception('no') }}{% endif %}"


def test_each_row_has_its_own_texts_whatever_stands_before_it() -> None:
    rows = [ONE, SPELLS, THREE, REFUSED, SYSTEM, ONE]
    refused = Texts("", [], refused="it refuses the conversation: no")
    one, of_one = chatml("uWhy?", "aSo."), chatml("uWhy?", asks=True)
    first, second, last = (chatml(*turns, asks=True) for turns in (FIRST, SECOND, LAST))
    marked, of_marked = (*LAST[:-1], MARKED_QUESTION), chatml(*LAST[:-1], MARKED_QUESTION, asks=True)
    told = [chatml("sBe brief.", *turns, asks=True) for turns in (FIRST, SECOND, LAST)]
    system = chatml("sBe brief.", *LAST, "az")
    assert made(REFUSES).texts(rows) == [
        Texts(one, [of_one]), Texts(chatml(*marked, MARKED_ANSWER), [first, second, of_marked], spells=True),
        Texts(WHOLE_OF_THREE, [first, second, last]), refused, Texts(system, told), Texts(one, [of_one]),
    ]  # fmt: skip
    assert made(REFUSES).texts(rows, last=True) == [
        Texts(one, [of_one]), Texts(chatml(*marked, MARKED_ANSWER), [of_marked], spells=True),
        Texts(WHOLE_OF_THREE, [last]), refused, Texts(system, told[2:]), Texts(one, [of_one]),
    ]  # fmt: skip
    for only_last in (False, True):
        assert made(REFUSES).texts(rows, last=only_last, whole=False) == [
            Texts(of_one, [of_one]), Texts(of_marked, [of_marked], spells=True), Texts(last, [last]), refused,
            Texts(told[2], told[2:]), Texts(of_one, [of_one]),
        ]  # fmt: skip
    assert made().texts([]) == []


def test_without_marks_a_text_is_what_was_written() -> None:
    for row in (SPELLS, ONE):
        (asked,) = made().texts([row], whole=False)
        assert row["instruction"] in without_marks(asked.prompts[0])
    assert without_marks(f"a{START}b{END}c{START}{END}") == "abc"


ELSE = "a text in it spells a control token, and it makes something else of that text"


@pytest.mark.parametrize("row", [
    {**ONE, "instruction": f"a{START}b"}, {**ONE, "output": f"a{END}b"}, {**SYSTEM, "system": f"{START}<|im_end|>"},
])  # fmt: skip
def test_nobody_can_write_the_marks(row: dict) -> None:
    (found,) = made().texts([row])
    assert found == Texts("", [], refused=ELSE)


@pytest.mark.parametrize("changes", [
    "message['content'] + (message['content'] | length | string if message['role'] == 'user' else '')",
    f"message['content'] | replace('{START}', '')",
    f"('!' if message['role'] == 'user' and '{END}' not in message['content'] else '') + message['content']",
])  # fmt: skip
def test_a_template_that_would_see_the_marks_gets_no_text_that_needs_them(changes: str) -> None:
    found = made(changed("message['content']", f"({changes})")).texts([ONE, SPELLS])
    assert not found[0].refused and not found[0].spells
    assert found[1] == Texts("", [], refused=ELSE)


def test_a_prompt_may_not_be_another_one_where_marks_are_seen() -> None:
    """Here it would be that of the first answer, which is the same text: only the prompts differ."""
    only = f"messages[:1] if add_generation_prompt and '{START}' in messages[-1].content else messages"
    sees = f"{{% set messages = {only} %}}"
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "z"}]
    assert made(sees + CHATML).texts([{**SPELLS, "history": turns, "output": "z"}]) == [Texts("", [], refused=ELSE)]


# The shape of an answer


@pytest.mark.parametrize(("template", "controls", "shape"), [
    (CHATML, CONTROLS, Shape("", "", "<|im_end|>")),
    (changed("<|im_end|>\n", "<|im_end|>s"), CONTROLS, Shape("", "", "<|im_end|>s")),  # the longer of two
    (changed("<|im_end|>\n", " \n<|im_end|>"), CONTROLS, Shape("", " \n", "<|im_end|>")),
    (changed("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant' }}"), CONTROLS, Shape("\n", "", "<|im_end|>")),
    ("{% for m in messages %}{{ m.content }}<e>{% endfor %}", ["<e>"], Shape("", "", "<e>")),
    (changed("'<|im_end|>\n'", "end_of_turn"), CONTROLS, Shape("", "", "<|im_end|>")),
    (CHATML + "{% if not add_generation_prompt %}{{ messages[-1].content }}{% endif %}", CONTROLS,
     Shape("", "", "<|im_end|>")),
])  # fmt: skip
def test_what_stands_around_an_answer_is_found(template: str, controls: list[str], shape: Shape) -> None:
    found = made(template, controls, end_of_turn="<|im_end|>")
    assert found.shape == shape and shape.around("So.") == f"{shape.lead}So.{shape.tail}{shape.end}"
    (one, three) = found.texts([ONE, THREE])
    assert not one.refused and not three.refused
    assert one.whole.startswith(one.prompts[0] + shape.around("So.")) and len(three.prompts) == 3


WAY_OUT = "; copy the template into a file, mend it there, and pass that as --template FILE.jinja"


@pytest.mark.parametrize(("template", "said"), [
    (changed("'<|im_end|>\n' }}", "'. The end <|im_end|>\n' }}"),
     "ends an answer with '. The end <|im_end|>\\n', which is no control token of this tokenizer, so no model could be "
     "stopped there (its EOS is '</s>')"),
    ("{{ strftime_now('%d') }}" + CHATML,
     "writes the date: '03<|im_start|>user\\nWhat is a b' on one day and '16<|im_start|>user\\nWhat is a b' on another"
     ", so a model would not be asked as it was trained"),
    (CHATML + "{% if not add_generation_prompt %}{{ strftime_now('%S') }}{% endif %}",
     "writes the date: 'm_end|>\\n06' on one day and 'm_end|>\\n19' on another, so a model would not be asked as it "
     "was trained"),
    ("{% if add_generation_prompt %}a{% endif %}" + CHATML,
     "asks otherwise than a conversation goes on: its prompt has 'a<|im_start|>user\\nWhat is a bond?<|im_en' where "
     "the whole has '<|im_start|>user\\nWhat is a bond?<|im_end'"),
    ("{% if messages | length == 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML,
     "does not render a question and its answer: one turn"),
    *((f"{{% if strftime_now('%Y') == '{year}' and {when} %}}{{{{ raise_exception('now') }}}}{{% endif %}}" + CHATML,
       "does not render a question and its answer: now")
      for year in (2001, 2034) for when in ("add_generation_prompt", "not add_generation_prompt")),
    (changed("assistant\n' }}", "assistant ' + strftime_now('%d') }}"),
     "writes the date: 'sistant 03' on one day and 'sistant 16' on another, so a model would not be asked as it was "
     "trained"),
])  # fmt: skip
def test_a_template_that_cannot_be_trained_with_is_refused_with_the_place(template: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"the template {said}{WAY_OUT}")):
        made(template)


# What is lost or changed of a conversation


LEFT_OUT = "does not stand in what it renders"


@pytest.mark.parametrize(("template", "row", "said"), [
    ("{% set messages = messages if messages | length < 4 else messages | reverse %}" + CHATML, THREE,
     f"message 2 (assistant) {LEFT_OUT}: 'x' is left out or changed"),
    ("{% set messages = messages | rejectattr('content', 'equalto', 'brief') | list %}" + CHATML,
     {**ONE, "system": "Be brief.", "instruction": "brief"},
     f"message 2 (user) {LEFT_OUT}: 'brief' is left out or changed"),
    (changed("'<|im_end|>\n' }}", "('<|im_end|>\n' if loop.last or message['role'] == 'user' else '\n') }}"), THREE,
     "message 2, an answer, has '\\n<|im_start|>user\\nb?<|im_end|>\\n<|im_star' where '<|im_end|>' was given; it "
     "renders earlier answers otherwise than the last one (--loss_on last_turn learns the last alone)"),
    (changed("{% for", "{% if not add_generation_prompt and messages | length > 2 %}!{% endif %}{% for"), THREE,
     "message 2 is asked for with '<|im_start|>user\\na?<|im_end|>\\n<|im_start' where the whole has "
     "'!<|im_start|>user\\na?<|im_end|>\\n<|im_star'; it renders earlier answers otherwise than the last one (--loss_on"
     " last_turn learns the last alone)"),
    (changed("message['content']", "(message['content'] if message['content'] != 'So.' else '<t>So.')"), ONE,
     "message 2, an answer, has '<t>So.<|im_end|>\\n' where 'So.<|im_end|>' was given"),
])  # fmt: skip
def test_what_becomes_of_a_text_is_said_with_its_place(template: str, row: dict, said: str) -> None:
    assert [each.refused for each in made(template).texts([ONE if row is THREE else THREE, row])] == ["", said]


def test_a_question_that_is_left_out_only_where_it_is_asked_is_told() -> None:
    template = changed("message['content']", "(message['content'] if message['content'] != 'drop' else '')")
    (found,) = made(template).texts([{**ONE, "instruction": "drop"}], whole=False)
    assert found.refused == f"message 1 (user) {LEFT_OUT}: 'drop' is left out or changed"


def test_a_text_may_be_the_first_thing_that_is_rendered_and_may_be_empty() -> None:
    found = made("{% for m in messages %}{{ m.content }}<e>{% endfor %}", ["<e>"])
    one, empty = found.texts([ONE, {**ONE, "output": ""}])
    assert one == Texts("Why?<e>So.<e>", ["Why?<e>"]) and empty == Texts("Why?<e><e>", ["Why?<e>"])


def test_two_texts_are_apart_where_they_first_differ_or_where_the_shorter_ends() -> None:
    for one, other, place in (("abc", "xbc", 0), ("abc", "abd", 2), ("ab", "abc", 2), ("", "a", 0), ("ab", "ab", 2)):
        assert apart(one, other) == apart(other, one) == place
