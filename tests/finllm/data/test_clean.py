"""Cleaning: what each step mends or drops, what it must leave, and that cleaning twice is cleaning once."""

import random

import pytest

from finllm.data.clean import PLAIN, STEPS, Cleaning, Rejected, _hash_of, keep_one_half, mend_question
from finllm.data.conversations import Turn
from finllm.data.schema import Change, Row
from finllm.errors import UserError

TEN = "one two three four five six seven eight nine ten."


def row(instruction="What is a fund?", input="", output="A pot of money.", number=1):
    return Row(instruction, input, output, "a.jsonl", number)


def clean(rows, skip=()):
    """The rows kept, those dropped, and what each step did."""
    cleaning = Cleaning(skip)
    results = list(cleaning.clean(rows))
    dropped = [result for result in results if isinstance(result, Rejected)]
    return [result for result in results if not isinstance(result, Rejected)], dropped, cleaning.counts()


def counts(steps):
    return {step.step: (step.changed, step.dropped) for step in steps if step.changed or step.dropped}


def changed(step, **fields):
    """The one row after cleaning; checks that `step`, and no other, counted a change when there was one."""
    before = row(**fields)
    (after,), rejected, steps = clean([before])
    assert not rejected
    assert counts(steps) == ({} if after == before else {step: (1, 0)})
    return after


def test_steps_and_their_order():
    assert STEPS == (
        "strip",
        "csv_quotes",
        "unicode",
        "repeated_halves",
        "input_placeholder",
        "empty_instruction",
        "empty_output",
        "echo",
        "duplicates",
    )


def test_strip_leaves_white_space_inside():
    after = changed("strip", instruction=" q\n", input="\t i ", output="\n a  b\n\n\tc \n")
    assert after[:3] == ("q", "i", "a  b\n\n\tc")


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ("It’s “money” – ‘more’…", None),
        ("什么是“基金”？，：（好）", None),
        ("「株式」とは何ですか？　ＡＢＣ", None),
        (".replace('&', '&amp;')", None),
        ("if a &lt; b:\n    return a;", None),
        ("Write `&lt;p&gt;` for a paragraph.", None),
        ("In HTML an ampersand is &amp;", None),
        ("First:\nfor a in b:\nx &lt; y", None),
        ("First:\n  #include <a>\nx &lt; y", None),
        ("f(a &lt; b)", None),
        ("'&lt;' is less, a fence is ```, a.b(c) &gt; d", None),
        ("Here is why:\nit is for profit &gt; loss, and if not", "Here is why:\nit is for profit > loss, and if not"),
        ("Profit &gt; loss", "Profit > loss"),
        ("Line\r\nends", "Line\nends"),
        ("quality andâ€¦ time", "quality and… time"),
        ("AT&amp;T pays", "AT&T pays"),
        ("a\x07b", "ab"),
        ("ﬁnance", "finance"),
        ("Straße, £5, 5 €", "Straße, £5, 5 €"),
        ("R&D: 3 < 4 & 5 > 4\n\tx", "R&D: 3 < 4 & 5 > 4\n\tx"),
    ],
)
def test_unicode(damaged, mended):
    assert changed("unicode", output=damaged).output == (mended or damaged)


def test_text_taken_as_plain_is_what_ftfy_leaves():
    import ftfy

    plain = "".join(map(chr, range(0x20, 0x7F))).replace("&", "") + "\t\n\n  x‘’“”–—…"
    as_here = {"uncurl_quotes": False, "fix_character_width": False}
    assert PLAIN.fullmatch(plain) and ftfy.fix_text(plain, **as_here) == plain
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices(plain, k=9))
        assert ftfy.fix_text(text, **as_here) == text
    assert not any(PLAIN.fullmatch(text) for text in ("&amp;", "\x00", "\r\n", "\x7f", "é"))


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ('"He said ""no"" twice."', 'He said "no" twice.'),
        ('"""Maybe"" is the answer."', '"Maybe" is the answer.'),
        ('"It ended with ""no"""', 'It ended with "no"'),
        ('"cut off ""here"" and', 'cut off "here" and'),
        ('"""\nA program\n"""\nname = ""', None),
        ('"""\nA text\n"""', None),
        ('"Just do it"', None),
        ('"a" and ""', None),
        ('name = ""\nother = ""', None),
        ('"x" or ""y"" or "z"', None),
        ('""A"" and ""B"" of it', None),
    ],
)
def test_csv_quotes(damaged, mended):
    assert changed("csv_quotes", output=damaged).output == (mended or damaged)


