"""What the flags of `finllm generate` do, its files that go on, and its conversations."""

import csv
import itertools
import json

import pytest
import torch

from finllm.errors import UserError
from finllm.files import write_json
from finllm.models import ask, generate
from finllm.models.asked import template_for
from finllm.models.base import load_for_inference
from finllm.models.find import load_tokenizer
from finllm.models.generate import Streamer, answer_all, decoding
from finllm.text.templates import Alpaca
from tests.finllm.text.chats import chat_model

PROMPTS = ["What is a bond?", "A", "Explain at some length what a balance sheet shows and to whom.", "Why?"]
SHARES = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}


class Drawn(torch.nn.Module):
    """A head with the same probabilities after every text: those of some ids, and nothing else."""

    def __init__(self, shares: dict[int, float]):
        super().__init__()
        self.logits = torch.full((600,), -1e9)
        for id, share in shares.items():
            self.logits[id] = torch.tensor(share).log()

    def forward(self, hidden):
        return self.logits.expand(*hidden.shape[:-1], 600)


@pytest.fixture
def loaded(gpt2_dir):
    return load_for_inference(str(gpt2_dir))


@pytest.fixture
def drawing(loaded):
    """A model that draws from a, b, c and d, and which of them it writes under some flags."""
    model, tokenizer = loaded
    model.set_output_embeddings(Drawn({tokenizer(name).input_ids[0]: share for name, share in SHARES.items()}))

    def letters(**flags):
        torch.manual_seed(0)
        (answer,) = answer_all(model, tokenizer, ["What?"], decoding(tokenizer, 200, **flags))
        return set(answer.text)

    return letters


@pytest.mark.parametrize(
    ("flags", "letters"),
    [({}, "abcd"), ({"top_k": 3}, "abc"), ({"top_k": 1}, "a"), ({"top_p": 0.7}, "ab"), ({"top_p": 0.9}, "abc"),
     ({"min_p": 0.4}, "ab"), ({"min_p": 0.2}, "abc")],
)  # fmt: skip
def test_what_is_drawn_is_cut_as_asked(drawing, flags, letters):
    assert drawing(temperature=1.0, **flags) == set(letters)


def test_unasked_nothing_is_cut(loaded):
    model, tokenizer = loaded
    model.set_output_embeddings(Drawn({id: 1 + id / 1000 for id in range(100, 600)}))
    torch.manual_seed(0)
    ids = generate._written(
        model, tokenizer, decoding(tokenizer, 400, 1.0), input_ids=torch.tensor([[5]]),
        attention_mask=torch.ones(1, 1, dtype=torch.long),
    )  # fmt: skip
    assert len(set(ids[0, 1:].tolist())) > 150  # transformers' default of the 50 likeliest would be 50


def test_nothing_is_taken_from_the_models_own_generation_config(loaded):
    model, tokenizer = loaded
    config = decoding(tokenizer, 12)
    plain = answer_all(model, tokenizer, PROMPTS, config)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.min_new_tokens = 5.0, 1, 12
    own.suppress_tokens = tokenizer(plain[0].text).input_ids
    assert answer_all(model, tokenizer, PROMPTS, config) == plain
    assert model.generation_config is own and own.repetition_penalty == 5.0


def test_repetitions_are_punished_whatever_the_batch(loaded, monkeypatch):
    model, tokenizer = loaded
    plain = answer_all(model, tokenizer, PROMPTS, decoding(tokenizer, 24))
    for flags in ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}):
        config = decoding(tokenizer, 24, **flags)
        together = answer_all(model, tokenizer, PROMPTS, config, batch_size=4)
        assert together == [answer_all(model, tokenizer, [prompt], config)[0] for prompt in PROMPTS] != plain
    ids = torch.tensor([tokenizer("What? What?").input_ids])
    written = generate._written(model, tokenizer, config, input_ids=ids, attention_mask=torch.ones_like(ids))
    pairs = list(itertools.pairwise(written[0, ids.shape[1] :].tolist()))
    assert len(set(pairs)) == len(pairs) == 23
    padded, own = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **given: padded.append(given["attention_mask"]) or own(**given))
    answer_all(model, tokenizer, PROMPTS, config, batch_size=4)
    assert len(padded) == len(PROMPTS) and all(mask.all() for mask in padded)  # padding would count as a repetition


