"""Ask the baseline.

python baselines/scratch/generate.py runs/NAME "What is an index fund?" [--input "a passage to read"]
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a file: see train.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from baselines.scratch.lm import load
from finllm.prompts import build_prompt
from finllm.run import RunDir, UserError, run_command


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a model of baselines/scratch/train.py.", allow_abbrev=False)
    parser.add_argument("run", help="a run dir")
    parser.add_argument("question")
    parser.add_argument("--input", default="", help="a passage that the question is about")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="default 128")
    arguments = parser.parse_args()
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is {arguments.max_new_tokens} and must be at least 1")
    model = load(RunDir(arguments.run).require_complete(), batch_size=1)
    (answer,) = model.generate([build_prompt(arguments.question, arguments.input)], arguments.max_new_tokens)
    print(answer.text)


if __name__ == "__main__":
    run_command(main)
