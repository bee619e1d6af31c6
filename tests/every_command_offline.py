"""Every command on local files in one process whose sockets refuse, without HF_HUB_OFFLINE. Run by test_offline.py.

All but `finllm doctor`, which is asked whether the hub can be reached, and `finllm export`, which asks llama.cpp over
the loopback.

    python tests/every_command_offline.py WORK GPT2_DIR DATA_DIR ATTEMPTS

A line for each attempt to reach another machine goes into the file ATTEMPTS, with the command and who made it.
"""

import importlib
import os
import runpy
import socket
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
work, model, data, attempts = map(Path, sys.argv[1:])
now = "import"


def refuse(owner, name: str) -> None:
    def call(*arguments, **_):
        with attempts.open("a") as file:
            caller = traceback.extract_stack(limit=12)[0]
            print(f"{now}: {name} of {arguments[-1]!r}, by {caller.filename}:{caller.lineno}", file=file)
        raise OSError("no network")

    setattr(owner, name, call)


for name in ("connect", "connect_ex", "sendto"):
    refuse(socket.socket, name)
for name in ("getaddrinfo", "create_connection", "gethostbyname"):
    refuse(socket, name)

# A process of several commands has one precision, that of the scratch baseline
TRAIN = ("--model_name_or_path", model, "--dataset_name", data, "--max_steps", 1, "--max_length", 256,
         "--bf16", "false", "--disable_tqdm", "true", "--save_strategy", "steps", "--save_steps", 1)  # fmt: skip
LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear")
FEW = ("--max_examples", 2, "--max_generated", 1, "--max_new_tokens", 2)
COMMANDS = [
    ("finllm/cli.py", "prepare", ROOT / "finllm/data/sample/tax.jsonl", "--output_dir", work / "data",
     "--tokenizer", model, "--validation_fraction", 0.15, "--test_fraction", 0.15),
    ("finllm/cli.py", "data", "show", data, "--tokenizer", model),
    ("finllm/cli.py", "plan", *TRAIN, "--use_cpu", "true", "--output_dir", work / "full"),
    ("finllm/cli.py", "random-weights", model, "--output_dir", work / "random"),
    ("recipes/sft.py", *TRAIN, "--output_dir", work / "full"),
    ("recipes/sft.py", *TRAIN, *LORA, "--output_dir", work / "lora"),
    ("baselines/scratch/train.py", "--dataset_name", data, "--output_dir", work / "scratch", "--max_steps", 1,
     "--vocabulary_size", 400, "--width", 16, "--layers", 1, "--heads", 2, "--feed_forward", 32, "--max_length", 256),
    ("eval/run.py", work / "full", work / "lora", work / "scratch", "--model_name_or_path", model,
     "--output_dir", work / "base", *FEW),
    ("eval/leaderboard.py", *(work / name for name in ("base", "full", "lora")), "--output_dir", work / "board"),
    ("eval/export.py", work / "lora", "--output", work / "lora.json"),
    ("finllm/cli.py", "generate", work / "lora", "What is a tax?", "--max_new_tokens", 2),
    ("finllm/cli.py", "merge", work / "lora", "--output_dir", work / "merged"),
    ("baselines/scratch/generate.py", work / "scratch", "What is a tax?", "--max_new_tokens", 2),
]  # fmt: skip

if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in whose place tests/finllm would be found
    for library in ("finllm", "transformers"):  # whole, before a command that does without torch imports the rest of it
        importlib.import_module(library)
    assert "HF_HUB_OFFLINE" not in os.environ
    os.chdir(ROOT)
    for script, *arguments in COMMANDS:
        now = f"{script} {arguments[0]}"
        sys.argv = [script, *map(str, arguments)]
        print("#", now, flush=True)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as exit:
            if exit.code:
                raise
    time.sleep(1)  # what a thread would still send
    print("# done", flush=True)
