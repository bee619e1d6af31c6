"""`finllm generate`: one question, a conversation until an empty line, or a file of questions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from finllm.data.clean import mend_question
from finllm.errors import UserError
from finllm.files import sha256_of_file
from finllm.models.answer_files import KeptAnswers, read_questions, write_answers
from finllm.models.asked import template_for
from finllm.models.base import base_model_hash, load_for_inference, model_arguments, positions_of
from finllm.models.find import resolve_base_model, run_of, weights_hash
from finllm.models.flags import DECODING
from finllm.models.generate import Answer, answer_all, check_room, decoding, stream
from finllm.models.proofs import tokenizer_fits
from finllm.models.virtual import virtual_tokens
from finllm.terminal import say
from finllm.text.prompts import question_of
from finllm.text.templates import Template


def run(arguments: argparse.Namespace) -> None:
    """What is asked is mended as what is trained on (finllm/data/clean.py); `--output` has it as it was asked.

    Under a template of single questions each line is asked by itself; else together with what was said before.
    """
    sequences = arguments.num_return_sequences
    columns = ["answer"] if sequences == 1 else [f"answer_{number}" for number in range(1, sequences + 1)]
    rows = read_questions(arguments.file, columns) if arguments.file else []
    model, tokenizer = load_for_inference(_not_a_baseline(arguments.model))
    template = template_for(arguments.model, tokenizer, arguments.template)
    tokenizer_fits(tokenizer, model, template.ids)
    torch.manual_seed(arguments.seed)
    config = decoding(
        tokenizer, arguments.max_new_tokens, arguments.temperature, template.stops, arguments.stop,
        **{name: getattr(arguments, name) for name in DECODING},
    )  # fmt: skip
    if arguments.file:
        kept = _kept(arguments, model, template)
        answers = _answers_of_file(arguments, rows, model, template, config, kept)
        each = [answers[place : place + sequences] for place in range(0, len(answers), sequences)]
        write_answers(
            arguments.output,
            [{**row, **{name: answer.text for name, answer in zip(columns, some, strict=True)}}
             for row, some in zip(rows, each, strict=True)],
        )  # fmt: skip
        kept.done()
        say(f"{len(answers):,} answers in {arguments.output}")
        return
    row = {"instruction": arguments.question, "input": arguments.input, "system": arguments.system, "history": []}
    if arguments.question and sequences > 1:
        prompts = template.prompts([mend_question(row)])
        for number, answer in enumerate(answer_all(model, tokenizer, prompts, config, template=template), 1):
            say(f"{number} of {sequences}\n{answer.text}")
    elif arguments.question:
        stream(model, template, mend_question(row), config)
    else:
        _converse(model, template, row, config)


def _kept(arguments: argparse.Namespace, model: PreTrainedModel, template: Template) -> KeptAnswers:
    """Under all that decides the answers: the questions, the weights, the template and the flags."""
    run = run_of(arguments.model)
    if run is None:
        weights = [base_model_hash(resolve_base_model(arguments.model), model)]
    else:
        weights = [weights_hash(run.model), run.provenance().get("base_model_hash")]
        weights.append(str(model_arguments(run.config())))  # of 4 bits, and which
    flags = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("run", "output", "model", "command", "file")
    }
    identity = {"questions": sha256_of_file(Path(arguments.file)), "weights": weights, "template": template.hash,
                "device": model.device.type, "flags": flags}  # fmt: skip
    return KeptAnswers(arguments.output, identity)


def _answers_of_file(
    arguments: argparse.Namespace, rows: Sequence[dict[str, Any]], model: PreTrainedModel, template: Template,
    config: GenerationConfig, kept: KeptAnswers,
) -> list[Answer]:  # fmt: skip
    """An answer a row, or `num_return_sequences`, in their order; batches that were kept are not written again."""
    from rich.progress import track

    prompts = template.prompts(list(map(mend_question, rows)))
    lengths = [len(template.encode_prompt(prompt)) for prompt in prompts]
    check_room(model, max(lengths), config.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda index: -lengths[index])  # longest first: memory peaks at the start
    each = arguments.num_return_sequences
    if kept.held:
        say(f"{sum(map(len, kept.held.values())):,} answers were kept, and are not written again")
    found: dict[int, list[Answer]] = {}
    starts = range(0, len(order), arguments.batch_size)
    for begin in track(starts, "answering"):
        batch = order[begin : begin + arguments.batch_size]
        answers = kept.held.get(begin)
        if answers is None:
            torch.manual_seed(arguments.seed + begin)  # so that what is drawn does not depend on where it was killed
            answers = answer_all(
                model, template.tokenizer, [prompts[index] for index in batch], config, arguments.batch_size,
                template=template,
            )  # fmt: skip
            kept.add(begin, answers)
        found |= {index: answers[number * each : (number + 1) * each] for number, index in enumerate(batch)}
    return [answer for index in range(len(prompts)) for answer in found[index]]


def _converse(model: PreTrainedModel, template: Template, row: dict[str, Any], config: GenerationConfig) -> None:
    """Questions until an empty line. What no longer fits into the model's positions is forgotten, the oldest first."""
    while question := _ask():
        row["instruction"] = question
        row = mend_question(row)
        while row["history"] and not _fits(model, template, row, config):
            row["history"] = row["history"][2:]
            say("(the oldest question and its answer are forgotten: the model has no room for more)")
        answer = stream(model, template, row, config)
        if template.takes_history:
            row["history"] += [{"role": "user", "content": question_of(row)}, {"role": "assistant", "content": answer}]
        row["input"] = ""


def _fits(model: PreTrainedModel, template: Template, row: dict[str, Any], config: GenerationConfig) -> bool:
    positions = positions_of(model.config)
    used = len(template.encode_prompt(template.prompts([row])[0])) + config.max_new_tokens + virtual_tokens(model)
    return positions is None or used <= positions


def _ask() -> str:
    try:
        return input("question (empty to end): ").strip()
    except EOFError:
        return ""


def _not_a_baseline(name: str) -> str:
    run = run_of(name)
    if run is not None:
        run.refuse_links()
    module = run.language_model() if run and (run.path / "config.yaml").exists() else None
    if module:
        script = module.replace(".", "/").removesuffix("/lm") + "/generate.py"
        raise UserError(f'{name} was trained from scratch; ask it with: python {script} {run.path} "question"')
    return name
