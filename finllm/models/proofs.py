"""What is proved of a model on a few tokens of real rows, at the moment it costs seconds, and not assumed of its name.

    tokenizer_fits       every id that can occur has a row in the embedding
    template_proofs      a model is asked, by other programs too, in the tokens that it was trained on
    head_difference      the logits are the last hidden state times the head: only then may positions skip the head
    future_difference    a token's prediction does not move when only later tokens change
    nll_of               what the model itself says of rows, each alone: the measure for faster ways, and for reloading

A list of model names that are known to behave would be wrong from the next release of transformers on.
B batch, T tokens, C model width, V vocabulary.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finllm.cpu.machine import memory_bytes
from finllm.errors import UserError
from finllm.models.adapters import base_of
from finllm.models.virtual import answers_whole
from finllm.text.prompts import TEMPLATE_ID
from finllm.text.templates import PROVED, Template
from finllm.text.tokens import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

CHANGED = 16  # tokens, by which a row goes on otherwise where it is asked what it sees of them
RELOADED_TOKENS = 64  # of the validation row that a saved model is tried on
LITTLE = 1 / 16  # of this machine's memory, in which what is turned back soon may be held twice
LARGE = 60.0  # the size of a logit at which soft caps, multipliers and clamps of a head show
# Rounding of one computation done twice, as a share of what was computed: float32, and formats of 8 bits or so.
ROUNDING, COARSE_ROUNDING = 1e-4, 2**-5


class Stopwatch(ContextDecorator):
    """Seconds that passed inside its `with` blocks and the functions it decorates, all together; not to be nested."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds += time.perf_counter() - self._start


PROVING = Stopwatch()  # what this process has spent on proofs


@dataclass(frozen=True)
class Proof:
    """One thing that was proved: `figure` was held against `limit`, and `said` says what it means."""

    name: str
    figure: float | None  # None where there was nothing to compare
    limit: float
    passed: bool
    said: str

    def as_json(self) -> dict[str, Any]:
        finite = self.figure is not None and math.isfinite(self.figure)
        return {"name": self.name, "figure": self.figure if finite else None, "limit": self.limit,
                "passed": self.passed, "said": self.said}  # fmt: skip


def is_exact(model: torch.nn.Module) -> bool:
    """Whether this model computes in float32 here and now: its weights, and no autocast around it.

    Weights in 4 bits are read as what they stand for, so of them it is the numbers that they become.
    """
    parameters, _, told = _numbers_of(model)
    autocast = torch.is_autocast_enabled(parameters[0].device.type)
    fine = (torch.float32, torch.float64)
    return (
        not autocast
        and all(parameter.dtype in fine or _in_4_bits(parameter) for parameter in parameters)
        and all(module.compute_dtype in fine for module in told)
    )


def _in_4_bits(parameter: Tensor) -> bool:
    return hasattr(parameter, "quant_state")  # of bitsandbytes; its storage may be of any type


def _numbers_of(model: torch.nn.Module) -> tuple[list[Tensor], list[Tensor], list[torch.nn.Module]]:
    """A model's parameters and its buffers, each once, and bitsandbytes' layers of 4 bits among its modules.

    These turn their weights into numbers of their `compute_dtype`. All in one walk: an adapted model has thousands of
    modules, and a walk through them takes as long as a tenth of a short pass.
    """
    parameters, buffers, told = {}, {}, []
    for module in model.modules():
        parameters.update((id(each), each) for each in module._parameters.values() if each is not None)
        buffers.update((id(each), each) for each in module._buffers.values() if each is not None)
        if isinstance(vars(module).get("compute_dtype"), torch.dtype):
            told.append(module)
    return list(parameters.values()), list(buffers.values()), told


