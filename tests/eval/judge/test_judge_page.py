"""The judge's page in a real headless Chromium: votes by keyboard and by touch, kept, saved, and read."""

import html
import json
import re
import shutil
from collections import Counter

import pytest
from evaluated_runs import leaderboard
from judged_runs import NAMES, answered_runs

from eval.evaluated import read_runs
from eval.judge.screens import screens_of
from eval.judge.votes import known_answers, read_votes
from finllm.files import read_jsonl, write_jsonl

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page is not opened")
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: the page is not opened")
LONGEST = 300_000  # milliseconds: a machine under load is slow
HOSTILE = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'><b>bold</b>"
KEYS = {"first": "1", "second": "2", "tie": "=", "neither": "0"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three runs, and the page of 40 screens made of them."""
    folder = tmp_path_factory.mktemp("judge")
    runs = answered_runs(folder)
    for run in runs:
        rows = read_jsonl(run / "eval/predictions.jsonl")
        rows[0]["prediction"] = f"{HOSTILE} {run.name[-1]}"
        rows[0]["history"] = [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "No."}]
        write_jsonl(run / "eval/predictions.jsonl", rows)
    done = leaderboard(*runs, "--judge", folder / "judge.html", "--questions", 40)
    assert done.returncode == 0, done.stderr
    return folder, runs


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=LONGEST)
        expect.set_options(timeout=LONGEST)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, made):
    """`visit()`: the page opened without a network, in one browser profile a test, so that it may be closed between."""
    contexts = {}

    def opened(width: int = 1200):
        if width not in contexts:
            contexts[width] = browser.new_context(viewport={"width": width, "height": 800}, offline=True)
        page = contexts[width].new_page()
        page.set_default_timeout(LONGEST)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith("file:") else page.wrong.append(request.url))
        page.goto((made[0] / "judge.html").as_uri())
        return page

    yield opened
    for context in contexts.values():
        context.close()


def begin(page, judge="Ann") -> None:
    page.locator("#judge").focus()
    page.keyboard.type(judge)
    page.keyboard.press("Enter")
    expect(page.locator("#judging")).to_be_visible()


def shown(page) -> tuple[str, str, str]:
    return tuple(page.text_content(f"#{each}") for each in ("question", "answer-first .text", "answer-second .text"))


def download(page, button="#save"):
    with page.expect_download() as started:
        page.locator(button).press("Enter")
    return started.value


def test_no_name_of_a_model_and_no_address_stands_in_the_source(made):
    source = (made[0] / "judge.html").read_text(encoding="utf-8")
    for name in (*NAMES, "gpt2", "lora", str(made[0]), "data/finance"):
        assert name not in source
    assert not re.search(r"https?://|src=|@import|url\(", source.replace("\\u003cimg src=x", ""))
    assert "default-src 'none'" in html.unescape(source)


def test_forty_votes_by_keyboard_closed_and_opened_again_saved_and_read(visit, made, tmp_path):
    runs = made[1]
    page = visit()
    begin(page)
    told, votes = [], []

    def vote(page) -> None:
        screen = shown(page)
        # The answer of the first animal wins, but for two kinds of screens.
        choice = ("neither" if "number 3?" in screen[0] else "tie" if "number 5?" in screen[0]
                  else "first" if "Animal 0" in screen[1] else "second")  # fmt: skip
        told.append(screen)
        votes.append(choice)
        assert page.evaluate("document.activeElement.id") == "question"  # where a screen reader reads on
        page.keyboard.press(KEYS[choice])

    for _ in range(17):
        vote(page)
    expect(page.locator("#status")).to_have_text("Question 18 of 40, 17 voted on")
    waiting = shown(page)
    page.close()
    page = visit()
    expect(page.locator("#resume-text")).to_contain_text("Ann, 17 of 40 votes")
    page.locator("#go-on").press("Enter")
    assert shown(page) == waiting
    for _ in range(23):
        vote(page)
    expect(page.locator("#end h1")).to_be_visible()
    file = download(page)
    assert file.suggested_filename == "votes-Ann.json"
    file.save_as(path := tmp_path / file.suggested_filename)
    expect(page.locator("#end .saved")).to_contain_text("Saved as votes-Ann.json")
    (judge,) = read_votes([path], read_runs(runs, "test"))
    assert [vote.choice for vote in judge.votes] == votes and (judge.name, judge.reference_shown) == ("Ann", False)
    texts = {(run.name, row["id"]): row["prediction"] for run in read_runs(runs, "test") for row in run.predictions}
    asked = {row["id"]: row for row in read_runs(runs, "test")[0].predictions}
    for vote, screen in zip(judge.votes, told, strict=True):
        row = asked[vote.example]
        both = [texts.get((name, vote.example), row["reference"]) for name in (vote.first, vote.second)]
        assert (row["instruction"], *both) == screen
    assert page.wrong == [] and page.evaluate("window.attacked") is None
    done = leaderboard(*runs, "--votes", path, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out/leaderboard.json").read_text(encoding="utf-8"))
    assert content["people"]["models"][0]["name"] == NAMES[0] and content["people"]["votes"] == 40


def test_pairs_meet_equally_often_and_what_tests_a_judge_is_among_them(visit, made, tmp_path):
    page = visit()
    begin(page, "Bo")
    for _ in range(40):
        page.keyboard.press("1")
    download(page).save_as(tmp_path / "votes.json")
    held = read_runs(made[1], "test")
    (judge,), known = read_votes([tmp_path / "votes.json"], held), known_answers(held)
    pairs = Counter((vote.example, frozenset((vote.first, vote.second))) for vote in judge.votes)
    meetings = Counter(models for _, models in pairs if None not in models)
    assert set(meetings.values()) == {10} and len(meetings) == 3
    checks = sum(None in models for _, models in pairs)
    repeats = [vote for vote in judge.votes if pairs[vote.example, frozenset((vote.first, vote.second))] == 2]
    assert (checks, len(repeats)) == (5, 10) and len({vote.example for vote in judge.votes}) == 35
    places: dict = {}
    for place, vote in enumerate(judge.votes):
        places.setdefault(vote.example, []).append((place, vote.first, vote.second))
    for (early, *sides), (late, *others) in (each for each in places.values() if len(each) == 2):
        assert early < 20 <= late and sides == others[::-1]
    # Drawn: neither the order nor the sides are those of the source, but for one chance in 2 to the 34th.
    own = [(screen.example, *(known[key][1] for key in screen.keys)) for screen in screens_of(held, 40)]
    told = [(vote.example, vote.first, vote.second) for vote in judge.votes]
    assert [each[0] for each in told] != [each[0] for each in own] and 0 < len({*own} & {*told}) < 40


def test_back_undo_marks_and_remarks(visit, tmp_path, made):
    page = visit()
    page.check("#show-reference")
    begin(page, "Cé / x")
    expect(page.locator("#reference .text")).to_have_text("A loan to the state.")
    one = shown(page)
    page.locator("#answer-first").get_by_label("correct").check()
    page.locator("#answer-second").get_by_label("harmful").press("Space")
    page.fill("#remark", "Wrong year: 1 = 2")
    page.locator("#remark").press("0")  # written, and no vote
    assert shown(page) == one
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    two = shown(page)
    assert two != one and page.input_value("#remark") == "" and not page.is_checked("#answer-first >> text=correct")
    page.keyboard.press("2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert shown(page) == one and page.input_value("#remark") == "Wrong year: 1 = 20"
    assert page.get_attribute(".votes [data-choice=first]", "aria-pressed") == "true"
    page.keyboard.press("=")  # another vote in its place
    assert shown(page) == two
    page.keyboard.press("ArrowRight")
    expect(page.locator("#status")).to_have_text("Question 3 of 40, 2 voted on")
    page.keyboard.press("ArrowRight")  # no further: this one has no vote
    page.keyboard.press("0")
    expect(page.locator("#status")).to_have_text("Question 4 of 40, 3 voted on")
    page.keyboard.press("u")
    expect(page.locator("#status")).to_have_text("Question 3 of 40, 2 voted on")
    page.keyboard.press("Control+z")
    expect(page.locator("#status")).to_have_text("Question 2 of 40, 1 voted on")
    page.click("#pause")
    file = download(page, "#save-now")
    assert file.suggested_filename == "votes-Cé-x.json"
    file.save_as(path := tmp_path / "votes.json")
    (judge,) = read_votes([path], read_runs(made[1], "test"))
    (vote,) = judge.votes
    assert (vote.choice, vote.remark, judge.reference_shown) == ("tie", "Wrong year: 1 = 20", True)
    assert vote.marks == {"first": ["correct"], "second": ["harmful"]}
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#start-over")
    expect(page.locator("#begin")).to_be_visible()
    assert page.wrong == []


def test_hostile_texts_are_shown_and_do_nothing(visit):
    page = visit()
    begin(page)
    for _ in range(40):
        if HOSTILE in shown(page)[1]:
            break
        page.keyboard.press("=")
    assert HOSTILE in page.text_content("#turns") and page.evaluate("window.attacked") is None
    assert page.locator("main img, main b, main script").count() == 0 and page.wrong == []


@pytest.mark.parametrize("width", [390, 1200])
def test_the_vote_is_at_hand_nothing_scrolls_sideways_and_all_has_a_name(visit, width):
    page = visit(width)
    begin(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#answer-first .text").evaluate("e => { e.textContent = 'a long answer '.repeat(2000); }")
    for button in page.locator(".votes button").all():
        box = button.bounding_box()
        assert box["height"] >= 44 and box["y"] >= 0 and box["y"] + box["height"] <= 800
    page.locator(".votes button").first.click()
    expect(page.locator("#status")).to_have_text("Question 2 of 40, 1 voted on")
    named = "e.textContent.trim() || e.ariaLabel || e.labels?.length || e.getAttribute('aria-labelledby')"
    unnamed = f"[...document.querySelectorAll('button, input, textarea, progress, [role]')].filter(e => !({named}))"
    assert page.evaluate(f"{unnamed}.filter(e => e.id !== 'status' && !e.classList.contains('saved')).length") == 0
    votes = (
        page.locator("[aria-label='Your vote']")
        .get_by_role("button")
        .evaluate_all("each => each.map(e => [e.firstChild.textContent.trim(), e.getAttribute('aria-keyshortcuts')])")
    )
    assert votes == [["Answer 1 is better", "1"], ["Answer 2 is better", "2"], ["Equally good", "="], ["Both bad", "0"]]
    levels = page.locator("main:visible :is(h1, h2):visible").evaluate_all("each => each.map(e => e.tagName)")
    assert levels == ["H1", "H2", "H2"]


def test_a_browser_that_keeps_nothing_is_said_so_and_votes_are_cast_all_the_same(browser, made):
    page = browser.new_page(offline=True)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked'); } })")
    page.goto((made[0] / "judge.html").as_uri())
    expect(page.locator("#unkept")).to_be_visible()
    begin(page)
    page.keyboard.press("=")
    page.click("#pause")  # the page itself still knows, as long as it is open
    expect(page.locator("#resume-text")).to_contain_text("Ann, 1 of 40 votes")
    page.click("#go-on")
    for _ in range(39):
        page.keyboard.press("=")
    expect(page.locator("#summary")).to_contain_text("40 of 40 votes are cast")
    page.close()
