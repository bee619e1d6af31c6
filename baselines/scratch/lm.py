"""The baseline under evaluation: what eval/lm.py asks of a model, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate import PartialState

from baselines.scratch.data import collate, encode_example
from baselines.scratch.losses import cross_entropy, next_token_pairs
from baselines.scratch.model import CausalTransformer
from baselines.scratch.sampling import greedy
from baselines.scratch.tokenizer import BOS, EOS, Tokenizer
from eval.lm import Description, Generation, Score
from finllm.run import RunDir


def load(run: RunDir, batch_size: int) -> ScratchLanguageModel:
    """The model of a run dir of baselines/scratch/train.py, on the GPU of this process where there is one."""
    model = CausalTransformer.load(run.model).to(PartialState().device)
    return ScratchLanguageModel(model, Tokenizer.load(run.model), batch_size)


class ScratchLanguageModel:
    """`score` and `generate` as eval/lm.py defines them; `batch_size` examples of like length at a time."""

    def __init__(self, model: CausalTransformer, tokenizer: Tokenizer, batch_size: int):
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.description = Description(
            method="scratch",
            base_model=None,
            tokenizer=f"SentencePiece {tokenizer.vocabulary_size:,}",
            total_parameters=parameters,
            trainable_parameters=parameters,
        )

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Score]:
        """The likelihood of each whole response and its EOS; no text is cut.

        Sinusoidal positions go beyond the length trained on; with learned ones a longer text is a `UserError`.
        """
        examples = [
            encode_example(self.tokenizer, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores: dict[int, Score] = {}
        for indices in self._batches([len(example.ids) for example in examples]):
            ids_BT, labels_BT = collate([examples[index] for index in indices], self.model.tokens.weight.device)
            hidden_NC, labels_N = next_token_pairs(self.model.hidden(ids_BT), labels_BT)
            logits_NV = self.model.logits(hidden_NC)
            counts = [examples[index].supervised for index in indices]
            nll_of_each = cross_entropy(logits_NV, labels_N).cpu().double().split(counts)
            correct_of_each = (logits_NV.argmax(dim=-1) == labels_N).split(counts)
            for index, count, nll, correct in zip(indices, counts, nll_of_each, correct_of_each, strict=True):
                scores[index] = Score(nll.sum().item(), count, int(correct.sum()))
        return [scores[index] for index in range(len(examples))]

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[Generation]:
        """Greedy answers. With learned positions an answer also ends, without EOS, where the positions do."""
        ids = [[BOS, *self.tokenizer.encode(prompt)] for prompt in prompts]
        generations: dict[int, Generation] = {}
        for indices in self._batches([len(prompt) for prompt in ids]):
            answers = greedy(self.model, [ids[index] for index in indices], max_new_tokens)
            for index, answer in zip(indices, answers, strict=True):
                generations[index] = Generation(self.tokenizer.decode(answer), len(answer), answer[-1:] == [EOS])
        return [generations[index] for index in range(len(prompts))]

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """The indices of `lengths`, longest first so that memory runs out at once or never, in batches."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        return (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))
