"""What a trainer proves on the model and rows at hand before the first step, and which way to the loss it takes then.

A faster way to the loss is taken only where it gives the model's own loss and gradients on two rows; else the next one:

    joined · head        rows end to end, supervised positions through the head           on a CPU
    joined · logits      rows end to end, the model's own logits                           on a CPU
    padded · head        rows padded; TRL's fused head on a GPU, ours on a CPU
    padded · logits      rows padded, the model's own logits                               any model

Every figure goes into proofs.json (finllm/run_dir.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from finllm.cpu import joined, kernels
from finllm.errors import UserError
from finllm.models.adapters import base_of
from finllm.models.dropout import StaysRandom, prove_dropout
from finllm.models.gradients import farther_than_its_own, gradient_difference, gradients_of, nats_and_gradients
from finllm.models.merge import merged_proof
from finllm.models.method_proofs import nudged
from finllm.models.proofs import (
    PROVING,
    Proof,
    clipped,
    future_difference,
    head_difference,
    in_float32,
    is_exact,
    nll_of,
    rounding_of,
    short_of,
)
from finllm.terminal import say

SHORT, SHORTER, LONGEST = 24, 16, 384  # tokens of the rows that are looked at
FEW = 8  # and of those that need no more: a pass over so few costs as much as its weights
LOOKED_AT = 64  # rows among which a long one is looked for
UNSEEN = 2e-4  # nats that a log-probability may move with what comes later, and ten times the rounding
LOSS = 1e-4  # nats a token that two ways to one loss may be apart in float32
COARSE_LOSS, COARSE_PROBE = 2e-2, 0.1  # and where they round coarsely, with a long row and with short ones alone
RELOADED_COARSE = 2e-3  # and one way on the same weights
GRADIENT, COARSE_GRADIENT = 1e-3, 0.2  # of a tensor's own gradient, or of so much of the whole where it is smaller:
SMALL, COARSE_SMALL = 1e-3, 0.1


@PROVING
def prove(trainer: Any) -> list[Proof]:
    """Choose the trainer's way to the loss, and return what was proved; a `UserError` where a model cannot be trained.

    `trainer` offers `_likelihood`, `data_collator`, `set_way` and the rows; see finllm.training.trainer.
    """
    documents = list(itertools.islice(_documents(trainer.train_dataset), LOOKED_AT))
    long = clipped(max(documents, key=lambda document: len(document["input_ids"])), LONGEST)
    probe = [clipped(document, length) for document, length in zip(documents[-2:], (SHORT, SHORTER), strict=False)]
    training = trainer.model.training
    trainer.model.eval()
    try:
        with in_float32(trainer.model, beside=True):
            # An adapter beside its beginning, where half of its tensors have a gradient of zero on every way.
            aside = nudged(trainer.model) if isinstance(trainer.model, PeftModel) else nullcontext()
            with aside:
                unseen, long_N = _sees_no_future(trainer.model, long)
                found = [unseen, *_way(trainer, probe, long, long_N)]
            if any(len(document["input_ids"]) > LONGEST for document in documents[:2]):
                _refuse_mixing(trainer, documents[:2])  # whole, which is dear where rows are long, and done there alone
        with trainer.accelerator.autocast():  # as its forward will have it once it is prepared
            return found if is_exact(trainer.model) else [*found, *_coarsely(trainer, probe)]
    finally:
        trainer.model.train(training)


def _coarsely(trainer: Any, probe: list[dict[str, list[int]]]) -> list[Proof]:
    """The way that was taken, once more as the run computes; padded rows where joined ones round too much for it."""
    rows, loss = ("joined" if trainer.joins_rows else "padded", "logits" if trainer.uses_own_logits else "head")
    trainer.set_way("padded", loss)  # the model's own attention, each row alone
    own, gradients = nats_and_gradients(trainer.model, probe)
    trainer.set_way(rows, loss)
    proofs = _own_loss(trainer, probe, torch.cat(own), gradients, f"{rows} · {loss}, as it trains", rows)
    if not proofs[-1].passed and len(proofs) > 1:  # of the gradients
        proofs[-1] = _as_coarse_as_its_own(trainer, probe, proofs[-1].name, (rows, loss))
    failed = [proof for proof in proofs if not proof.passed]
    if failed and rows == "joined":
        trainer.set_way("padded", loss)
        _refuse_mixing(trainer, probe)
        _tell(failed, "padded", loss)
        return [*proofs, *_coarsely(trainer, probe)]
    if failed:
        raise UserError(
            f"{type(base_of(trainer.model)).__name__} is trained here in a precision that is not good enough: "
            f"{'; '.join(f'{proof.said} (limit {proof.limit:g})' for proof in failed)}; set bf16: false and dtype: "
            "float32"
        )
    return proofs


def _as_coarse_as_its_own(trainer: Any, probe: list[dict[str, list[int]]], name: str, way: tuple[str, str]) -> Proof:
    """The gradients of the way that was taken, and the model's own, each against the model's own in float32."""
    trainer.set_way("padded", way[1])
    with in_float32(trainer.model):
        _, exact = nats_and_gradients(trainer.model, probe)
    _, own = nats_and_gradients(trainer.model, probe)
    trainer.set_way(*way)
    ours = gradients_of(trainer.model, _likelihood(trainer, probe)[0])
    apart, limit, worst = farther_than_its_own(exact, own, ours, COARSE_SMALL, COARSE_GRADIENT)
    said = f"gradients are within {apart:.1g} of each tensor's in float32, the model's own within {limit / 2:.1g}"
    return Proof(name, apart, limit, apart <= limit, f"{said}, of {worst}")


def _documents(dataset):
    return (document for row in dataset for document in joined.documents_of(row))


@contextmanager
def _refused_where_it_fails(model: torch.nn.Module, tokens: int) -> Iterator[None]:
    """A model whose own forward fails is a `UserError`, as some do under an adapter on a layer that is no plain one."""
    try:
        yield
    except Exception as error:  # of a model and an adapter of somebody else's, any
        fix = "leave such layers out of lora_target_modules" if isinstance(model, PeftModel) else "take another model"
        raise UserError(
            f"{type(base_of(model)).__name__} fails on a row of {tokens} tokens: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}; {fix}"
        ) from error


def _sees_no_future(model, row: dict[str, list[int]]) -> tuple[Proof, Tensor]:
    """The proof, and the nats of the row's supervised tokens as the model itself says them, (N,).

    Half of the row stays, so the other half is what must not be seen.
    """
    ids, labels_T = row["input_ids"], torch.tensor(row["labels"])
    with _refused_where_it_fails(model, len(ids)):
        moved, rounding, nll_T = future_difference(model, ids, len(ids) // 2, UNSEEN)
    limit = max(UNSEEN, 10 * rounding)
    if moved > limit:
        raise UserError(
            f"{model.config.name_or_path} sees the future: log-probabilities move by {moved:.3g} nats when only later "
            f"tokens change (limit {limit:.1g}), so it would learn to copy what it is to predict; take a model with "
            "causal attention, or set in its config.json what makes it one (is_decoder: true for BERT and its kin)"
        )
    said = f"log-probabilities move by at most {moved:.1g} nats when only later tokens change"
    return Proof("sees no future", moved, limit, True, said), nll_T.cpu()[labels_T[1:] != joined.IGNORED]


def _way(trainer: Any, probe: list[dict[str, list[int]]], long: dict[str, list[int]], long_N: Tensor) -> list[Proof]:
    """Take the first way whose loss and gradients are the model's own; what was found on the ways before it too."""
    model, found = trainer.model, []
    ids = min((row["input_ids"] for row in probe), key=len)[:FEW]
    apart = head_difference(model, torch.tensor([ids], device=trainer.args.device))
    plain = apart <= rounding_of(model)
    what = "the last hidden state times the head" if plain else "more than the last hidden state times the head"
    said = f"the logits are {what} ({apart:.1g} of the largest apart)"
    found.append(Proof("head", apart, rounding_of(model), plain, said))
    with _refused_where_it_fails(model, max(len(row["input_ids"]) for row in probe)):  # some do with a gradient alone
        own, gradients = nats_and_gradients(model, probe)  # before anything of ours is put in its place
    if trainer.on_cpu:
        kernels.use_in(model)
    for rows, loss in trainer.ways(plain):
        trainer.set_way(rows, loss)
        try:
            proofs = _own_loss(trainer, probe, torch.cat(own), gradients, f"{rows} · {loss}", rows)
            proofs.append(_apart(trainer, [long, probe[-1]], torch.cat([long_N, own[-1].cpu()]), rows))
        except Exception as error:  # a model's own forward may refuse a way by any error; the next way is tried
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            said = f"{rows} rows with {loss} fail: {reason}"
            proofs = [Proof(f"loss, {rows} · {loss}", None, 0.0, False, said)]
        found += proofs
        if all(proof.passed for proof in proofs):
            _tell(found, rows, loss)
            return found
    _refuse_mixing(trainer, [long, probe[-1]])  # says what to set where rows are not kept apart
    raise UserError(
        f"{type(base_of(model)).__name__} cannot be trained here: no way to the loss gives the model's own: "
        + "; ".join(proof.said for proof in found if not proof.passed)
    )


