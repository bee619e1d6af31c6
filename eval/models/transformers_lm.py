"""Any transformers or peft model behind the protocol of `eval.models.language_model`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.models.language_model import Description, Generation, Pair, Score
from eval.models.transformers_reader import encode_pair
from finllm.cpu import joined
from finllm.cpu.loss import BLOCK, CHUNK, aligned_head, is_plain, logits_at
from finllm.models.adapters import base_of
from finllm.models.asked import template_for, template_of_run
from finllm.models.base import check_length, count_parameters, load_for_inference
from finllm.models.generate import answer_all, decoding, may_be_padded_left
from finllm.models.proofs import head_difference, in_float32, rounding_of, tokenizer_fits
from finllm.models.virtual import answers_whole
from finllm.run_dir import RunDir
from finllm.text.templates import Alpaca, Template

ALIKE = 0.9  # lengths of the rows that are scored together, shortest by longest: padding is computed for nothing

PROVED_TOKENS = 64  # of the first text, on which the head is tried

Head = Callable[[torch.Tensor], torch.Tensor]  # last hidden states (N, C) to logits (N, V)


class TransformersLM:
    """A model with its tokenizer. Likelihoods are float32; logits are made where responses stand, and not kept."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        description: Description,
        batch_size: int,
        template: Template | None = None,
    ):
        """It is asked in `template`, without one in alpaca."""
        self.model, self.tokenizer, self.description, self.batch_size = model, tokenizer, description, batch_size
        self.template = template or Alpaca(tokenizer)
        self._plain_head: bool | None = None  # found out on the first texts

    def encode(self, prompt: str, response: str) -> Pair:
        """As `LanguageModel.encode`."""
        return encode_pair(self.template, self.description.tokenizer, prompt, response)

    def log_probs(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """As eval.models.language_model says; float64 of what was computed in float32.

        Rows of any lengths go together, so that an audit sees a model that sees its padding.
        """
        return [log_probs for log_probs, _ in self._in_batches(pairs, alike=0)]

    @torch.inference_mode()
    def distributions(self, pairs: Sequence[Pair], positions: Sequence[int]) -> list[np.ndarray]:
        """As eval.models.language_model says."""
        head, found = self._head(pairs), {}
        for batch in self._batches(pairs, ALIKE):
            input_ids = self._padded([pairs[index] for index in batch])
            asked = torch.zeros_like(input_ids, dtype=torch.bool)
            for row, index in enumerate(batch):
                asked[row, len(pairs[index][0]) - 1 + positions[index]] = True
            logits = self._logits(input_ids, asked, head)(slice(None)).float()
            found |= zip(batch, logits.log_softmax(-1).double().cpu().numpy(), strict=True)
        return [found[index] for index in range(len(pairs))]

    def in_float32(self) -> AbstractContextManager[None]:
        """Memory for float32 copies of coarser weights is needed meanwhile."""
        return in_float32(self.model)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Score]:
        """The likelihood of each whole response and its EOS; no text is cut."""
        pairs = [self.encode(*pair) for pair in zip(prompts, responses, strict=True)]
        return [
            Score(float(-log_probs.sum()), len(log_probs), correct)
            for log_probs, correct in self._in_batches(pairs, ALIKE)
        ]

    def _batches(self, pairs: Sequence[Pair], alike: float) -> list[list[int]]:
        """Positions by falling length; the shortest row of a batch is at least `alike` times as long as its longest."""
        lengths = [len(prompt) + len(response) for prompt, response in pairs]
        check_length(self.model, max(lengths, default=0))
        batches: list[list[int]] = []
        for index in sorted(range(len(pairs)), key=lambda index: -lengths[index]):
            full = not batches or len(batches[-1]) == self.batch_size
            if full or lengths[index] < alike * lengths[batches[-1][0]]:
                batches.append([])
            batches[-1].append(index)
        return batches

    @torch.inference_mode()
    def _in_batches(self, pairs: Sequence[Pair], alike: float) -> list[tuple[np.ndarray, int]]:
        """Of each pair its log-probabilities and how many tokens were the likeliest.

        Rows are padded on the right, where no position sees padding: batching changes nothing.
        """
        head = self._head(pairs) if pairs else None
        found: dict[int, tuple[np.ndarray, int]] = {}
        for batch in self._batches(pairs, alike):
            found |= zip(batch, self._one_batch([pairs[index] for index in batch], head), strict=True)
        return [found[index] for index in range(len(pairs))]

    def _one_batch(self, pairs: list[Pair], head: Head | None) -> list[tuple[np.ndarray, int]]:
        input_ids = self._padded(pairs)
        predicts = torch.zeros_like(input_ids, dtype=torch.bool)  # the positions whose next token is of a response
        for row, (prompt, response) in enumerate(pairs):
            predicts[row, len(prompt) - 1 : len(prompt) - 1 + len(response)] = True
        labels_N = torch.tensor([token for _, response in pairs for token in response], device=self.model.device)
        logits_of = self._logits(input_ids, predicts, head)
        log_probs, correct = [], []
        for start in range(0, len(labels_N), CHUNK):
            chunk = slice(start, start + CHUNK)
            for some, labels in zip(logits_of(chunk).split(BLOCK), labels_N[chunk].split(BLOCK), strict=True):
                logits = some.float()
                log_probs.append(-cross_entropy(logits, labels, reduction="none").double())
                correct.append(logits.argmax(-1) == labels)
        lengths = [len(response) for _, response in pairs]
        by_row = zip(torch.cat(log_probs).split(lengths), torch.cat(correct).split(lengths), strict=True)
        return [(found.cpu().numpy(), int(right.sum())) for found, right in by_row]

    def _padded(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """Ids on the model's device, padded on the right."""
        width = max(len(prompt) + len(response) for prompt, response in pairs)
        rows = [[*prompt, *response] for prompt, response in pairs]
        filled = [row + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        return torch.tensor(filled, device=self.model.device)

    def _head(self, pairs: Sequence[Pair]) -> Head | None:
        """The model's head, its products aligned; None where its logits are more than the product with it.

        That is proved on the first tokens of the first text, since no list of models knows the next one.
        """
        if answers_whole(self.model):
            return None  # what lies under its method knows nothing of it
        if self._plain_head is None:
            ids = [*pairs[0][0], *pairs[0][1]][:PROVED_TOKENS]
            with in_float32(self.model):
                apart = head_difference(self.model, torch.tensor([ids], device=self.model.device))
                self._plain_head = apart <= rounding_of(self.model)
        head = base_of(self.model).get_output_embeddings()
        if not self._plain_head or not is_plain(head, nn.Linear):  # or adapted, quantised or hooked
            return None
        weight, bias = aligned_head(head.weight, head.bias, head.weight.dtype)
        # Some models keep their hidden states in float32 beside weights in bfloat16 (mamba's residual stream).
        return lambda hidden_NC: linear(hidden_NC.to(weight.dtype), weight, bias)[:, : len(head.weight)]

    def _logits(
        self, input_ids: torch.Tensor, predicts: torch.Tensor, head: Head | None
    ) -> Callable[[slice], torch.Tensor]:
        """The logits of those of the positions that predict, a slice at a time: most positions never meet the head."""
        if head is not None:
            hidden_BTC = base_of(self.model).base_model(input_ids=input_ids, use_cache=False).last_hidden_state
            hidden_NC = hidden_BTC[predicts]
            return lambda part: head(hidden_NC[part])
        asked = self.model if answers_whole(self.model) else base_of(self.model)
        logits_NV = logits_at(asked, predicts, input_ids=input_ids, use_cache=False)
        return lambda part: logits_NV[part]

    @torch.inference_mode()
    def otherwise(self, pairs: Sequence[Pair]) -> dict[str, list[float]]:
        """Padded on the left where `generate` pads so; and packed, as rows are trained on where the model allows it."""
        rows = [
            {"input_ids": prompt + response, "labels": [joined.IGNORED] * len(prompt) + response}
            for prompt, response in pairs
        ]
        found = {}
        if may_be_padded_left(self.model, self.tokenizer, [row["input_ids"] for row in rows]):
            found["padded on the left"] = self._padded_left(rows, pairs)
        if self._can_be_packed(rows[:2], pairs[:2]):
            found["packed"] = self._packed(rows)
        return {way: torch.stack(values).tolist() for way, values in found.items()}

    def _padded_left(self, rows: list[dict[str, list[int]]], pairs: Sequence[Pair]) -> list[torch.Tensor]:
        padded = self.tokenizer.pad(
            {"input_ids": [row["input_ids"] for row in rows]}, padding_side="left", return_tensors="pt"
        ).to(self.model.device)
        positions = (padded.attention_mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(**padded, position_ids=positions, use_cache=False).logits
        return [
            # Ids as they are: as numbers of the logits' bfloat16, 49151 would be 49152.
            cross_entropy(
                row[-len(response) - 1 : -1].float(), torch.tensor(response, device=row.device), reduction="sum"
            )
            for row, (_, response) in zip(logits, pairs, strict=True)
        ]

    def _packed(self, rows: list[dict[str, list[int]]]) -> list[torch.Tensor]:
        """The nll of each row's response, the rows end to end as in training on a CPU."""
        batch = {name: tensor.to(self.model.device) for name, tensor in joined.join(rows).items()}
        base = base_of(self.model)
        own = base.config._attn_implementation
        base.set_attn_implementation(joined.NAME)
        try:
            inputs = {name: batch[name] for name in ("input_ids", "position_ids", "parts")}
            logits = self.model(**inputs, use_cache=False).logits
        finally:
            base.set_attn_implementation(own)
        labels = batch["labels"][0, 1:]
        nll = cross_entropy(logits[0, :-1].float(), labels, reduction="none", ignore_index=joined.IGNORED)
        return [nll[batch["rows"][0, 1:] == number].sum() for number in range(len(rows))]

    def _can_be_packed(self, rows: list[dict[str, list[int]]], pairs: Sequence[Pair]) -> bool:
        """Whether the attention of packed rows is this model's own, and its positions are those that it is given.

        Two rows are as likely end to end as each by itself; else no row is packed in training either
        (finllm.training.proving).
        """
        if not joined.can_join(base_of(self.model)):
            return False
        with in_float32(self.model):
            try:
                packed = self._packed(rows)
            except Exception:  # a model's own forward may refuse it by any error
                return False
            own = [log_probs for log_probs, _ in self._in_batches(pairs, alike=0)]
            apart = [abs(float(nll) + each.sum()) / len(each) for nll, each in zip(packed, own, strict=True)]
            return max(apart) <= rounding_of(self.model)

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Greedy, by finllm.models.generate: evaluation asks as users ask."""
        config = decoding(self.tokenizer, max_new_tokens, stops=self.template.stops)
        answers = answer_all(self.model, self.tokenizer, prompts, config, self.batch_size, template=self.template)
        return [Generation(answer.text, answer.tokens, answer.stopped) for answer in answers]


def load(run: RunDir, batch_size: int) -> TransformersLM:
    """The model of a run of recipes/sft.py."""
    summary = run.summary()
    model, tokenizer = load_for_inference(str(run.path))
    template = template_of_run(run, tokenizer)
    tokenizer_fits(tokenizer, model, template.ids)
    if getattr(model, "quantization_method", None) is None:
        model = model.float()  # of weights that were frozen in bfloat16 the same values, and sums without its rounding
    description = Description(
        method=summary["method"],
        base_model=summary["base_model"],
        tokenizer=summary["base_model"],
        total_parameters=summary["total_parameters"],
        trainable_parameters=summary["trainable_parameters"],
        dtype=dtype_of(model),
    )
    return TransformersLM(model, tokenizer, description, batch_size, template)


def load_base(name: str, batch_size: int, template: str | None = None) -> TransformersLM:
    """An untouched base model, asked in `template`, without one in alpaca."""
    model, tokenizer = load_for_inference(name)
    asked = template_for(name, tokenizer, template)
    tokenizer_fits(tokenizer, model, asked.ids)
    description = Description("base", name, name, count_parameters(model).total, 0, dtype_of(model))
    return TransformersLM(model, tokenizer, description, batch_size, asked)


def dtype_of(model: PreTrainedModel) -> str:
    """float32, bfloat16 or float16; for weights in 4 bits what their products are computed in; for 8 bits int8."""
    settings = getattr(model.config, "quantization_config", None)
    if getattr(settings, "load_in_8bit", False):
        return "int8"
    return str(getattr(settings, "bnb_4bit_compute_dtype", model.dtype)).removeprefix("torch.")
