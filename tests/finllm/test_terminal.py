"""What is printed is text: nothing that a terminal obeys or hides, and never markup, wherever a name comes from."""

import ast
import re
import shutil
from pathlib import Path

import pytest
from evaluated_runs import make_run
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from finllm.errors import visible
from finllm.models.generate import Streamer
from finllm.terminal import Parser, Terminal, progress, say
from finllm.text.templates import Alpaca

ROOT = Path(__file__).resolve().parents[2]
OBEYED = {
    "colour": "\x1b[31m", "title": "\x1b]0;owned\x07", "C1": "\x9b31m", "return": "\r", "backspace": "\x08",
    "override": "\u202e", "isolate": "\u2066", "mark": "\u200f", "zero width": "\u200b", "joiner in Latin": "\u200d",
    "soft hyphen": "\u00ad", "no-break": "\ufeff", "line separator": "\u2028", "tag": "\U000e0041", "filler": "\u3164",
    "variation in Latin": "\ufe0f", "word joiner": "\u2060", "half a surrogate": "\udc80", "delete": "\x7f",
}  # fmt: skip
MARKUP = ("[bold]", "[/]", "[/red]x", "[link=http://x]y[/link]", ":warning:", "[", "\\[", "[[x]]", "\\")
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


@pytest.mark.parametrize("character", OBEYED.values(), ids=OBEYED)
def test_what_a_terminal_obeys_or_hides_is_shown_as_its_code(character, capsys):
    shown = visible(f"lo{character}ra")
    assert shown.isprintable() and shown.isascii() and shown.startswith("lo\\") and visible(shown) == shown
    table = Table(f"h{character}", title=f"t{character}")
    table.add_row(f"r{character}", Text(f"x{character}"))
    terminal = Terminal(width=200, force_terminal=True, color_system="truecolor")
    terminal.print(table, f"p{character}")
    with progress(console=terminal) as bar:
        list(bar.track([1], description=f"d{character}"))
    say(f"s{character}")
    # What rich itself sends to a terminal are colours and moves of the cursor; none of them was in a text.
    own = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).replace("\r", "")
    assert not RAW.search(own) and all(f"{letter}{visible(character)}" in own for letter in "htrpds"), own


@pytest.mark.parametrize(
    "text", ["a\nb\tc", "می‌خواهم", "क्‍ष", "👨‍👩‍👧 ❤️ 1️⃣", "“Zinsen” – 5 % … €", "利率を上げる", "Ω é ß", "e\u0301", "ශ්‍රී"]
)
def test_what_belongs_to_a_text_stays(text, capsys):
    assert visible(text) == text
    say(text)
    assert capsys.readouterr().out == text + "\n"
    assert visible("a\nb", lines=False) == "a\\nb"


@pytest.mark.parametrize("text", MARKUP)
def test_text_is_never_markup(text, capsys):
    table = Table(text, title=text)
    table.add_row(text)
    terminal = Terminal(width=200)
    terminal.print(table, text)
    with progress(console=terminal) as bar:
        list(bar.track([1], description=text))
    assert capsys.readouterr().out.count(text) >= 5


def test_nothing_prints_but_through_the_terminal():
    """`print`, rich's own console and argparse's own parser stand in one module each."""
    own = {"finllm/terminal.py", "finllm/errors.py"}
    found = []
    for part in ("finllm", "eval", "baselines", "recipes"):
        for path in sorted((ROOT / part).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                word = getattr(called, "id", getattr(called, "attr", None))
                imported = {each.name for each in node.names} if isinstance(node, ast.ImportFrom) else set()
                printed = isinstance(called, ast.Name) and word == "print"
                if (printed or word == "ArgumentParser" or imported & {"Console", "escape"}) and name not in own:
                    found.append(f"{name}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\u202eb", "[bold]a", "[x]a[", "a\nb", ":warning:", "a\u200bb"])
