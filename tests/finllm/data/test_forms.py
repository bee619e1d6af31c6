"""Every form, in every container, through the command line: what must come out stands here as literals."""

import bz2
import csv
import gzip
import json
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from finllm.data.dataset_dir import DatasetDir
from finllm.data.split import SPLITS

ROOT = Path(__file__).parents[3]
FORMS = ROOT / "tests/data/forms"
COUPON, PAYS = "What is a coupon?", "The interest that a bond pays each year."
DIVIDEND, BOARD = "How is a dividend declared?", "The board decides on it and names a date."
MISSED, DEFAULT = "And if it is missed?", "Then the bond is in default."
FIRST = [{"role": "user", "content": COUPON}, {"role": "assistant", "content": PAYS}]
NEWS = "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}."
LABELLED = f"{NEWS}\nText: Sales rose by a third.\nAnswer:"
# What is said, and of one row: instruction, input, output, system and history
EXPECTED = {
    "alpaca": ("Alpaca", "And who pays it?", "", "The company, out of its profit.", "",
               [{"role": "user", "content": DIVIDEND}, {"role": "assistant", "content": BOARD}]),
    "prompt_completion": ("prompt and completion", COUPON, "", PAYS, None, None),
    "prompt_completion_messages": ("prompt and completion", COUPON, "", PAYS, "Be brief.", []),
    "question_answer": ("question and answer", "What was the margin?", "Of 8 euros of sales 2 were profit.", "0.25",
                        None, None),
    "query_response": ("query and response", DIVIDEND, "", BOARD, None, None),
    "dolly": ("Dolly", "Which firm is named?", "Acme sold its docks.", "Acme", None, None),
    "messages": ("OpenAI messages", MISSED, "", DEFAULT, "Be brief.", FIRST),
    "sharegpt": ("ShareGPT conversations", MISSED, "", DEFAULT, "", FIRST),
    "fingpt": ("Alpaca, FinGPT or PIXIU: a fixed instruction", NEWS, "股市上涨了百分之三。", "positive", None, None),
    "fingpt_context": ("FinGPT's context and target",
                       "Instruction: What is the sentiment of this news?\nInput: The meeting is in Lyon.\nAnswer:", "",
                       "neutral", None, None),
    "pixiu": ("query and answer", LABELLED, "", "positive", None, None),
}  # fmt: skip
CONTAINERS = (
    ".jsonl", ".ndjson", ".json", ".json as lines", ".jsonl as an array", ".json as objects", ".json of train",
    ".jsonl.gz", ".json.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst", ".csv", ".tsv", ".csv; ", ".csv of Python",
    ".parquet", ".arrow", ".arrow as a stream", ".zip", "folder", "saved", "saved splits", "hub clone",
)  # fmt: skip


def rows_of(form):
    return [json.loads(line) for line in (FORMS / f"{form}.jsonl").read_text("utf-8").splitlines()]


