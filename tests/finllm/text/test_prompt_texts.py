"""A row as a conversation, as a question and as a refusal, and alpaca as other programs render it: whole texts."""

import jinja2
import pytest

from finllm.text.prompts import (
    CHAT,
    TEMPLATE_ID,
    alpaca_as_jinja,
    build_prompt,
    history_of,
    messages_of,
    question_of,
    refused_by_alpaca,
    system_of,
)

QUESTION = {"instruction": "Add.", "input": "", "output": "3"}
TURNS = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "x"}]
HISTORY = [{**turn, "id": number} for number, turn in enumerate(TURNS)]  # a row may say more of a turn
LONG = {**QUESTION, "input": "1 2", "system": "Be brief.", "history": HISTORY}


def test_a_user_names_templates_by_these_words() -> None:
    assert (TEMPLATE_ID, CHAT) == ("alpaca", "chat")


@pytest.mark.parametrize("nothing", [{}, {"system": "", "history": []}, {"system": None, "history": None}])
def test_a_row_without_system_text_and_history_is_one_question(nothing: dict) -> None:
    row = {**QUESTION, **nothing}
    assert system_of(row) == "" and history_of(row) == [] and refused_by_alpaca(row) == ""
    assert messages_of(row) == [{"role": "user", "content": "Add."}]


def test_a_conversation_is_its_system_text_its_turns_and_its_last_question() -> None:
    assert system_of(LONG) == "Be brief." and history_of(LONG) == TURNS
    asked = {"role": "user", "content": "Add.\n\n1 2"}
    assert messages_of(LONG) == [{"role": "system", "content": "Be brief."}, *TURNS, asked]
    assert messages_of({**LONG, "system": ""}) == [*TURNS, asked]
    assert messages_of({**LONG, "history": []}) == [{"role": "system", "content": "Be brief."}, asked]


def test_an_input_stands_below_its_instruction_and_nothing_does_where_there_is_none() -> None:
    assert question_of({"instruction": "Add.", "input": "1 2"}) == "Add.\n\n1 2"
    for row in ({"instruction": "Add.", "input": ""}, {"instruction": "Add.", "input": None}, {"instruction": "Add."}):
        assert question_of(row) == "Add."


@pytest.mark.parametrize(("more", "named"), [
    ({"system": "Be brief."}, "a system text"), ({"history": HISTORY}, "earlier turns"),
    ({"system": "Be brief.", "history": HISTORY}, "a system text and earlier turns"),
])  # fmt: skip
def test_alpaca_says_what_of_a_row_it_cannot_ask(more: dict, named: str) -> None:
    assert refused_by_alpaca({**QUESTION, **more}) == f"it has {named}, and alpaca asks single questions"


def rendered(messages: list[dict], *around: str) -> str:
    """By Jinja itself, with what transformers gives a chat template."""

    def raise_exception(said: str) -> None:
        raise ValueError(said)

    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(alpaca_as_jinja(*around))
    return template.render(messages=messages, eos_token="</s>", raise_exception=raise_exception)


@pytest.mark.parametrize("input", ["", "1 {2} {{ 3 }} \"'\\"])
@pytest.mark.parametrize("around", [("", "", ""), ("<s>", " ", "_"), ("<s>'\"", "", " ")])
def test_alpaca_in_other_programs_is_the_prompt_with_what_its_tokenizer_needs(input: str, around: tuple) -> None:
    begin, before_prompt, before_response = around
    asked = {"role": "user", "content": "Add {input} {{ x }}.", "input": input}
    prompt = begin + before_prompt + build_prompt("Add {input} {{ x }}.", input)
    assert rendered([asked], *around) == prompt
    whole = rendered([asked, {"role": "assistant", "content": "{3}\n"}], *around)
    assert whole == prompt + before_response + "{3}\n</s>"


@pytest.mark.parametrize("roles", [
    "system user", "user user", "user assistant user", "assistant", "assistant user", "user assistant assistant", "",
])  # fmt: skip
def test_alpaca_in_other_programs_answers_single_questions_alone(roles: str) -> None:
    with pytest.raises(ValueError, match="trained on single questions"):
        rendered([{"role": role, "content": "a", "input": ""} for role in roles.split()], "", "", "")
