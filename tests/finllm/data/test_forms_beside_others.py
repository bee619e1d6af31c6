"""Forms whose columns stand beside those of all other forms, what one row more or less decides, and whole words."""

import pytest

from finllm.data.conversations import Turn, Unreadable, history_of, turns_of
from finllm.data.forms import PAIRS, QUESTIONS, Asked, Form, looks_fixed, recognise
from finllm.errors import UserError

COLUMNS = {
    "alpaca": ("Alpaca", "instruction", "input", "output"), "dolly": ("Dolly", "instruction", "context", "response"),
    "prompt_completion": ("prompt and completion", "prompt", "context", "completion"),
    "question_answer": ("question and answer", "question", "context", "answer"),
    "query_response": ("query and response", "query", "context", "response"),
    "fingpt": ("FinGPT's context and target", "context", "input", "target"),
}  # fmt: skip
EVERY = ["id", *sorted({column for _, *columns in COLUMNS.values() for column in columns})]


@pytest.mark.parametrize("form", COLUMNS)
def test_a_form_that_is_asked_for_among_the_columns_of_all(form):
    title, question, given, answer = COLUMNS[form]
    assert recognise(EVERY, Asked(form), "a") == Form(title, question, given, answer)
    assert recognise([question, answer], Asked(form), "a") == Form(title, question, None, answer)
    assert recognise([question, answer], Asked(), "a") == Form(title, question, None, answer)
    assert list(PAIRS) == list(COLUMNS)
    # Another answer beside its own changes nothing, another whole form leaves it open
    other = "completion" if answer != "completion" else "answer"
    assert recognise([question, answer, other], Asked(), "a") == Form(title, question, None, answer)
    for second, (_, asked, _, answered) in COLUMNS.items():
        if second != form:
            with pytest.raises(UserError, match="; choose with --form") as raised:
                recognise([question, answer, asked, answered, "system"], Asked(), "a")
            assert {f"--form {form}", f"--form {second}"} <= set(str(raised.value).split("with ")[1].split(" or "))


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_turns_beside_texts_and_images(column):
    for others in (["text"], ["image"], ["audio", "text"], ["label"]):
        assert recognise([*others, column], Asked(), "a").turns == column


@pytest.mark.parametrize(
    ("instructions", "inputs", "fixed"),
    [
        ("aaaa", "1123", True), ("aaaa", "1233", True), ("aaaa", "1122", False), ("aaaa", "1111", False),
        ("baaa", "1234", False), ("aaab", "1234", False), ("abaa", "1234", False),
    ],
)  # fmt: skip
def test_the_first_and_the_last_row_count(instructions, inputs, fixed):
    rows = [{"a": one, "b": other} for one, other in zip(instructions, inputs, strict=True)]
    assert looks_fixed(rows, Form("", "a", "b", "c")) is fixed


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_text_beside_a_question_is_no_plain_text(question):
    with pytest.raises(
        UserError, match=r"^1 problem in a, which has the columns text, [a-z]*: no column 'output'; name"
    ):
        recognise(["text", question], Asked(), "a")


def test_contents_of_many_letters_and_a_history_that_begins_with_a_message():
    messages = [{"role": "user", "content": "Who pays it?"}, {"role": "assistant", "content": ["The ", "bank."]}]
    turns = [Turn("user", "Who pays it?"), Turn("assistant", "The \nbank.")]
    assert turns_of(messages) == history_of(messages) == turns
    for mixed, number in (([messages[0], ["a", "b"]], 2), ([["a", "b"], messages[0]], 1)):
        with pytest.raises(Unreadable, match=f"^turn {number} is list .*, not an object of role and content$"):
            history_of(mixed)
