"""An adapter merged into its base model, as a plain model of its kind; `finllm merge RUN --output_dir DIR`.

Into weights of 4 or 8 bits nothing is merged, since the sum would be rounded to them anew (0.1 to 0.45 in logits): the
adapter is put on the base model in float32 instead, which is another model than the one that was trained by as much as
the base's rounding is worth. The figure is told.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finllm.errors import UserError
from finllm.files import atomic_folder
from finllm.models import conv1d
from finllm.models.adapters import base_of
from finllm.models.base import load_base_model, load_run_model, load_saved, model_arguments
from finllm.models.find import resolve_base_model, run_of
from finllm.models.proofs import Proof, in_float32, is_exact, nll_of
from finllm.models.skeletons import skeleton
from finllm.models.virtual import virtual_tokens
from finllm.terminal import say
from finllm.text.prompts import build_prompt
from finllm.text.tokens import encode_prompt

ENDS = "generation_config.json"
LIMIT = 1e-4  # nats a token, in float32
ASKED = "What is the difference between a stock and a bond?"


class CannotMerge(ValueError):
    """An adapter that is no change of weights."""


def merged(adapted: PreTrainedModel) -> PreTrainedModel:
    """The base model with the adapter in its weights; `CannotMerge` with the reason. `adapted` is used up."""
    if virtual_tokens(adapted):
        raise CannotMerge("its virtual tokens are no weights of the base model")
    turned = getattr(base_of(adapted), "turned_conv1d", False)
    try:
        model = adapted.merge_and_unload()
    except Exception as error:  # each method refuses in its own way
        raise CannotMerge(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if turned:
        conv1d.to_conv1d(model, skeleton(model.config))
    return model


@torch.no_grad()
def merged_proof(adapted: PreTrainedModel, rows: Sequence[dict[str, list[int]]], own_N: Tensor) -> Proof:
    """Merged, the model gives `rows` the nats `own_N` that it gave them before, or why it is not merged.

    `adapted` is used up. A merged model that differs stays an adapter: `finllm merge` refuses it by the same figure.
    """
    name = "merged model"
    if virtual_tokens(adapted):
        said = "it stays an adapter, since it cannot be merged: its virtual tokens are no weights of the base model"
        return Proof(name, None, LIMIT, True, said)
    if getattr(adapted, "quantization_method", None) or getattr(base_of(adapted), "quantization_method", None):
        said = (
            "into so few bits nothing is merged; `finllm merge` puts it on the base model in float32, where it can be"
        )
        return Proof(name, None, LIMIT, True, said)
    with in_float32(adapted):
        try:
            model = merged(adapted)
        except CannotMerge as error:
            return Proof(name, None, LIMIT, True, f"it stays an adapter, since it cannot be merged: {error}")
        with in_float32(model):
            apart = float((nll_of(model, rows).double() - own_N).abs().mean()) if rows else 0.0
    said = f"merged into the base model, a token's loss is within {apart:.1g} nats"
    return Proof(name, apart, LIMIT, apart <= LIMIT, said)


def merge_run(name: str, output_dir: Path) -> None:
    """Write the model of an adapter's run as a plain one, with its tokenizer, into a new folder, proved."""
    run = run_of(name)
    if run is None:
        raise UserError(f"{name} is no run dir; a run dir is what recipes/sft.py writes to --output_dir")
    arguments = model_arguments(run.require_complete().config())
    if not arguments.use_peft:
        raise UserError(f"{name} holds a whole model, in {run.model}: there is nothing to merge")
    if output_dir.exists() and any(output_dir.iterdir()):
        raise UserError(f"{output_dir} is not empty; take another --output_dir")
    quantised = arguments.load_in_4bit or arguments.load_in_8bit
    trained, tokenizer = load_run_model(run)  # which holds base and adapter against what the run recorded
    row = _row(tokenizer)
    with torch.no_grad(), in_float32(trained.eval()):
        trained_N = nll_of(trained, [row]).double()
    del trained
    exact = dataclasses.replace(arguments, load_in_4bit=False, load_in_8bit=False, dtype="float32")
    adapted = load_saved(run.model, resolve_base_model(arguments.model_name_or_path), exact).eval()
    with torch.no_grad():
        own_N = nll_of(adapted, [row]).double()
        assert is_exact(adapted)
        try:
            model = merged(adapted)
        except CannotMerge as error:
            raise UserError(f"{name} cannot be merged: {error}; evaluate and ask it as the run that it is") from error
        apart = float((nll_of(model, [row]).double() - own_N).abs().mean())
    if not apart <= LIMIT:
        raise UserError(
            f"{name} merged is another model: a token's loss moves by {apart:.3g} nats (limit {LIMIT:g}); keep it as "
            "an adapter"
        )
    with atomic_folder(output_dir.resolve()) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        if (run.model / ENDS).exists():  # the ids that end an answer, which training wrote
            shutil.copyfile(run.model / ENDS, work / ENDS)
        again = load_base_model(str(work), dataclasses.replace(exact, use_peft=False, peft_type=None, peft=None))
        with torch.no_grad():
            after = float((nll_of(again.eval(), [row]).double() - own_N).abs().mean())
        if not after <= LIMIT:
            raise UserError(
                f"what was saved is {after:.3g} nats a token from the adapter (limit {LIMIT:g}); nothing is kept"
            )
        os.replace(work, output_dir)
    say(f"{output_dir}: a plain {type(model).__name__}, a token's loss within {after:.1g} nats of {name}'s")
    if quantised:
        gap = float((trained_N - own_N).abs().mean())
        bits = 4 if arguments.load_in_4bit else 8
        say(f"it stands on the base model in float32; on {bits} bits a token's loss was {gap:.2g} nats from there")


def _row(tokenizer) -> dict[str, list[int]]:
    ids = encode_prompt(tokenizer, build_prompt(ASKED))
    return {"input_ids": ids, "labels": ids}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", help="the run dir of an adapter")
    parser.add_argument("--output_dir", required=True, help="a new folder for the plain model")
    parser.set_defaults(run=lambda arguments: merge_run(arguments.run_dir, Path(arguments.output_dir)))
