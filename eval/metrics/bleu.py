"""Word-level BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), as an `evaluate.Metric` that needs no network."""

import datasets
import evaluate
import sacrebleu

METRIC = sacrebleu.metrics.BLEU()


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
        return {"bleu": METRIC.corpus_score(predictions, [references]).score, "signature": signature()}


def signature() -> str:
    """sacrebleu's own words for how its score was made."""
    METRIC.corpus_score(["one"], [["one"]])  # the signature knows the number of references only after a score
    return str(METRIC.get_signature())


def counts_of(prediction: str, reference: str) -> list[int]:
    """Matching and possible n-grams (n = 1 to 4), and the two lengths: ten numbers that add up over a corpus."""
    score = SENTENCE.sentence_score(prediction, [reference])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def from_counts(counts) -> float:
    """Corpus BLEU from summed counts, as `METRIC.corpus_score` would give it."""
    counts = [int(count) for count in counts]
    return METRIC.compute_bleu(counts[:4], counts[4:8], counts[8], counts[9], smooth_method=METRIC.smooth_method).score


def sentence_bleu(prediction: str, reference: str) -> float:
    """BLEU of one answer, by sacrebleu's sentence_bleu defaults: exponential smoothing, effective order."""
    return SENTENCE.sentence_score(prediction, [reference]).score


SENTENCE = sacrebleu.metrics.BLEU(effective_order=True)
