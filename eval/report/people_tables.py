"""What people say of the models, in sentences and tables: for leaderboard.md and for the page."""

from __future__ import annotations

from typing import Any

from eval.judge.votes import MARKS
from eval.report.numbers import percentage
from eval.report.right_numbers import low_to_high
from eval.report.tables import cell, table_of

NAMES = {
    "bits_per_byte": "bits per byte",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU (mean of answers)",
    "number_right": "number right",
}


def said(people: dict[str, Any]) -> list[str]:
    """The sentence about the strongest model."""
    best, *others = people["models"]
    near = [each["name"] for each in others if each["strength"]["high"] > best["strength"]["low"]]
    judges = people["judges"]
    sentence = f"{len(judges)} {'judge prefers' if len(judges) == 1 else 'judges prefer'} {best['name']}: it wins "
    sentence += (
        f"{percentage(best['win_rate']['value'])} ({low_to_high(best['win_rate'])}) of its {best['votes']} votes"
    )
    return [sentence + (f"; the interval of its strength meets that of {', '.join(near)}." if near else ".")]


def notes(people: dict[str, Any]) -> list[str]:
    """What a reader must know of these votes."""
    found = []
    judges = people["judges"]
    if len(judges) == 1:
        found.append("One judge voted: the intervals are of other questions, not of other judges.")
    if len({judge["reference_shown"] for judge in judges}) > 1:
        found.append("Some judges saw the reference answer and some did not.")
    if len({judge["page"] for judge in judges}) > 1:
        found.append("The judges had different pages.")
    for judge in judges:
        if judge["votes"] < judge["screens"]:
            found.append(f"{judge['name']} voted on {judge['votes']} of {judge['screens']} screens.")
        checks = judge["checks"]
        if checks and checks["low"] <= 0.5 and checks["value"] <= 0.75:
            found.append(
                f"{judge['name']} preferred a model's answer to the reference in {percentage(1 - checks['value'])} of "
                "the checks: either these models are as good, or nobody looked."
            )
    return found


def markdown(people: dict[str, Any] | None) -> str:
    """The section of leaderboard.md."""
    if not people:
        return ""
    tables = [table_of(*each) for each in (models_table(people), judges_table(people), metrics_table(people))]
    intro = (
        f"**What people prefer**, {people['counted']} votes on {people['questions']} questions ({people['method']}). "
    )
    return "\n" + "\n\n".join([intro + HOW_TO_READ, *tables, cell(" ".join(agreement(people)))]) + "\n"


HOW_TO_READ = (
    "Strength is Bradley and Terry's with Davidson's ties, in nats about a mean of 0: of two models that are 1 apart "
    "the stronger one wins 73 % of the votes that are no tie. Win rate counts a tie, and two bad answers, as half."
)


def models_table(people: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    used = [mark for mark in MARKS if any(each["marks"][mark] for each in people["models"])]
    heads = ["model", "strength", "win rate", "votes", "won", "tied", "lost", *(f"marked {mark}" for mark in used)]
    return heads, [
        [each["name"], decimal(each["strength"]), rate(each["win_rate"])]
        + [str(each[key]) for key in ("votes", "wins", "ties", "losses")]
        + [str(each["marks"][mark]) for mark in used]
        for each in people["models"]
    ]


def judges_table(people: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = [
        "judge",
        "votes",
        "says the same twice",
        "prefers the reference",
        "chooses the first",
        "both bad",
        "median s",
    ]
    return heads, [
        [
            *(each["name"], f"{each['votes']} of {each['screens']}", rate(each["consistency"], each["repeats"])),
            *(rate(each["checks"], each["checked"]), rate(each["position"])),
            *(str(each["neither"]), f"{each['seconds']:g}"),
        ]
        for each in people["judges"]
    ]


def metrics_table(people: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["metric", "Kendall's tau with strength", "sides with the vote", "votes"]
    return heads, [
        [NAMES[each["metric"]], decimal(each["tau"]), rate(each["agreement"]), str(each["votes"])]
        for each in people["metrics"]
    ]


def agreement(people: dict[str, Any]) -> list[str]:
    """Sentences on the judges together, and what must be known."""
    alpha, position = people["alpha"], people["position"]
    found = (
        [f"Krippendorff's alpha of the judges is {decimal(alpha)} (1: they agree, 0: as by chance)."] if alpha else []
    )
    if position:
        found.append(
            f"Of {position['votes']} votes that chose a side {rate(position)} chose the answer that stood first."
        )
    return [*found, *notes(people)]


def decimal(interval: dict[str, float] | None) -> str:
    if not interval:
        return "–"
    value, low, high = (f"{round(interval[key], 2) + 0:.2f}" for key in ("value", "low", "high"))  # + 0: no "-0.00"
    return f"{value} ({low} to {high})".replace("-", "−")


def rate(interval: dict[str, float] | None, of: int | None = None) -> str:
    if not interval:
        return "–"
    return f"{percentage(interval['value'])} ({low_to_high(interval)})" + (f" of {of}" if of is not None else "")
