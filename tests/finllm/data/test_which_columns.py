"""Which form columns have, and which column holds what: whole forms, and whole refusals."""

import pytest

from finllm.data.forms import (
    ANSWERS,
    FORMS,
    IMAGES,
    QUESTIONS,
    TELLING,
    WANTED,
    Asked,
    Form,
    looks_fixed,
    recognise,
    telling,
)
from finllm.errors import UserError

ALPACA, DOLLY, PROMPT, ASKED = "Alpaca", "Dolly", "prompt and completion", "question and answer"
FINGPT, MESSAGES, SHAREGPT = "FinGPT's context and target", "OpenAI messages", "ShareGPT conversations"


def found(columns, form=None, leave_out=(), labels=(), **named):
    return recognise(columns.split(), Asked(form, named, frozenset(leave_out)), "a.csv", labels)


def pair(title, question, given, answer, system=None, history=None):
    return Form(title, question, given, answer, None, system, history)


def turns(title, column, system=None):
    return Form(title, turns=column, system=system)


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        ("instruction output", pair(ALPACA, "instruction", None, "output")),
        ("Output id INSTRUCTION", pair(ALPACA, "INSTRUCTION", None, "Output")),
        ("instruction input output system history",
         pair(ALPACA, "instruction", "input", "output", "system", "history")),
        ("instruction context input output", pair(ALPACA, "instruction", "input", "output")),
        ("instruction Context output System_Prompt", pair(ALPACA, "instruction", "Context", "output", "System_Prompt")),
        ("system_prompt system instruction output", pair(ALPACA, "instruction", None, "output", "system")),
        ("instruction response", pair(DOLLY, "instruction", None, "response")),
        ("instruction response context input", pair(DOLLY, "instruction", "context", "response")),
        ("prompt completion", pair(PROMPT, "prompt", None, "completion")),
        ("prompt completion input context", pair(PROMPT, "prompt", "context", "completion")),
        ("question answer input history", pair(ASKED, "question", "input", "answer", None, "history")),
        ("query response context", pair("query and response", "query", "context", "response")),
        ("context target", pair(FINGPT, "context", None, "target")),
        ("context target input", pair(FINGPT, "context", "input", "target")),
        # The only columns of each kind
        ("query answer", pair("query and answer", "query", None, "answer")),
        ("question output context", pair("question and output", "question", "context", "output")),
        ("instruction answer context input", pair("instruction and answer", "instruction", "input", "answer")),
        ("prompt Response", pair("prompt and Response", "prompt", None, "Response")),
        ("question instruction completion", pair("instruction and completion", "instruction", None, "completion")),
        ("query output answer", pair("query and output", "query", None, "output")),
        # Wherever the input stands
        ("input instruction output", pair(ALPACA, "instruction", "input", "output")),
        ("context question answer", pair(ASKED, "question", "context", "answer")),
        # Turns
        ("messages", turns(MESSAGES, "messages")), ("id Messages system", turns(MESSAGES, "Messages", "system")),
        ("conversations", turns(SHAREGPT, "conversations")), ("conversation", turns(SHAREGPT, "conversation")),
        ("conversation conversations system_prompt", turns(SHAREGPT, "conversations", "system_prompt")),
        # What stands beside a form does not matter
        ("question answer text image label", pair(ASKED, "question", None, "answer")),
        ("messages text images", turns(MESSAGES, "messages")), ("question answer chosen",
         pair(ASKED, "question", None, "answer")),
        ("question answer rejected label", pair(ASKED, "question", None, "answer")),
    ],
)  # fmt: skip
def test_what_is_recognised(columns, form):
    assert found(columns) == form
    assert found(f"x y {columns} z") == form