def _tell(found: list[Proof], rows: str, loss: str) -> None:
    """Say why a slower way is taken than this machine has."""
    joined_one = next((proof for proof in found if "joined" in proof.name and not proof.passed), None)
    if rows == "padded" and joined_one is not None:
        say(f"rows are padded: {joined_one.said}; the limit is {joined_one.limit:.0e}", flush=True)
    if loss == "logits":
        say("every loss is made of the model's own logits, since they are not just its head's product", flush=True)


def _own_loss(
    trainer: Any, probe: list[dict[str, list[int]]], own_N: Tensor, gradients: dict[str, Tensor], way: str, rows: str
) -> list[Proof]:
    """The loss and gradients of one way, against those of each row alone through the model's own forward."""
    model = trainer.model
    nll, nll_B, _ = _likelihood(trainer, probe)
    apart = float((nll_B.double().sum() - own_N.double().sum()).abs() / len(own_N))
    exact = is_exact(model)
    limit, steepest, small = (LOSS, GRADIENT, SMALL) if exact else (COARSE_PROBE, COARSE_GRADIENT, COARSE_SMALL)
    said = f"with {rows} rows a token's loss is {apart:.2g} nats from the model's own"
    proofs = [Proof(f"loss, {way}", apart, limit, apart <= limit, said)]
    if nll.requires_grad and gradients:
        share, worst = gradient_difference(model, gradients, nll, small)
        said = f"gradients are the model's own within {share:.1g} of each tensor's, the farthest that of {worst}"
        proofs.append(Proof(f"gradients, {way}", share, steepest, share <= steepest, said))
    return proofs


