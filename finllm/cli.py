"""The command `finllm`. Thin: every subcommand lives in the module that does the work, imported when it is called.

Flags are read and checked first, with torch not yet imported, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finllm.errors import run_command
from finllm.terminal import Parser

HELP = {
    "prepare": "raw rows to a dataset dir: validated, cleaned, split",
    "data": "`data show`: an example in colours, as the model reads and learns it",
    "plan": "predict the time and memory of a run before it starts, from the flags of recipes/sft.py",
    "doctor": "what this machine can do, and what it lacks",
    "generate": "ask a run dir or a base model",
    "merge": "a run as a plain model that other programs read, proved to be the same",
    "export": "a run as a GGUF file for llama.cpp and Ollama, proved in llama.cpp",
    "random-weights": "a model with random weights from a config, for benchmarks and tests",
}


def main() -> None:
    """Entry point of `finllm`."""
    run_command(_main)


def _main() -> None:
    parser = Parser(prog="finllm", description="Fine-tune small language models, and believe the result.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the command that was called gets its arguments: those of another would import torch for nothing.
    called = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    for name, text in HELP.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == called:
            COMMANDS[name](subparser)
    arguments, others = parser.parse_known_args()
    if called == "plan":
        arguments.others = others  # the recipe's flags, which its own parser knows
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    arguments.run(arguments)


def _prepare(parser: argparse.ArgumentParser) -> None:
    from finllm.data import prepare

    prepare.add_arguments(parser)
    parser.add_argument("--tokenizer", help="count tokens too, with this base model's tokenizer (e.g. smollm2-135m)")
    parser.set_defaults(run=lambda arguments: prepare.run(arguments, _token_counter(arguments.tokenizer)))


def _token_counter(name: str | None):
    if name is None:
        return None
    from finllm.models.find import load_tokenizer, resolve_tokenizer, without_torch
    from finllm.text import tokens

    resolved = resolve_tokenizer(name)
    without_torch()
    tokenizer = load_tokenizer(resolved)
    return lambda texts: tokens.count_tokens(tokenizer, texts)


def _data(parser: argparse.ArgumentParser) -> None:
    from finllm import show

    show.add_arguments(parser.add_subparsers(required=True, metavar="show").add_parser("show", help=HELP["data"]))
    parser.set_defaults(run=show.run)


def _generate(parser: argparse.ArgumentParser) -> None:
    from finllm.models import flags

    def run(arguments: argparse.Namespace) -> None:
        flags.check_generate(arguments)
        from finllm.models import ask

        ask.run(arguments)

    flags.of_generate(parser)
    parser.set_defaults(run=run)


def _merge(parser: argparse.ArgumentParser) -> None:
    from finllm.models import flags

    def run(a: argparse.Namespace) -> None:
        from finllm.models.plain import merge_run

        merge_run(
            a.run_dir, Path(a.output_dir), a.into, a.dtype, a.max_shard_size, a.max_shift, a.dataset_name,
            a.max_examples,
        )  # fmt: skip

    flags.of_merge(parser)
    parser.set_defaults(run=run)


def _export(parser: argparse.ArgumentParser) -> None:
    from finllm.models import flags

    def run(a: argparse.Namespace) -> None:
        flags.check_export(a)
        from finllm.models.export import export_run

        export_run(
            a.run_dir, a.output_dir and Path(a.output_dir), a.dtype, a.into, a.max_shift, a.dataset_name,
            a.max_examples, not a.no_modelfile,
        )  # fmt: skip

    flags.of_export(parser)
    parser.set_defaults(run=run)


def _random_weights(parser: argparse.ArgumentParser) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from finllm.models.base import make_random_model

        make_random_model(arguments.config_dir, arguments.output_dir, arguments.seed)

    parser.add_argument("config_dir", help="a folder with config.json and a tokenizer")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.set_defaults(run=run)


def _plan(parser: argparse.ArgumentParser) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from finllm.training import plan

        plan.main(arguments.others)

    parser.set_defaults(run=run)


def _doctor(parser: argparse.ArgumentParser) -> None:
    from finllm import doctor

    doctor.add_arguments(parser)
    parser.set_defaults(run=doctor.run)


COMMANDS = {
    "prepare": _prepare, "data": _data, "plan": _plan, "doctor": _doctor, "generate": _generate,
    "merge": _merge, "export": _export, "random-weights": _random_weights,
}  # fmt: skip

if __name__ == "__main__":
    main()