@pytest.mark.parametrize(
    ("columns", "asked", "form"),
    [
        ("instruction context response output", {"form": "dolly"}, pair(DOLLY, "instruction", "context", "response")),
        ("instruction context input response output", {"form": "dolly"},
         pair(DOLLY, "instruction", "context", "response")),
        ("instruction context input output response", {"form": "alpaca"},
         pair(ALPACA, "instruction", "input", "output")),
        ("context target question answer", {"form": "fingpt"}, pair(FINGPT, "context", None, "target")),
        ("messages conversations", {"form": "messages"}, turns(MESSAGES, "messages")),
        ("messages conversations", {"form": "sharegpt"}, turns(SHAREGPT, "conversations")),
        ("messages chat system", {"messages": "chat"}, turns(MESSAGES, "chat", "system")),
        ("messages chat", {"messages": "chat", "form": "sharegpt"}, turns(SHAREGPT, "chat")),
        ("chosen rejected", {"messages": "chosen"}, turns(MESSAGES, "chosen")),
        ("chat messages x", {"messages": "chat", "form": "alpaca"}, turns(MESSAGES, "chat")),
        ("chosen rejected prompt", {"output": "chosen"}, pair("prompt and chosen", "prompt", None, "chosen")),
        ("text answer", {"instruction": "text"}, pair("text and answer", "text", None, "answer")),
        ("a b context", {"instruction": "a", "output": "b"}, pair("a and b", "a", "context", "b")),
        ("a b context input", {"instruction": "a", "output": "b", "input": "input"},
         pair("a and b", "a", "input", "b")),
        ("instruction output note", {"input": "note"}, pair("instruction and output", "instruction", "note", "output")),
        ("instruction note output x", {"form": "alpaca", "input": "note"},
         pair(ALPACA, "instruction", "note", "output")),
        ("instruction output x", {"form": "alpaca", "output": "x"}, pair(ALPACA, "instruction", None, "x")),
        # A column that is named is not taken a second time
        ("question answer", {"output": "question", "instruction": "answer"},
         pair("answer and question", "answer", None, "question")),
        ("question prompt output", {"instruction": "output", "output": "prompt"},
         pair("output and prompt", "output", None, "prompt")),
        ("context answer", {"instruction": "context"}, pair("context and answer", "context", None, "answer")),
        ("Instruction context input x", {"output": "x"}, pair("Instruction and x", "Instruction", "input", "x")),
        # What is left out holds nothing
        ("question answer messages", {"leave_out": ["messages"]}, pair(ASKED, "question", None, "answer")),
        ("question answer context", {"leave_out": ["context"]}, pair(ASKED, "question", None, "answer")),
        ("question answer messages system", {"leave_out": ["answer", "system"]}, turns(MESSAGES, "messages")),
        ("question answer context input", {"leave_out": ["input"], "form": "question_answer"},
         pair(ASKED, "question", "context", "answer")),
        # Not refused by name where a form is asked for
        ("question answer label", {"form": "question_answer", "labels": ["label"]},
         pair(ASKED, "question", None, "answer")),
        ("question answer label", {"labels": ["id"]}, pair(ASKED, "question", None, "answer")),
    ],
)  # fmt: skip
def test_what_is_asked_for(columns, asked, form):
    assert found(columns, **asked) == form


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_beside_texts_and_images(answer):
    assert found(f"question image text {answer}").output == answer
    with pytest.raises(UserError, match=r"no column 'instruction'; name the one that holds the instruction"):
        found(f"text {answer}")


def test_blanks_around_a_columns_name():
    columns = [" Instruction ", "context", "input", " output"]
    assert recognise(columns, Asked(), "a.csv") == pair(ALPACA, " Instruction ", "input", " output")


def test_the_first_of_two_columns_of_one_name_in_small_letters():
    assert found("Question question answer ANSWER") == pair(ASKED, "Question", None, "answer")
    asked = Asked("question_answer", {}, frozenset(["question"]))
    assert recognise([" Question ", "answer"], asked, "x") == pair(ASKED, " Question ", None, "answer")


