"""Word-level BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), as an `evaluate.Metric` that needs no network.

The words are those of sacrebleu's own tokenizers. The references choose one, so it is one for a whole comparison:
`13a` for scripts with blanks between words, `zh` for Chinese, `char` for Japanese, Thai and their like.
"""

from collections.abc import Iterable
from functools import cache

import datasets
import evaluate
import sacrebleu

from finllm.text.words import is_han, stands_alone, words

ORDER = 4  # n-grams of up to four words
LEAST_SHARE = 0.1  # of the references' words, from which on a script without blanks chooses the tokenizer


class Bleu(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Corpus BLEU, 0 to 100, with sacrebleu's signature.",
            citation="",
            inputs_description="Args: predictions, references: texts, one reference each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        tokenizer = tokenizer_for(references)
        return {"bleu": corpus_bleu(predictions, references, tokenizer), "signature": signature(tokenizer)}


def tokenizer_for(references: Iterable[str]) -> str:
    """The name of sacrebleu's tokenizer for texts like these."""
    total = alone = han = 0
    for reference in references:
        for word in () if reference.isascii() else words(reference):
            if stands_alone(word):
                alone, han = alone + 1, han + is_han(word)
            total += 1
        total += len(words(reference)) if reference.isascii() else 0
    if alone <= LEAST_SHARE * total:
        return "13a"
    return "zh" if alone - han <= LEAST_SHARE * alone else "char"


@cache
def metric(tokenizer: str, sentence: bool = False) -> sacrebleu.metrics.BLEU:
    """sacrebleu's metric; for a sentence by its sentence_bleu defaults: exponential smoothing, effective order."""
    return sacrebleu.metrics.BLEU(tokenize=tokenizer, effective_order=sentence)


def signature(tokenizer: str = "13a") -> str:
    """sacrebleu's own words for how its score was made."""
    made = metric(tokenizer)
    made.corpus_score(["one"], [["one"]])  # the signature knows the number of references only after a score
    return str(made.get_signature())


def counts_of(prediction: str, reference: str, tokenizer: str = "13a") -> list[int]:
    """Matching and possible n-grams (n = 1 to 4), and the two lengths: ten numbers that add up over a corpus."""
    score = metric(tokenizer, sentence=True).sentence_score(prediction, [reference])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def from_counts(counts, tokenizer: str = "13a") -> float:
    """Corpus BLEU from summed counts, as sacrebleu's `corpus_score` would give it."""
    counts, made = [int(count) for count in counts], metric(tokenizer)
    return made.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method=made.smooth_method).score


def corpus_bleu(predictions: Iterable[str], references: Iterable[str], tokenizer: str) -> float | None:
    """BLEU of all; None where no reference has a word, or none has four tokens: a perfect answer would score 0."""
    pairs = [(prediction, reference) for prediction, reference in zip(predictions, references, strict=True)
             if words(reference)]  # fmt: skip
    counts = [counts_of(prediction, reference, tokenizer) for prediction, reference in pairs]
    if max((each[-1] for each in counts), default=0) < ORDER:
        return None
    return from_counts(map(sum, zip(*counts, strict=True)), tokenizer)


def sentence_bleu(prediction: str, reference: str, tokenizer: str = "13a") -> float | None:
    """BLEU of one answer; None where the reference has no word."""
    if not words(reference):
        return None
    return metric(tokenizer, sentence=True).sentence_score(prediction, [reference]).score
