"""The files that come back from judges: each checked for itself, then all against the runs and against each other.

    {"schema_version": 1, "kind": "votes", "checksum": …, "content":
      {"judge", "page", "screens", "reference_shown", "votes": [
        {"question", "first", "second",        keys of a question and of its two answers, as they stood on the page
         "choice",                             first, second, tie, or neither: both are bad
         "seconds", "marks", "remark"}, …]}}   in the order in which the screens came

The checksum is the CRC-32 of the content as the page wrote it (JSON without blanks): it tells a file that was changed
by hand or on its way, not one that somebody forged. This module imports no torch.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import shapes
from eval.evaluated import Run
from eval.judge.screens import answer_key, key_of, reference_key
from eval.shapes import COUNT, Each
from finllm.errors import MANY, UserError, raise_problems, shortened
from finllm.files import read_json

CHOICES = ("first", "second", "tie", "neither")
MARKS = ("correct", "complete", "harmful")
SIDES = ("first", "second")
FILE = {"kind": str, "checksum": str, "content": dict}
CONTENT = {
    "judge": str,
    "page": str,
    "screens": COUNT,
    "reference_shown": bool,
    "votes": Each(
        {
            **dict.fromkeys(("question", *SIDES, "choice", "remark"), str),
            "seconds": COUNT,
            "marks": dict.fromkeys(SIDES, Each(str)),
        }
    ),
}
ASK = "ask for the file as the page saved it"


@dataclass(frozen=True)
class Vote:
    """One vote. `first` and `second` are names of runs, or None for the reference; `example` is an id of the data."""

    example: str
    first: str | None
    second: str | None
    choice: str
    marks: dict[str, list[str]]
    remark: str
    seconds: int


@dataclass(frozen=True)
class Judge:
    """What one person voted, in the order of the screens."""

    name: str
    page: str
    screens: int
    reference_shown: bool
    votes: list[Vote]


Known = dict[str, tuple[str, str | None]]  # by its key, whose an answer is: the example and the run, or the reference


def known_answers(runs: list[Run]) -> Known:
    """All answers and references by their keys; a `UserError` where two runs are one by content."""
    known: Known = {}
    alike = set()
    for run in runs:
        for row in run.predictions:
            known[reference_key(row)] = row["id"], None
            if row["prediction"] is not None:
                key = answer_key(run, row)
                if key in known:
                    alike.add((known[key][1], run.name))
                known[key] = row["id"], run.name
    raise_problems(
        (f"{one} and {other} are one model, asked alike: name one of them" for one, other in sorted(alike)),
        "the runs whose answers are judged",
    )
    return known


def read_votes(paths: list[Path], runs: list[Run]) -> list[Judge]:
    """The judges, one a file; everything that is wrong with the files is raised at once."""
    known = known_answers(runs)
    questions = {key_of(row["id"]): row["id"] for row in runs[0].predictions}
    judges: dict[Path, Judge] = {}
    problems = []
    for path in paths:
        try:
            judges[path] = _read(path, known, questions)
        except UserError as error:
            problems.append(str(error))
    of = Counter((judge.name.casefold(), judge.page) for judge in judges.values())
    for (name, page), count in of.items():
        if count > 1:
            files = [str(path) for path, judge in judges.items() if (judge.name.casefold(), judge.page) == (name, page)]
            problems.append(f"{' and '.join(files)} are of one judge and one page; name one of them")
    raise_problems(problems, "the votes")
    return list(judges.values())


def _read(path: Path, known: Known, questions: dict[str, str]) -> Judge:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; --votes names files that the page of --judge saved")
    file = read_json(path)
    problems = [*shapes.problems(file, FILE, "")]
    if not problems and file["kind"] != "votes":
        problems.append(f"kind is {shortened(file['kind'])}, not 'votes'")
    raise_problems(problems, f"{path}, which is no votes file; name those that the page of --judge saved")
    content = file["content"]
    found = checksum(content)
    if found != file["checksum"]:
        changed = f"{path} was changed after it was saved: its checksum is {shortened(file['checksum'])}, that of its "
        raise UserError(f"{changed}content {found!r}; {ASK}")
    problems = [*shapes.problems(content, CONTENT, "content")] or _problems_of_content(content)
    raise_problems(problems, f"{path}; {ASK}", MANY)
    votes = [_vote(vote, known, questions) for vote in content["votes"]]
    if foreign := votes.count(None):
        raise UserError(
            f"{path}: {foreign} of {len(votes)} votes are about answers that none of these runs gave: the page was "
            "made of other runs, or these were evaluated anew since; name all runs of that page, as they were then"
        )
    return Judge(content["judge"], content["page"], content["screens"], content["reference_shown"], votes)


def checksum(content: dict[str, Any]) -> str:
    """CRC-32 of the content as JavaScript's JSON.stringify writes it, eight hex digits."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"


def _problems_of_content(content: dict[str, Any]) -> list[str]:
    votes, problems = content["votes"], []
    if not content["judge"].strip():
        problems.append("content.judge is empty: nobody is named")
    if not votes:
        problems.append("content.votes is empty: no vote was cast")
    if len(votes) > content["screens"]:
        problems.append(f"there are {len(votes)} votes and the page has {content['screens']} screens")
    for place, vote in enumerate(votes):
        if vote["choice"] not in CHOICES:
            problems.append(f"votes[{place}].choice is {shortened(vote['choice'])}, not one of {', '.join(CHOICES)}")
        problems += [
            f"votes[{place}].marks.{side} holds {shortened(mark)}, not one of {', '.join(MARKS)}"
            for side in SIDES
            for mark in vote["marks"][side]
            if mark not in MARKS
        ]
        if vote["first"] == vote["second"]:
            problems.append(f"votes[{place}] holds one answer against itself")
    screens = Counter((vote["question"], vote["first"], vote["second"]) for vote in votes)
    problems += [f"one screen was voted on {count} times" for count in screens.values() if count > 1]
    return problems


def _vote(vote: dict[str, Any], known: Known, questions: dict[str, str]) -> Vote | None:
    """None where an answer is not known, or is not one to this question."""
    example = questions.get(vote["question"])
    first, second = (known.get(vote[side], (None, None)) for side in SIDES)
    if example is None or {first[0], second[0]} != {example}:
        return None
    return Vote(example, first[1], second[1], vote["choice"], vote["marks"], vote["remark"], vote["seconds"])
