"""A run as a plain model, which other programs read: `finllm merge RUN --output_dir DIR`.

    trained on …            merged into …                                held against the run
    weights as they are     those weights, in float32                    exactly
    4 bits                  what these bits stand for, in float32        exactly
    4 bits, --into original the original weights, in float32             the shift is told, and bounded
    8 bits                  either; its products are rounded in the run  the shift is told, and bounded

With `--dtype bfloat16` or `float16` what is saved is rounded, and that shift is told and bounded too. What was saved is
loaded anew and gives the run's validation rows the run's log-probabilities, or nothing is left of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from finllm.errors import UserError
from finllm.files import atomic_folder, put_in_place, write_json, write_text
from finllm.models import card, conv1d
from finllm.models.adapters import base_of
from finllm.models.asked import MADE, template_of_run
from finllm.models.base import load_base_model, load_run_model, model_arguments
from finllm.models.find import model_of, resolve_base_model, run_of
from finllm.models.flags import MOST_ROWS, MOST_SHIFT, ORIGINAL
from finllm.models.held import Held, held_rows
from finllm.models.merge import LIMIT, NO_WEIGHTS, CannotMerge, merged
from finllm.models.proofs import Proof, tokenizer_fits
from finllm.models.saved import load_adapter
from finllm.models.settings import MethodConfig
from finllm.models.virtual import virtual_tokens
from finllm.run_dir import RunDir
from finllm.terminal import say
from finllm.text.templates import Template

ENDS = "generation_config.json"  # the ids that end an answer, which training wrote
# Nats by which one log-probability may differ where nothing but the order of float32 sums does. On average it is held
# to LIMIT; one unlikely token of a deep model may have a hundred times that.
LARGEST = 1e-2


@dataclasses.dataclass
class Plain:
    """A run's plain model in float32, with what it is asked with, and the rows that it is held against.

    `run_N` are the nats of the run itself, (N,). Where it was `moved`, to other weights or a coarser format, `own_N`
    are those that it must have all the same.
    """

    run: RunDir
    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    template: Template
    held: Held
    run_N: Tensor
    own_N: Tensor
    into: str  # in words, or empty where nothing was merged
    moved: bool = False

    def proof(self, nll_N: Tensor, most_shift: float) -> Proof:
        """That a model which gives the rows `nll_N` is the run's: exactly, or where it was moved within `most_shift`.

        Raises `UserError` where it is not.
        """
        apart_N = (nll_N - (self.own_N if self.moved else self.run_N)).abs()
        before, after = (self.held.bits_per_byte(each) for each in (self.run_N, nll_N))
        largest, shift = float((nll_N - self.run_N).abs().max()), abs(after - before)
        said = (
            f"on {self.held.said} ({len(nll_N):,} tokens) a log-probability differs from the run's by at most "
            f"{largest:.2g} nats, and bits per byte are {after:.5f} where the run has {before:.5f}"
        )
        of = f"what was made of {self.run.path} is another model: {said}"
        if not (float(apart_N.mean()) <= LIMIT and float(apart_N.max()) <= LARGEST):
            raise UserError(
                f"{of} (a token may move by {LARGEST:g} nats, by {LIMIT:g} on average, and moved by "
                f"{float(apart_N.max()):.2g} and {float(apart_N.mean()):.2g}); keep it as the run that it is, and "
                "evaluate and ask it so"
            )
        if not self.moved:
            return Proof("merged model", largest, LARGEST, True, said)
        if not shift <= most_shift:
            raise UserError(
                f"{of} (limit {most_shift:g} bits per byte); allow more with --max_shift, or take --dtype float32, and "
                "leave --into out"
            )
        return Proof("merged model", shift, most_shift, True, said)


def plain_model(
    name: str, into: str | None, dataset_name: str | None, most_rows: int,
    check: Callable[[str, PreTrainedConfig], None] = lambda kind, config: None,
) -> Plain:  # fmt: skip
    """The plain model of a run that is named, with the rows that it is held against.

    `check` is given the class and the config of the model once it is loaded, before anything is computed.
    """
    if most_rows < 1:
        raise UserError(f"--max_examples is {most_rows}; it must be at least 1")
    run = run_of(name)
    if run is None:
        raise UserError(f"{name} is no run dir; a run dir is what recipes/sft.py writes to --output_dir")
    model_of(run)
    arguments = model_arguments(run.require_complete().config())
    bits = 4 if arguments.load_in_4bit else 8 if arguments.load_in_8bit else None
    if into and not (bits and arguments.use_peft):
        raise UserError(f"--into is for adapters on 4 or 8 bits, and {run.path} is none; leave it out")
    trained, tokenizer = load_run_model(run)  # which holds base and adapter against what the run recorded
    check(type(base_of(trained)).__name__, base_of(trained).config)
    if virtual_tokens(trained):
        raise _cannot(name, CannotMerge(NO_WEIGHTS))
    template = template_of_run(run, tokenizer)
    tokenizer_fits(tokenizer, trained, template.ids)
    if not bits:  # of weights in bfloat16 the same numbers
        trained = trained.float().to(_device())
    held = held_rows(run, template, trained, dataset_name, most_rows)
    run_N = held.nll(trained)
    if not arguments.use_peft:
        return Plain(run, trained, tokenizer, template, held, run_N, run_N, "")
    own_N, moved, said = run_N, bits == 8 or into == ORIGINAL, "the weights that it was trained on"
    if bits:
        del trained
        base = _original(arguments) if into == ORIGINAL else _dequantised(arguments)
        trained = load_adapter(base, run.model).float().to(_device())
        own_N = held.nll(trained) if moved else run_N
        said = f"the original weights of {arguments.model_name_or_path}"
        said = said if into == ORIGINAL else f"what its {bits} bits stand for"
    try:
        model = merged(trained)
    except CannotMerge as error:
        raise _cannot(name, error) from error
    return Plain(run, model, tokenizer, template, held, run_N, own_N, f"merged into {said}", moved)


def _cannot(name: str, error: CannotMerge) -> UserError:
    return UserError(f"{name} cannot be merged: {error}; evaluate and ask it as the run that it is")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _original(arguments: MethodConfig) -> PreTrainedModel:
    """The base model in float32; its Conv1D are linear layers, as they are in few bits."""
    exact = dataclasses.replace(arguments, load_in_4bit=False, load_in_8bit=False, dtype="float32")
    base = load_base_model(resolve_base_model(arguments.model_name_or_path), exact)
    conv1d.to_linear(base)
    return base


def _dequantised(arguments: MethodConfig) -> PreTrainedModel:
    """The base model of few bits, with the numbers that these stand for as its weights."""
    base = load_base_model(resolve_base_model(arguments.model_name_or_path), arguments)
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of the precision that is asked for
    try:
        base = base.dequantize(dtype=torch.float32)
    finally:
        logging.set_verbosity(said)
    base.is_loaded_in_4bit = base.is_loaded_in_8bit = False  # which methods of peft ask before they merge
    base.turned_conv1d = True  # where its kind has Conv1D, linear layers stand in their place
    return base


def merge_run(
    name: str, output_dir: Path, into: str | None = None, dtype: str = "float32", max_shard_size: str = "5GB",
    max_shift: float = MOST_SHIFT, dataset_name: str | None = None, max_examples: int = MOST_ROWS,
) -> None:  # fmt: skip
    """Write the model of a run as a plain one into a new folder, with all that other programs need, proved.

    Raises `UserError` for what is no run, cannot be merged, or would not be the run's model; nothing is left then.
    """
    refuse_filled(output_dir)
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", max_shard_size):
        raise UserError(f"--max_shard_size is {max_shard_size!r}; take a size such as 500MB or 5GB")
    plain = plain_model(name, into, dataset_name, max_examples)
    place = output_dir.resolve()

    kind = type(plain.model).__name__
    if dtype != "float32":
        plain.proof(plain.held.nll(plain.model), max_shift)  # before rounding could hide what is wrong
        plain.own_N, plain.moved = plain.held.nll(plain.model.to(getattr(torch, dtype))), True
    with atomic_folder(place) as work:
        model, plain.model = plain.model, None
        model.save_pretrained(work, max_shard_size=max_shard_size)
        del model  # so that what is loaded now has its room
        plain.tokenizer.save_pretrained(work)  # with the template as its chat template
        _save_ends(plain, work)
        again = load_base_model(str(work), MethodConfig(dtype="auto")).to(_device())
        proof = plain.proof(plain.held.nll(again), max_shift)
        write_record(plain, work, {"dtype": dtype, "into": plain.into}, [proof])
        write_text(work / "README.md", card.of_merged(plain.run, output_dir.name, dtype, plain.into, [proof]))
        put_in_place(work, place)
    say(f"{output_dir}: a plain {kind} in {dtype}{', ' if plain.into else ''}{plain.into}")
    say(proof.said)


def _save_ends(plain: Plain, work: Path) -> None:
    """`generation_config.json`: the ids that end an answer, and nothing of the base model's that answers otherwise."""
    tokenizer, ends = plain.tokenizer, plain.template.stops
    if (plain.run.model / ENDS).exists():
        held = GenerationConfig.from_pretrained(plain.run.model, trust_remote_code=False).eos_token_id
        ends = held if isinstance(held, list) else [held]
    GenerationConfig(
        eos_token_id=ends if len(ends) > 1 else ends[0],
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(work)


def refuse_filled(output_dir: Path) -> None:
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} is not empty; take another --output_dir")


def write_record(plain: Plain, work: Path, made: dict[str, Any], proofs: list[Proof]) -> None:
    """What this was made of, in which template it is asked (finllm.models.asked reads that), and what was proved."""
    origin = plain.run.provenance()
    write_json(
        work / MADE,
        {
            "run": plain.run.path.resolve().name,
            "method": plain.run.summary()["method"],
            **made,
            "template": {"id": plain.run.config().get("template") or "alpaca", "hash": plain.template.hash},
            **{key: origin.get(key) for key in ("base_model_hash", "dataset_hash", "tokenizer_hash")},
            "proofs": [proof.as_json() for proof in proofs],
        },
    )
