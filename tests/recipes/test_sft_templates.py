"""Runs on conversations of three turns: the template goes with them, to whoever asks the model afterwards."""

import hashlib
import json

import pytest
import yaml
from transformers import AutoTokenizer, GenerationConfig

from finllm.models.find import load_tokenizer
from finllm.text.prompts import TEMPLATE_HASH
from tests.finllm.text.chats import CHATML, chat_model
from tests.recipes.conftest import TINY


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return chat_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A dataset dir of 40 conversations of three turns each."""
    from finllm.data.prepare import prepare

    folder = tmp_path_factory.mktemp("chats")
    turns = [("What is {}?", "It is {}."), ("Who pays {}?", "You pay {}."), ("Why {}?", "So {} it is.")]
    rows = []
    for number in range(40):
        word = "".join(chr(97 + int(digit) * 2) for digit in f"{number:03}") * 2
        messages = [
            {"role": role, "content": text.format(word)}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        rows.append({"messages": messages})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(folder / "chats.jsonl", folder / "data", validation_fraction=0.1, test_fraction=0.1)
    return folder / "data"


@pytest.fixture
def train(command, base, chats, tmp_path):
    def call(*arguments, name="run", steps=2):
        return command(
            "recipes/sft.py", "--model_name_or_path", base, "--dataset_name", chats, "--output_dir", tmp_path / name,
            "--max_steps", steps, *TINY, *arguments,
        ), tmp_path / name  # fmt: skip

    return call


def test_a_run_on_conversations_is_asked_as_it_was_trained(train, command, base, chats, tmp_path):
    adapter = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--learning_rate", "2e-2")
    done, run = train("--template", "chat", *adapter, steps=10)
    assert done.status == 0, done.err
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0] - 0.1
    hash = hashlib.sha256(CHATML.encode()).hexdigest()
    assert json.loads((run / "provenance.json").read_text())["template_hash"] == hash
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["template"], config["loss_on"]) == ("chat", "all_turns")
    assert AutoTokenizer.from_pretrained(run / "model").chat_template == CHATML
    assert GenerationConfig.from_pretrained(run / "model").eos_token_id == [0, 2]
    (proof,) = (each for each in json.loads((run / "proofs.json").read_text())["proofs"] if each["name"] == "template")
    assert proof["passed"] and "16 conversations" in proof["said"]

    for arguments in (("finllm/cli.py", "generate", run, "Why?"), ("eval/run.py", run)):
        done = command(*arguments, "--template", "alpaca")
        assert done.status == 2 and "was trained with chat" in done.err, done
    done = command("finllm/cli.py", "generate", run, "Why?", "--system", "Be brief.", "--max_new_tokens", 3)
    assert done.status == 0, done.err
    done = command("finllm/cli.py", "data", "show", chats, "--tokenizer", run)
    assert done.status == 0 and done.out.count("<|im_start|>") == 6 and done.out.count(" <|im_end|> ") >= 3, done.out

    # The same examples in one form, and the base model in another
    few = ("--max_new_tokens", 3, "--max_examples", 3)
    done = command(
        "eval/run.py", run, "--model_name_or_path", base, "--output_dir", tmp_path / "base", "--template", "chat", *few
    )
    assert done.status == 0, done.err
    results = json.loads((run / "eval/results.json").read_text())
    assert results["template"] == {"id": "chat", "hash": hash} and results["audits"]["template"]["passed"]
    line = json.loads((run / "eval/predictions.jsonl").read_text().splitlines()[0])
    assert line["prompt"].count("<|im_start|>") == 6 and line["prompt"].endswith("<|im_start|>assistant\n")
    assert line["tokens"] == len(line["reference"]) + 1  # a character a token, and the end of the turn
    alone = ("eval/run.py", "--model_name_or_path", base, "--dataset_name", chats, *few, "--output_dir")
    done = command(*alone, tmp_path / "base")
    assert done.status == 2 and f"was made with template {hash}, now {TEMPLATE_HASH}" in done.err
    done = command(*alone, tmp_path / "other")
    assert done.status == 2 and "earlier turns, and alpaca asks single questions" in done.err
    done = command("eval/leaderboard.py", tmp_path / "base", run, "--output_dir", tmp_path / "board")
    assert done.status == 0, done.err
    assert "All models were asked in template chat." in (tmp_path / "board/leaderboard.md").read_text()

    # Another template in model/ is not the one that it was trained in
    (run / "model/chat_template.jinja").write_text(CHATML + " ")
    done = command("finllm/cli.py", "generate", run, "Why?")
    assert done.status == 2 and "put back the file that training wrote" in done.err


def test_only_the_last_turn_and_whole_models(train):
    done, run = train("--template", "chat", "--loss_on", "last_turn")
    assert done.status == 0, done.err
    assert GenerationConfig.from_pretrained(run / "model").eos_token_id == [0, 2]
    every, _ = train("--template", "chat", name="every")
    assert every.status == 0, every.err
    learned = [next(line for line in out.splitlines() if "supervised tokens" in line) for out in (done.out, every.out)]
    assert learned[0] != learned[1]


@pytest.mark.parametrize(("flags", "said"), [
    ((), "cannot be asked with template alpaca"),
    (("--template", "chta"), "template is 'chta' (did you mean 'chat'?)"),
    (("--template", "chat", "--loss_on", "last"), "loss_on is 'last'"),
    (("--template", "chat", "--loss_on", "last_turn", "--completion_only_loss", "false"), "which learns whole rows"),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_trained(train, flags, said):
    done, run = train(*flags)
    assert done.status == 2 and said in done.err and "Traceback" not in done.err
    assert not (run / "config.yaml").exists()


def test_another_template_is_another_run(train, tmp_path):
    done, _ = train("--template", "chat")
    assert done.status == 0, done.err
    file = tmp_path / "other.jinja"
    file.write_text("{# mine #}" + CHATML)
    done, _ = train("--template", file, "--resume", "auto")
    assert done.status == 2 and "template_hash was" in done.err and "give the template that it began with" in done.err
    file.write_text(CHATML)
    done, _ = train("--template", file, "--resume", "auto")
    assert done.status == 0 and "finished" in done.out, done.err


def test_alpaca_goes_with_a_run_too(command, gpt2_dir, dataset_dir, tmp_path):
    """transformers asks the saved tokenizer's template for the very prompt that was trained on."""
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir",
        tmp_path / "run", "--max_steps", 1, *TINY,
    )  # fmt: skip
    assert done.status == 0, done.err
    tokenizer = load_tokenizer(str(tmp_path / "run/model"))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], add_generation_prompt=True).input_ids
    assert tokenizer.decode(ids).endswith("### Instruction:\nWhy?\n\n### Response:\n")
    assert json.loads((tmp_path / "run/provenance.json").read_text())["template_hash"] == TEMPLATE_HASH
    done = command("finllm/cli.py", "generate", tmp_path / "run", "Why?", "--system", "Be brief.")
    assert done.status == 2 and "it has a system text, and alpaca asks single questions" in done.err


def test_the_baseline_keeps_alpaca_with_the_reason(command, chats, tmp_path):
    arguments = ("--dataset_name", chats, "--output_dir", tmp_path / "run")
    done = command("baselines/scratch/train.py", *arguments, "--template", "chat")
    assert done.status == 2 and "must be alpaca: its tokenizer has no control tokens" in done.err
    done = command("baselines/scratch/train.py", *arguments)
    assert done.status == 2 and "no questions by themselves" in done.err and "recipes/sft.py" in done.err
