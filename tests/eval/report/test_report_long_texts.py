"""An answer of a megabyte without a blank, and texts of scripts without blanks, in the page: it answers at once."""

import time
from pathlib import Path

import pytest
from evaluated_runs import make_run, report
from test_report_browser import browser, expect, opened, pytestmark, rewrite  # noqa: F401  browser is a fixture

LONG = 1_000_000
MOST_SECONDS = 15.0  # on two busy cores; idle ones take one. It was 84.
TEXTS = {  # id: instruction, input, reference, answer
    "a": ("Long?", "", "A loan to the state.", "x" * LONG),
    "b": ("y" * LONG, "z" * LONG, "w" * LONG, "." * (LONG - 1) + "x"),
    "c": ("什么是债券？", "", "债券是一种借款凭证。", "债券是借款凭证。"),
    "d": ("Many?", "", "a b " * 4000, "b a " * 5000),
}


@pytest.fixture(scope="module")
def page_of(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    runs = [make_run(folder / name, bits, ids="abcd") for name, bits in (("one", 1.5), ("two", 1.9))]
    for run in runs:

        def change(number, row):
            row["instruction"], row["input"], row["reference"], row["prediction"] = TEXTS[row["id"]]

        rewrite(run, change)
    report(*runs, out=folder / "out")
    return folder / "out" / "index.html"


def test_a_megabyte_without_a_blank_does_not_stop_the_page(browser, page_of):  # noqa: F811
    start = time.monotonic()
    page = opened(browser, page_of)
    page.locator("#open-all").click()
    for words in ("shared", "changes", "plain"):
        page.locator("#words").select_option(words)
        expect(page.locator("#questions .answers").first).to_be_visible(timeout=20_000)
    page.locator("#search").fill("xx")
    expect(page.locator("#status")).to_contain_text("found among 4", timeout=20_000)
    took = time.monotonic() - start
    answer = page.locator("#questions .answer .text").first
    expect(answer).to_contain_text(f"… {LONG - 20_000:,} more characters, which eval/predictions.jsonl holds")
    assert len(answer.text_content()) < 21_000 and page.wrong == []
    assert took < MOST_SECONDS, f"{took:.1f} s"


def test_what_was_opened_stays_open_when_words_are_chosen_at_once(browser, page_of):  # noqa: F811
    """Before the browser has told the page of the cards that opened, as it may be on a busy machine."""
    page = opened(browser, page_of)
    page.evaluate("""() => {
        document.getElementById("open-all").click();
        const words = document.getElementById("words");
        words.value = "shared";
        words.dispatchEvent(new Event("change"));
    }""")
    expect(page.locator("#questions .question mark").first).to_be_attached(timeout=20_000)
    expect(page.locator("#questions .question[open]")).to_have_count(4, timeout=20_000)
    assert page.text_content("#open-all") == "Close all" and page.wrong == []


def test_words_are_characters_where_a_script_has_no_blanks_and_long_texts_are_compared_at_their_beginning(
    browser,  # noqa: F811
    page_of,
):
    page = opened(browser, page_of)
    page.locator("#open-all").click()
    third = page.locator("#questions .question").nth(2).locator(".answer .text").first
    page.locator("#words").select_option("shared")
    expect(third.locator("mark")).to_have_count(8)  # all of 债券是借款凭证。, in order
    page.locator("#words").select_option("changes")
    expect(third.locator("del")).to_have_text("一种")
    expect(third).to_have_text("债券是 一种 借款凭证。")
    fourth = page.locator("#questions .question").nth(3).locator(".answer .text").first
    expect(fourth).to_contain_text("only the first 1,500 words are compared")
    assert page.wrong == []