@contextmanager
def in_float32(model: torch.nn.Module, used_up: bool = False, beside: bool = False) -> Iterator[None]:
    """Inside, the model computes in float32: no autocast, and coarser weights as what they stand for, exactly.

    Afterwards they are what they were, since every number of bfloat16 and float16 is one of float32; not of a model
    that is `used_up` then, which saves the time. Weights in 8 bits stay as they are, see `is_exact`.

    Turning them back takes as long as a short pass. With `beside` the coarse ones are held meanwhile, where they are
    `LITTLE` of this machine's memory: for blocks that merge nothing. What else changes a weight inside is seen.
    """
    parameters, buffers, all_told = _numbers_of(model)
    coarse = [
        (tensor, tensor.data)
        for tensor in (*parameters, *buffers)
        if tensor.dtype in (torch.bfloat16, torch.float16) and not _in_4_bits(tensor)
    ]
    dtypes = [(tensor, held.dtype) for tensor, held in coarse]
    if not beside or sum(held.nbytes for _, held in coarse) > LITTLE * memory_bytes():
        coarse.clear()
    told, versions = [(module, module.compute_dtype) for module in all_told], {}
    try:
        for tensor, _ in dtypes:
            tensor.data = tensor.data.float()
        versions.update((id(tensor), tensor._version) for tensor, _ in coarse)
        for module, _ in told:
            module.compute_dtype = torch.float32
        with torch.autocast((*parameters, *buffers)[0].device.type, enabled=False):
            yield
    finally:
        unchanged = {id(tensor): held for tensor, held in coarse if versions.get(id(tensor)) == tensor._version}
        for tensor, dtype in [] if used_up else dtypes:
            held = unchanged.get(id(tensor))
            tensor.data = tensor.data.to(dtype) if held is None else held
        for module, dtype in told:
            module.compute_dtype = dtype


def rounding_of(model: torch.nn.Module) -> float:
    """The share by which two computations of the same may differ by rounding, in the precision of here and now."""
    return ROUNDING if is_exact(model) else COARSE_ROUNDING


def tokenizer_fits(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, written: Collection[int] = ()) -> None:
    """Refuse ids beyond the embedding's rows; a pad token beyond them becomes EOS, since masks go by position.

    `written` are the control tokens that the template writes.

    Special tokens that neither open, end nor pad a row stay text when they stand in one (finllm.text.tokens), so a
    vocabulary may hold more of them than the embedding has rows, as that of text-only models of a family with pictures.
    """
    rows = base_of(model).get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, *written}
    unused = set(tokenizer.all_special_ids) - needed
    unused |= {id for id, token in tokenizer.added_tokens_decoder.items() if token.special and id not in needed}
    beyond = {token: id for token, id in tokenizer.get_vocab().items() if id >= rows and id not in unused}
    if beyond:
        token, id = max(beyond.items(), key=lambda item: item[1])
        raise UserError(
            f"the tokenizer has {len(beyond):,} tokens beyond the model's embedding, up to {token!r} with id {id:,}, "
            f"and the embedding has {rows:,} rows; take the tokenizer that belongs to {model.config.name_or_path}, or "
            "resize the model's embeddings before you fine-tune it"
        )


def template_proofs(template: Template, rows: Dataset) -> list[Proof]:
    """The template on the first rows: other programs ask by its chat template in the very tokens that are trained on.

    A template that fails it is a `UserError`, but for alpaca, which is then saved without a chat template. Of alpaca as
    it ever was nothing is told.
    """
    said = template.prove(rows.select(range(min(PROVED, len(rows)))).to_list())
    saved = template.jinja is not None
    proof = Proof("template", 0.0 if saved else None, 0.0, saved, said)
    return [] if saved and template.id == TEMPLATE_ID else [proof]


@torch.no_grad()
def head_difference(model: PreTrainedModel, ids_BT: Tensor) -> float:
    """The largest difference between the model's own logits and hidden · weightᵀ + bias, as a share of the largest.

    What the head is given must be the `base_model`'s last hidden state, and the logits that the model makes of it must
    be the product. Both are looked at scaled, so that logits reach `LARGE`: there a soft cap or clamp shows that small
    random weights would hide. Infinite where the model has no such head.
    """
    base = base_of(model)
    head, given = base.get_output_embeddings(), []
    if getattr(head, "weight", None) is None or head.weight.dim() != 2:
        return math.inf
    try:
        if answers_whole(model):
            hidden_BTC = _hidden_within(model, base, ids_BT)
        else:
            hidden_BTC = base.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    except (AttributeError, TypeError):
        return math.inf  # it answers with something else, or wants to be asked otherwise
    largest = float(_product(hidden_BTC, head).abs().max())
    if not math.isfinite(largest):
        return math.inf
    scale = LARGE / (largest or LARGE)

    def scaled(_module, positional):
        given.append(positional[0] * scale)
        return (given[-1], *positional[1:])

    handle = head.register_forward_pre_hook(scaled)
    try:
        own_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    finally:
        handle.remove()
    if len(given) != 1 or given[0].shape != hidden_BTC.shape:
        return math.inf
    ours_BTV = _product(given[0], head)[:, -own_BTV.shape[1] :]
    if ours_BTV.shape != own_BTV.shape:
        return math.inf
    return max(_share_apart(own_BTV, ours_BTV), _share_apart(given[0].float(), (hidden_BTC * scale).float()))