def test_names_of_runs_reach_no_terminal_raw(command, tmp_path, name):
    run = make_run(tmp_path / name, 1.5, audits={"causality": {"passed": False, "summary": f"It {name} sees."}})
    other = make_run(tmp_path / "other", 1.9)
    done = command("eval/leaderboard.py", run, other, "--output_dir", tmp_path / f"out {name}")
    assert done.status == 0, done.err
    shown = visible(name, lines=False)
    assert not RAW.search(done.out) and f"out {visible(name)}" in done.out
    assert shown in done.out.replace("\n", "") or "\n" in name
    shutil.rmtree(run / "eval")
    done = command("eval/leaderboard.py", run, other, "--output_dir", tmp_path / "out")
    assert done.status == 2 and not RAW.search(done.err) and shown in done.err and done.err.count("\n") == 1


def test_errors_and_answers_reach_no_terminal_raw(command, capfd, tokenizer_dir):
    done = command("finllm/cli.py", "data", "show", "no\x1b[2Jwhere")
    assert done.status == 2 and "no\\x1b[2Jwhere" in done.err and not RAW.search(done.err)
    done = command("eval/leaderboard.py", "--output_dir", "x", "--\x1b[2J\u202e")
    assert done.status == 2 and "--\\x1b[2J\\u202e" in done.err and not RAW.search(done.err)
    streamer = Streamer(Alpaca(AutoTokenizer.from_pretrained(tokenizer_dir)), [])
    streamer.on_finalized_text("Sell\x1b[2J ")
    streamer.on_finalized_text("\u202enow", stream_end=True)
    assert capfd.readouterr().out == "Sell\\x1b[2J \\u202enow\n"


def test_a_run_whose_name_is_markup_is_trained_and_evaluated(command, gpt2_dir, dataset_dir, tmp_path):
    run, base = tmp_path / "[red]run[bold]", tmp_path / "[]base["
    done = command(
        "recipes/sft.py", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", run,
        "--max_steps", 1, "--max_length", 256, "--max_train_samples", 4, "--max_eval_samples", 2, "--report_to", "none",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "[red]run[bold]:" in done.out and f"Next: python eval/run.py {run}" in done.out
    done = command(
        "eval/run.py", run, "--model_name_or_path", gpt2_dir, "--output_dir", base,
        "--max_examples", 2, "--max_generated", 1, "--max_new_tokens", 2,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "[red]run[bold]: scoring" in done.out and "[]base[: answering" in done.out

    # The advice for damaged predictions is a command that mends them
    for folder, again in ((run, [run]), (base, ["--model_name_or_path", gpt2_dir, "--output_dir", base])):
        (folder / "eval" / "predictions.jsonl").write_text("{}\n")
        flags = ["--max_examples", 2, "--max_generated", 1, "--max_new_tokens", 2, "--dataset_name", dataset_dir]
        done = command("eval/run.py", *again, *flags)
        assert done.status == 2 and "nothing to do" not in done.out and "--overwrite" in done.err
        asked = command("eval/leaderboard.py", run, base, "--output_dir", tmp_path / "out")
        assert asked.status == 2 and "--overwrite" in asked.err
        assert (str(gpt2_dir) in asked.err) == (folder == base)
        assert command("eval/run.py", *again, *flags, "--overwrite").status == 0
    assert command("eval/leaderboard.py", run, base, "--output_dir", tmp_path / "out").status == 0


@pytest.mark.parametrize(
    ("words", "question", "number"),
    [
        (["model", "why?"], "why?", None), (["model", "--number", "1", "why?"], "why?", 1),
        (["--number", "1", "model", "why?"], "why?", 1), (["model", "why?", "--number", "1"], "why?", 1),
        (["model", "--number", "1"], None, 1), (["--number", "1", "--", "model", "-5 %?"], "-5 %?", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_a_flag_may_stand_between_arguments_that_have_none(words, question, number, nested):
    parser = Parser()
    asking = parser.add_subparsers(required=True).add_parser("generate") if nested else parser
    asking.add_argument("model")
    asking.add_argument("question", nargs="?")
    asking.add_argument("--number", type=int)
    read = parser.parse_args(["generate", *words] if nested else words)
    assert (read.model, read.question, read.number) == ("model", question, number)
