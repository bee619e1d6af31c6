"""Which test texts, and which answers of a model, stand in the training data; and what copying alone would score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from eval.metrics import bleu, rouge
from finllm.data.near_duplicates import ALIKE, NearDuplicates
from finllm.data.split import normalised_question
from finllm.text.prompts import history_of
from finllm.text.words import pieces

WORDS = 5  # of the shortest run that counts as one, and of the shortest answer that can be a copy
PART = 2048  # training texts that are held against the test texts at a time
LONG_RUN = 20  # words of one training answer, verbatim, from which an answer counts as memorised
MOST_MEMORISED = 0.05  # share of the answers


def question_of(row: dict[str, Any]) -> str:
    """All that the user says in a conversation: of a row of one turn its instruction and input."""
    earlier = [turn["content"] for turn in history_of(row) if turn["role"] == "user"]
    return "\n".join([*earlier, row["instruction"], *([row["input"]] if row["input"] else [])])


def answer_of(row: dict[str, str]) -> str:
    return row["output"]


def answers_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All answers that rows teach, those of earlier turns among them."""
    earlier = [turn["content"] for row in rows for turn in history_of(row) if turn["role"] == "assistant"]
    return [*(row["output"] for row in rows), *earlier]


def contamination(test: Sequence[dict[str, str]], training: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Exact and near duplicates of test questions and answers, in the training data and within the test split.

    Exact is equal but for case, punctuation and white space; near is what finllm/data/near_duplicates.py calls so. An
    answer of fewer than five words is nobody's copy. `contaminated` holds the ids of the test examples with a duplicate
    in the training data: the clean part is without them. `other_numbers` counts the rest of the test examples whose
    question stands in the training data with other numbers: that is another question, and no contamination.
    """
    figures: dict[str, Any] = {}
    contaminated: set[int] = set()
    within = {}
    for name, text_of in (("questions", question_of), ("answers", answer_of)):
        exact, near, inside = _duplicates(test, training, text_of, answers=name == "answers")
        figures |= {f"exact_{name}": len(exact), f"near_{name}": len(near - exact)}
        within[name] = len(inside)
        contaminated |= exact | near
    clean = [row for index, row in enumerate(test) if index not in contaminated]
    other_numbers = _with_other_numbers([question_of(row) for row in clean], [question_of(row) for row in training])
    counts = "; ".join(
        f"{name}: {figures[f'exact_{name}']} exact, {figures[f'near_{name}']} near" for name in ("questions", "answers")
    )
    return {
        "passed": not contaminated,
        "summary": f"{len(contaminated):,} of {len(test):,} examples have a duplicate among {len(training):,} training "
        f"examples ({counts}); {within['questions']} questions and {within['answers']} answers repeat within the "
        f"split; {other_numbers} other questions stand in training with other numbers",
        **figures,
        "within": within,
        "other_numbers": other_numbers,
        "training_examples": len(training),
        "threshold": ALIKE,
        "contaminated": sorted(test[index]["id"] for index in contaminated),
    }


def _duplicates(
    test: Sequence[dict[str, str]],
    training: Sequence[dict[str, str]],
    text_of: Callable[[dict[str, str]], str],
    answers: bool,
) -> tuple[set[int], set[int], set[int]]:
    """Positions of test rows with an exact and with a near duplicate in training, and of those that repeat another.

    Answers to one question are no repetition of each other's question.
    """

    def long_enough(rows: Sequence[dict[str, str]]) -> list[int]:
        least = WORDS if answers else 1
        return [n for n, row in enumerate(rows) if len(pieces(normalised_question(text_of(row)))) >= least]

    places = long_enough(test)
    texts = [text_of(test[place]) for place in places]
    others = [text_of(training[place]) for place in long_enough(training)]
    folded = {normalised_question(text) for text in others}
    exact = {place for place, text in zip(places, texts, strict=True) if normalised_question(text) in folded}
    index = NearDuplicates(texts, answers, among=[*texts, *others])
    near = {places[one] for part in _parts(others) for one in index.search(part)[0]}
    inside = set()
    for one, other in zip(*index.search(texts), strict=True):
        if other < one and test[places[one]]["question_id"] != test[places[other]]["question_id"]:
            inside.add(places[one])
    return exact, near, inside


def _with_other_numbers(questions: list[str], others: Sequence[str]) -> int:
    """How many questions are among the others but for their numbers."""
    count, among = 0, [*questions, *others]
    for part in _parts(others):
        found = set(NearDuplicates(questions, among=among).other_numbers(part)[0].tolist())
        count += len(found)
        questions = [question for number, question in enumerate(questions) if number not in found]
    return count


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + PART] for start in range(0, len(texts), PART))


def memorisation(rows: Sequence[dict[str, Any]], training: Sequence[dict[str, str]], trained: bool) -> dict[str, Any]:
    """The longest run of words that each answer shares, verbatim, with a training answer; and what copying scores.

    Adds `verbatim_words` to every answered row. Two baselines stand beside a model's ROUGE and BLEU, on the same
    examples: its question given back, and the training answer to the most similar question. A ROUGE that is not above
    them shows no knowledge. Fails when more than 5 % of the answers hold 20 or more words of one training answer.
    """
    answered = [row for row in rows if row["prediction"] is not None]
    if not answered:
        return {"passed": True, "summary": "no answers written, nothing to compare"}
    longest = longest_overlaps([row["prediction"] for row in answered], answers_of(training))
    for row, words in zip(answered, longest, strict=True):
        row["verbatim_words"] = words
    share = sum(words >= LONG_RUN for words in longest) / len(longest)
    tokenizer = bleu.tokenizer_for(row["reference"] for row in rows)
    baselines = {
        "copy the question": _score([question_of(row) for row in answered], answered, tokenizer),
        "nearest training answer": _score(nearest_answers(answered, training), answered, tokenizer),
    }
    own = _shown(rouge.mean_of([row["rougeL"] for row in answered]))
    floors = " and ".join(f"{_shown(scores['rougeL'])} ({name})" for name, scores in baselines.items())
    whose = "" if trained else ", not trained on,"
    return {
        "passed": share <= MOST_MEMORISED,
        "summary": f"{100 * share:.3g} % of {len(answered):,} answers hold {LONG_RUN} or more words of one "
        f"training answer{whose} (longest {max(longest)}, median {median(longest):g}); ROUGE-L is {own}, "
        f"that of copying {floors}",
        "longest_words": max(longest),
        "median_words": float(median(longest)),
        "memorised_share": share,
        "baselines": baselines,
    }


def longest_overlaps(answers: Sequence[str], training: Sequence[str]) -> list[int]:
    """Words of the longest run that each answer shares with any training answer; runs under five words count as 0."""
    words = [pieces(answer) for answer in answers]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for number, answer in enumerate(words):
        for start in range(len(answer) - WORDS + 1):
            places[tuple(answer[start : start + WORDS])].append((number, start))
    longest = [0] * len(answers)
    for text in training:
        other = pieces(text)
        for begin in range(len(other) - WORDS + 1):
            for number, start in places.get(tuple(other[begin : begin + WORDS]), ()):
                answer = words[number]
                if start and begin and answer[start - 1] == other[begin - 1]:
                    continue  # part of a run that was counted from its beginning
                length = WORDS
                while (
                    start + length < len(answer)
                    and begin + length < len(other)
                    and answer[start + length] == other[begin + length]
                ):
                    length += 1
                longest[number] = max(longest[number], length)
    return longest


def nearest_answers(rows: Sequence[dict[str, str]], training: Sequence[dict[str, str]]) -> list[str]:
    """The training answer to the question that is nearest by the cosine of tf-idf (Salton & Buckley 1988)."""
    from scipy.sparse import csr_matrix, diags

    vocabulary: dict[str, int] = {}
    questions = [pieces(normalised_question(question_of(row))) for row in (*training, *rows)]
    columns = [vocabulary.setdefault(word, len(vocabulary)) for words in questions for word in words]
    starts = np.cumsum([0, *map(len, questions)])
    counts = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(questions), len(vocabulary)))
    counts.sum_duplicates()
    weights = counts @ diags(np.log(len(questions) / np.bincount(counts.indices)))
    norms = np.sqrt(np.asarray(weights.multiply(weights).sum(1)).ravel())
    unit = (diags(1 / np.maximum(norms, 1e-12)) @ weights).tocsr()
    known, asked = unit[: len(training)], unit[len(training) :]
    nearest = [(known @ asked[number].T).toarray().argmax() for number in range(len(rows))]
    return [training[number]["output"] for number in nearest]


def _score(texts: Sequence[str], rows: Sequence[dict[str, Any]], tokenizer: str) -> dict[str, float | None]:
    references = [row["reference"] for row in rows]
    each = [rouge.scores_of(text, reference) for text, reference in zip(texts, references, strict=True)]
    scores = {type: rouge.mean_of([score[type] for score in each]) for type in rouge.TYPES}
    return {**scores, "bleu": bleu.corpus_bleu(texts, references, tokenizer)}


def _shown(value: float | None) -> str:
    return "not defined (no words in the references)" if value is None else f"{value:.3f}"
