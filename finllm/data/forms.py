"""Forms: which columns of a source hold what, recognised by their names.

    form               columns
    alpaca             instruction, output, and if they like input, system, history (FinGPT, PIXIU, LLaMA-Factory)
    dolly              instruction, response, context
    prompt_completion  prompt, completion: text, or lists of messages
    question_answer    question, answer, context
    query_response     query, response
    fingpt             context, target: the whole prompt and its answer, as FinGPT's own files
    messages           messages, as OpenAI's
    sharegpt           conversations

Each question may have an input, a system text and a history. Names count in small letters. Where columns fit two forms,
or none, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finllm.data.conversations import NO_TOOLS
from finllm.errors import UserError, did_you_mean

FIELDS = ("instruction", "input", "output")
PAIRS = {
    "alpaca": ("Alpaca", "instruction", "output"),
    "dolly": ("Dolly", "instruction", "response"),
    "prompt_completion": ("prompt and completion", "prompt", "completion"),
    "question_answer": ("question and answer", "question", "answer"),
    "query_response": ("query and response", "query", "response"),
    "fingpt": ("FinGPT's context and target", "context", "target"),
}
TURNS = {
    "messages": ("OpenAI messages", ("messages",)),
    "sharegpt": ("ShareGPT conversations", ("conversations", "conversation")),
}
FORMS = (*PAIRS, *TURNS)
QUESTIONS = ("instruction", "prompt", "question", "query")
ANSWERS = ("output", "completion", "answer", "response")
INPUTS, SYSTEMS, HISTORIES = ("input", "context"), ("system", "system_prompt"), ("history",)
WANTED = frozenset({*QUESTIONS, *ANSWERS, *INPUTS, "target", "messages", "conversations", "conversation"})
IMAGES = ("image", "images", "video", "videos", "audio", "audios")
TOOLS = ("tools", "functions")
# What says something that a model would otherwise be trained without: left out by a flag alone
TELLING = frozenset({*SYSTEMS, *HISTORIES, *TURNS["sharegpt"][1], "messages", *TOOLS, *IMAGES})
TURNS_COLUMN = "messages"  # the name of the flag's column, --messages_column


@dataclass(frozen=True)
class Asked:
    """What the user says of the form; all else is recognised."""

    form: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # of instruction, input, output and messages
    leave_out: frozenset[str] = frozenset()
    group_column: str | None = None
    number_column: str | None = None


@dataclass(frozen=True)
class Form:
    """Which column holds what; None where there is none."""

    title: str
    instruction: str | None = None
    input: str | None = None
    output: str | None = None
    turns: str | None = None
    system: str | None = None
    history: str | None = None

    @property
    def columns(self) -> dict[str, str]:
        """What is read, and the column that it is read from."""
        held = {name: getattr(self, name) for name in (*FIELDS, "turns", "system", "history")}
        return {name: column for name, column in held.items() if column is not None}

    def __str__(self) -> str:
        others = [f"{name} from '{column}'" for name, column in self.columns.items()]
        return f"{self.title} ({', '.join(others)})"


def recognise(columns: Sequence[str], asked: Asked, where: str, labels: Collection[str] = ()) -> Form:
    """The form of rows with these columns. `labels` are columns that hold true and false, as preferences do.

    Raises `UserError`, which names the columns and what would take them, where none or more than one fits.
    """
    place = f"{where}, which has the columns {', '.join(columns) or '(none)'}"
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(column.strip().lower(), column)
    by_name = {name: column for name, column in by_name.items() if column not in asked.leave_out}
    problems = [
        f"no column '{column}'{did_you_mean(column, columns)}; name the one that holds the {name} with --{name}_column"
        for name, column in asked.columns.items()
        if column not in columns
    ]
    for flag in ("group_column", "number_column"):
        if (column := getattr(asked, flag)) is not None and column not in columns:
            problems.append(f"no column '{column}'{did_you_mean(column, columns)} that --{flag} names")
    if problems:
        raise UserError(_counted(problems, place))
    if TURNS_COLUMN in asked.columns or asked.form in TURNS:
        return _turns(by_name, asked, place)
    if asked.form or asked.columns:
        return _pair(by_name, asked, place)
    if refusal := _refused(by_name, labels):
        raise UserError(f"{place}: {refusal}")
    fitting = [form for form, (_, question, answer) in PAIRS.items() if question in by_name and answer in by_name]
    fitting += [form for form, (_, names) in TURNS.items() if any(name in by_name for name in names)]
    if len(fitting) > 1:
        flags = " or ".join(f"--form {form}" for form in fitting)
        fit = " and ".join(map(_described, fitting))
        raise UserError(f"{place}: the columns fit {len(fitting)} forms, {fit}; choose with {flags}")
    if fitting:
        chosen = Asked(fitting[0], {}, asked.leave_out)
        return _turns(by_name, chosen, place) if fitting[0] in TURNS else _pair(by_name, chosen, place)
    return _pair(by_name, asked, place)


def _described(form: str) -> str:
    return f"{PAIRS[form][0]} ({', '.join(PAIRS[form][1:])})" if form in PAIRS else TURNS[form][0]


def _turns(by_name: Mapping[str, str], asked: Asked, place: str) -> Form:
    title, names = TURNS.get(asked.form, TURNS["messages"])
    column = asked.columns.get(TURNS_COLUMN) or next((by_name[name] for name in names if name in by_name), None)
    if column is None:
        raise UserError(
            f"{place}: --form {asked.form} reads the column {names[0]}; name another with --messages_column"
        )
    return Form(title, turns=column, system=_first(by_name, SYSTEMS))


def _pair(by_name: Mapping[str, str], asked: Asked, place: str) -> Form:
    """A question and its answer, by the form and columns that were asked for, or by the only columns of each kind."""
    title, question, answer = PAIRS.get(asked.form, ("", None, None))
    held, problems = dict(asked.columns), []
    taken = set(held.values())
    for name, wanted, known in (("instruction", question, QUESTIONS), ("output", answer, ANSWERS)):
        if name in held:
            continue
        choice = [by_name[each] for each in ([wanted] if wanted else known) if each in by_name]
        choice = [column for column in choice if column not in taken]
        if by_name.get(name) in choice:
            choice = [by_name[name]]
        if len(choice) == 1:
            held[name] = choice[0]
            continue
        missing = wanted or name
        found = (
            f"of the columns {' and '.join(choice)} each may hold the {name}"
            if choice
            else (f"no column '{missing}'{did_you_mean(missing, by_name.values())}")
        )
        problems.append(f"{found}; name the one that holds the {name} with --{name}_column")
    if len(problems) == 2 and not asked.form:
        problems.append(
            f"no form fits; one with turns is named with --messages_column, and known forms are {', '.join(FORMS)}"
        )
    if problems:
        raise UserError(_counted(problems, place))
    inputs = INPUTS if held["instruction"].strip().lower() == "instruction" and asked.form != "dolly" else INPUTS[::-1]
    held.setdefault("input", _first({n: c for n, c in by_name.items() if c not in held.values()}, inputs))
    if not title:
        title = f"{held['instruction']} and {held['output']}"
    if len(set(held.values())) < len(held):
        named = ", ".join(f"{name} from {column}" for name, column in held.items())
        raise UserError(f"two fields would come from one column: {named}")
    return Form(title, held["instruction"], held["input"], held["output"], None,
                _first(by_name, SYSTEMS), _first(by_name, HISTORIES))  # fmt: skip


def _first(by_name: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((by_name[name] for name in names if name in by_name), None)


def _refused(by_name: Mapping[str, str], labels: Collection[str]) -> str:
    """Why rows of a known kind are not read, and what would take them; nothing where they may be."""
    if {"chosen", "rejected"} <= set(by_name):
        return (
            "these are preferences (chosen and rejected answers), which TRL's DPOTrainer takes; to learn the chosen "
            "answers alone name them: --output_column chosen, or --messages_column chosen where they are conversations"
        )
    if marks := [name for name in ("label", "kto_tag") if by_name.get(name) in labels]:
        return (
            f"these are preferences (the column {by_name[marks[0]]} says which answers are good), which TRL's "
            "KTOTrainer takes; to learn all answers alike choose the form with --form"
        )
    pairs = any(name in by_name for name in ANSWERS)
    turns = any(name in by_name for _, names in TURNS.values() for name in names)
    if images := [name for name in IMAGES if name in by_name and not (pairs or turns)]:
        return (
            f"these are images or sounds ({', '.join(images)}), which are not read; TRL's SFTTrainer trains "
            "vision-language models on them"
        )
    if "text" in by_name and not pairs and not turns and not any(name in by_name for name in QUESTIONS):
        return (
            "this is a plain text column, which has no question and no answer; TRL's SFTTrainer trains on it as it is. "
            "Where two columns hold a question and its answer, name them with --instruction_column and --output_column"
        )
    return ""


def telling(column: str) -> str:
    """Why a column that holds something is not left out without a flag; nothing where it may be."""
    name = column.strip().lower()
    if name not in TELLING:
        return ""
    if name in TOOLS:
        return NO_TOOLS
    return (
        "images and sounds are not read; TRL's SFTTrainer trains vision-language models on them"
        if name in IMAGES
        else ("the form that was read does not take it; choose another with --form")
    )


def _counted(problems: list[str], where: str) -> str:
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {where}: {'; '.join(problems)}"


def looks_fixed(rows: Sequence[Mapping[str, Any]], form: Form) -> bool:
    """Whether one instruction stands before many inputs, as FinGPT and PIXIU write their rows."""
    if form.input is None or len(rows) < 3:
        return False
    instructions = {str(row.get(form.instruction)) for row in rows}
    inputs = {str(row.get(form.input)) for row in rows}
    return len(instructions) <= max(1, len(rows) / 10) and len(inputs) > len(rows) / 2
