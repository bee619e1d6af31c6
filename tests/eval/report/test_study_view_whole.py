"""The study view whole: rows, ranks, failures and scales of every method, and the ends of what is said and refused."""

import math
from types import SimpleNamespace

import pytest

from eval.report import study as module
from eval.report.study import findings, view
from eval.report.study_tables import markdown
from eval.results import Interval
from eval.statistics.seeds import compare_recipes, recipes
from finllm.errors import UserError
from finllm.files import write_json

# Of each method its seeds' bits per byte; one of a single seed stands below the base models, and has no rank.
METHODS = {"odd": (), "lonely": (9.0,), "lora": (1.0, 1.002), "full": (1.001, 1.003)}
BASES = {"base": 3.0, "another base": 4.0}
QUESTIONS = 12


def run(folder, name, bits, method="lora", number=0):
    """Of each question one answer of 8 bytes; what a model makes of each differs a little, by its `number`."""
    wobble = [bits + 0.01 * math.sin(place * (number + 1)) for place in range(QUESTIONS)]
    return SimpleNamespace(
        name=name, path=folder / name, ranked=True, provenance={"dataset_hash": "d"},
        config={} if method == "base" else {"seed": number}, summary={"train_seconds": 60.0, "peak_memory_bytes": 5},
        predictions=[{"id": f"e{place}", "question_id": f"q{place}", "nll": each * 8 * math.log(2), "bytes": 8}
                     for place, each in enumerate(wobble)],
        split=SimpleNamespace(metrics={"bits_per_byte": Interval(bits, bits - 0.5, bits + 0.5)}, questions=QUESTIONS),
        results=SimpleNamespace(hashes={}, model=SimpleNamespace(
            method=method, base_model="gpt2", trainable_parameters=None if method == "base" else 7)),
    )  # fmt: skip


@pytest.fixture
def studied(tmp_path):
    numbers = iter(range(20))
    groups = {
        name: [run(tmp_path, f"{name}-{seed}", each, number=next(numbers)) for seed, each in enumerate(bits)]
        for name, bits in METHODS.items()
    }
    bases = [run(tmp_path, name, bits, "base", next(numbers)) for name, bits in BASES.items()]
    methods = {
        name: {
            "tried": {"c": [{"rate": 0.01, "losses": {"6": 2.0}}]}, "failed": None,
            "chosen": {"candidate": "c", "rate": 0.01, "width": [0.01, 0.01], "edge": "inside", "settings": {}},
            "finals": [{"seed": 7, "failed": f"{name} stopped"},
                       {"seed": 8, "failed": None, "train_seconds": 6.0, "steps": 6, "curve": [[0, 3.0], [6, 2.0]]}],
        }
        for name in METHODS
    }  # fmt: skip
    methods["odd"] = {"tried": {}, "failed": "no layers", "chosen": None, "finals": []}
    study = {"runs": groups, "methods": methods, "budget": {"steps": 6, "search_steps": 2}, "seeds": [7, 8],
             "seconds": 1.0, "trainings": 2}  # fmt: skip
    return study, [bases[0], *(run for group in groups.values() for run in group), bases[1]]


def test_every_method_and_base_has_its_row_its_rank_and_what_it_is_compared_with(studied):
    study, runs = studied
    content = view(study, runs)
    method_of = {run.name: run.name.partition("-")[0] for run in runs[1:-1]}
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == ["lora", "full", "base", "another base", "lonely"]
    pooled = {method_of[each["runs"][0]]: each for each in recipes(runs[1:-1], method_of)}
    assert [*pooled] == ["lora", "full"]
    for name, each in pooled.items():
        bits, row = each["bits_per_byte"], rows[name]
        assert [row["bits_per_byte"], *row["interval"]] == [bits["value"], bits["low"], bits["high"]]
        assert row["spread"] == each["metrics"]["bits_per_byte"]["spread"] == pytest.approx(0.002 / math.sqrt(2))
    assert {name: (row["low"], row["high"], row["may_be_best"]) for name, row in rows.items()} == {
        "lora": (1, 2, True), "full": (1, 2, True), "base": (3, 4, False), "another base": (3, 4, False),
        "lonely": (None, None, False),
    }  # fmt: skip
    compared = compare_recipes(runs[1:] + runs[:1], method_of)
    pairs = {(each["a"], each["b"]): each for each in content["comparisons"]}
    assert [*pairs] == [("lora", "full"), *((a, b) for a in ("lora", "full") for b in ("base", "another base"))]
    for each in compared:
        a, b = (method_of.get(each[side][0], each[side][0]) for side in "ab")
        kept = {key: each[key] for key in ("difference", "low", "high", "p_adjusted")}
        assert pairs[a, b] == {"a": a, "b": b, **kept}


