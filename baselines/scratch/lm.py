"""The baseline under evaluation: what eval/models/language_model.py asks of a model, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from accelerate import PartialState

from baselines.scratch.config import ALPACA_ALONE
from baselines.scratch.data import collate, encode_pair, lay_out
from baselines.scratch.generation import write
from baselines.scratch.losses import cross_entropy, next_token_pairs
from baselines.scratch.model import Transformer
from baselines.scratch.sampling import Sampling
from baselines.scratch.tokenizer import BOS, EOS, Tokenizer
from eval.models.language_model import Description, Generation, Pair, Score
from finllm.errors import UserError
from finllm.models.find import weights_hash
from finllm.run_dir import RunDir
from finllm.text.prompts import TEMPLATE_ID
from finllm.text.templates import Alpaca


def load(run: RunDir, batch_size: int) -> ScratchLanguageModel:
    """The model of a run dir of baselines/scratch/train.py, on the GPU of this process where there is one."""
    model, tokenizer = Transformer.load(run.model), Tokenizer.load(run.model)
    if tokenizer.vocabulary_size != model.config.vocabulary_size:
        raise UserError(
            f"{run.model}: tokenizer.model has {tokenizer.vocabulary_size:,} pieces and config.json "
            f"{model.config.vocabulary_size:,}; they are of two runs, put back the tokenizer that training wrote"
        )
    return ScratchLanguageModel(model.to(PartialState().device), tokenizer, batch_size)


def reader(run: RunDir, template: str | None = None) -> ScratchReader:
    """What evaluation asks of such a model before any is scored; a model this small is read whole for it."""
    if template not in (None, TEMPLATE_ID):
        raise UserError(f"template is {template}, and {run.path} was trained from scratch: {ALPACA_ALONE}")
    return ScratchReader(run, load(run, batch_size=1))


class ScratchReader:
    """See eval.models.fitting.Reader."""

    template = Alpaca()

    def __init__(self, run: RunDir, model: ScratchLanguageModel):
        self.run, self.encode, self.config, self.tokenizer = run, model.encode, model.model.config, model.tokenizer
        self.positions = model.model.position_limit

    def hashes(self) -> dict[str, str]:
        return {"weights": weights_hash(self.run.model), "tokenizer": self.tokenizer.hash}

    def positions_of(self, prompt_tokens: int, response_tokens: int) -> int:
        """The encoder of seq2seq has positions of its own; its decoder reads BOS and the response."""
        if self.config.variant == "seq2seq":
            return max(prompt_tokens, 1 + response_tokens)
        return prompt_tokens + response_tokens


class ScratchLanguageModel:
    """What evaluation asks of a model, for all three variants; `batch_size` examples of like length at a time."""

    template = Alpaca()

    def __init__(self, model: Transformer, tokenizer: Tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.description = Description(
            method="scratch",
            base_model=None,
            tokenizer=f"SentencePiece {tokenizer.vocabulary_size:,}",
            total_parameters=parameters,
            trainable_parameters=parameters,
        )

    def encode(self, prompt: str, response: str) -> Pair:
        """The ids of BOS and prompt, and of response and EOS. No text is cut and none has an unknown token."""
        return encode_pair(self.tokenizer, prompt, response)

    def log_probs(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """The log-probability of each response token, of one forward pass over prompt and response."""
        return [-nll for nll, _ in self.predict(pairs)]

    @torch.inference_mode()
    def distributions(self, pairs: Sequence[Pair], positions: Sequence[int]) -> list[np.ndarray]:
        """As eval.models.language_model says; the last position of a decoder is not one that training asks."""
        variant, device = self.model.config.variant, self.model.tokens.weight.device
        found: dict[int, np.ndarray] = {}
        for indices in self._batches([len(prompt) + len(response) for prompt, response in pairs]):
            batch = [lay_out(*pairs[index], variant) for index in indices]
            ids_BT, _, source_BS = collate(batch, device)
            hidden_BTC = self.model.hidden(ids_BT, self.model.read(source_BS))
            before = [0 if variant == "seq2seq" else len(pairs[index][0]) - 1 for index in indices]
            where = [start + positions[index] for start, index in zip(before, indices, strict=True)]
            logits_BV = self.model.logits(hidden_BTC[torch.arange(len(indices)), where])
            found |= zip(indices, logits_BV.float().log_softmax(-1).cpu().double().numpy(), strict=True)
        return [found[index] for index in range(len(pairs))]

    def in_float32(self) -> AbstractContextManager[None]:
        """As ever."""
        return nullcontext()

    def otherwise(self, pairs: Sequence[Pair]) -> dict[str, list[float]]:
        """No other way: these models take positions from tokens alone, and are padded on the right everywhere."""
        return {}

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Score]:
        """The likelihood of each whole response and its EOS; no text is cut.

        Sinusoidal positions go beyond the length trained on; with learned ones a longer text is a `UserError`.
        """
        pairs = [self.encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        return [Score(nll.sum().item(), len(nll), correct) for nll, correct in self.predict(pairs)]

    @torch.inference_mode()
    def predict(self, pairs: Sequence[Pair]) -> list[tuple[np.ndarray, int]]:
        """Of each pair the negative log-likelihood of each response token and how many were the most likely one."""
        examples = [lay_out(prompt, response, self.model.config.variant) for prompt, response in pairs]
        found: dict[int, tuple[np.ndarray, int]] = {}
        for indices in self._batches([example.length for example in examples]):
            batch = [examples[index] for index in indices]
            ids_BT, labels_BT, source_BS = collate(batch, self.model.tokens.weight.device)
            hidden_BTC = self.model.hidden(ids_BT, self.model.read(source_BS))
            hidden_NC, labels_N, _ = next_token_pairs(hidden_BTC, labels_BT)
            logits_NV = self.model.logits(hidden_NC)
            counts = [example.supervised for example in batch]
            nll_of_each = cross_entropy(logits_NV, labels_N).cpu().double().split(counts)
            correct_of_each = (logits_NV.argmax(dim=-1) == labels_N).split(counts)
            for index, nll, correct in zip(indices, nll_of_each, correct_of_each, strict=True):
                found[index] = nll.numpy(), int(correct.sum())
        return [found[index] for index in range(len(pairs))]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> list[Generation]:
        """Answers, greedy unless told otherwise. With learned positions one also ends, without EOS, where they do."""
        ids = [[BOS, *self.tokenizer.encode(prompt)] for prompt in prompts]
        generations: dict[int, Generation] = {}
        for indices in self._batches([len(prompt) for prompt in ids]):
            answers = write(self.model, [ids[index] for index in indices], max_new_tokens, sampling)
            for index, answer in zip(indices, answers, strict=True):
                generations[index] = Generation(self.tokenizer.decode(answer), len(answer), answer[-1:] == [EOS])
        return [generations[index] for index in range(len(prompts))]

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """The indices of `lengths`, longest first so that memory runs out at once or never, in batches."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
