"""The page in a real headless Chromium: what a reader does with it, hostile text, and its speed.

Only locators wait here: the page's own policy forbids the evaluation of strings that `wait_for_function` needs.
"""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import test_study_page
from evaluated_runs import leaderboard, make_run, report
from test_study_page import make_study

from finllm.files import read_jsonl, write_jsonl

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not opened")
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not opened")

MODELS, QUESTIONS = 20, 2000
MOST_BYTES = 8e6  # of the page with 40,000 answers of 40 words, whose texts alone are 12 MB before they are packed
LONGEST = 300_000  # milliseconds until something is to be seen: a machine under load is slow
# Of the page's own processor time, in that of BASELINE. Opening draws and unpacks little, a first search unpacks all in
# four passes (base64, inflate, JSON, lower case), and another one has less to do than to read everything again.
MOST = {"open": 4.0, "search": 8.0, "search again": 1.0}
# What any search over so many texts costs in this browser on this processor: read them once, in lower case.
BASELINE = """([texts, words]) => {
  let state = 1;
  const word = () => "word" + (state = (state * 48271) % 2147483647) % 3000;
  const answers = Array.from({length: texts}, () => Array.from({length: words}, word).join(" "));
  return JSON.parse(JSON.stringify(answers)).filter(text => text.toLowerCase().includes("no such word")).length;
}"""
HOSTILE = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'><b>bold</b>"
LETTERS = random.Random(0)
WORDS = ["".join(LETTERS.choices("etaoinshrdlucmfwyp", k=LETTERS.randint(2, 11))) for _ in range(3000)]
# As often as in real text (Zipf), so that they pack as it does; summed up once, not for each of 40,000 answers
COMMON = [*itertools.accumulate(1 / (rank + 3) for rank in range(len(WORDS)))]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=LONGEST)
        expect.set_options(timeout=LONGEST)
        yield chromium
        chromium.close()