def test_the_first_and_the_last_method_have_their_failures_scales_curves_and_settings(studied):
    study, runs = studied
    held = {"scales": [0.0, 1.0], "nats_per_token": [2.0, 1.0], "best": 1.0, "split": "validation",
            "gain": {"nats_per_token": 0.0, "low": 0.0, "high": 0.0}}  # fmt: skip
    for name in ("lora-0", "full-0", "lonely-0"):
        (run,) = (run for run in runs if run.name == name)
        write_json(run.path / "eval" / "scaling.json", held)
    content = view(study, runs)
    assert content["failed"] == {
        "odd": "no layers", **{f"{name} with seed 7": f"{name} stopped" for name in ("lora", "full", "lonely")}
    }  # fmt: skip
    assert content["scaled"] == [{"name": name, **held} for name in ("lora", "full", "lonely")]
    assert content["curves"] == [{"name": name, "whole": [[0.01, 2.0]], "part": [], "rate": 0.01}
                                 for name in ("lora", "full", "lonely")]  # fmt: skip
    assert content["chosen"] == dict.fromkeys(("lora", "full", "lonely"), "learning_rate: 0.01\n")
    assert content["findings"][0].startswith("lora predicts the reference answers best")
    assert "12 questions" in content["findings"][1]


def test_runs_that_are_no_seeds_of_one_recipe_are_not_taken_together(studied):
    """Of other data: the row of their method shows the first of them, and nothing of how seeds differ."""
    study, runs = studied
    lora = study["runs"]["lora"]
    lora[1].provenance = {"dataset_hash": "another"}
    (row,) = (row for row in view(study, runs)["rows"] if row["name"] == "lora")
    assert (row["bits_per_byte"], row["interval"], row["spread"]) == (1.0, [0.5, 1.5], None)


def test_one_run_alone_is_a_study(studied):
    study, _ = studied
    of_one = {part: {"lonely": study[part]["lonely"]} for part in ("runs", "methods")}
    content = view({**study, **of_one}, study["runs"]["lonely"])
    assert [(row["name"], row["bits_per_byte"], row["low"]) for row in content["rows"]] == [("lonely", 9.0, None)]
    assert (
        content["comparisons"] == [] and content["findings"][-1] == "Not trained: lonely with seed 7 (lonely stopped)."
    )


def test_of_weights_without_a_hash_nothing_is_known_where_nothing_was_measured(studied):
    """Neither the run nor a file that is not there names weights: that is no agreement."""
    study, runs = studied
    content = view(study, runs)
    assert content["scaled"] == [] and [row["forgetting"] for row in content["rows"]] == [None] * 5
    lora = study["runs"]["lora"]
    for run, nats in zip(lora, (0.25, "much"), strict=True):
        write_json(run.path / "eval" / "forgetting.json", {"nats_per_token": nats})
    for _ in range(2):  # whichever of the seeds it is
        with pytest.raises(UserError, match=r"1 problem in eval/forgetting\.json of .*lora-[01]: nats_per_token is"):
            view(study, runs)
        lora.reverse()


# Sentences -----------------------------------------------------------------------------------------------------------


def row(name, bits, **more):
    return {"name": name, "bits_per_byte": bits, "interval": [bits, bits], "seeds": 2, "rate": 0.01, "edge": "inside",
            "low": 1, "high": 2, "may_be_best": False, "base_model": "gpt2", "trainable_parameters": 1000,
            "train_seconds": 60.0, "peak_memory_bytes": 2 * 10**9, "spread": 0.01, "width": [0.01, 0.1],
            "forgetting": None, **more}  # fmt: skip