def _hidden_within(model: PreTrainedModel, base: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """What `base_model` answers with inside the model's own forward: (B, T, C), or P + T with P virtual tokens."""
    seen: list[Tensor] = []
    handle = base.base_model.register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state))
    try:
        model(input_ids=ids_BT, use_cache=False)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise TypeError("base_model is not asked once")
    return seen[0]


def _product(hidden_BTC: Tensor, head: torch.nn.Module) -> Tensor:
    return linear(hidden_BTC.to(head.weight.dtype), head.weight, getattr(head, "bias", None)).float()


def _share_apart(own: Tensor, ours: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite where one is no number."""
    apart = float((own - ours).abs().max())
    return apart / (float(own.abs().max()) or 1.0) if math.isfinite(apart) else math.inf


@torch.no_grad()
def future_difference(
    model: PreTrainedModel, ids: Sequence[int], kept: int, unseen: float
) -> tuple[float, float, Tensor]:
    """By how many nats predictions move when only the tokens after the first `kept` of a row change; and by rounding.

    The predictions are the whole distributions at the positions that are kept: the last of them predicts the first
    token that changes, so a model that reads no more than the next token moves too. What changes are all tokens after
    them, to `CHANGED` others that occur in the row, and no more come then. Where more than `unseen` moves, the row and
    a changed copy of its length are asked in one batch, so that they are computed alike, and a third row, the first
    again, shows what rounding moves. Returned third are the nats of the row's own tokens from the second on, (T-1,),
    as the model says them.
    """
    choose, pool = random.Random(0).choice, sorted({*ids})
    changed = [*ids[:kept], *(choose([other for other in pool if other != id] or [id]) for id in ids[kept:])]
    device = next(model.parameters()).device

    def asked(*rows: Sequence[int]) -> Tensor:
        return model(input_ids=torch.tensor([list(row) for row in rows], device=device), use_cache=False).logits

    def farthest(own: Tensor, other: Tensor) -> float:
        own, other = (logits_TV[:kept].float().log_softmax(-1) for logits_TV in (own, other))
        return float((own - other).abs().max().nan_to_num(math.inf))

    own, other = asked(ids)[0], asked(changed[: kept + CHANGED])[0]
    nll_T = cross_entropy(own[:-1].float(), torch.tensor(ids, device=device)[1:], reduction="none")
    moved, rounding = farthest(own, other), 0.0
    if moved > unseen:
        own, other, copy = asked(ids, changed, ids)
        moved, rounding = farthest(own, other), farthest(own, copy)
    return moved, rounding, nll_T


def clipped(row: Mapping[str, Any], length: int) -> dict[str, list[int]]:
    """A row's first tokens, the second half of them supervised: what a template begins with is a row like any other."""
    ids = list(row["input_ids"][:length])
    return {"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]}


def short_of(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """As much of a row as a quick look needs, around where its answer begins."""
    supervised = next(index for index, label in enumerate(row["labels"]) if index and label != IGNORED)
    end = max(RELOADED_TOKENS, supervised + RELOADED_TOKENS // 4)
    return {name: row[name][:end] for name in ("input_ids", "labels")}


def nll_of(model: PreTrainedModel, rows: Sequence[dict[str, list[int]]]) -> Tensor:
    """Nats of each supervised token of `rows`, each row alone through the model's own forward: (N,), with gradient."""
    return torch.cat([nll_beside(model, [row])[0] for row in rows])


def nll_beside(model: PreTrainedModel, rows: Sequence[dict[str, list[int]]]) -> list[Tensor]:
    """Nats of each supervised token of each row, the rows beside each other in one pass, with gradient.

    Shorter ones go on with their last token, which is later than all that is looked at.
    """
    device, longest = next(model.parameters()).device, max(len(row["input_ids"]) for row in rows)
    filled = [row["input_ids"] + row["input_ids"][-1:] * (longest - len(row["input_ids"])) for row in rows]
    logits_BTV, found = model(input_ids=torch.tensor(filled, device=device), use_cache=False).logits, []
    for logits_TV, row in zip(logits_BTV, rows, strict=True):
        labels_T = torch.tensor(row["labels"], device=device)[1:]
        mask = labels_T != IGNORED
        found.append(cross_entropy(logits_TV[: len(labels_T)][mask].float(), labels_T[mask], reduction="none"))
    return found
