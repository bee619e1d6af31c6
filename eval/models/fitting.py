"""Which examples every model of a comparison can read whole: looked at before the first of them is scored."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eval.models.language_model import LanguageModel
from finllm.data.dataset_dir import DatasetDir
from finllm.errors import UserError, raise_problems
from finllm.run_dir import RunDir
from finllm.text.templates import Template

SHOWN = 10  # rows that a message names


class Reader(Protocol):
    """What is known of a model without its weights."""

    positions: float  # tokens that it can read; inf where there is no end
    template: Template  # that it is asked in

    def hashes(self) -> dict[str, str]:
        """What its figures come from, by content: SHA-256 of `weights`, of an adapter's `base`, and of `tokenizer`."""

    def encode(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """As `LanguageModel.encode`."""

    def positions_of(self, prompt_tokens: int, response_tokens: int) -> int:
        """Of its `positions` those that a prompt and its response take."""


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated, and on what. `load` reads its weights, `reader` what there is to know before."""

    run: RunDir
    dataset: DatasetDir
    reader: Callable[[], Reader]
    load: Callable[[], LanguageModel]


def examples_of(dataset: DatasetDir, arguments: Namespace) -> list[dict[str, str]]:
    """Those asked for, in the order of ids, which are hashes: the first N of them are a fixed random choice."""
    examples = sorted(dataset.rows(arguments.split), key=lambda row: row["id"])[: arguments.max_examples]
    if not examples:
        raise UserError(f"the {arguments.split} split of {dataset.path} is empty; prepare the dataset with more rows")
    empty = [f"example {example['id']}" for example in examples if not example["output"]]
    if empty:
        raise UserError(
            f"{dataset.path}: {', '.join(empty[:5])} of {arguments.split} has an answer of 0 bytes, which has no bits "
            "per byte; prepare the dataset anew"
        )
    return examples


def left_out_of_all(subjects: Sequence[Subject], arguments: Namespace) -> dict[str, set[str]]:
    """By the hash of their dataset the ids of `too_long` examples; refused where --skip_too_long is not given."""
    on_one: dict[str, list[Subject]] = defaultdict(list)
    for subject in subjects:
        on_one[subject.dataset.hash].append(subject)
    found = {}
    for hash, group in on_one.items():
        readers = {str(subject.run.path): subject.reader() for subject in group}
        most, new_tokens, skip = arguments.max_generated, arguments.max_new_tokens, arguments.skip_too_long
        found[hash] = too_long(readers, examples_of(group[0].dataset, arguments), most, new_tokens, skip)
    return found


def encoded(reader: Reader | LanguageModel, examples: Sequence[dict[str, Any]], prompts: Sequence[str]) -> list[tuple]:
    """Token ids of every example's last answer and its prompt; all that cannot be written are named at once."""
    pairs, problems = [], []
    for example, prompt in zip(examples, prompts, strict=True):
        try:
            pairs.append(reader.encode(prompt, example["output"]))
        except UserError as error:
            problems.append(f"example {example['id']}: {error}")
    raise_problems(problems, "the references", most=3)
    return pairs


def too_long(
    readers: dict[str, Reader],
    examples: Sequence[dict[str, str]],
    max_generated: int | None,
    max_new_tokens: int,
    skip: bool,
) -> set[str]:
    """Ids of the examples that one of the models, by name, cannot read or answer whole: all of them go without those.

    The first `max_generated` of the examples that are left are answered, with up to `max_new_tokens`. Without `skip`
    one `UserError` names rows, lengths and limits of all models.
    """
    lengths = {
        name: [
            (len(prompt), len(response))
            for prompt, response in encoded(reader, examples, reader.template.prompts(examples))
        ]
        for name, reader in readers.items()
    }
    most = len(examples) if max_generated is None else max_generated
    out: set[str] = set()
    unread: dict[str, list[str]] = {name: [] for name in readers}
    unanswered: dict[str, list[tuple[str, int]]] = {name: [] for name in readers}
    answered = 0
    for index, example in enumerate(examples):
        for name, reader in readers.items():
            prompt, response = lengths[name][index]
            tokens = reader.positions_of(prompt, response)
            if tokens > reader.positions:
                unread[name].append(f"{example['id']} ({tokens:,} tokens)")
                out.add(example["id"])
            elif answered < most and reader.positions_of(prompt, max_new_tokens) > reader.positions:
                unanswered[name].append((f"{example['id']} (a prompt of {prompt:,} tokens)", prompt))
                out.add(example["id"])
        answered += example["id"] not in out
    if out and not skip:
        problems = [
            f"{name} has {readers[name].positions:,} positions, and with their answers these have more: {_some(rows)}"
            for name, rows in unread.items()
            if rows
        ]
        for name, rows in unanswered.items():
            if rows:
                room = readers[name].positions - max(prompt for _, prompt in rows)
                lower = f"; lower it to {room} or less" if room > 0 else ""
                problems.append(
                    f"{name} has {readers[name].positions:,} positions, and --max_new_tokens {max_new_tokens} leaves "
                    f"no room for {_some([row for row, _ in rows])}{lower}"
                )
        problems[-1] += "; or leave these examples out, of all models evaluated here alike, with --skip_too_long"
        raise_problems(problems, "the examples, found before anything was scored")
    if len(out) == len(examples):
        raise UserError(
            f"--skip_too_long leaves none of {len(examples):,} examples: each is too long for one of "
            f"{', '.join(readers)}; lower --max_new_tokens (now {max_new_tokens}) or evaluate fewer models together"
        )
    return out


def _some(rows: list[str]) -> str:
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more