PREFERENCES = (
    "these are preferences (chosen and rejected answers), which TRL's DPOTrainer takes; to learn the chosen answers "
    "alone name them: --output_column chosen, or --messages_column chosen where they are conversations"
)
MARKED = (
    "these are preferences (the column {} says which answers are good), which TRL's KTOTrainer takes; to learn all "
    "answers alike choose the form with --form"
)
SEEN = "these are images or sounds ({}), which are not read; TRL's SFTTrainer trains vision-language models on them"
PLAIN = (
    "this is a plain text column, which has no question and no answer; TRL's SFTTrainer trains on it as it is. Where "
    "two columns hold a question and its answer, name them with --instruction_column and --output_column"
)
NO_FORM = f"no form fits; one with turns is named with --messages_column, and known forms are {', '.join(FORMS)}"
NAME = "name the one that holds the {0} with --{0}_column"
NO_QUESTION = f"no column 'instruction'; {NAME.format('instruction')}"
NO_ANSWER = f"no column 'output'; {NAME.format('output')}"


@pytest.mark.parametrize(
    ("columns", "asked", "said"),
    [
        ("chosen rejected", {}, f": {PREFERENCES}"), ("Prompt Chosen rejected completion", {}, f": {PREFERENCES}"),
        ("prompt completion Label", {"labels": ["Label"]}, f": {MARKED.format('Label')}"),
        ("prompt completion kto_tag", {"labels": ["kto_tag"]}, f": {MARKED.format('kto_tag')}"),
        ("image", {}, f": {SEEN.format('image')}"), ("id Video audios image", {},
         f": {SEEN.format('image, video, audios')}"),
        ("text", {}, f": {PLAIN}"), ("id Text", {}, f": {PLAIN}"),
        ("question answer query response", {}, ": the columns fit 2 forms, question and answer (question, answer) and "
         "query and response (query, response); choose with --form question_answer or --form query_response"),
        ("instruction output messages", {}, ": the columns fit 2 forms, Alpaca (instruction, output) and OpenAI "
         "messages; choose with --form alpaca or --form messages"),
        ("messages conversation", {}, ": the columns fit 2 forms, OpenAI messages and ShareGPT conversations; choose "
         "with --form messages or --form sharegpt"),
        ("a", {"form": "messages"}, ": --form messages reads the column messages; name another with --messages_column"),
        ("messages", {"form": "sharegpt"}, ": --form sharegpt reads the column conversations; name another with "
         "--messages_column"),
        ("messages", {"form": "messages", "leave_out": ["messages"]}, ": --form messages reads the column messages; "
         "name another with --messages_column"),
    ],
)  # fmt: skip
def test_what_is_refused(columns, asked, said):
    with pytest.raises(UserError) as raised:
        found(columns, **asked)
    assert str(raised.value) == f"a.csv, which has the columns {', '.join(columns.split())}{said}"


@pytest.mark.parametrize(
    ("columns", "asked", "said"),
    [
        ("a b", {}, f"3 problems in {{}}: {NO_QUESTION}; {NO_ANSWER}; {NO_FORM}"),
        ("", {}, f"3 problems in {{}}: {NO_QUESTION}; {NO_ANSWER}; {NO_FORM}"),
        ("question", {}, f"1 problem in {{}}: {NO_ANSWER}"), ("answer b", {}, f"1 problem in {{}}: {NO_QUESTION}"),
        ("text query", {}, f"1 problem in {{}}: {NO_ANSWER}"),
        ("a b", {"form": "alpaca"}, f"2 problems in {{}}: {NO_QUESTION}; {NO_ANSWER}"),
        ("questions answer", {"form": "question_answer"}, "1 problem in {}: no column 'question' (did you mean "
         f"'questions'?); {NAME.format('instruction')}"),
        ("question prompt output", {}, "1 problem in {}: of the columns prompt and question each may hold the "
         f"instruction; {NAME.format('instruction')}"),
        ("query answer completion", {}, "1 problem in {}: of the columns completion and answer each may hold the "
         f"output; {NAME.format('output')}"),
        ("question answer", {"input": "x", "output": "answers"}, "2 problems in {}: no column 'x'; "
         f"{NAME.format('input')}; no column 'answers' (did you mean 'answer'?); {NAME.format('output')}"),
        ("question answer", {"instruction": "answer"}, f"1 problem in {{}}: {NO_ANSWER}"),
    ],
)  # fmt: skip
def test_every_problem_is_named(columns, asked, said):
    with pytest.raises(UserError) as raised:
        found(columns, **asked)
    assert str(raised.value) == said.format(f"a.csv, which has the columns {', '.join(columns.split()) or '(none)'}")