def test_csv_quotes_are_seen_beside_curly_ones():
    (after,), _, steps = clean([row(output='"A ""thin"" market, a “thick” one."')])
    assert after.output == 'A "thin" market, a “thick” one.'
    assert counts(steps) == {"csv_quotes": (1, 0)}


@pytest.mark.parametrize("between", [" ", "\n\n", ""])
def test_repeated_halves(between):
    twice = f"{TEN}{between}{TEN.replace(' ', '  ')}"
    assert changed("repeated_halves", output=twice).output == TEN
    assert clean([row(output=twice + between + twice)])[0][0].output == TEN


@pytest.mark.parametrize("asked", ["Say it twice.", "Repeat after me.", "请把下面的句子重复一遍。"])
def test_what_was_asked_for_twice_stays(asked):
    twice = f"{TEN} {TEN}"
    assert changed("repeated_halves", instruction=asked, output=twice).output == twice
    assert changed("repeated_halves", instruction="Go on.", input=asked, output=twice).output == twice


@pytest.mark.parametrize(
    "answer", ["11", "1010", "bye bye", "([A-Z][a-z]+) ([A-Z][a-z]+)", f"{TEN} {TEN} x", f"{TEN} x{TEN}"]
)
def test_what_is_no_repeated_half(answer):
    assert changed("repeated_halves", output=answer).output == answer


@pytest.mark.parametrize(
    "placeholder",
    [
        "no input",
        "NoInput",
        "<noinput>",
        "<No input>.",
        '"<noinput>"',
        "\\<noinput\\>",
        "No input required.",
        "(no input)",
        *("N/A", "<n/a>", "NA", "None", "<none>", "no_input", "nan", "null", "No input is needed"),
    ],
)
def test_input_placeholders_are_emptied(placeholder):
    assert changed("input_placeholder", input=placeholder).input == ""


@pytest.mark.parametrize(
    "kept", ["Na", "No inputs were sold.", "None of the students", "+", "-3", "The <noinput>", "n", "No"]
)
def test_inputs_that_are_no_placeholders(kept):
    assert changed("input_placeholder", input=kept).input == kept


@pytest.mark.parametrize(
    ("step", "fields"),
    [
        ("empty_instruction", {"instruction": " \n"}),
        ("empty_output", {"output": "  "}),
        ("empty_output", {"output": "nooutput"}),
        ("empty_output", {"output": "<NoOutput>"}),
        ("empty_output", {"output": "No output required."}),
        ("empty_output", {"output": "No input"}),
        ("empty_output", {"output": "<nooutput> - a model cannot draw."}),
        ("empty_output", {"output": "Blue.\n6. Instruction: Name a fruit.\n6. Input:\n<noinput>\n6. Output:\nPlum"}),
        ("echo", {"output": "What is a fund?"}),
        ("echo", {"input": "3, 4, 5", "output": "What is a fund?"}),
    ],
)
def test_rows_that_are_dropped(step, fields):
    bad, good = row(**fields), row(number=2)
    kept, rejected, steps = clean([bad, good])
    assert kept == [good]
    assert rejected == [(bad, step)]  # as it was read
    assert {name: dropped for name, (_, dropped) in counts(steps).items() if dropped} == {step: 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"output": "None."},
        {"output": "N/A"},
        {"output": "Write <noinput> where a question has no input."},
        {"input": "3, 4, 5", "output": "3, 4, 5"},
        {"output": "No"},
        {"output": "0"},
        {"output": "No output is lost when the price falls."},
        {"input": "hello", "output": "HELLO"},
        {"input": "a   b", "output": "a b"},
    ],
)
def test_short_and_odd_answers_stay(fields):
    assert clean([row(**fields)])[0] == [row(**fields)]