def said(*rows, **content):
    defaults = {"rows": [*rows], "seeds": [1, 2], "scaled": [], "failed": {}, "comparisons": [], "apart": [],
                "why_apart": ""}  # fmt: skip
    return findings(defaults | content, 1200)[1:]


WORSE = "Every other method is surely worse than some method here."
SURE = [{"a": "few", "b": "base", "p_adjusted": 0.01}]


@pytest.mark.parametrize(("bits", "share"), [(2.5, None), (2.0, None), (1.0, "50 %")])
def test_a_share_of_the_gain_is_told_where_the_best_gains_something(bits, share):
    few = row("few", 2.75 if share is None else 1.5, trainable_parameters=1)
    base = row("base", 2.0, seeds=0)
    sentence = f"Of a's gain over the base model few has {share} with 0.001 of its trainable parameters."
    assert said(row("a", bits), few, base, comparisons=SURE) == [WORSE, *([sentence] if share else [])]


def test_a_base_model_above_all_that_was_trained_may_be_the_best():
    base = row("base", 0.5, seeds=0, may_be_best=True)
    sentence = "Nor can the untrained base model be told from the best of them."
    assert said(base, row("a", 1.0), row("b", 2.0)) == [WORSE, sentence]


def test_of_two_base_models_the_better_one_is_what_is_gained_over():
    rows = [row("a", 1.0), row("few", 1.5, trainable_parameters=1), row("base", 2.0, seeds=0)]
    sentence = "Of a's gain over the base model few has 50 % with 0.001 of its trainable parameters."
    assert said(*rows, row("another", 5.0, seeds=0), comparisons=SURE) == [WORSE, sentence]


@pytest.mark.parametrize("seconds", [72.0, 50.0])
def test_of_a_fifth_more_time_nothing_is_said_yet(seconds):
    assert len(said(row("a", 1.0), row("b", 1.0, may_be_best=True, train_seconds=seconds))) == 1
    assert len(said(row("a", 1.0), row("b", 1.0, may_be_best=True, train_seconds=seconds * seconds / 60))) == 2


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_an_edge_is_told_of_whichever_method_it_is(name):
    rows = [row(each, 1.0, edge="highest" if each == name else "inside") for each in "abc"]
    assert said(*rows)[1:] == [f"The best rate of {name} is the highest that was tried: a better one may lie beyond."]


def test_study_md_whole():
    rows = [row("a", 1.0, forgetting=0.25), row("b|c", 2.0, low=None, spread=None, train_seconds=7200.0)]
    equal = {"a": {"seconds": 90.0, "step": 6.0, "validation_loss": 2.0},
             "b|c": {"seconds": 90.0, "step": 2.6, "validation_loss": 1.0},
             "s": {"seconds": 5.0, "step": 4.0, "validation_loss": 0.5}}  # fmt: skip
    content = {
        "rows": rows, "findings": ["One.", "Two."], "equal_seconds": equal, "budget": {"steps": 6}, "seeds": [7, 8],
        "chosen": {"a": "x: 1\n", "b|c": "y: 2\n"}, "trainings": 33, "seconds": 30.0,
        "groups": [["a", "b|c"], ["s"]],
    }  # fmt: skip
    expected = [
        "One. Two.", "",
        "| rank | method | bits per byte | spread | rate | good rates | trainable | train time | peak memory "
        "| forgetting |",
        "| --: | :-- | --: | --: | --: | --: | --: | --: | --: | --: |",
        "| 1–2 | a | 1.000 (1.000 to 1.000) | 0.0100 | 0.01 | 0.01 to 0.1 | 1k | 1 min | 2.0 GB | 0.2500 |",
        r"| – | b\|c | 2.000 (2.000 to 2.000) | – | 0.01 | 0.01 to 0.1 | 1k | 2 h 00 min | 2.0 GB | – |", "",
        "6 steps each, rates searched on validation loss with seed 7, 2 seeds at the chosen rate, 1,200 test "
        "questions, 33 trainings in 30 s. Good rates are those within one standard error of the best. Ranks hold for "
        "all rows at once, 95 % sure, other seeds and questions drawn. Forgetting is KL(base ‖ tuned) in nats a token "
        "on texts that the base model wrote.", "",
        "**After equal seconds**, validation loss after 2 min of training:", "",
        r"- b\|c: 1.0000 nats a token, at step 3", "- a: 2.0000 nats a token, at step 6", "",
        "Of another tokenizer, whose tokens are not those above, after 5 s of training:", "",
        "- s: 0.5000 nats a token, at step 4", "",
        "**Chosen settings**, beside what all methods share:", "", "**a**", "", "```yaml", "x: 1", "```", "",
        r"**b\|c**", "", "```yaml", "y: 2", "```", "",
    ]  # fmt: skip
    assert markdown(content, 1200).split("\n") == expected