@torch.no_grad()
def _apart(trainer: Any, pair: list[dict[str, list[int]]], own_N: Tensor, rows: str) -> Proof:
    """A long row and a short one in one batch are as likely as the model itself says of each without the other."""
    limit = LOSS if is_exact(trainer.model) else COARSE_LOSS
    _, nll_B, _ = _likelihood(trainer, pair)
    apart = float((nll_B.cpu().double().sum() - own_N.double().sum()).abs() / len(own_N))
    said = f"a row's loss moves by {apart:.1g} nats a token with its neighbour, {rows}"
    return Proof(f"rows stay apart, {rows}", apart, limit, apart <= limit, said)


def _refuse_mixing(trainer: Any, pair: list[dict[str, list[int]]]) -> None:
    """Refuse a model of which, on the way that is set, a row's loss moves with its neighbour; say what to set."""
    limit = LOSS if is_exact(trainer.model) else COARSE_LOSS
    apart = _nats_apart(trainer, pair)
    if apart > limit:
        raise UserError(
            f"this model does not keep the rows of a batch apart: a row's loss moves by {apart:.2g} nats a token "
            f"with its neighbour (limit {limit:.0e}); set "
            + ("packing: false" if trainer.args.packing else "per_device_train_batch_size: 1")
        )


def _likelihood(trainer: Any, rows: list[dict[str, list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """The summed nll of a batch of `rows` on the way that is set, and per row its nll and its supervised tokens."""
    return trainer._likelihood(trainer.model, trainer._prepare_inputs(trainer.data_collator(trainer.packed(rows))))


@torch.no_grad()
def _nats_apart(trainer: Any, pair: list[dict[str, list[int]]]) -> float:
    """By how many nats a token the loss of rows in one batch differs from that of each alone."""
    nll, tokens = [], []
    for rows in (pair, *([row] for row in pair)):
        _, nll_B, tokens_B = _likelihood(trainer, rows)
        nll.append(float(nll_B.double().sum()))
        tokens.append(int(tokens_B.sum()))
    return abs(nll[0] - sum(nll[1:])) / max(1, tokens[0])


@PROVING
def prove_dropout_of(trainer: Any, share: float) -> Proof:
    """The base model's dropout is `share` on two of the run's rows (see finllm.models.dropout); nothing is learned.

    An adapter is off meanwhile, since it has a dropout of its own.
    """
    rows = [clipped(document, FEW) for document in itertools.islice(_documents(trainer.train_dataset), 2)]

    def loss() -> float:
        _, nll_B, tokens_B = _likelihood(trainer, rows)
        return float(nll_B.double().sum() / tokens_B.sum())

    # peft lets all of an adapter train when it is on again, also what LoRA-FA keeps as it was drawn.
    trains = [(parameter, parameter.requires_grad) for parameter in trainer.model.parameters()]
    without_adapter = trainer.model.disable_adapter() if isinstance(trainer.model, PeftModel) else nullcontext()
    training = trainer.model.training
    trainer.model.train()
    base, limit = base_of(trainer.model), LOSS
    with without_adapter, torch.no_grad():
        try:  # as it trains, where two equal passes are equal on a CPU whatever the precision
            with trainer.accelerator.autocast():
                moved = prove_dropout(base, share, loss, limit)
        except StaysRandom:  # or rounds anew each time, as some GPUs do
            with in_float32(trainer.model):
                limit = LOSS if is_exact(trainer.model) else COARSE_LOSS
                moved = prove_dropout(base, share, loss, limit)
    trainer.model.train(training)
    for parameter, wanted in trains:
        parameter.requires_grad_(wanted)
    said = f"with a dropout of 0 two passes in training mode are within {moved:.1g} nats a token"
    return Proof("dropout", moved, limit, True, said if not share else f"{said}, with {share:g} they differ")


@PROVING
@torch.no_grad()
def prove_saved(trainer: Any, saved: Path, load_saved: Callable[[Path], PreTrainedModel]) -> list[Proof]:
    """The model loaded anew from `saved`, on a freshly loaded base, gives validation rows the loss of the trained one.

    Beside the trained one it would stand on a base that training or an adapter's start may have changed. An adapter is
    then merged into that base, where it can be: the second proof.
    """
    rows = [short_of(trainer.eval_dataset[0])]
    way = ("joined" if trainer.joins_rows else "padded", "logits" if trainer.uses_own_logits else "head")
    trainer.set_way("padded", way[1])
    # As it is without accelerate: no autocast in its forward, not compiled. It is asked nothing after this.
    bare = {"keep_fp32_wrapper": False, "keep_torch_compile": False}
    trained = trainer.accelerator.unwrap_model(trainer.model, **bare).eval()
    loaded = load_saved(saved)
    if not getattr(loaded, "quantization_method", None):
        loaded.to(trainer.args.device)
    with in_float32(trained, beside=True):
        before_N = nll_of(trained, rows).double()
    with in_float32(loaded.eval(), used_up=True):
        after_N, limit = nll_of(loaded, rows).double(), LOSS if is_exact(loaded) else RELOADED_COARSE
        trainer.set_way(*way)
        apart = float((before_N - after_N).abs().mean())
        if not apart <= limit:
            raise UserError(
                f"the model just saved to {saved} is not the one that was trained: a validation row has "
                f"{float(after_N.mean()):.6f} nats a token when it is loaded anew and {float(before_N.mean()):.6f} "
                f"before saving (limit {limit:.0e} a token); its checkpoints are kept. A start that is drawn anew at "
                "every load cannot be saved so"
            )
        proof = Proof("saved model", apart, limit, True, f"loaded anew, a token's loss is within {apart:.1g} nats")
        return [proof, merged_proof(loaded, rows, after_N)] if isinstance(loaded, PeftModel) else [proof]