@pytest.mark.parametrize("words", [4, 5])
def test_halves_of_five_words_or_more_are_cut(words):
    half = " ".join(TEN.split()[:words])
    assert changed("repeated_halves", output=f"{half} {half}").output == (half if words == 5 else f"{half} {half}")


def test_halves_of_the_same_letters_in_other_words_and_very_long_ones_stay():
    apart = "a b c de f g a b cd e f g"
    assert changed("repeated_halves", output=apart).output == apart
    half = "word " * 99 + "x" * (2**19 - 99 * 5)
    assert keep_one_half(half * 2) == half and len(half * 2) == 2**20
    assert keep_one_half(half * 2 + " ") == half * 2 + " "


def test_what_was_asked_for_twice_is_cleaned_otherwise():
    (after,), _, steps = clean([row("Say it twice.", output=f" {TEN} {TEN}\r\n")])
    assert after.output == f"{TEN} {TEN}" and counts(steps) == {"strip": (1, 0)}


TEXTS = {
    "strip": (" a ", "a"),
    "csv_quotes": ('"a ""b"" c"', 'a "b" c'),
    "unicode": ("itâ€™s", "it’s"),
    "repeated_halves": (f"{TEN} {TEN}", TEN),
    "input_placeholder": ("N/A", ""),
}
EVERYWHERE = {"instruction", "input", "output", "system", "history"}
WHERE = {"strip": EVERYWHERE, "csv_quotes": EVERYWHERE, "unicode": EVERYWHERE, "repeated_halves": {"output"},
         "input_placeholder": {"input"}}  # fmt: skip


@pytest.mark.parametrize("field", sorted(EVERYWHERE))
@pytest.mark.parametrize("step", TEXTS)
def test_each_step_looks_at_its_fields_and_at_no_other(step, field):
    """And what it changed is told, with what reading had changed before."""
    damaged, mended = TEXTS[step]
    turns = (Turn("user", "Hello?"), Turn("assistant", damaged), Turn("user", "Well?"), Turn("assistant", "Yes."))
    before = row(input="i")._replace(system="Be kind.")
    before = before._replace(**{field: turns if field == "history" else damaged})
    told = []
    (after,) = Cleaning(changed=lambda *each: told.append(each)).clean([before])
    looks = field in WHERE[step]
    expected = mended if looks else damaged
    held = after.history[1].content if field == "history" else getattr(after, field)
    assert held == expected
    assert after == before._replace(
        **{field: (turns[0], Turn("assistant", expected), *turns[2:]) if field == "history" else expected}
    )
    assert told == ([(before, [Change(step, field, damaged, mended)])] if looks else [])
    read = (Change("reading", "instruction", "a", "b"),)
    told.clear()
    list(Cleaning(changed=lambda *each: told.append(each)).clean([before._replace(changes=read)]))
    assert [changes for _, changes in told] == [[*read, *([Change(step, field, damaged, mended)] if looks else [])]]
    untouched = list(Cleaning((step,)).clean([before]))
    assert untouched == [before]


def test_duplicates_are_rows_that_say_the_same_and_nothing_less():
    """Every part of a row that differs makes it another one; split, file and number do not, but for the split."""
    turns = (Turn("user", "Hello?"), Turn("assistant", "Yes."))
    one = row(input="i")
    others = [one._replace(**each) for each in (
        {"instruction": "Why?"}, {"input": "j"}, {"output": "It depends."}, {"system": "Be kind."}, {"history": turns},
        {"system": "Be kind.", "history": turns}, {"system": "Be short."}, {"history": turns[::-1]}, {"split": "test"},
        {"history": (Turn("user", "Hello?"), Turn("assistant", "No."))},
        {"split": "train"}, {"input": ""},
    )]  # fmt: skip
    kept, rejected, _ = clean([one, *others])
    assert kept == [one, *others] and not rejected
    again = [each._replace(file="b.jsonl", number=7, group="g") for each in (one, *others)]
    kept, rejected, _ = clean([one, *others, *again])
    assert kept == [one, *others] and rejected == [(each, "duplicates") for each in again]


