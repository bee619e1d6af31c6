"""Files of questions and files of answers, and what is kept meanwhile: a command that was killed goes on.

Questions are JSON Lines, or CSV with a header; answers are written in the format of the file's name, whole or not at
all. Until then each batch is a line of a hidden file beside it, under the hash of all that the answers depend on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finllm.data.csv_rows import read_csv
from finllm.data.parts import BadRow
from finllm.errors import MANY, UserError, raise_problems, shortened
from finllm.files import atomic_open, read_jsonl, write_jsonl
from finllm.models.generate import Answer

ASKED = ("instruction", "input", "system")


def read_questions(path: str, answers: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a file, each with a text in `instruction`; all that is wrong with them is a `UserError`.

    `answers` are the columns that answers will be written in, which no row may have.
    """
    rows = _read_csv(path) if _is_csv(path) else read_jsonl(path)
    if rows and all(isinstance(row, dict) and "instruction" not in row for row in rows):
        raise UserError(
            f"{path} has no column `instruction`, where a question is read from; its columns are "
            f"{shortened(', '.join(map(str, rows[0])))}, so rename the one that holds the questions"
        )
    problems = [f"line {number}" for number, row in enumerate(rows, start=1) if not _asks(row)]
    if problems:
        raise UserError(
            f"{path}: no text in `instruction`, or no text in `input` or `system`, or `history` is no list of turns "
            f"(role, user or assistant, and content), on {', '.join(problems[:10])}"
        )
    if not rows:
        raise UserError(f"{path} holds no rows")
    taken = sorted({name for row in rows for name in answers if name in row})
    if taken:
        raise UserError(f"{path} has {', '.join(taken)} already, where answers are to be written; rename the column")
    return rows


def _is_csv(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".csv", ".tsv")


def _read_csv(path: str) -> list[dict[str, Any]]:
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist")
    with open(path, "rb") as stream:
        found = list(read_csv(stream, Path(path).name, path, "", ASKED))
    bad = [f"{row.place}: {row.reason}" for row in found if isinstance(row, BadRow)]
    raise_problems(bad, f"{path}; put these lines right", MANY)
    return [{name: value if value is not None else "" for name, value in row.fields.items()} for row in found]


def _asks(row: Any) -> bool:
    """Whether a line of a file is a row that can be asked."""
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
        return False
    turns = row.get("history") or []
    return (
        all(isinstance(row.get(name) or "", str) for name in ("input", "system"))
        and isinstance(turns, list)
        and all(isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns)
        and [turn.get("role") for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    )


def write_answers(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Rows with their answers, as CSV or as JSON Lines, as the name says."""
    if not _is_csv(path):
        write_jsonl(path, rows)
        return
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_open(path) as file:
        writer = csv.DictWriter(file, columns, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _as_text(value) for name, value in row.items()})


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


class KeptAnswers:
    """The answers of the batches that are done, by their first question, for a command that goes on.

    What was kept under another `identity` is of other questions, another model or other settings, and begins anew.
    """

    def __init__(self, output: str, identity: dict[str, Any]):
        place = Path(output)
        self.path = place.with_name(f".{place.name}.answers")
        self.hash = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.held = self._read()

    def _read(self) -> dict[int, list[Answer]]:
        if not self.path.is_file():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a kill cut the last line
            os.truncate(self.path, len(whole))
        held = {}
        for line in whole.splitlines():
            try:
                content = json.loads(line)
                if content["of"] != self.hash:
                    return {}
                held[int(content["first"])] = [Answer(**answer) for answer in content["answers"]]
            except (ValueError, KeyError, TypeError):  # not ours: then nothing is taken from it
                return {}
        return held

    def add(self, first: int, answers: Sequence[Answer]) -> None:
        """Keep a batch, as one write that is on the disk when this returns."""
        line = json.dumps({"of": self.hash, "first": first, "answers": [asdict(answer) for answer in answers]})
        fresh = not self.held
        self.held[first] = list(answers)
        with open(self.path, "w" if fresh else "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def done(self) -> None:
        """All are written where they belong."""
        self.path.unlink(missing_ok=True)