# study.json ----------------------------------------------------------------------------------------------------------

FINAL = {"run": "a-1", "seed": 1, "curve": []}
METHOD = {
    "tried": {"c": [{"rate": 0.01, "losses": {}}]}, "finals": [FINAL], "failed": None,
    "chosen": {"candidate": "c", "rate": 0.01, "validation_loss": 1.0, "edge": "inside", "width": [1.0],
               "settings": {}},
}  # fmt: skip
CONTENT = {"budget": {"steps": 6, "search_steps": 2}, "seeds": [1], "seconds": 1.0, "trainings": 1,
           "methods": {"a": METHOD}}  # fmt: skip


def without(content, *keys):
    """The content without what the keys lead to."""
    first, *rest = keys
    if rest:
        return {**content, first: without(content[first], *rest)}
    return {key: value for key, value in content.items() if key != first}


@pytest.mark.parametrize(("content", "problem"), [
    *[(without(CONTENT, key), f"{key} is missing") for key in CONTENT],
    *[(without(CONTENT, "budget", key), f"budget.{key} is missing") for key in CONTENT["budget"]],
    *[(without(CONTENT, "methods", "a", key), f"methods.a.{key} is missing") for key in ("tried", "finals")],
    *[({**CONTENT, "methods": {"a": {**METHOD, "finals": [without(FINAL, key)]}}},
       f"methods.a.finals[0].{key} is missing") for key in ("run", "seed")],
    ({**CONTENT, "methods": {"a": {**METHOD, "failed": 3}}}, "methods.a.failed is 3, not str"),
    ({**CONTENT, "methods": 3}, "methods is 3, not dict"), ({**CONTENT, "methods": None}, "methods is None, not dict"),
    ({**CONTENT, "methods": {"a": {**METHOD, "tried": {}}}}, "methods.a.tried.c is None, not list"),
    ({**CONTENT, "methods": {"a": {**METHOD, "chosen": None, "finals": [{"run": "a-0", "seed": 0}, FINAL]}}},
     "methods.a has final runs, and chosen says nothing of their settings"),
])  # fmt: skip
def test_what_is_wrong_with_a_study_is_told_with_its_place(tmp_path, content, problem):
    write_json(tmp_path / "study.json", content)
    with pytest.raises(UserError) as caught:
        module.read_study(tmp_path, [SimpleNamespace(path=tmp_path / "trials" / "a-1")])
    again = "write it again: python recipes/compare.py … --resume auto"
    assert str(caught.value) == f"1 problem in {tmp_path / 'study.json'}; {again}: {problem}"


def test_a_study_is_given_its_runs_in_whichever_order_they_come(tmp_path):
    waiting = {"tried": {}, "finals": [{"run": "b-1", "seed": 1}]}  # none of its final runs was made yet
    finals = [FINAL, {"run": "a-2", "seed": 2, "curve": []}]
    write_json(tmp_path / "study.json", {**CONTENT, "methods": {"b": waiting, "a": {**METHOD, "finals": finals}}})
    given = [SimpleNamespace(path=tmp_path / "trials" / each) for each in ("a-2", "base", "a-1")]
    for runs in (given, given[::-1]):
        found = module.read_study(tmp_path, runs)["runs"]
        assert {name: [run.path.name for run in group] for name, group in found.items()} == {
            "b": [], "a": ["a-1", "a-2"]
        }  # fmt: skip
