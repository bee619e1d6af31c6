"""The command line of `finllm prepare`, and the summary that it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finllm.data.dataset_dir import DatasetDir
from finllm.data.summary import percentile, print_summary
from finllm.text.prompts import build_prompt

ROOT = Path(__file__).parents[3]
COMMAND = """
import argparse
from finllm.data import prepare
from finllm.errors import run_command
parser = argparse.ArgumentParser(prog="finllm prepare")
prepare.add_arguments(parser)
args = parser.parse_args()
run_command(lambda: prepare.run(args, lambda texts: [len(text) for text in texts]))
"""


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )


def all_rows(dataset):
    return [row for split in ("train", "validation", "test") for row in dataset.rows(split)]


def test_command_prints_a_summary(source, tmp_path):
    done = command(source, "--output_dir", "dataset", "--skip_cleaning", "echo", "strip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where nobody watches
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in done.stdout.splitlines() if "│" in line]
    assert "203 rows read" in done.stdout and "2 dropped, 201 kept" in done.stdout
    assert ["unicode", "201", "0"] in cells and ["echo", "skipped", "skipped"] in cells
    dataset = DatasetDir(tmp_path / "dataset")
    for name, split in dataset.manifest["splits"].items():
        assert [name, str(split["rows"]), str(split["questions"])] in cells
    prompts = sorted(len(build_prompt(row["instruction"], row["input"])) for row in all_rows(dataset))
    (tokens,) = (line for line in cells if line[0] == "prompt, tokens")
    assert tokens[-1] == str(prompts[-1])
    assert ["response, words", "6", "6", "6", "6"] in cells


def test_command_renames_columns_and_splits_otherwise(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "Q,A,context\n" + "".join(f'Question {n},"Yes, {n}",c\n' for n in range(40)), encoding="utf-8"
    )
    columns = ["--instruction_column", "Q", "--input_column", "context", "--output_column", "A"]
    fractions = ["--seed", "3", "--validation_fraction", "0.25", "--test_fraction", "0.25"]
    done = command("rows.csv", "--output_dir", "out/dataset", *columns, *fractions, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = DatasetDir(tmp_path / "out/dataset")
    assert dataset.manifest["columns"] == {"instruction": "Q", "input": "context", "output": "A"}
    assert dataset.manifest["split"] == {
        "seed": 3,
        "validation_fraction": 0.25,
        "test_fraction": 0.25,
        "cluster_near_duplicates": False,
    }
    assert all(row["input"] == "c" for row in all_rows(dataset)) and len(all_rows(dataset)) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jsonl"], "error: missing file: there is no file or folder"),
        (["rows.jsonl", "--skip_cleaning", "stripp"], "unknown step 'stripp' (did you mean 'strip'?)"),
        (["rows.jsonl", "--test_fraction", "1.5"], "test_fraction is 1.5 and must be above 0 and below 1"),
        (["rows.jsonl", "--seed", str(2**63)], f"seed is {2**63}; it must be from -2^63 to 2^63 - 1"),
        (["rows.jsonl", "--output_column", "outptu"], "no column 'outptu' (did you mean 'output'?)"),
    ],
)
def test_command_errors_end_with_status_2(source, tmp_path, arguments, message):
    done = command(*arguments, "--output_dir", "dataset", cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_summary_of_a_dataset_dir_alone(dataset, capsys):
    print_summary(DatasetDir(dataset.path))
    out = capsys.readouterr().out
    assert "distinct questions" in out and "tokens" not in out


def test_percentiles_are_lengths_that_occur():
    values = [5, 1, 4, 2, 3]
    assert [percentile(values, share) for share in (0.0, 0.05, 0.5, 0.95, 1.0)] == [1, 1, 3, 5, 5]
    assert percentile([7], 0.5) == 7


def test_near_duplicate_questions_stay_in_one_split_when_asked(make_rows, write, tmp_path):
    lines = (ROOT / "finllm/data/sample/tax.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    questions = [json.loads(line)["instruction"].rstrip("?.") for line in lines]
    families = [
        {"instruction": f"{question} {tail}", "input": "", "output": "It falls."}
        for question in questions
        for tail in ("these days", "nowadays")
    ]
    source = write(tmp_path / "rows.jsonl", [*make_rows(100), *families])
    splits = {}
    for flags in ((), ("--cluster_near_duplicates",)):
        folder = tmp_path / f"dataset{len(flags)}"
        done = command(source, "--output_dir", folder, "--test_fraction", 0.3, *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        dataset = DatasetDir(folder)
        splits[flags] = {
            row["instruction"]: split for split in ("train", "validation", "test") for row in dataset.rows(split)
        }
        assert dataset.manifest["split"]["cluster_near_duplicates"] is bool(flags)

    def parted(placed):
        return sum(
            placed[families[n]["instruction"]] != placed[families[n + 1]["instruction"]] for n in range(0, 120, 2)
        )

    alone, together = splits.values()
    assert parted(alone) > 5 and parted(together) == 0
    assert all(alone[row["instruction"]] == together[row["instruction"]] for row in make_rows(100))
    again = command(source, "--output_dir", tmp_path / "dataset1", "--test_fraction", 0.3, cwd=tmp_path)
    assert again.returncode == 2 and "holds another dataset (different split)" in again.stderr


def test_tokens_of_conversations_are_those_of_all_that_each_side_says(tmp_path, finllm_prepare):
    from tests.finllm.text.chats import chat_tokenizer

    chat_tokenizer().save_pretrained(tmp_path / "tokenizer")  # a character is a token
    (tmp_path / "tokenizer/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    turns = ("How much?", "7 %", "And now?", "8 % of it")
    messages = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, turns, strict=True)]
    rows = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Fund {n}?"}, *messages[1:]]
        for n in range(5)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    arguments = (tmp_path / "a.jsonl", "--output_dir", tmp_path / "data", "--tokenizer", tmp_path / "tokenizer")
    status, out, err = finllm_prepare(*arguments)
    assert status == 0, err
    told = {cells[0].strip(): {cell.strip() for cell in cells[1:]}
            for line in out.splitlines() if len(cells := line.strip("│").split("│")) == 5}  # fmt: skip
    assert told["prompt, tokens"] == {str(len("Be brief.\nFund 0?\nAnd now?"))}
    assert told["response, tokens"] == {str(len("7 %\n8 % of it"))}
    assert told["prompt, words"] == {"6"} and told["response, words"] == {"6"}