def packed(form, container, folder):
    """The form's rows in a container, and its path."""
    import pyarrow

    rows, content = rows_of(form), (FORMS / f"{form}.jsonl").read_bytes()
    array = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    path = folder / f"rows{container.split(' ')[0].rstrip('; ')}"
    kind = container.split(" ", 1)[1] if " " in container else ""
    if container in (".jsonl", ".ndjson") or kind == "as lines":
        path.write_bytes(content)
    elif container == ".json" or kind == "as an array":
        path.write_bytes(array)
    elif kind == "as objects":
        path.write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    elif kind == "of train":
        path.write_text(json.dumps({"train": rows}))
    elif container.endswith((".gz", ".bz2", ".xz")):
        pack = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[Path(container).suffix]
        path.write_bytes(pack.compress(array if ".json." in container else content))
    elif container == ".jsonl.zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    elif container.startswith((".csv", ".tsv")):
        cell = repr if kind == "of Python" else json.dumps
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)),
                                    delimiter={".csv;": ";", ".tsv": "\t"}.get(container.strip(), ","))  # fmt: skip
            writer.writeheader()
            for row in rows:
                writer.writerow({key: cell(value) if isinstance(value, list) else value for key, value in row.items()})
    elif container in (".parquet", ".arrow", ".arrow as a stream", "saved", "saved splits", "hub clone"):
        import datasets
        import pyarrow.parquet

        nothing = dict.fromkeys(key for row in rows for key in row)
        dataset = datasets.Dataset.from_list([{**nothing, **parts_as_text(row)} for row in rows])
        if container == ".parquet":
            dataset.to_parquet(str(path))
        elif path.suffix == ".arrow":
            table = dataset.data.table
            new = pyarrow.ipc.new_stream if kind else pyarrow.ipc.new_file
            with new(str(path), table.schema) as writer:
                writer.write_table(table)
        elif container == "hub clone":
            path = folder / "clone"
            (path / "data").mkdir(parents=True)
            (path / "README.md").write_text("---\nlicense: mit\n---\n")
            (path / ".gitattributes").write_text("*.parquet filter=lfs\n")
            dataset.to_parquet(str(path / "data/train-00000-of-00001.parquet"))
        else:
            path = folder / "saved"
            whole = datasets.DatasetDict(train=dataset) if "splits" in container else dataset
            whole.save_to_disk(str(path))
    elif container == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows/train.jsonl", content)
            archive.writestr("rows/notes.txt", "none")
    else:
        path = folder / "folder"
        (path / "below").mkdir(parents=True)
        (path / "below/rows.jsonl").write_bytes(content)
    return path


def parts_as_text(row):
    """Arrow has one type a column: where a form mixes text and parts of text, all is text there."""
    if "messages" not in row:
        return row
    turns = [{**turn, "content": turn["content"] if isinstance(turn["content"], str) else turn["content"][0]["text"]}
             for turn in row["messages"]]  # fmt: skip
    return {"messages": turns}


def all_rows(folder):
    return [row for split in SPLITS for row in DatasetDir(folder).rows(split)]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", EXPECTED)
def test_each_form_in_each_container(form, container, tmp_path, finllm_prepare):
    source = packed(form, container, tmp_path)
    status, out, err = finllm_prepare(source, "--output_dir", tmp_path / "data")
    assert status == 0, err
    said, instruction, input, output, system, history = EXPECTED[form]
    assert f"read as: {said}" in out and "4 rows read" in out and "0 dropped, 4 kept" in out
    rows = all_rows(tmp_path / "data")
    (row,) = (row for row in rows if (row["instruction"], row["input"], row["output"]) == (instruction, input, output))
    assert row.get("system") == system and row.get("history") == history
    assert all(("history" in row) == (history is not None) for row in rows) and len(rows) == 4
    assert DatasetDir(tmp_path / "data").split("train")[0] == DatasetDir(tmp_path / "data").rows("train")[0]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("text", "this is a plain text column"),
        ("preferences", "these are preferences (chosen and rejected answers), which TRL's DPOTrainer takes"),
        ("images", "these are images or sounds (image)"),
        ("tool_calls", "messages turn 2 is a tool call: tool calls are not read; TRL's SFTTrainer trains on them"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(form, said, tmp_path, finllm_prepare):
    status, _, err = finllm_prepare(FORMS / f"{form}.jsonl", "--output_dir", tmp_path / "data")
    assert status == 2 and said in err and not (tmp_path / "data").exists()


def test_every_file_of_forms_is_tried():
    assert {path.stem for path in FORMS.iterdir()} == {*EXPECTED, "text", "preferences", "images", "tool_calls"}


def test_the_command_itself(tmp_path):
    command = [sys.executable, ROOT / "finllm/cli.py", "prepare", FORMS / "messages.jsonl", "--output_dir"]
    done = subprocess.run([*command, tmp_path / "data"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "read as: OpenAI messages" in done.stdout, done.stderr
