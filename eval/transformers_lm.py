"""Any transformers or peft model behind the two methods of `eval.lm`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.lm import Description, Generation, Score
from finllm.generate import answer_all, decoding
from finllm.models import check_length, count_parameters, load_for_inference
from finllm.run import RunDir
from finllm.tokens import encode_prompt, encode_response


class TransformersLM:
    """A model with its tokenizer. Likelihoods are float32; logits are made where responses stand, and not kept."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, description: Description, batch_size: int
    ):
        self.model, self.tokenizer, self.description, self.batch_size = model, tokenizer, description, batch_size

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Score]:
        """Rows go by falling length, padded on the right, where no position sees padding: batching changes nothing."""
        rows = [
            (encode_prompt(self.tokenizer, prompt), encode_response(self.tokenizer, response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        lengths = [len(prompt) + len(response) for prompt, response in rows]
        check_length(self.model, max(lengths, default=0))
        order = sorted(range(len(rows)), key=lambda index: -lengths[index])
        scores: list[Score | None] = [None] * len(rows)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for index, score in zip(batch, self._score_batch([rows[index] for index in batch]), strict=True):
                scores[index] = score
        return scores

    def _score_batch(self, rows: list[tuple[list[int], list[int]]]) -> list[Score]:
        width = max(len(prompt) + len(response) for prompt, response in rows)
        input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        for row, (prompt, response) in enumerate(rows):
            input_ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        first = min(len(prompt) for prompt, _ in rows) - 1  # the position that predicts the earliest response token
        logits = self.model(
            input_ids.to(self.model.device),
            use_cache=False,
            logits_to_keep=torch.arange(first, width, device=self.model.device),
        ).logits
        scores = []
        for row, (prompt, response) in enumerate(rows):
            start = len(prompt) - 1 - first
            predicted = logits[row, start : start + len(response)].float()
            labels = torch.tensor(response, device=logits.device)
            nll = cross_entropy(predicted, labels, reduction="sum")
            correct = (predicted.argmax(-1) == labels).sum()
            scores.append(Score(float(nll), len(response), int(correct)))
        return scores

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Greedy, by finllm.generate: evaluation asks as users ask."""
        config = decoding(self.tokenizer, max_new_tokens)
        answers = answer_all(self.model, self.tokenizer, prompts, config, self.batch_size)
        return [Generation(answer.text, answer.tokens, answer.stopped) for answer in answers]


def load(run: RunDir, batch_size: int) -> TransformersLM:
    """The model of a run of recipes/sft.py."""
    summary = run.summary()
    model, tokenizer = load_for_inference(str(run.path))
    description = Description(
        method=summary["method"],
        base_model=summary["base_model"],
        tokenizer=summary["base_model"],
        total_parameters=summary["total_parameters"],
        trainable_parameters=summary["trainable_parameters"],
    )
    return TransformersLM(model, tokenizer, description, batch_size)


def load_base(name: str, batch_size: int) -> TransformersLM:
    """An untouched base model."""
    model, tokenizer = load_for_inference(name)
    description = Description("base", name, name, count_parameters(model).total, 0)
    return TransformersLM(model, tokenizer, description, batch_size)
