"""Generation by `finllm generate` and by the function that evaluation shares with it."""

import json

import pytest
import torch

from finllm.errors import UserError
from finllm.models.base import load_for_inference
from finllm.models.generate import answer_all, decoding
from finllm.text.prompts import build_prompt

PROMPTS = ["What is a bond?", "A", "Explain at some length what a balance sheet shows and to whom.", "Why?", "Tax"]


@pytest.fixture(params=["gpt2_dir", "llama_dir"])
def loaded(request):
    return load_for_inference(str(request.getfixturevalue(request.param)))


def test_answers_do_not_depend_on_the_batch_and_come_in_order(loaded):
    model, tokenizer = loaded
    config = decoding(tokenizer, 12)
    alone = [answer_all(model, tokenizer, [prompt], config)[0] for prompt in PROMPTS]
    told = []
    assert answer_all(model, tokenizer, PROMPTS, config, batch_size=3, progress=told.append) == alone
    assert told == [3, 2]
    assert len({answer.text for answer in alone}) > 1


class Always(torch.nn.Module):
    """A head that always prefers one token."""

    def __init__(self, token: int):
        super().__init__()
        self.token = token

    def forward(self, hidden):
        return torch.nn.functional.one_hot(torch.tensor(self.token), 600).float().expand(*hidden.shape[:-1], 600)


def test_eos_stops_and_is_counted_and_not_shown(loaded):
    model, tokenizer = loaded
    model.set_output_embeddings(Always(tokenizer.eos_token_id))
    (answer,) = answer_all(model, tokenizer, ["What?"], decoding(tokenizer, 8))
    assert (answer.text, answer.tokens, answer.stopped) == ("", 1, True)
    (a,) = tokenizer("a").input_ids
    model.set_output_embeddings(Always(a))
    (answer,) = answer_all(model, tokenizer, ["What?"], decoding(tokenizer, 8))
    assert (answer.text, answer.tokens, answer.stopped) == ("a" * 8, 8, False)


def test_nothing_is_answered_with_nothing(loaded):
    model, tokenizer = loaded
    assert answer_all(model, tokenizer, [], decoding(tokenizer, 4)) == []


def test_a_prompt_without_room_is_refused(loaded):
    model, tokenizer = loaded
    with pytest.raises(UserError, match=r"together more than the model's 512 positions"):
        answer_all(model, tokenizer, ["word " * 600], decoding(tokenizer, 4))


def expected(model_dir, question: str) -> str:
    model, tokenizer = load_for_inference(str(model_dir))
    return answer_all(model, tokenizer, [build_prompt(question)], decoding(tokenizer, 5))[0].text + "\n"


def test_a_question_from_the_argument_is_streamed(command, gpt2_dir):
    done = command("finllm/cli.py", "generate", gpt2_dir, "What is a bond?", "--max_new_tokens", 5)
    assert done.status == 0, done.err
    assert done.out == expected(gpt2_dir, "What is a bond?")


def test_a_file_of_questions_becomes_a_file_of_answers(command, gpt2_dir, tmp_path):
    questions = [
        {"instruction": "What is a bond?", "mark": 1},
        {"instruction": "Sum up.", "input": "A and B", "mark": 2},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    done = command("finllm/cli.py", "generate", gpt2_dir, "--file", source, "--output", target, "--max_new_tokens", 5)
    assert done.status == 0, done.err
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["mark"] for row in rows] == [1, 2]
    assert all(isinstance(row["answer"], str) for row in rows)


def test_interactive_questions_end_with_an_empty_line(command, gpt2_dir, monkeypatch):
    typed = iter(["What is a bond?", "And a share?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    done = command("finllm/cli.py", "generate", gpt2_dir, "--max_new_tokens", 5)
    assert done.status == 0, done.err
    assert done.out == expected(gpt2_dir, "What is a bond?") + expected(gpt2_dir, "And a share?")
    assert list(typed) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "questions.jsonl"], "--file and --output go together"),
        (["What?", "--file", "a", "--output", "b"], "give a question or --file, not both"),
        (["--file", "missing.jsonl", "--output", "b"], "missing.jsonl does not exist"),
        (["What?", "--max_new_tokens", 0], "must be at least 1"),
    ],
)
def test_mistakes_are_named(command, gpt2_dir, arguments, message):
    done = command("finllm/cli.py", "generate", gpt2_dir, *arguments)
    assert done.status == 2 and message in done.err


def test_rows_without_text_are_named_by_line(command, gpt2_dir, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"instruction": "a"}\n{"instruction": 3}\n{"question": "b"}\n')
    done = command("finllm/cli.py", "generate", gpt2_dir, "--file", tmp_path / "in.jsonl", "--output", tmp_path / "o")
    assert done.status == 2 and "on line 2, line 3" in done.err
    assert not (tmp_path / "o").exists()


def test_an_incomplete_run_is_refused(command, tmp_path):
    (tmp_path / "config.yaml").write_text("model_name_or_path: gpt2\n")
    done = command("finllm/cli.py", "generate", tmp_path, "What?")
    assert done.status == 2 and "is not a complete run dir" in done.err