def test_an_answer_ends_before_a_text_wherever_tokens_cut_it(loaded, capsys):
    model, tokenizer = loaded
    (whole,) = answer_all(model, tokenizer, ["What?"], decoding(tokenizer, 24))
    assert not whole.stopped and len(whole.text) > 12
    for begin, end in ((3, 4), (3, 9), (5, 12)):
        text = whole.text[begin:end]
        config = decoding(tokenizer, 24, texts=["never written", text])
        alone, other = answer_all(model, tokenizer, ["What?", PROMPTS[2]], config)
        assert alone.text == whole.text[: whole.text.index(text)] and alone.stopped and alone.tokens < 24
        assert other == answer_all(model, tokenizer, [PROMPTS[2]], config)[0]
        row = {"instruction": "What?", "input": ""}
        capsys.readouterr()
        (asked,) = answer_all(model, tokenizer, Alpaca().prompts([row]), config)
        assert generate.stream(model, Alpaca(tokenizer), row, config) == asked.text
        assert capsys.readouterr().out == asked.text + "\n"
    (answer,) = answer_all(model, tokenizer, ["never asked"], decoding(tokenizer, 24, texts=["never asked"]))
    assert answer.tokens == 24  # a text in the question ends nothing


def test_what_may_be_the_beginning_of_the_end_is_held_back(loaded, capsys):
    streamer = Streamer(Alpaca(loaded[1]), ["STOP", "OPQ"])
    shown = []
    for text in ("a ST", "ATE, S", "TO", "P b", " c"):
        streamer.on_finalized_text(text)
        shown.append(capsys.readouterr().out)
    streamer.on_finalized_text("", stream_end=True)
    assert shown == ["a ", "STATE, ", "", "", ""] and capsys.readouterr().out == "\n"
    streamer = Streamer(Alpaca(loaded[1]), ["STOP"])
    streamer.on_finalized_text("a STO")
    streamer.on_finalized_text("", stream_end=True)
    assert capsys.readouterr().out == "a STO\n"


def asked(command, model, *flags):
    return command("finllm/cli.py", "generate", model, *flags, "--max_new_tokens", 5)


def test_flags_that_contradict_each_other_are_named_at_once(command, gpt2_dir):
    done = asked(command, gpt2_dir, "Why?", "--top_k", 0, "--top_p", 0.5, "--min_p", 2, "--repetition_penalty", 0,
                 "--num_return_sequences", 3, "--stop", "", "--temperature", -1)  # fmt: skip
    assert done.status == 2
    for said in ("--top_k is 0 and must be at least 1", "--min_p is 2 and must be from 0 to 1", "--temperature is -1",
                 "--repetition_penalty is 0", "--stop is empty"):  # fmt: skip
        assert said in done.err, said
    done = asked(command, gpt2_dir, "Why?", "--top_p", 0.5, "--num_return_sequences", 3)
    assert done.status == 2 and "--top_p says nothing at temperature 0" in done.err
    assert "--num_return_sequences says nothing at temperature 0" in done.err
    done = asked(command, gpt2_dir, "--num_return_sequences", 3, "--temperature", 1)
    assert done.status == 2 and "a conversation goes on from one answer" in done.err


def test_temperatures_that_no_answer_can_be_drawn_at(command, gpt2_dir):
    for value in ("inf", "nan", "1e-40"):
        done = asked(command, gpt2_dir, "Why?", "--temperature", value)
        assert done.status == 2 and "and must be 0, or from 1e-6 to 1e6" in done.err, value
    assert asked(command, gpt2_dir, "Why?", "--temperature", 1e-6).status == 0


def test_several_answers_to_one_question(command, gpt2_dir):
    done = asked(command, gpt2_dir, "Why?", "--temperature", 1, "--num_return_sequences", 3)
    assert done.status == 0, done.err
    assert [f"{number} of 3" in done.out for number in (1, 2, 3)] == [True] * 3
    assert done.out == asked(command, gpt2_dir, "Why?", "--temperature", 1, "--num_return_sequences", 3).out


ROWS = [
    {"instruction": f"What is {word}?", "note": word} for word in ("a bond", 'a "put", or call', "tax\nto you", "b")
]


