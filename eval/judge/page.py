"""The page that a judge is sent: one file that opens from disk, loads nothing, and names no model.

Questions and answers travel as JSON and are put into the page as text, never as markup. The page's policy names the
hashes of our own style and script: nothing else is loaded or run. Votes are kept in the browser until they are saved.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.evaluated import Run
from eval.judge.screens import Screen, key_of, screens_of
from eval.report.data import embed, turns_before
from eval.report.page import csp_hash

FOLDER = Path(__file__).parent


def judge_page(runs: list[Run], number: int) -> str:
    """The page as text, with so many screens."""
    screens = screens_of(runs, number)
    rows = {row["id"]: row for row in runs[0].predictions}
    used = sorted({screen.example for screen in screens})
    questions = {
        key_of(example): [row["instruction"], row["input"], row["reference"], turns_before(row)]
        for example, row in ((each, rows[each]) for each in used)
    }
    content = {
        "page": page_key(screens),
        "questions": questions,
        "texts": {key: text for screen in screens for key, text in zip(screen.keys, screen.texts, strict=True)},
        "screens": [[key_of(screen.example), *screen.keys] for screen in screens],
    }
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("judge.css", "judge.js"))
    script = f'"use strict";\n{{\n{script}}}\n'
    policy = f"default-src 'none'; style-src '{csp_hash(style)}'; script-src '{csp_hash(script)}'; form-action 'none'"
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("judge.html.j2").render(
        policy=policy, style=Markup(style), script=Markup(script), data=Markup(embed(content)), number=len(screens)
    )


def page_key(screens: list[Screen]) -> str:
    """What tells pages apart: the hash of all their screens."""
    text = "\n".join("\0".join((screen.example, *screen.keys)) for screen in screens)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
