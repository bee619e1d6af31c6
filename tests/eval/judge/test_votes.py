"""Votes files: what is wrong with one is said, and what the report makes of those that are right."""

import json

import pytest
from evaluated_runs import Page, leaderboard
from judged_runs import IDS, NAMES, answered_runs, cast, saved

from eval.evaluated import read_runs
from eval.judge.screens import screens_of
from eval.judge.votes import Vote, known_answers
from eval.report.people import _arrays
from finllm.errors import UserError
from finllm.files import read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return answered_runs(tmp_path_factory.mktemp("votes"))


def likes(*order: str):
    """A judge who always prefers the animal that comes first in `order`, and the reference to all of them."""

    def rank(text: str) -> int:
        return next((place for place, number in enumerate(order) if f"Animal {number} " in text), -1)

    return lambda first, second: "first" if rank(first) < rank(second) else "second"


def board(runs, out, *files):
    done = leaderboard(*runs, "--votes", *files, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "leaderboard.json").read_text(encoding="utf-8")), done.stdout


def refused(runs, tmp_path, *files) -> str:
    done = leaderboard(*runs, "--votes", *files, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists(), done.stdout
    return done.stderr


def test_judges_who_agree_find_the_order_and_which_metric_has_it_too(runs, tmp_path):
    judges = {"Ann": False, "Bo": False, "Cy": True}  # and whether the sides were drawn otherwise
    files = [
        cast(runs, tmp_path / f"votes-{name}.json", name, likes("0", "1", "2"), each) for name, each in judges.items()
    ]
    content, out = board(runs, tmp_path / "out", *files)
    people = content["people"]
    assert [each["name"] for each in people["models"]] == list(NAMES)
    assert [each["win_rate"]["value"] for each in people["models"]] == [1.0, 0.5, 0.0]
    assert [(each["wins"], each["ties"], each["losses"]) for each in people["models"]] == [
        (60, 0, 0),
        (30, 0, 30),
        (0, 0, 60),
    ]
    strength = [each["strength"] for each in people["models"]]
    assert sum(each["value"] for each in strength) == pytest.approx(0, abs=1e-9)
    assert strength[0]["low"] > strength[1]["high"] and strength[1]["low"] > strength[2]["high"]
    assert people["alpha"] == {"value": 1.0, "low": 1.0, "high": 1.0} and people["counted"] == 90
    metrics = {each["metric"]: each for each in people["metrics"]}
    # Bits per byte rise from model to model and so does the order of people: they agree. ROUGE-L falls: it agrees, too.
    assert metrics["bits_per_byte"]["tau"]["value"] == 1 and metrics["bits_per_byte"]["agreement"]["value"] == 1
    assert metrics["rougeL"]["tau"]["value"] == 1 and metrics["bleu"]["tau"] is None and "number_right" not in metrics
    for judge in people["judges"]:
        assert (
            judge["consistency"]["value"] == judge["checks"]["value"] == 1 and judge["repeats"] == judge["checked"] == 5
        )
        assert judge["votes"] == judge["screens"] == 40 and judge["neither"] == 0 and judge["seconds"] == 9
    said = f"3 judges prefer {NAMES[0]}: it wins 100 % (100–100) of its 60 votes."
    assert said in content["finding"] and said in " ".join(out.split())
    markdown = (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")
    assert (
        "**What people prefer**, 90 votes on 30 questions" in markdown
        and "| bits per byte | 1.00 (1.00 to 1.00)" in markdown
    )
    page = Page(tmp_path / "out/index.html")
    assert "What people prefer" in page.text and "Krippendorff's alpha of the judges is 1.00" in page.text


def test_people_may_contradict_a_metric_and_each_other(runs, tmp_path):
    one = cast(runs, tmp_path / "votes-a.json", "Ann", likes("2", "1", "0"))
    content, _ = board(runs, tmp_path / "out", one)
    people = content["people"]
    assert [each["name"] for each in people["models"]] == [*reversed(NAMES)] and people["alpha"] is None
    assert {each["metric"]: each["tau"] and each["tau"]["value"] for each in people["metrics"]}["bits_per_byte"] == -1
    assert any("One judge voted" in line for line in Page(tmp_path / "out/index.html").parts)
    other = cast(runs, tmp_path / "votes-b.json", "Bo", likes("0", "1", "2"))
    people = board(runs, tmp_path / "both", one, other)[0]["people"]
    assert people["alpha"]["value"] < -0.5 and all(each["win_rate"]["value"] == 0.5 for each in people["models"])
    assert all(each["strength"]["value"] == pytest.approx(0, abs=1e-6) for each in people["models"])


def test_a_judge_who_looks_at_the_side_alone_is_found_out(runs, tmp_path):
    file = cast(runs, tmp_path / "votes.json", "Ann", lambda first, second: "first")
    people = board(runs, tmp_path / "out", file)[0]["people"]
    (judge,) = people["judges"]
    assert judge["consistency"]["value"] == 0 and people["position"]["value"] == 1 and people["position"]["votes"] == 40
    assert people["position"]["low"] > 0.9
    text = Page(tmp_path / "out/index.html").text
    assert "chose the answer that stood first" in text and "nobody looked" in text


def test_ties_both_bad_and_votes_that_were_not_cast(runs, tmp_path):
    file = cast(
        runs, tmp_path / "votes.json", "Ann", lambda first, second: "neither" if "Animal 2" in first + second else "tie"
    )
    content = json.loads(file.read_text("utf-8"))["content"]
    saved(file, {**content, "votes": content["votes"][:21]})
    people = board(runs, tmp_path / "out", file)[0]["people"]
    assert {each["win_rate"]["value"] for each in people["models"]} == {0.5} and people["position"] is None
    assert all(abs(each["strength"]["value"]) < 1e-9 for each in people["models"]) and people["ties"] > 3
    assert people["judges"][0]["neither"] == 14 and people["judges"][0]["checks"] is None
    assert "Ann voted on 21 of 40 screens." in Page(tmp_path / "out/index.html").text


def edit(content, **changes):
    content["votes"][3].update(changes)
    return content


WRONG = {  # a change of the content, saved with its checksum, and what is said of it
    "choice": (
        lambda content: edit(content, choice="third"),
        "votes[3].choice is 'third', not one of first, second, tie",
    ),
    "mark": (lambda content: edit(content, marks={"first": ["good"], "second": []}), "marks.first holds 'good'"),
    "type": (lambda content: edit(content, seconds="9"), "content.votes[3].seconds is '9', not int"),
    "itself": (
        lambda content: edit(content, first=content["votes"][3]["second"]),
        "votes[3] holds one answer against itself",
    ),
    "foreign": (
        lambda content: edit(content, first="0" * 16),
        "1 of 40 votes are about answers that none of these runs gave",
    ),
    "question": (
        lambda content: edit(content, question=content["votes"][4]["question"]),
        "1 of 40 votes are about answers",
    ),
    "missing": (lambda content: {**content, "page": None}, "content.page is None, not str"),
    "nobody": (lambda content: {**content, "judge": " "}, "content.judge is empty"),
    "none": (lambda content: {**content, "votes": []}, "content.votes is empty"),
    "twice": (lambda content: {**content, "votes": [*content["votes"][:-1], content["votes"][0]]}, "voted on 2 times"),
    "more": (lambda content: {**content, "screens": 39}, "there are 40 votes and the page has 39 screens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_no_page_saved_is_refused_with_what_is_wrong(runs, tmp_path, name):
    change, said = WRONG[name]
    file = cast(runs, tmp_path / "votes.json", "Ann", likes("0", "1", "2"))
    saved(file, change(json.loads(file.read_text("utf-8"))["content"]))
    error = refused(runs, tmp_path, file)
    assert said in error and str(file) in error


@pytest.mark.parametrize(("old", "new"), [
    ('"choice": "first"', '"choice": "second"'), ('"judge": "Ann"', '"judge": "Bo"'), ('"seconds": 9', '"seconds": 8'),
    ('"remark": ""', '"remark": "no"'),
])  # fmt: skip
def test_an_edited_file_is_refused(runs, tmp_path, old, new):
    file = cast(runs, tmp_path / "votes.json", "Ann", likes("0", "1", "2"))
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")
    error = refused(runs, tmp_path, file)
    assert f"{file} was changed after it was saved" in error and "ask for the file as the page saved it" in error


def test_every_file_that_is_wrong_is_named_at_once(runs, tmp_path):
    broken, other = tmp_path / "a.json", tmp_path / "b.json"
    broken.write_text("{")
    other.write_text(json.dumps({"schema_version": 1, "models": []}))
    two = [cast(runs, tmp_path / f"{name}.json", "Ann", likes("0", "1", "2")) for name in "cd"]
    error = refused(runs, tmp_path, broken, other, tmp_path / "gone.json", *two)
    assert "4 problems in the votes" in error and "gone.json: there is no such file" in error
    assert "b.json, which is no votes file" in error and "a.json" in error
    assert "c.json and" in error and "are of one judge and one page; name one of them" in error


def test_votes_on_other_answers_are_foreign_and_more_runs_do_no_harm(runs, tmp_path):
    file = cast(runs[:2], tmp_path / "votes.json", "Ann", likes("0", "1"))
    people = board(runs, tmp_path / "more", file)[0]["people"]
    assert [each["name"] for each in people["models"]] == list(NAMES[:2])
    error = refused(runs[1:], tmp_path, file)
    assert "votes are about answers that none of these runs gave" in error and "name all runs of that page" in error


def test_answers_to_one_question_are_drawn_together():
    def vote(example):
        return 0, Vote(example, "a", "b", "first", {"first": [], "second": []}, "", 9)

    votes = _arrays([vote("x"), vote("y"), vote("z")], ["a", "b"], {"x": "one", "y": "two", "z": "one"})
    assert votes.question.tolist() == [0, 1, 0] and votes.outcome.tolist() == [1, 1, 1]


def test_files_go_with_flags(runs, tmp_path):
    file = cast(runs, tmp_path / "votes.json", "Ann", likes("0", "1", "2"))
    for flags, said in (
        (("--votes", file), "--votes goes into the report; give --output_dir"),
        ((), "give --output_dir, the folder for the report, or --judge"),
        (("--questions", 9, "--output_dir", tmp_path / "out"), "--questions says how long the page of --judge is"),
        (("--judge", tmp_path), "is a folder; name a file"),
        (("--judge", tmp_path / "j.html", "--questions", 0), "--questions is 0; it must be at least 1"),
        (("--judge", tmp_path / "j.html", "--questions", 4), "3 models make 3 pairs, which need 5 questions or more"),
        (("--judge", tmp_path / "j.html", "--questions", 500), "were answered by all of these runs"),
    ):
        done = leaderboard(*runs, *flags)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "j.html").exists()
    done = leaderboard(runs[0], "--judge", tmp_path / "j.html")
    assert done.returncode == 2 and "two models or more" in done.stderr


@pytest.mark.parametrize(("models", "number"), [(2, 40), (3, 40), (3, 11), (5, 40), (2, 5)])
def test_every_two_models_meet_equally_often_on_questions_that_all_answered(tmp_path, models, number):
    folders = answered_runs(tmp_path, tuple(f"m{n}" for n in range(models)))
    rows = read_jsonl(folders[0] / "eval/predictions.jsonl")
    other = {row["id"]: row["prediction"] for row in read_jsonl(folders[1] / "eval/predictions.jsonl")}
    for row in rows[:3]:
        row["prediction"] = other[row["id"]] + " "  # the same words: nothing to judge
    write_jsonl(folders[0] / "eval/predictions.jsonl", rows)
    runs = read_runs(folders, "test")
    screens, known = screens_of(runs, number), known_answers(runs)
    assert len(screens) == number == len({(each.example, each.keys) for each in screens})
    meetings, repeats, checks = {}, 0, 0
    seen = set()
    for screen in screens:
        whose = frozenset(known[key][1] for key in screen.keys)
        again = (screen.example, whose) in seen
        seen.add((screen.example, whose))
        if None in whose:
            checks += 1
        elif again:
            repeats += 1
        else:
            meetings[whose] = meetings.get(whose, 0) + 1
            assert screen.texts[0].split() != screen.texts[1].split()
    assert len(meetings) == models * (models - 1) // 2 and len(set(meetings.values())) == 1
    assert checks >= 1 and abs(repeats - checks) <= 1 and screens == screens_of(runs, number)
    for row in rows[3:]:
        row["prediction"] = other[row["id"]]
    write_jsonl(folders[0] / "eval/predictions.jsonl", rows)
    with pytest.raises(UserError, match=r"with different texts: m0 and m1 \(0\)"):
        screens_of(read_runs(folders, "test"), number)


def test_one_model_given_twice_cannot_be_judged(tmp_path):
    first, second = answered_runs(tmp_path, ("m0", "m1"))
    for name in ("predictions.jsonl", "results.json"):
        (second / "eval" / name).write_text((first / "eval" / name).read_text("utf-8"), "utf-8")
    done = leaderboard(first, second, "--judge", tmp_path / "j.html")
    assert done.returncode == 2 and len(IDS) == 40, done.stdout
