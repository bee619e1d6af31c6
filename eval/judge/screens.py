"""Which answers a judge is shown side by side: every two models equally often, and screens that test the judge.

    screens   questions  pair                        what for
    M         each its   two models' answers         the votes that count
    repeats   the same   two of the M, swapped       does a judge say the same twice?
    checks    each its   a model's answer, and the   does a judge look?
                         reference

Nothing here is random: questions go by their ids, which are hashes, so the same runs make the same screens. Which
answer stands left and in which order screens come is drawn in the browser, anew for each judge.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.evaluated import Run
from finllm.errors import UserError

SHARE_OF_TESTS = 10  # one screen in so many is a repeat, and one a check
REFERENCE = "reference"


@dataclass(frozen=True)
class Screen:
    """Two answers to one question: keys of the answers, which tell nobody whose they are, and their texts."""

    example: str
    keys: tuple[str, str]
    texts: tuple[str, str]

    def swapped(self) -> Screen:
        return Screen(self.example, self.keys[::-1], self.texts[::-1])


def identity(run: Run) -> str:
    """What a run's answers come from, by content; by its name in results that did not record it."""
    held = run.results
    return json.dumps([held.hashes or held.name, held.template, held.decoding], sort_keys=True)


def key_of(*parts: str) -> str:
    """16 hex digits for what the parts say."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def answer_key(run: Run, row: dict[str, Any]) -> str:
    return key_of(identity(run), row["id"], row["prediction"])


def reference_key(row: dict[str, Any]) -> str:
    return key_of(REFERENCE, row["id"], row["reference"])


def screens_of(runs: Sequence[Run], number: int) -> list[Screen]:
    """So many screens, or a `UserError` that says how many these runs need or can fill."""
    answers = [{row["id"]: row for row in run.predictions if row["prediction"] is not None} for run in runs]
    pairs = list(itertools.combinations(range(len(runs)), 2))
    examples = sorted(set.intersection(*map(set, answers)))
    tests = max(1, number // SHARE_OF_TESTS)
    counted = number - 2 * tests
    rest = counted % len(pairs) if pairs else 0
    if not pairs or counted < len(pairs):
        least = next(n for n in itertools.count(3) if n - 2 * max(1, n // SHARE_OF_TESTS) >= len(pairs))
        if len(runs) < 2:
            raise UserError("--judge compares answers of two models or more, and one run is given; name another")
        raise UserError(
            f"--questions is {number}; {len(runs)} models make {len(pairs)} pairs, which need {least} questions or more"
        )
    if rest <= tests:  # then every two models meet exactly as often, and more repeats and checks fill the rest
        counted -= rest
    repeats = (number - counted + 1) // 2
    held = _pairs_of_models(runs, answers, examples, pairs, counted)
    found = held + [held[place * len(held) // repeats].swapped() for place in range(repeats)]
    used = {screen.example for screen in held}
    for example in sorted(examples, key=lambda each: (each in used, each)):
        place = len(found) % len(runs)
        row = answers[place][example]
        if len(found) < number and _words(row) != row["reference"].split():
            keys = (answer_key(runs[place], row), reference_key(row))
            found.append(Screen(example, keys, (row["prediction"], row["reference"])))
    if len(found) < number:
        raise UserError(
            f"--questions is {number}, and of the {len(examples)} examples that all of these runs answered too few are "
            f"left for {number - len(found)} of its screens; give a smaller --questions, or evaluate with a larger "
            "--max_generated"
        )
    return found


def _pairs_of_models(
    runs: Sequence[Run],
    answers: list[dict[str, dict[str, Any]]],
    examples: list[str],
    pairs: list[tuple[int, int]],
    number: int,
) -> list[Screen]:
    """Screens of two models: each pair as often as any other, each question as seldom as can be, no screen twice."""
    differing = {
        (a, b): [each for each in examples if _words(answers[a][each]) != _words(answers[b][each])] for a, b in pairs
    }
    wanted = Counter(itertools.islice(itertools.cycle(pairs), number))
    short = [
        f"{runs[a].name} and {runs[b].name} ({len(differing[a, b])})"
        for a, b in pairs
        if len(differing[a, b]) < wanted[a, b]
    ]
    if short:
        raise UserError(
            f"--questions is {number}: every two models meet {max(wanted.values())} times, and fewer examples were "
            f"answered by all of these runs and by the two with different texts: {', '.join(short)}; give a smaller "
            "--questions, or evaluate with a larger --max_generated"
        )
    times: Counter[str] = Counter()
    found = []
    for turn, (a, b) in enumerate(itertools.islice(itertools.cycle(pairs), number)):
        example = min(differing[a, b], key=lambda each: (times[each], each))
        differing[a, b].remove(example)
        times[example] += 1
        first, second = (a, b) if (turn // len(pairs) + turn) % 2 else (b, a)
        rows = answers[first][example], answers[second][example]
        keys = answer_key(runs[first], rows[0]), answer_key(runs[second], rows[1])
        found.append(Screen(example, keys, (rows[0]["prediction"], rows[1]["prediction"])))
    return found


def _words(row: dict[str, Any]) -> list[str]:
    return row["prediction"].split()
