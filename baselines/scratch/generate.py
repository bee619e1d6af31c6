"""Ask the baseline.

python baselines/scratch/generate.py runs/NAME "What is an index fund?" [--input "a passage to read"]
    [--temperature 0.8 --top_p 0.9 --seed 1] [--num_beams 4] [--no_repeat_ngram_size 3]
"""

import dataclasses
import sys
import typing
from pathlib import Path

if not __package__:  # run as a file: see train.py
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

from baselines.scratch.lm import load
from baselines.scratch.sampling import Sampling
from finllm.errors import raise_problems, run_command
from finllm.run_dir import RunDir
from finllm.terminal import Parser, say
from finllm.text.prompts import build_prompt


def main() -> None:
    parser = Parser(description="Ask a model of baselines/scratch/train.py.", allow_abbrev=False)
    parser.add_argument("run", help="a run dir")
    parser.add_argument("question")
    parser.add_argument("--input", default="", help="a passage that the question is about")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="default 128")
    kinds = typing.get_type_hints(Sampling)
    for field in dataclasses.fields(Sampling):
        kind = next(kind for kind in (int, float) if kind in (kinds[field.name], *typing.get_args(kinds[field.name])))
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"default {field.default}")
    arguments = parser.parse_args()
    sampling = Sampling(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)})
    problems = list(sampling.problems())
    if arguments.max_new_tokens < 1:
        problems.append(f"max_new_tokens is {arguments.max_new_tokens} and must be at least 1")
    raise_problems(problems, "the flags")
    model = load(RunDir(arguments.run).require_complete(), batch_size=1)
    prompt = build_prompt(arguments.question, arguments.input)
    (answer,) = model.generate([prompt], arguments.max_new_tokens, sampling)
    say(answer.text)


if __name__ == "__main__":
    run_command(main)