def opened(browser, path: Path, width: int = 1400):
    """The page, opened without a network; what goes wrong in it is kept in `.wrong`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
    page.set_default_timeout(LONGEST)
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith("file:") else page.wrong.append(request.url))
    page.goto(path.as_uri())
    expect(page.locator("#questions .asked").first).to_be_visible()
    return page


def rewrite(run: Path, change) -> None:
    """`change(number, row)` made to every line of the run's predictions."""
    path = run / "eval" / "predictions.jsonl"
    rows = read_jsonl(path)
    for number, row in enumerate(rows):
        change(number, row)
    write_jsonl(path, rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """index.html of three models and 30 questions: number 7 alone asks for a zebra, number 9 holds markup."""
    folder = tmp_path_factory.mktemp("study")
    ids = "".join(chr(0x4E00 + number) for number in range(30))
    contaminated = {"contamination": {"passed": False, "summary": "one", "contaminated": [ids[4]]}}
    runs = [make_run(folder / "lora", 0.9, ids=ids, audits=contaminated)]
    runs.append(make_run(folder / "gpt2", 1.9, "base", ids=ids))
    runs.append(make_run(folder / "full", 1.2, "full", ids=ids, noise=0.3))
    special = {6: "what does a Zebra bond pay?", 8: HOSTILE, 3: "and what of a long question? " * 12}

    def change(number, row):
        if number == 2:
            row["system"] = "Be brief."
            row["history"] = [
                {"role": "user", "content": "What is a coupon?"},
                {"role": "assistant", "content": HOSTILE},
            ]
        row["instruction"] = f"Question {number + 1}: {special.get(number, '?')}"
        row["reference"] = "A loan of 1.5 % to the state."
        row["stopped"] = number > 0
        row["prediction"] = HOSTILE if number == 8 else "A loan of 2.5 % to nobody."
        if number == 2:
            row |= {"number": {"value": "1.5", "unit": "%", "tolerance": "0.05"}, "number_right": False}

    for run in runs:
        rewrite(run, change)
    report(*runs, out=folder / "out")
    return folder / "out" / "index.html"


@pytest.mark.parametrize("gpu", ["", "a GPU"])
def test_of_different_machines_times_and_memory_are_not_drawn(browser, tmp_path, gpu):
    folder, runs = make_study(tmp_path / "study")
    for run in runs[1:]:
        held = json.loads((run / "provenance.json").read_text())
        held["hardware"] = {"processor": "a CPU", "cores": 2}
        (run / "provenance.json").write_text(json.dumps(held))
    held["hardware"]["gpu"] = gpu
    (run / "provenance.json").write_text(json.dumps(held))
    done = leaderboard(*runs, "--study", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = opened(browser, tmp_path / "out" / "index.html")
    shown = page.locator("#study-choice button").all_text_contents()
    assert shown == ["Trainable parameters", *(["Train time", "Peak memory"] if not gpu else [])]


@pytest.mark.parametrize("width", [390, 1200])
def test_more_methods_than_one_chart_can_hold_have_each_its_own(browser, tmp_path, monkeypatch, width):
    methods = {
        f"method_{n}": ((1.2 + n / 50, 1.21 + n / 50), 10**n, 60.0, 10.0 ** -(n % 4), "inside") for n in range(9)
    }
    monkeypatch.setattr(test_study_page, "METHODS", methods)
    folder, runs = make_study(tmp_path / "study")
    done = leaderboard(*runs, "--study", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = opened(browser, tmp_path / "out" / "index.html", width)
    panels = page.locator("#rate-chart-0 svg")
    assert panels.count() == 9 and page.locator("#rate-legend-0 button").count() == 0
    told = [panel.get_attribute("aria-label") for panel in panels.all()]
    rates = ("1", "0.1", "0.01", "0.001")
    assert told == [f"method_{n}: validation loss against learning rate, {rates[n % 4]} chosen" for n in range(9)]
    assert [panel.locator(".ring").count() for panel in panels.all()] == [1] * 9
    left, right = (panels.nth(n).bounding_box() for n in (0, 1))
    assert left["x"] + left["width"] <= right["x"] and page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )
    # What is drawn faintly is seen, also of the ninth method, whose other dots are hollow
    fills = [panels.nth(n).locator(".dot.faint").first.evaluate("e => getComputedStyle(e).fill") for n in (0, 8)]
    strokes = [panels.nth(n).locator("path").evaluate("e => getComputedStyle(e).stroke") for n in (0, 8)]
    assert fills == strokes and page.wrong == []
    # On a phone too the study stands before the single runs
    assert page.locator("#study").bounding_box()["y"] < page.locator("#ranking").bounding_box()["y"]


def status(page) -> str:
    return page.text_content("#status")


def asked(page) -> list[str]:
    return page.locator("#questions .asked").all_text_contents()


def test_search_filters_and_pages_find_questions(browser, study):
    page = opened(browser, study)
    assert status(page) == "Questions 1 to 20 of 30" and len(asked(page)) == 20
    page.locator(".turn button", has_text="Next").first.click()
    expect(page.locator("#status")).to_have_text("Questions 21 to 30 of 30")
    page.fill("#search", "zebra PAY")
    expect(page.locator("#status")).to_have_text("Questions 1 to 1 of 1 found among 30")
    assert asked(page) == ["Question 7: what does a Zebra bond pay?"]
    page.fill("#search", "no such words")
    expect(page.locator("#status")).to_have_text("No question fits.")
    page.fill("#search", "")
    page.select_option("#filter", "duplicated")
    expect(page.locator("#questions .asked")).to_have_text(["Question 5: ?"])
    page.select_option("#filter", "cut")  # the first answer alone did not stop
    expect(page.locator("#questions .asked")).to_have_text(["Question 1: ?"])
    assert page.wrong == []


def test_the_turns_before_a_question_are_shown_and_searched(browser, study):
    page = opened(browser, study)
    assert page.locator("#questions .turns").count() == 0  # the first question has none
    page.fill("#search", "what is a COUPON")
    expect(page.locator("#questions .asked")).to_have_text(["Question 3: ?"])
    page.locator("#questions summary").first.click()
    turns = page.locator("#questions .turns li")
    expect(turns).to_have_count(3)
    assert turns.locator(".role").all_text_contents() == ["system", "user", "assistant"]
    assert turns.locator(".text").all_text_contents() == ["Be brief.", "What is a coupon?", HOSTILE]
    assert page.evaluate("window.attacked") is None and page.wrong == []


def test_questions_are_ordered_by_difference_among_the_models_that_are_shown(browser, study):
    page = opened(browser, study)
    page.select_option("#order", "differ")  # full is 30 % worse on every second question: nearer to gpt2, the worst
    page.get_by_role("checkbox", name="gpt2").uncheck()
    expect(page.locator("#questions .asked").first).to_have_text("Question 2: ?")
    assert all(int(text.split()[1][:-1]) % 2 == 0 for text in asked(page)[:15])
    page.select_option("#order", "easy")
    expect(page.locator("#questions .asked").first).to_have_text("Question 1: ?")
    assert page.wrong == []


def test_answers_are_built_when_opened_and_their_words_compared(browser, study):
    page = opened(browser, study)
    assert page.locator(".answer").count() == 3  # of the first question alone, which is open
    page.locator("#questions summary").nth(2).click()
    card = page.locator("#questions details").nth(2)
    card.locator(".answer").first.wait_for()
    assert card.locator(".answer .text").first.text_content() == "A loan of 2.5 % to nobody."
    assert card.locator(".answer .badges").first.text_content().endswith("number wrong")
    assert "number" not in page.locator("#questions details").nth(0).locator(".answer .badges").first.text_content()
    page.select_option("#words", "changes")
    expect(page.locator("#questions ins").first).to_be_visible()
    card = page.locator("#questions details").nth(2)  # still open
    assert card.locator(".answer del").first.text_content() == "1.5"
    assert card.locator(".answer ins").first.text_content() == "2.5"
    page.select_option("#words", "shared")
    expect(page.locator("#questions mark").first).to_be_visible()
    answer = page.locator("#questions details").nth(2).locator(".answer").first
    assert answer.locator("mark").all_text_contents() == ["A", "loan", "of", "%", "to"]
    page.click("#open-all")
    expect(page.locator(".answer")).to_have_count(60)
    assert page.text_content("#open-all") == "Close all" and page.wrong == []


def test_the_table_sorts_by_click_and_by_key(browser, study):
    page = opened(browser, study)
    names = page.locator("#ranking-table tbody th .named")
    assert names.all_text_contents() == ["lora", "full", "gpt2"]
    assert page.get_attribute("#ranking-table th[data-key=position]", "aria-sort") == "ascending"
    page.get_by_role("button", name="Bits per byte").click()
    assert names.all_text_contents() == ["lora", "full", "gpt2"]
    page.get_by_role("button", name="Bits per byte").click()
    assert names.all_text_contents() == ["gpt2", "full", "lora"]
    page.get_by_role("button", name="Model").press("Enter")
    assert names.all_text_contents() == ["full", "gpt2", "lora"]
    assert page.get_attribute("#ranking-table th[data-key=name]", "aria-sort") == "ascending"
    assert page.get_attribute("#ranking-table th[data-key=bits_per_byte]", "aria-sort") is None


def test_two_models_are_compared_in_either_direction(browser, study):
    page = opened(browser, study)
    page.select_option("#model-a", label="lora")
    page.select_option("#model-b", label="gpt2")
    said = "lora needs 1.000 bits per byte fewer than gpt2"
    expect(page.locator("#difference")).to_contain_text(said)
    text = page.text_content("#difference")
    assert "interval of the difference −1.000 to −1.000, p below 0.001, both for all 3 pairs at once)" in text
    assert text.endswith("lora is the better one.")
    page.select_option("#model-a", label="gpt2")
    assert page.text_content("#difference") == "Choose two different models."
    page.select_option("#model-b", label="full")
    said = "gpt2 needs 0.700 bits per byte more than full"
    expect(page.locator("#difference")).to_contain_text(said)
    expect(page.locator("#apart li")).to_have_count(8)
    first = page.locator("#apart button").first
    assert int(first.text_content().split()[1][:-1]) % 2 == 1  # full is 30 % better on these
    first.click()
    expect(page.locator("#questions details[open] .answer")).to_have_count(2)
    assert page.input_value("#order") == "differ"
    assert page.locator("#questions details[open]").first.locator("h4").all_text_contents() == ["full", "gpt2"]
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY" and page.wrong == []


def test_a_pair_that_cannot_be_tested_or_that_few_questions_decide_is_said_so(browser, tmp_path):
    runs = [make_run(tmp_path / name, bits, ids="abcd") for name, bits in (("a", 0.9), ("b", 1.0))]
    report(*runs, out=tmp_path / "few")
    page = opened(browser, tmp_path / "few" / "index.html")
    expect(page.locator("#difference")).to_contain_text("There are too few questions to test the two.")
    assert page.locator("#difference-chart svg").count() == 0 and page.wrong == []
    runs = [make_run(tmp_path / name, 0.9) for name in ("c", "d")]
    rewrite(runs[1], lambda number, row: row.update(nll=row["nll"] + 0.1 * (number == 3)))
    report(*runs, out=tmp_path / "one")
    page = opened(browser, tmp_path / "one" / "index.html")
    said = "Few questions decide this difference: 1 holds 92 % of its variance."
    expect(page.locator("#difference")).to_contain_text(said)


@pytest.mark.parametrize("width", [390, 1200])
def test_the_table_comes_early_and_figures_stay_beside_their_questions(browser, study, width):
    page = opened(browser, study, width)
    # It begins in the upper two thirds of the first screen, whatever stands before it.
    assert page.locator("#ranking-table").bounding_box()["y"] < page.viewport_size["height"] * 2 / 3
    assert (page.locator("#found").bounding_box()["y"] < page.locator("#ranking").bounding_box()["y"]) == (width > 640)
    expect(page.locator("#apart li")).to_have_count(8)
    for entry in page.locator("#apart li").all():
        whole, figure = entry.bounding_box(), entry.locator(".number").bounding_box()
        assert whole["y"] <= figure["y"] and figure["y"] + figure["height"] <= whole["y"] + whole["height"] + 1


def test_the_page_is_used_with_the_keyboard_alone(browser, study):
    page = opened(browser, study)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answers"
    page.locator("#questions summary").nth(1).focus()
    page.keyboard.press("Enter")
    page.locator("#questions details").nth(1).locator(".answer").first.wait_for()
    page.locator("#loss-chart svg").focus()
    page.keyboard.press("ArrowRight")
    assert "at step" in page.text_content("#loss-legend output")
    unnamed = "[...document.querySelectorAll('button, select, input, svg[role=img], [role=region]')]"
    named = "e.textContent.trim() || e.ariaLabel || e.labels?.length || e.getAttribute('aria-labelledby')"
    unnamed += f".filter(e => !({named}))"
    assert page.evaluate(f"{unnamed}.length") == 0


def test_hostile_text_is_shown_and_does_nothing(browser, study):
    page = opened(browser, study)
    page.click("#open-all")
    for words, mark in (("shared", "mark"), ("changes", "ins")):
        page.select_option("#words", words)
        expect(page.locator(f"#questions {mark}").first).to_be_visible()
        expect(page.locator(".answer")).to_have_count(60)
    page.select_option("#words", "plain")
    expect(page.locator("#questions ins")).to_have_count(0)
    assert HOSTILE in asked(page)[8]
    assert page.locator("#questions details").nth(8).locator(".answer .text").first.text_content() == HOSTILE
    assert page.evaluate("window.attacked") is None
    assert page.locator("#questions script, #questions img, .answer .text b").count() == 0 and page.wrong == []


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_does_not_scroll_sideways(browser, study, width):
    page = opened(browser, study, width)
    page.click("#open-all")
    expect(page.locator(".answer")).to_have_count(60)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def large_run(path: Path, number: int, ids: str) -> Path:
    run = make_run(path, 1 + number / 100, ids=ids, noise=0.1)

    def change(index, row):
        row["instruction"] = f"Question {index}: {' '.join(random.Random(index).choices(WORDS, k=12))}?"
        row["prediction"] = " ".join(random.Random(index * MODELS + number).choices(WORDS, cum_weights=COMMON, k=40))

    rewrite(run, change)
    return run


def test_twenty_models_on_two_thousand_questions_open_and_search_fast(browser, tmp_path):
    ids = "".join(chr(0x4E00 + number) for number in range(QUESTIONS))
    runs = [large_run(tmp_path / f"model{number:02}", number, ids) for number in range(MODELS)]
    report(*runs, out=tmp_path / "out")
    path = tmp_path / "out" / "index.html"
    assert path.stat().st_size < MOST_BYTES
    page = opened(browser, path)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    spent = 0.0

    def seconds_since() -> float:
        """Processor time of the page's own process since the last call: other work on the machine is not in it."""
        nonlocal spent
        figures = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        before, spent = spent, figures["ProcessTime"]
        return spent - before

    seconds = {"open": seconds_since()}
    assert status(page) == "Questions 1 to 20 of 2000"
    for name, words in (("search", "Question 1234:"), ("search again", "Question 1567:")):
        page.fill("#search", words)
        expect(page.locator("#questions .asked").first).to_contain_text(words)
        seconds[name] = seconds_since()
        assert status(page) == "Questions 1 to 1 of 1 found among 2000"
    assert page.evaluate(BASELINE, [MODELS * QUESTIONS, 40]) == 0
    baseline = seconds_since()
    assert all(took < MOST[name] * baseline for name, took in seconds.items()), (seconds, baseline)
    assert page.wrong == []
