"""Runs whose answers say whose they are, and votes on them as the page saves them."""

import json
from pathlib import Path

from evaluated_runs import make_run

from eval.evaluated import read_runs
from eval.judge.page import page_key
from eval.judge.screens import key_of, screens_of
from eval.judge.votes import checksum
from finllm.files import read_jsonl, write_jsonl

IDS = "".join(chr(0x4E00 + number) for number in range(40))
NAMES = ("owl-9", "wolf-7", "lynx-3")


def answered_runs(folder: Path, names: tuple[str, ...] = NAMES) -> list[Path]:
    """Runs with an answer of their own to each of 40 questions, each better by bits per byte than the next."""
    runs = []
    for number, name in enumerate(names):
        run = make_run(folder / name, 0.9 + number / 2, ids=IDS, noise=0.1)
        rows = read_jsonl(run / "eval" / "predictions.jsonl")
        for place, row in enumerate(rows):
            row |= {"instruction": f"What is a bond, number {place}?", "prediction": f"Animal {number} says {place}."}
            row["rougeL"] = 0.5 - number / 10 + place / 1000
        write_jsonl(run / "eval" / "predictions.jsonl", rows)
        runs.append(run)
    return runs


def cast(folders: list[Path], path: Path, judge: str, choose, turned: bool = False, number: int = 40) -> Path:
    """A votes file: `choose(first, second)` gives the choice from the texts of two answers, whose sides are `turned`
    or as they stand in the page's source."""
    screens = screens_of(read_runs(folders, "test"), number)
    page = page_key(screens)
    screens = [each.swapped() if turned else each for each in screens]
    votes = [
        {"question": key_of(each.example), "first": each.keys[0], "second": each.keys[1], "choice": choose(*each.texts),
         "seconds": 9, "marks": {"first": [], "second": []}, "remark": ""} for each in screens
    ]  # fmt: skip
    content = {"judge": judge, "page": page, "screens": number, "reference_shown": False, "votes": votes}
    return saved(path, content)


def saved(path: Path, content: dict) -> Path:
    file = {"schema_version": 1, "kind": "votes", "content": content, "checksum": checksum(content)}
    path.write_text(json.dumps(file), encoding="utf-8")
    return path
