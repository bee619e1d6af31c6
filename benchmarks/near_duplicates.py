"""How many near duplicates of each kind are found, how many honest pairs are taken for one, and what it costs.

    python benchmarks/near_duplicates.py ROWS.jsonl … [--half 0] [--show 20] [--texts 100000]

ROWS have `instruction`, `input` and `output`. --half 0 or 1 takes those rows whose question's SHA-256 is even or odd,
so that limits chosen on the one half can be confirmed on the other. Pairs are planted by the functions below; honest
pairs are all those of different rows, as they come. --texts clusters so many questions instead, and prints time and
peak memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from finllm.data.grams import folded
from finllm.data.near_duplicates import NearDuplicates, clusters
from finllm.errors import UserError, run_command

OPENINGS = ("Please tell me: ", "I would like to know, ", "Quick question: ", "Could you help me with this? ")
CLOSINGS = (" Thanks in advance!", " Please keep it short.", " Give an example.")
AROUND = (
    ("I have read about this for a week and my brother could not help me. ", " Any advice would be very welcome."),
    ("My neighbour asked me yesterday over coffee: ", " and I did not know what to say, since it is all new to me."),
    (
        "You are an assistant who answers with care, in plain words.\n\n",
        "\n\nThink first, and write 200 words or fewer.",
    ),
)
LOOK_ALIKES = str.maketrans("aeopcxyABEHKMOPCTX", "аеорсхуАВЕНКМОРСТХ")
ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
CHINESE = [
    f"{opening}{subject}{rest}"
    for opening in ("请问", "我想知道")
    for subject in ("指数基金", "国债", "信用卡", "养老保险", "房屋贷款", "外汇储备", "股票期权", "存款利率")
    for rest in ("有哪些主要的风险和好处？", "适合刚开始工作的年轻人吗？", "的费用通常是怎样计算出来的？")
]


def one_word(text: str, draw: random.Random, others: list[str]) -> str:
    words = text.split()
    places = [place for place, word in enumerate(words) if word.strip("?.,").isalpha()] or [0]
    words[draw.choice(places)] = draw.choice(draw.choice(others).split())
    return " ".join(words)


def halves_swapped(text: str, draw: random.Random, others: list[str]) -> str:
    words = text.split()
    return " ".join(words[len(words) // 2 :] + words[: len(words) // 2])


def inside(text: str, draw: random.Random, others: list[str]) -> str:
    before, after = draw.choice(AROUND)
    return before + text + after


def zero_width(text: str, draw: random.Random, others: list[str]) -> str:
    return "".join(sign + (draw.choice(ZERO_WIDTH) if draw.random() < 0.3 else "") for sign in text)


def misspelt(text: str, draw: random.Random, others: list[str]) -> str:
    words = text.split()
    places = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    for place in draw.sample(places, min(2, len(places))):
        word, cut = words[place], draw.randrange(1, len(words[place]) - 2)
        words[place] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(words)


def two_words_left_out(text: str, draw: random.Random, others: list[str]) -> str:
    words = text.split()
    for place in sorted(draw.sample(range(len(words)), 2), reverse=True):
        del words[place]
    return " ".join(words)


def other_numbers(text: str, draw: random.Random, others: list[str]) -> str:
    return re.sub(r"\d+", lambda match: str(int(match[0]) + draw.randrange(1, 9)), text)


def half_copied(text: str, draw: random.Random, others: list[str]) -> str:
    ours, theirs = text.split(), draw.choice(others).split()
    return " ".join(ours[: len(ours) // 2] + theirs[len(theirs) // 2 :])


def chinese_word(text: str, draw: random.Random, others: list[str]) -> str:
    place = draw.randrange(len(text) - 2)
    return text[:place] + "汇率" + text[place + 2 :]


KINDS: dict[str, Callable[[str, random.Random, list[str]], str]] = {
    "one word changed": one_word,
    "an opening put before": lambda text, draw, _: draw.choice(OPENINGS) + text[0].lower() + text[1:],
    "a closing put after": lambda text, draw, _: text + draw.choice(CLOSINGS),
    "halves swapped": halves_swapped,
    "inside a longer one": inside,
    "look-alike letters": lambda text, *_: text.translate(LOOK_ALIKES),
    "zero-width characters": zero_width,
    "two words misspelt": misspelt,
    "two words left out": two_words_left_out,
}


def found(texts: list[str], changed: list[str], answers: bool = False) -> float:
    """The share of texts that are found beside their own changed form."""
    one, other = NearDuplicates(texts, answers).search(changed)
    return len(set(one[one == other].tolist())) / len(texts)


def question_of(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]


def rows_of(files: list[Path], half: int | None) -> list[dict[str, str]]:
    rows = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
    distinct = {folded(question_of(row), masked=False)[0]: row for row in rows}
    even_or_odd = {text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[-1] % 2 for text in distinct}
    return [row for text, row in distinct.items() if half is None or even_or_odd[text] == half]


def honest(name: str, texts: list[str], size: int, answers: bool, show: int, draw: random.Random, out: Console) -> None:
    """Prints how many texts of a sample have a near duplicate among all, which are those of other rows."""
    texts = list(dict.fromkeys(texts))
    draw.shuffle(texts)
    index, pairs, rest = NearDuplicates(texts[:size], answers), [], texts[size:]
    for start in range(0, len(rest), 2048):
        one, other = index.search(rest[start : start + 2048])
        pairs += zip(one.tolist(), (other + start).tolist(), strict=True)
    compared = min(size, len(texts)) * len(rest)
    out.print(
        f"{name}: of {compared:,} pairs of rows {len(pairs):,} are near duplicates, {1e4 * len(pairs) / compared:.2g} "
        f"in 10,000; {len({one for one, _ in pairs})} of {size:,} have one"
    )
    for one, other in draw.sample(pairs, min(show, len(pairs))):
        out.print(f"  {texts[one][:200]!r}\n  {rest[other][:200]!r}\n", markup=False, soft_wrap=True)


def cost(questions: list[str], count: int) -> None:
    """Clusters `count` questions, those that are there and, where more are wanted, pairs of them put together."""
    draw = random.Random(0)
    texts = questions[:count]
    texts += [f"{draw.choice(questions)} And: {draw.choice(questions)}" for _ in range(count - len(texts))]
    before, begin, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    many = len(set(clusters(texts)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(texts):,} questions, {sum(map(len, texts)):,} characters, {many:,} clusters: "
        f"{time.perf_counter() - begin:.0f} s ({time.process_time() - cpu:.0f} s of processor time), "
        f"peak {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} before"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Recall, false positives and cost of the near-duplicate finder.")
    parser.add_argument("rows", nargs="+", type=Path, help="JSON Lines files of rows")
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--sample", type=int, default=2000, help="texts that pairs are planted on")
    parser.add_argument("--show", type=int, default=0, help="honest pairs to print that are taken for near duplicates")
    parser.add_argument("--texts", type=int, help="measure time and memory of clustering so many questions")
    options = parser.parse_args()
    if missing := [str(path) for path in options.rows if not path.is_file()]:
        raise UserError(f"no such file: {', '.join(missing)}")
    rows = rows_of(options.rows, options.half)
    if options.texts:
        return cost([question_of(row) for row in rows], options.texts)
    draw, out = random.Random(options.half or 0), Console()
    short = [text for text in map(question_of, rows) if 8 <= len(text.split()) <= 15 and "\n" not in text]
    answers = [row["output"] for row in rows if 20 <= len(row["output"].split()) <= 150]
    numbered = [text for text in map(question_of, rows) if re.search(r"\d", text) and len(text.split()) <= 60]
    table = Table("kind", "texts", "found")
    plan = [(name, short, change, False) for name, change in KINDS.items()]
    plan += [
        ("one word changed, Chinese", CHINESE, chinese_word, False),
        ("answers: one word changed", answers, one_word, True),
        ("answers: first half copied", answers, half_copied, True),
        ("other numbers (must be none)", numbered, other_numbers, False),
    ]
    for name, texts, change, as_answers in plan:
        sample = draw.sample(texts, min(options.sample, len(texts)))
        share = found(sample, [change(text, draw, texts) for text in sample], as_answers)
        table.add_row(name, f"{len(sample):,}", f"{100 * share:.1f} %")
    out.print(table)
    honest("questions", [question_of(row) for row in rows], options.sample, False, options.show, draw, out)
    honest("answers", [row["output"] for row in rows], options.sample, True, options.show, draw, out)


if __name__ == "__main__":
    run_command(main)
