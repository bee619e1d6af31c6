"""The bundled dataset as a user gets it: its rows, the generator's file, and the counts its data card states."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finllm.data.sample.generator import computed

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "finllm/data/sample"
FILES = {
    path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted(FOLDER.glob("*.jsonl"))
}
COMPUTED = FILES["computed"]
WRITTEN = [row for topic, rows in FILES.items() if topic != "computed" for row in rows]
WRITTEN_KINDS = ("definition", "comparison", "advice", "explanation")
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def question(row: dict[str, str]) -> str:
    return f"{row['instruction']} {row['input']}".strip()


def normalised(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]|_", "", text.lower()).split())


def repeated(texts: list[str]) -> list[str]:
    return [text for text, count in Counter(map(normalised, texts)).items() if count > 1]


def table_rows(card: str) -> dict[str, list[int]]:
    """The rows of figures in the card's tables: first cell to the numbers in the others."""
    rows = re.findall(r"(?m)^\| ([^|]+?) ((?:\| [\d,]+ )+)\|$", card)
    return {name: [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", cells)] for name, cells in rows}


# --- all rows -------------------------------------------------------------------------------------------------------


def test_the_bundle_is_large_enough_and_has_its_ten_topics() -> None:
    assert len(FILES) == 11
    assert len(WRITTEN) >= 500
    assert len(COMPUTED) >= 1500
    assert min(map(len, FILES.values())) >= 50


@pytest.mark.parametrize("topic", FILES)
def test_rows_have_their_keys_topic_and_text(topic: str) -> None:
    for row in FILES[topic]:
        numbers = ("value", "unit", "tolerance") if topic == "computed" else ()
        assert tuple(row) == ("instruction", "input", "output", "topic", "kind", *numbers)
        assert row["topic"] == topic
        assert all(isinstance(text, str) and text == text.strip() for text in row.values()), row
        assert row["instruction"] and row["output"], row
        text = row["instruction"] + row["input"] + row["output"]
        assert re.fullmatch(r"[ -~£€×]+", text) and "  " not in text, row
        assert row["instruction"][0].isupper() or row["instruction"][0] in "$£€", row
        assert row["instruction"][-1] in ".?" and row["output"][0].isupper() and row["output"][-1] == ".", row


def test_no_question_is_asked_twice() -> None:
    assert repeated([question(row) for row in WRITTEN + COMPUTED]) == []


# --- written rows ---------------------------------------------------------------------------------------------------


def test_written_kinds_are_known_and_only_an_explanation_has_an_input() -> None:
    for row in WRITTEN:
        assert row["kind"] in WRITTEN_KINDS, row
        assert bool(row["input"]) == (row["kind"] == "explanation"), row


def test_no_two_written_answers_are_the_same() -> None:
    assert repeated([row["output"] for row in WRITTEN]) == []


def test_written_answers_have_12_to_75_words() -> None:
    assert [row["output"] for row in WRITTEN if not 12 <= len(row["output"].split()) <= 75] == []


# --- computed rows --------------------------------------------------------------------------------------------------


def test_committed_file_is_what_the_generator_prints() -> None:
    command = [sys.executable, "-m", "finllm.data.sample.generator.computed"]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    assert printed == (FOLDER / "computed.jsonl").read_bytes()


def test_families_are_equally_large_and_a_third_of_each_has_an_input() -> None:
    kinds = [family.kind for family in computed.FAMILIES]
    assert list(computed.WORDINGS) == kinds
    assert Counter(row["kind"] for row in COMPUTED) == dict.fromkeys(kinds, 105)
    assert Counter(row["kind"] for row in COMPUTED if row["input"]) == dict.fromkeys(kinds, 35)


def test_each_family_has_enough_wordings_and_uses_them() -> None:
    for family in computed.FAMILIES:
        assert len(set(family.questions)) >= 6 and len(set(family.requests)) >= 3 and len(set(family.answers)) >= 4
        rows = [row for row in COMPUTED if row["kind"] == family.kind]
        for template in family.questions + family.requests:
            assert sum(fits(template, row["instruction"]) for row in rows) >= 5, template
        for template in family.answers:
            assert sum(fits(template, row["output"]) for row in rows) >= 10, template


def fits(template: str, text: str) -> bool:
    """Whether the text can come from the template, whatever fills its {slots}."""
    return re.fullmatch(".+".join(map(re.escape, re.split(r"\{\w+\}", template))), text) is not None


def test_computed_answers_are_short_and_what_fills_a_slot_agrees_with_the_sentence() -> None:
    for row in COMPUTED:
        text = f"{question(row)} {row['output']}"
        assert 12 <= len(row["output"].split()) <= 45, row["output"]
        assert "None" not in text and not re.search(r"[{}]", text), text
        assert not re.search(r"\ba (?=8|11\b|18\b|[aeio])", text), text  # "an" is due
        assert not re.search(r"\b1 (years|months|payments|shares)\b", text), text


# --- the data card --------------------------------------------------------------------------------------------------


def test_card_states_the_counts_of_the_files() -> None:
    stated = table_rows(CARD)
    for topic, rows in (FILES | {"all written": WRITTEN}).items():
        kinds = Counter(row["kind"] for row in rows)
        if topic != "computed":
            assert stated.pop(topic) == [*(kinds[kind] for kind in WRITTEN_KINDS), len(rows)], topic
    for kind in {row["kind"] for row in COMPUTED}:
        rows = [row for row in COMPUTED if row["kind"] == kind]
        assert stated.pop(kind) == [len(rows), sum(bool(row["input"]) for row in rows)], kind
    assert stated.pop("all computed") == [len(COMPUTED), sum(bool(row["input"]) for row in COMPUTED)]
    assert set(stated) == {"written", "computed"}  # the table of lengths, checked below
    assert f"{len(WRITTEN) + len(COMPUTED):,} questions" in CARD


@pytest.mark.parametrize(("name", "rows"), [("written", WRITTEN), ("computed", COMPUTED)])
def test_card_states_the_lengths_of_questions_and_answers(name: str, rows: list[dict[str, str]]) -> None:
    lengths = [[len(text.split()) for text in (question(row), row["output"])] for row in rows]
    median, p95 = np.percentile(lengths, [50, 95], axis=0).round()
    assert table_rows(CARD)[name] == [median[0], p95[0], median[1], p95[1]]


def test_examples_of_the_card_are_rows_of_the_files() -> None:
    answers = re.findall(r"(?m)^> → (.+)$", CARD)
    assert len(answers) == 5
    assert set(answers) <= {row["output"] for row in WRITTEN + COMPUTED}
