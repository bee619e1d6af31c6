"""The flags of `finllm generate`, `merge` and `export`, and what may be wrong with them: known before torch is
imported, which takes seconds. What the commands do stands in ask.py, plain.py and export.py.
"""

from __future__ import annotations

import argparse

from finllm.errors import UserError, raise_problems

# Of each flag of decoding: what its value must be, and whether it says something at temperature 0
WITHIN = {
    # A smaller one would divide logits beyond what float32 holds, an infinite one says nothing of the model
    "temperature": ("0, or from 1e-6 to 1e6", lambda value: value == 0 or 1e-6 <= value <= 1e6, True),
    "top_k": ("at least 1", lambda value: value >= 1, False),
    "top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1, False),
    "min_p": ("from 0 to 1", lambda value: 0 <= value <= 1, False),
    "repetition_penalty": ("above 0", lambda value: value > 0, True),
    "no_repeat_ngram_size": ("at least 1", lambda value: value >= 1, True),
    "num_return_sequences": ("at least 1", lambda value: value >= 1, False),
    "max_new_tokens": ("at least 1", lambda value: value >= 1, True),
    "batch_size": ("at least 1", lambda value: value >= 1, True),
}
DECODING = ("top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size", "num_return_sequences")
TRAINED, ORIGINAL = "trained", "original"  # --into
MOST_SHIFT, MOST_ROWS = 0.05, 50  # bits per byte, and validation rows that they are measured on
DTYPES = ("float32", "bfloat16", "float16")  # of a plain model
GGUF_DTYPES = ("f32", "f16", "bf16", "q8_0")  # as finllm.models.gguf_file has them
FORMATS = ("gguf",)


def of_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a run dir, a merged run, or a base model: hub id, folder, .gguf file or built-in name"
    )
    parser.add_argument("question", nargs="?", help="the question; without it and without --file, ask interactively")
    parser.add_argument("--input", default="", help="context that belongs to the question")
    parser.add_argument("--system", default="", help="a system text, where the template takes one")
    parser.add_argument(
        "--template", help="alpaca, chat or a Jinja file, for a base model; a run is asked as it was trained"
    )
    parser.add_argument(
        "--file",
        help="JSONL or CSV with `instruction` and, if they like, `input`, `system` and, in JSONL, `history`; answers "
        "go to --output, and the same command goes on where it was killed",
    )
    parser.add_argument("--output", help="the file's rows with an `answer` each: JSONL, or CSV where it ends in .csv")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top_k", type=int, help="draw from so many of the likeliest tokens")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens that have this share together")
    parser.add_argument("--min_p", type=float, help="draw from tokens that are this share of the likeliest as likely")
    parser.add_argument(
        "--repetition_penalty", type=float, help="above 1, tokens that stand there already are less likely"
    )
    parser.add_argument("--no_repeat_ngram_size", type=int, help="so many tokens in a row never stand there twice")
    parser.add_argument("--num_return_sequences", type=int, default=1, help="so many answers to each question")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end an answer before this text; may be given again"
    )
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)


def check_generate(arguments: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or would change nothing, all at once."""
    if bool(arguments.file) != bool(arguments.output):
        raise UserError("--file and --output go together: questions from one, answers to the other")
    if arguments.file and arguments.question:
        raise UserError("give a question or --file, not both")
    if arguments.file and arguments.system:
        raise UserError("--system goes with a question; a row of --file has its own, in `system`")
    problems = []
    for name, (said, holds, greedy) in WITHIN.items():
        value = getattr(arguments, name)
        if value is not None and not holds(value):
            problems.append(f"--{name} is {value:g} and must be {said}")
        elif value is not None and not greedy and arguments.temperature == 0 and value != 1:
            problems.append(
                f"--{name} says nothing at temperature 0, which takes the likeliest token: give --temperature too"
            )
    if not all(arguments.stop):
        problems.append("--stop is empty, and would end every answer before it begins")
    if arguments.num_return_sequences > 1 and not (arguments.file or arguments.question):
        problems.append("--num_return_sequences is for a question or a --file: a conversation goes on from one answer")
    raise_problems(problems, "the flags of finllm generate")


def of_merge(parser: argparse.ArgumentParser) -> None:
    _of_proof(parser)
    parser.add_argument("--output_dir", required=True, help="a new folder for the plain model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights that are written")
    parser.add_argument("--max_shard_size", default="5GB", help="a larger model is written into several files")


def of_export(parser: argparse.ArgumentParser) -> None:
    _of_proof(parser)
    parser.add_argument("--format", default="gguf", help="gguf, the only one (the default)")
    parser.add_argument("--dtype", choices=GGUF_DTYPES, default="f16", help="of the weights in the file (default: f16)")
    parser.add_argument("--output_dir", help="a new folder for the file (default: RUN_DTYPE_gguf beside the run)")
    parser.add_argument("--no_modelfile", action="store_true", help="write no Modelfile for Ollama")


def check_export(arguments: argparse.Namespace) -> None:
    if arguments.format not in FORMATS:
        raise UserError(f"--format is {arguments.format}; {', '.join(FORMATS)} is written")


def _of_proof(parser: argparse.ArgumentParser) -> None:
    """What `finllm merge` and `finllm export` share."""
    parser.add_argument("run_dir", help="a run dir of recipes/sft.py")
    parser.add_argument(
        "--into", choices=(TRAINED, ORIGINAL),
        help="of an adapter on 4 or 8 bits: into what the bits stand for (the default), or into the original weights",
    )  # fmt: skip
    parser.add_argument(
        "--max_shift", type=float, default=MOST_SHIFT, metavar="BITS_PER_BYTE",
        help="how much rounding or other weights may move bits per byte (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dataset_name", help="where the run's dataset lies now, if it was moved")
    parser.add_argument(
        "--max_examples", type=int, default=MOST_ROWS,
        help="so many validation rows are held against the run (default: %(default)s)",
    )  # fmt: skip