def test_csv_in_csv_out(command, gpt2_dir, tmp_path):
    with open(tmp_path / "in.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["note", "instruction", "input"], delimiter=";")
        writer.writeheader()
        writer.writerows({**row, "input": ""} for row in ROWS)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for source, target in (("in.csv", "out.csv"), ("in.jsonl", "out.jsonl"), ("in.csv", "both.jsonl")):
        done = asked(command, gpt2_dir, "--file", tmp_path / source, "--output", tmp_path / target)
        assert done.status == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    with open(tmp_path / "out.csv", newline="") as file:
        held = list(csv.DictReader(file))
    assert [list(row) for row in held] == [["note", "instruction", "input", "answer"]] * 4
    assert [{name: row[name] for name in ("instruction", "note", "answer")} for row in held] == [
        {name: row[name] for name in ("instruction", "note", "answer")} for row in lines
    ]
    done = asked(command, gpt2_dir, "--file", tmp_path / "out.csv", "--output", tmp_path / "again.csv")
    assert done.status == 2 and "has answer already" in done.err
    (tmp_path / "bad.csv").write_text("question,note\na,b\n")
    done = asked(command, gpt2_dir, "--file", tmp_path / "bad.csv", "--output", tmp_path / "again.csv")
    assert done.status == 2 and "no column `instruction`" in done.err and not (tmp_path / "again.csv").exists()
    assert "its columns are 'question, note'" in done.err
    (tmp_path / "bad.csv").write_text("instruction,note\na,b\n,c\n")
    done = asked(command, gpt2_dir, "--file", tmp_path / "bad.csv", "--output", tmp_path / "again.csv")
    assert done.status == 2 and "no text in `instruction`" in done.err and "line 2" in done.err


def test_a_file_goes_on_where_it_was_killed(command, gpt2_dir, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = ("--file", tmp_path / "in.jsonl", "--temperature", 1, "--num_return_sequences", 2, "--batch_size", 1)
    written, killed_at = [], None

    def counted(model, tokenizer, prompts, *others, **more):
        if len(written) == killed_at:
            raise KeyboardInterrupt
        written.append(prompts)
        return answer_all(model, tokenizer, prompts, *others, **more)

    monkeypatch.setattr(ask, "answer_all", counted)
    done = asked(command, gpt2_dir, *flags, "--output", tmp_path / "whole.jsonl")
    assert done.status == 0 and len(written) == 4, done.err
    output, kept = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.answers"
    written, killed_at = [], 2
    assert asked(command, gpt2_dir, *flags, "--output", output).status == 130 and not output.exists()
    kept.write_bytes(kept.read_bytes() + b'{"of": "cut by the k')
    killed_at = 3
    assert asked(command, gpt2_dir, *flags, "--output", output).status == 130
    killed_at = None
    done = asked(command, gpt2_dir, *flags, "--output", output)
    assert done.status == 0 and "6 answers were kept" in done.out and len(written) == 4, done.err
    assert output.read_text() == (tmp_path / "whole.jsonl").read_text() and not kept.exists()
    assert [*json.loads(output.read_text().splitlines()[0])] == ["instruction", "note", "answer_1", "answer_2"]
    for change in (("--seed", 7), ("--stop", "x"), ("--file", tmp_path / "other.jsonl")):
        (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[::-1]))
        written, killed_at = [], 2
        assert asked(command, gpt2_dir, *flags, "--output", output).status == 130
        written, killed_at = [], None
        done = asked(command, gpt2_dir, *flags, *change, "--output", output)
        assert done.status == 0 and len(written) == 4 and "were kept" not in done.out, change


def test_a_merged_run_is_asked_in_the_template_of_its_record(tmp_path):
    folder = chat_model(tmp_path / "merged")
    tokenizer = load_tokenizer(str(folder))
    assert template_for(str(folder), tokenizer).id == "alpaca"
    chat = template_for(str(folder), tokenizer, "chat")
    write_json(folder / "finllm.json", {"template": {"id": "chat", "hash": chat.hash}})
    assert template_for(str(folder), tokenizer).hash == chat.hash
    with pytest.raises(UserError, match="was trained with chat"):
        template_for(str(folder), tokenizer, "alpaca")
    for held, said in (({"id": "chat", "hash": "0" * 64}, "of hash 0000"), (["chat"], "not an id and a hash")):
        write_json(folder / "finllm.json", {"template": held})
        with pytest.raises(UserError, match=said):
            template_for(str(folder), tokenizer)


def test_a_conversation_remembers_and_forgets_the_oldest_where_there_is_no_room(command, tmp_path, monkeypatch):
    model = chat_model(tmp_path / "chat")
    seen, typed = [], iter(["a" * 150, "b" * 150, "c" * 150, ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))

    def stream(model, template, row, config):
        seen.append([turn["content"][:1] for turn in row["history"]] + [row["instruction"][:1], row["system"]])
        return "x"

    monkeypatch.setattr(ask, "stream", stream)
    done = command(
        "finllm/cli.py", "generate", model, "--template", "chat", "--system", "Brief.", "--max_new_tokens", 60
    )
    assert done.status == 0, done.err
    assert seen == [["a", "Brief."], ["a", "x", "b", "Brief."], ["b", "x", "c", "Brief."]]
    assert done.out.count("are forgotten") == 1
