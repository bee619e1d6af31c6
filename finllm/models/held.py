"""The validation rows that what becomes of a run is held against, and what a model says of them.

Likelihood is of the last answer of a row and its end alone, as eval/run.py measures it: Σ nll / (ln 2 · Σ bytes) bits
per byte, with the bytes of the UTF-8 answers. N supervised tokens of all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finllm.data.prepare import resolve
from finllm.errors import UserError
from finllm.files import cache_dir
from finllm.models.base import positions_of
from finllm.models.flags import MOST_ROWS
from finllm.models.proofs import in_float32, nll_of
from finllm.run_dir import RunDir
from finllm.text.templates import Template
from finllm.text.tokens import IGNORED, LAST_TURN


@dataclass(frozen=True)
class Held:
    """Rows in tokens, `input_ids` and `labels`, each (T,); as they were written; and the bytes of their answers."""

    encoded: list[dict[str, list[int]]]
    rows: list[dict[str, Any]]
    bytes: int
    said: str  # which rows these are

    @torch.no_grad()
    def nll(self, model: PreTrainedModel) -> Tensor:
        """Nats of each supervised token as `model` says them, in float32: (N,), float64, on the CPU."""
        with in_float32(model.eval()):
            return nll_of(model, self.encoded).double().cpu()

    def bits_per_byte(self, nll_N: Tensor) -> float:
        return float(nll_N.sum()) / (math.log(2) * self.bytes)


def held_rows(
    run: RunDir, template: Template, model: PreTrainedModel, dataset_name: str | None = None, most: int = MOST_ROWS
) -> Held:
    """The run's validation rows, `most` of them by a fixed random choice; of a run without any, rows of training.

    The dataset is the run's own or `dataset_name`, and must have the hash that the run recorded: else a `UserError`.
    Rows that the model cannot read whole, and those that training drops, are left out.
    """
    config, recorded = run.config(), run.provenance()["dataset_hash"]
    try:
        dataset = resolve(dataset_name or config["dataset_name"], cache_dir() / "datasets")
    except UserError as error:
        raise UserError(
            f"the validation rows of {run.path} are needed, to hold what is made of it against it, and its dataset was "
            f"not opened: {error}; name where it lies now with --dataset_name",
            lines=error.lines,
        ) from None
    if dataset.hash != recorded:
        raise UserError(
            f"{dataset.path} holds a dataset of hash {dataset.hash[:16]}, and {run.path} was trained on one of hash "
            f"{recorded[:16]}; name that one with --dataset_name"
        )
    splits = (config.get("dataset_test_split") or "validation", config.get("dataset_train_split") or "train")
    for split in splits:
        rows = sorted(dataset.each_row(split), key=lambda row: row["id"])  # ids are hashes: the first are a choice
        chosen = _readable(rows, template, positions_of(model.config) or math.inf, most)
        if chosen:
            encoded, kept = zip(*chosen, strict=True)
            size = sum(len(row["output"].encode()) for row in kept)
            return Held(list(encoded), list(kept), size, f"{len(kept):,} of {len(rows):,} {split} rows")
    raise UserError(f"{dataset.path} has no row in {' and '.join(splits)} that the model of {run.path} can read whole")


def _readable(
    rows: list[dict[str, Any]], template: Template, positions: float, most: int
) -> list[tuple[dict[str, list[int]], dict[str, Any]]]:
    found = []
    for begin in range(0, len(rows), most):
        some = rows[begin : begin + most]
        for row, tokens in zip(some, template.encode_rows(some, None, False, LAST_TURN), strict=True):
            learned = any(label != IGNORED for label in tokens["labels"][1:])
            fits = len(tokens["input_ids"]) <= positions
            if learned and fits and not tokens["unwritable"] and not tokens["refused"]:
                found.append(({name: tokens[name] for name in ("input_ids", "labels")}, row))
        if len(found) >= most:
            break
    return found[:most]