def test_rows_are_told_apart_by_128_bits():
    hashes = [_hash_of(row(number=n, output=str(n))) for n in range(200)]
    assert {each.bit_length() for each in hashes} <= set(range(115, 129)) and max(hashes) >> 127
    assert all(len({each >> shift & 0xFFFF for each in hashes}) > 190 for shift in range(0, 128, 16))


def test_duplicates_keep_the_first():
    rows = [row(number=1), row(output="Another.", number=2), row(output=" A pot of money.", number=3)]
    kept, rejected, steps = clean(rows)
    assert kept == rows[:2] and rejected == [(rows[2], "duplicates")]
    assert counts(steps) == {"strip": (1, 0), "duplicates": (0, 1)}


DAMAGED = {
    "strip": row(output=" a "),
    "unicode": row(output="itâ€™s"),
    "csv_quotes": row(output='"a ""b"" c"'),
    "repeated_halves": row(output=f"{TEN} {TEN}"),
    "input_placeholder": row(input="no input"),
    "empty_instruction": row(instruction=""),
    "empty_output": row(output=""),
    "echo": row(output="What is a fund?"),
}


@pytest.mark.parametrize("step", DAMAGED)
def test_a_skipped_step_does_nothing(step):
    damaged = DAMAGED[step]
    kept, _, steps = clean([damaged], skip=[step])
    assert kept == [damaged] and not counts(steps)
    assert [count.step for count in steps if not count.enabled] == [step]
    assert clean([damaged])[0] != [damaged]


def test_duplicates_can_be_kept():
    assert len(clean([row(), row(number=2)], skip=["duplicates"])[0]) == 2


def test_unknown_steps_are_refused():
    with pytest.raises(UserError, match=r"unknown step 'echos' \(did you mean 'echo'\?\)"):
        clean([], skip=["echos"])


def test_cleaning_the_cleaned_changes_nothing():
    pieces = [
        '"',
        '""',
        "“",
        "”",
        " ",
        "\n",
        "\x00",
        "\ufeff",
        "&amp;",
        "&lt;",
        "<",
        ">",
        "no input",
        "noinput",
        "N/A",
        "é",
        "Ã©",
    ]
    pieces += ["a b c d e f. ", "a b c d e f. a b c d e f. ", "None", "ﬁ", "\u200b", "\xa0", "’", "'", "&", "amp;"]
    random_numbers = random.Random(0)

    def text():
        return "".join(random_numbers.choices(pieces, k=random_numbers.randint(0, 7)))

    rows = [row(text(), text(), text(), number) for number in range(5000)]
    kept, rejected, steps = clean(rows)
    assert len(kept) > 1000 and len(rejected) > 500
    assert all(step.changed or step.dropped for step in steps)
    again, rejected, steps = clean(kept)
    assert again == kept and not rejected and not counts(steps)


def test_what_is_asked_is_mended_as_what_was_trained_on():
    turns = [{"role": "user", "content": " Hi\r\n"}, {"role": "assistant", "content": "Hello"}]
    asked = {
        "instruction": " What â€œisâ€\x9d it? ",
        "input": "N/A",
        "system": "Be kind.\x07",
        "id": 7,
        "history": turns,
    }
    mended = mend_question(asked)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert mended == {
        "instruction": "What “is” it?", "input": "", "system": "Be kind.", "id": 7, "history": turns,
    }  # fmt: skip
    (kept,), _, _ = clean([row(asked["instruction"], asked["input"])])
    assert (kept.instruction, kept.input) == (mended["instruction"], mended["input"])
    assert mend_question({"instruction": "x"}) == {"instruction": "x"}
