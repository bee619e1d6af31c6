"""The commands as users run them: a folder of their own, a process of their own."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from processes import run_ranks

from baselines.scratch.model import Transformer
from baselines.scratch.sampling import NEVER_WRITTEN
from baselines.scratch.tokenizer import BOS, EOS, Tokenizer
from finllm.errors import visible
from finllm.text.prompts import build_prompt

CHECKOUT = Path(__file__).resolve().parents[3]
SCRIPT = "baselines/scratch/train.py"
RUN_DIR = ["README.md", "config.json", "model.safetensors", "tokenizer.model", "tokenizer_report.json"]


def process(folder, *arguments, script=SCRIPT, count=1):
    """The script in a process of its own that works in `folder`."""
    with tempfile.TemporaryDirectory() as printed:
        how = {"folder": folder, "environment": {"COLUMNS": "200"}, "picture": True}
        return run_ranks(count, script, list(arguments), Path(printed), **how)


@pytest.fixture(scope="module")
def place(dataset, tmp_path_factory):
    """A folder with a config file and one finished run."""
    folder = tmp_path_factory.mktemp("work")
    settings = {
        "dataset_name": str(dataset),
        "output_dir": "runs/small",
        **{"vocabulary_size": 360, "max_length": 64, "layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
        **{"batch_tokens": 512, "max_steps": 4, "logging_steps": 2, "eval_steps": 2, "save_steps": 2},
        "dropout": 0.0,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(settings))
    done = process(folder, "--config", "small.yaml")
    assert done.status == 0, done.err
    assert "python eval/run.py runs/small" in done.out
    return folder


def test_the_run_dir_is_complete(place, dataset):
    run = place / "runs/small"
    names = [".lock", "checkpoints", "config.yaml", "loss.png", "metrics.jsonl", "model", "proofs.json"]
    names += ["provenance.json", "summary.json", "validation.jsonl"]
    assert sorted(path.name for path in run.iterdir()) == names
    assert sorted(path.name for path in (run / "model").iterdir()) == RUN_DIR
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    summary, origin = (json.loads((run / name).read_text()) for name in ("summary.json", "provenance.json"))
    assert list(summary) == [
        *("schema_version", "name", "method", "base_model", "trainable_parameters", "total_parameters"),
        *(
            "proof_seconds",
            "train_seconds",
            "tokens_per_second",
            "peak_memory_bytes",
            "steps",
            "epochs",
            "supervised_tokens",
        ),
        *("first_validation_loss", "final_validation_loss", "best_validation_loss", "saved_step"),
    ]
    assert (summary["name"], summary["method"], summary["base_model"]) == ("small", "scratch", None)
    assert (
        summary["steps"] == 4
        and min(summary["train_seconds"], summary["proof_seconds"]) > 0
        and summary["peak_memory_bytes"] > 1e7
    )
    assert origin["dataset_hash"] == json.loads((dataset / "manifest.json").read_text())["sha256"]
    assert origin["base_model_hash"] is None and origin["seed"] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["language_model"] == "baselines.scratch.lm"


def test_config_yaml_runs_again_as_a_module_to_the_same_weights(place):
    done = process(
        place, "--config", "runs/small/config.yaml", "--output_dir", "runs/other", script="-m baselines.scratch.train"
    )
    assert done.status == 0, done.err
    first, second = (place / "runs" / name / "model/model.safetensors" for name in ("small", "other"))
    assert first.read_bytes() == second.read_bytes()


def test_a_finished_run_says_so(place, command):
    """And nothing of it is touched; with other settings it is not what was asked for."""
    run = place / "runs/small"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    again = (SCRIPT, "--config", place / "small.yaml", "--output_dir", run, "--resume", "auto")
    done = command(*again)
    assert done.status == 0 and done.out == f"{run} is finished; nothing to do\n"
    done = command(*again, "--learning_rate", "0.5")
    assert done.status == 2 and "learning_rate" in done.err and "nothing to do" not in done.out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert {path for path in run.rglob("*") if path.is_file()} == set(before)


def test_two_processes_take_the_steps_of_one(place):
    """The same losses to float32's rounding: a batch is shared out, its loss is the mean over all its tokens."""
    done = process(place, "--config", "small.yaml", "--output_dir", "runs/two", count=2)
    assert done.status == 0 and "on 2 x cpu" in done.out, done.err
    one, two = (
        [json.loads(line) for line in (place / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("small", "two")
    )
    assert [line["step"] for line in two] == [line["step"] for line in one]
    for key in ("loss", "validation_loss"):
        losses_of_one, losses_of_two = ([line[key] for line in lines if key in line] for lines in (one, two))
        assert losses_of_two == pytest.approx(losses_of_one, rel=1e-5) and losses_of_one


def test_generate_answers(place, command):
    """With what the weights say is likeliest, token by token, each flag taken as it is given."""
    run = place / "runs/small"
    model, tokenizer = Transformer.load(run / "model").eval(), Tokenizer.load(run / "model")

    def likeliest(prompt, most, never=()):
        ids, answer = tokenizer.encode(prompt), []
        while len(answer) < most:
            with torch.no_grad():
                hidden = model.hidden(torch.tensor([[BOS, *ids, *answer]]))
                logits = model.logits(hidden)[0, -1]
            logits[[*NEVER_WRITTEN, *(answer if never else ())]] = -torch.inf
            answer.append(int(logits.argmax()))
            if answer[-1] == EOS:
                break
        return visible(tokenizer.decode([id for id in answer if id != EOS]))

    def generated(*flags):
        done = command("baselines/scratch/generate.py", run, "What is a bond?", "--max_new_tokens", 5, *flags)
        assert done.status == 0, done.err
        return done.out

    asked, with_input = build_prompt("What is a bond?"), build_prompt("What is a bond?", "A loan.")
    assert generated() == likeliest(asked, 5) + "\n"
    assert generated("--max_new_tokens", 3) == likeliest(asked, 3) + "\n" != generated()
    assert generated("--no_repeat_ngram_size", 1) == likeliest(asked, 5, never=True) + "\n"
    assert generated("--input", "A loan.") == likeliest(with_input, 5) + "\n"
    drawn = [generated("--temperature", 5, "--seed", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    done = process(place, "runs/small", "What is a bond?", script="-m baselines.scratch.generate")
    assert done.status == 0 and done.out.startswith(likeliest(asked, 5)), done.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--layer", "2"], "unknown flag '--layer' (did you mean 'layers'?)"),
        (["--output_dir", "small"], "already holds a run; pass --resume auto"),
        (["--output_dir", "small", "--resume", "always"], "invalid choice: 'always'"),
        (["--vocabulary_size", "9000"], "the training split holds at most"),
        (["--heads", "3"], "the heads must divide the width"),
        (["--dataset_name", "nowhere"], "nowhere is not a dataset dir"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)
def test_mistakes_end_with_status_2(place, command, arguments, message):
    places = {"small": place / "runs/small"}
    defaults = ["--config", place / "small.yaml", "--output_dir", place / "runs/new"]
    done = command(SCRIPT, *defaults, *(places.get(argument, argument) for argument in arguments))
    assert done.status == 2
    assert message in done.err and "Traceback" not in done.err
    assert not (place / "runs/new").exists()