def test_flags_that_name_no_column():
    for flag in ("group_column", "number_column"):
        assert recognise(["question", "answer", "of"], Asked(**{flag: "of"}), "a.csv").output == "answer"
        with pytest.raises(UserError) as raised:
            recognise(["question", "answer"], Asked(**{flag: "answers"}), "a.csv")
        assert str(raised.value) == (
            "1 problem in a.csv, which has the columns question, answer: no column 'answers' (did you mean 'answer'?) "
            f"that --{flag} names"
        )


def test_two_fields_of_one_column():
    with pytest.raises(UserError) as raised:
        found("question answer", output="answer", input="answer")
    assert str(raised.value) == (
        "two fields would come from one column: output from answer, input from answer, instruction from question"
    )


def test_what_is_wanted_of_a_header_and_what_may_not_be_left_out():
    wanted = "answer completion context conversation conversations input instruction messages output prompt query"
    assert sorted(WANTED) == [*wanted.split(), "question", "response", "target"]
    told = "audio audios conversation conversations functions history image images messages system system_prompt tools"
    assert sorted(TELLING) == [*told.split(), "video", "videos"]
    tools = "tool calls are not read; TRL's SFTTrainer trains on them"
    other = "the form that was read does not take it; choose another with --form"
    images = "images and sounds are not read; TRL's SFTTrainer trains vision-language models on them"
    said = {name: telling(f" {name.upper()} ") for name in (*sorted(TELLING), "id", "text", *QUESTIONS, *ANSWERS)}
    assert said == {
        **dict.fromkeys(TELLING, other), **dict.fromkeys(IMAGES, images), "tools": tools, "functions": tools,
        **dict.fromkeys(("id", "text", *QUESTIONS, *ANSWERS), ""),
    }  # fmt: skip


def test_a_form_names_what_it_reads():
    form = Form("Title", "a", None, "b", system="c")
    assert form.columns == {"instruction": "a", "output": "b", "system": "c"}
    assert str(form) == "Title (instruction from 'a', output from 'b', system from 'c')"
    whole = Form("T", "a", "b", "c", "d", "e", "f")
    assert whole.columns == {
        "instruction": "a", "input": "b", "output": "c", "turns": "d", "system": "e", "history": "f",
    }  # fmt: skip


def test_one_instruction_before_many_inputs():
    form = Form("", "i", "n", "o")
    for rows, instructions, inputs, fixed in (
        (2, 1, 2, False), (3, 1, 3, True), (3, 2, 3, False), (3, 1, 2, True), (3, 1, 1, False), (4, 1, 2, False),
        (4, 1, 3, True), (19, 1, 19, True), (19, 2, 19, False), (20, 2, 20, True), (20, 3, 20, False),
        (29, 3, 29, False), (30, 3, 16, True), (30, 3, 15, False),
    ):  # fmt: skip
        made = [{"i": n % instructions, "n": n % inputs} for n in range(rows)]
        assert looks_fixed(made, form) is fixed, (rows, instructions, inputs)
    assert looks_fixed([{"i": 1, "n": n} for n in range(9)], Form("", "i", None, "o")) is False
