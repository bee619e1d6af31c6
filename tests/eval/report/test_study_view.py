"""The study view's own figures and sentences, from runs whose figures are set: each sentence from both sides of when
it is said.
"""

from types import SimpleNamespace

import pytest

from eval.report import study as module
from eval.report.study import by_tokenizer, findings, view
from eval.report.study_tables import markdown
from eval.results import Interval
from finllm.errors import UserError
from finllm.files import write_json

METHODS = {  # bits per byte of two seeds, seconds, memory, parameters, edge
    "lora": ((1.0, 1.5), (60.0, 80.0), (4, 6), 100, "inside"),
    "full": ((1.0, 1.0), (90.0, 90.0), (9, 8), 4000, "highest"),
    "one": ((1.5,), (5.0,), (1,), 5, "lowest"),
}
METHOD_OF = {f"{name}-{seed}": name for name, (bits, *_) in METHODS.items() for seed in range(len(bits))}


def run(path, bits, method="lora", parameters=0, **summary):
    model = SimpleNamespace(method=method, base_model="gpt2", trainable_parameters=parameters)
    split = SimpleNamespace(metrics={"bits_per_byte": Interval(bits, bits - 0.1, bits + 0.1)}, questions=12)
    results = SimpleNamespace(model=model, hashes={"weights": f"w of {path.name}"})
    origin = {"tokenizer_hash": path.name.startswith("one")}
    return SimpleNamespace(name=path.name, path=path, results=results, split=split, summary=summary, provenance=origin)


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The view of METHODS and a base model; of methods with two seeds `recipes` and `compare_recipes` are set."""
    groups, methods = {}, {}
    for name, (bits, seconds, memory, parameters, edge) in METHODS.items():
        groups[name] = [
            run(tmp_path / f"{name}-{seed}", value, parameters=parameters + seed, train_seconds=seconds[seed],
                peak_memory_bytes=memory[seed])
            for seed, value in enumerate(bits)
        ]  # fmt: skip
        tried = [{"rate": 1e-3, "losses": {"20": 2.0, "60": 1.5}}, {"rate": 1e-2, "losses": {"20": 3.0}},
                 {"rate": 1e-4, "losses": {"60": 1.75}}]  # fmt: skip
        methods[name] = {
            "tried": {f"{name}-r4": tried, f"{name}-r8": []}, "failed": None, "finals": [{"seed": 1, "failed": None}],
            "chosen": {"candidate": f"{name}-r4", "rate": 1e-3, "width": [1e-4, 1e-3], "edge": edge,
                       "settings": {"lora_r": 4}},
        }  # fmt: skip
    methods["odd"] = {"tried": {}, "finals": [], "failed": "no layers", "chosen": None}
    methods["lora"]["finals"].append({"seed": 2, "failed": "its disk was full"})
    study = {"runs": {**groups, "odd": []}, "methods": methods, "budget": {"steps": 60, "search_steps": 20},
             "seeds": [1, 2], "seconds": 99.0, "trainings": 7}  # fmt: skip

    def recipes(own, method_of):
        assert method_of == METHOD_OF
        by = {}
        for each in own:
            by.setdefault(each.name.rpartition("-")[0], []).append(each)
        return [
            {"runs": [each.name for each in group], "metrics": {"bits_per_byte": {"spread": len(name) / 10}},
             "bits_per_byte": {"value": sum(METHODS[name][0]) / 2, "low": 0.5, "high": 1.75}}
            for name, group in by.items() if len(group) > 1
        ]  # fmt: skip

    compared = [{"a": ["lora-0", "lora-1"], "b": ["base"], "difference": -1.0, "low": -2.0, "high": -0.5,
                 "p_adjusted": 0.01, "p": 0.001}]  # fmt: skip
    seen = {}
    monkeypatch.setattr(module, "recipes", recipes)
    monkeypatch.setattr(
        module,
        "compare_recipes",
        lambda runs, of: seen.update(compared=[r.name for r in runs], method_of=of) or compared,
    )

    def ranks(ranked, told):
        seen["ranked"], seen["told"] = [row.name for row in ranked if row.ranked], told
        return {row.name: SimpleNamespace(low=number, high=number + 1, may_be_best=number == 1)
                for number, row in enumerate(ranked, 1)}  # fmt: skip

    monkeypatch.setattr(module, "ranks", ranks)
    monkeypatch.setattr(module, "losses_at_equal_seconds", lambda given: {
        name: held is study["methods"][name] for name, held in given["methods"].items()})  # fmt: skip
    monkeypatch.setattr(module, "findings", lambda content, questions: [content["rows"][0]["name"], questions])
    base = run(tmp_path / "base", 1.75, "base")
    return study, [base, *(each for group in groups.values() for each in group)], seen


def test_rows_are_of_methods_and_of_the_base_the_best_first(made):
    study, runs, seen = made
    content = view(study, runs)
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == ["full", "lora", "one", "base"]
    assert rows["lora"] == {
        "name": "lora", "base_model": "gpt2", "seeds": 2, "bits_per_byte": 1.25, "interval": [0.5, 1.75], "spread": 0.4,
        "rate": 1e-3, "width": [1e-4, 1e-3], "edge": "inside", "trainable_parameters": 100, "train_seconds": 70.0,
        "peak_memory_bytes": 6, "forgetting": None, "low": 2, "high": 3, "may_be_best": False,
    }  # fmt: skip
    one, base = rows["one"], rows["base"]
    assert (rows["full"]["bits_per_byte"], rows["full"]["interval"], rows["full"]["spread"]) == (1.0, [0.5, 1.75], 0.4)
    assert (one["bits_per_byte"], one["interval"], one["spread"], one["seeds"]) == (1.5, [1.4, 1.6], None, 1)
    assert (one["low"], one["high"], one["may_be_best"]) == (None, None, False)  # of one seed nothing is said
    assert base == {
        "name": "base", "base_model": "gpt2", "seeds": 0, "bits_per_byte": 1.75, "interval": [1.65, 1.85],
        "trainable_parameters": 0, "spread": None, "rate": None, "width": None, "edge": None, "train_seconds": None,
        "peak_memory_bytes": None, "forgetting": None, "low": 3, "high": 4, "may_be_best": False,
    }  # fmt: skip
    assert seen["ranked"] == ["full", "lora", "base"]
    assert seen["method_of"] == METHOD_OF
    assert seen["compared"] == ["lora-0", "lora-1", "full-0", "full-1", "one-0", "base"]
    told = {"a": "lora", "b": "base", "difference": -1.0, "low": -2.0, "high": -0.5, "p_adjusted": 0.01}
    assert seen["told"] == content["comparisons"] == [told]


def test_what_else_the_page_shows(made):
    study, runs, _ = made
    content = view(study, runs)
    assert content["failed"] == {"odd": "no layers", "lora with seed 2": "its disk was full"}
    assert [content[key] for key in ("budget", "seeds", "seconds", "trainings", "equal_seconds", "findings")] == [
        {"steps": 60, "search_steps": 20}, [1, 2], 99.0, 7, {"full": True, "lora": True, "one": True}, ["full", 12],
    ]  # fmt: skip
    assert content["groups"] == view(study, runs[1:])["groups"] == [["full", "lora"], ["one"]]
    assert content["curves"][1] == {"name": "lora", "whole": [[1e-3, 1.5], [1e-4, 1.75]],
                                    "part": [[1e-3, 2.0], [1e-2, 3.0]], "rate": 1e-3}  # fmt: skip
    assert [each["name"] for each in content["curves"]] == ["full", "lora", "one"]
    assert list(content["chosen"]) == ["lora", "full", "one"] and content["scaled"] == []
    assert content["chosen"]["lora"] == "lora_r: 4\nlearning_rate: 0.001\n"


@pytest.mark.parametrize(
    ("hardware", "beside", "apart", "said"),
    [
        (["cpu", "cpu"], 0, [], ""),
        (["cpu", None], 0, [], ""),  # an older run does not say where it was trained
        (["cpu", "cpu"], 2, ["train_seconds"],
         "Up to 3 trainings shared a device, so the times are of that and are not compared."),
        (["cpu", "H100"], 2, ["train_seconds", "peak_memory_bytes"],
         "Trained on different machines, so times and memory are not compared: lora, one on cpu, 2 cores; full on H100"
         "."),
    ],
)  # fmt: skip
def test_what_different_machines_took_is_not_compared(made, hardware, beside, apart, said):
    study, runs, _ = made
    names = {"cpu": {"processor": "cpu", "cores": 2}, "H100": {"processor": "cpu", "cores": 16, "gpu": "H100"}}
    for each in runs[1:]:
        of = hardware[each.name.startswith("full")]
        each.provenance |= {"hardware": names[of]} if of else {}
    for places in ([0, beside], [beside, 0]):
        study["methods"]["odd"]["finals"] = [{"seed": seed, "beside": others} for seed, others in enumerate(places)]
        content = view(study, runs)
        assert (content["apart"], content["why_apart"]) == (apart, said)
        assert bool(content["equal_seconds"]) == (not apart)


def test_the_methods_of_each_tokenizer_the_commonest_first():
    assert by_tokenizer({"a": 1, "b": 2, "c": 2, "d": 1, "e": 2}) == [["b", "c", "e"], ["a", "d"]]
    assert by_tokenizer({"a": 1, "b": None}) == [["a"], ["b"]]
    assert by_tokenizer({}) == []


def wrote(run, name, **content):
    write_json(run.path / "eval" / name, {"weights": f"w of {run.name}", **content})


def test_what_was_forgotten_is_a_mean_over_seeds_that_were_asked_alike(made):
    study, runs, _ = made
    first, second = study["runs"]["lora"]

    def forgetting():
        return {row["name"]: row["forgetting"] for row in view(study, runs)["rows"]}["lora"]

    asked = {"base": "b", "texts": 5, "seed": 0}
    wrote(first, "forgetting.json", nats_per_token=0.25, **asked)
    assert forgetting() is None
    wrote(second, "forgetting.json", nats_per_token=0.75, **asked)
    assert forgetting() == 0.5
    for key in asked:
        wrote(second, "forgetting.json", nats_per_token=0.75, **{**asked, key: 9})
        assert forgetting() is None
    wrote(second, "forgetting.json", nats_per_token="much", **asked)
    with pytest.raises(UserError, match=r"forgetting.json"):
        forgetting()
    write_json(second.path / "eval" / "forgetting.json", {"weights": "other", "nats_per_token": 1.0, **asked})
    assert forgetting() is None


def test_scales_are_of_the_first_seed_and_of_these_weights(made):
    study, runs, _ = made
    first, second = study["runs"]["lora"]
    held = {"scales": [0.0, 1.0], "nats_per_token": [2.0, 1.0], "best": 1.0, "split": "validation",
            "gain": {"nats_per_token": 0.0, "low": 0.0, "high": 0.0}}  # fmt: skip
    wrote(second, "scaling.json", **held)
    assert view(study, runs)["scaled"] == []
    wrote(first, "scaling.json", **held, examples=5, reason=None)
    assert view(study, runs)["scaled"] == [{"name": "lora", **held}]
    wrote(first, "scaling.json", **held, reason="quantised")
    assert view(study, runs)["scaled"] == []
    write_json(first.path / "eval" / "scaling.json", {"weights": "other", **held})
    assert view(study, runs)["scaled"] == []


@pytest.mark.parametrize(("place", "wrong"), [
    ("scales", ["all"]), ("nats_per_token", [1.0, None]), ("best", "1"), ("split", 3), ("gain", None), ("gain", 0.5),
    ("gain", {"low": 0.0, "high": 0.0}), ("gain", {"nats_per_token": 0.0, "high": 0.0}),
    ("gain", {"nats_per_token": 0.0, "low": 0.0}),
])  # fmt: skip
def test_scales_that_are_not_what_eval_scaling_writes_are_refused_with_their_place(made, place, wrong):
    study, runs, _ = made
    held = {"scales": [0.0, 1.0], "nats_per_token": [2.0, 1.0], "best": 1.0, "split": "validation",
            "gain": {"nats_per_token": 0.0, "low": 0.0, "high": 0.0}}  # fmt: skip
    wrote(study["runs"]["lora"][0], "scaling.json", **{**held, place: wrong})
    with pytest.raises(UserError, match=rf"scaling\.json: .*{place}"):
        view(study, runs)


# Sentences -----------------------------------------------------------------------------------------------------------


def row(name, bits, low=1, may=False, **more):
    return {"name": name, "bits_per_byte": bits, "interval": [bits - 0.125, bits + 0.25], "seeds": 2, "rate": 1e-3,
            "edge": "inside", "low": low, "high": low and low + 1, "may_be_best": may, "base_model": "gpt2",
            "trainable_parameters": 1000, "train_seconds": 60.0, "peak_memory_bytes": 10**9, "spread": 0.01,
            "width": [1e-4, 1e-3], "forgetting": None, **more}  # fmt: skip


def said(*rows, **content):
    defaults = {"rows": [*rows], "seeds": [1, 2], "scaled": [], "failed": {}, "comparisons": [], "apart": [],
                "why_apart": ""}  # fmt: skip
    return findings(defaults | content, 1200)


BEST = (
    "a predicts the reference answers best: 1.000 bits per byte (0.875 to 1.250) over 2 seeds, at its own rate of "
    "0.001."
)
A, B = row("a", 1.0, may=True), row("b", 1.5, 2)
BASE = {**row("base", 2.0, 3), "seeds": 0}
SURE = [{"a": "base", "b": "b", "p_adjusted": 0.049}]
WORSE = "Every other method is surely worse than some method here."


def test_who_is_the_best_and_who_may_be():
    assert said(A) == [BEST] and said(A, B) == [BEST, WORSE]
    assert said(A, seeds=[1])[0] == BEST.replace("2 seeds", "1 seed")
    alike = "cannot be told apart: any of them may be the best, as far as 1,200 questions and 2 seeds can show."
    assert said(A, {**B, "may_be_best": True}) == [BEST, f"a and b {alike}"]
    assert said(A, {**B, "may_be_best": True}, row("c", 1.6, 3, True)) == [BEST, f"a, b and c {alike}"]
    lonely = row("l", 0.5, None, seeds=1)
    of_one = "Of one seed nothing can be said of how another training would compare: l."
    assert said(lonely, A, B) == [BEST, WORSE, of_one]
    assert said(lonely) == [BEST.replace("a pred", "l pred").replace("1.000", "0.500").replace(
        "0.875 to 1.250", "0.375 to 0.750"), of_one]  # fmt: skip
    assert "Nor can the untrained base model be told from the best of them." in said(A, {**BASE, "may_be_best": True})
    other = {**BASE, "may_be_best": True, "base_model": "other"}
    assert said(A, other) == [BEST]  # another method's base


@pytest.mark.parametrize(("change", "comparisons", "told"), [
    ({"trainable_parameters": 99}, SURE, True), ({"trainable_parameters": 100}, SURE, False),
    ({"trainable_parameters": 99}, [{**SURE[0], "p_adjusted": 0.05}], False), ({"trainable_parameters": 99}, [], False),
    ({"trainable_parameters": 99}, [{"a": "b", "b": "base", "p_adjusted": 0.01}], True),
    ({"trainable_parameters": 99, "bits_per_byte": 2.0}, SURE, False),
    ({"trainable_parameters": 99, "base_model": "other"}, SURE, False),
])  # fmt: skip
def test_much_of_the_gain_with_few_parameters(change, comparisons, told):
    sentences = said(A, {**B, **change}, BASE, comparisons=comparisons)
    sentence = "Of a's gain over the base model b has 50 % with 0.099 of its trainable parameters."
    assert (sentence in sentences) is told and len(sentences) == 2 + told
    assert said({**A, "bits_per_byte": 2.5}, {**B, "trainable_parameters": 1}, BASE, comparisons=SURE)[1:] == [WORSE]


def test_a_share_is_of_all_that_the_best_gains():
    few, farther = {**B, "trainable_parameters": 50}, {**BASE, "bits_per_byte": 3.0}
    sentence = "Of a's gain over the base model b has 75 % with 0.05 of its trainable parameters"
    assert said(A, few, farther, comparisons=SURE) == [BEST, WORSE, f"{sentence}."]  # 1.5 of 2 bits
    fewer = {**row("c", 2.5, 3), "trainable_parameters": 1}
    sure = [*SURE, {"a": "c", "b": "base", "p_adjusted": 0.01}]
    assert said(A, few, fewer, farther, comparisons=sure)[2:] == [f"{sentence} and c 25 % with 0.001."]


@pytest.mark.parametrize(("seconds", "sentence"), [
    (73.0, "b takes 1.2 times the training time of a"), (71.9, None), (60.0, None), (50.1, None),
    (49.0, "The training time of a is 1.2 times that of b"), (240.0, "b takes 4.0 times the training time of a"),
])  # fmt: skip
def test_who_takes_longer_for_nothing(seconds, sentence):
    sentences = said(A, {**B, "may_be_best": True, "train_seconds": seconds})
    expected = [f"{sentence}, for no difference that 1,200 questions can show."] if sentence else []
    assert sentences[2:] == expected
    c = row("c", 1.6, 2, True, train_seconds=150.0)
    d = row("d", 1.7, 2, True, train_seconds=20.0)
    many = said(A, {**B, "may_be_best": True, "train_seconds": seconds}, c, d)[2:]
    slower, faster = ("b takes 1.2 and c 2.5", "3.0") if seconds == 73 else ("b takes 4.0 and c 2.5", "3.0")
    slower = slower if seconds > 72 else "c takes 2.5"
    faster = "1.2 times that of b and 3.0" if seconds == 49 else faster
    nothing = "for no difference that 1,200 questions can show."
    assert many == [f"{slower} times the training time of a, {nothing}",
                    f"The training time of a is {faster} times that of d, {nothing}"]  # fmt: skip
    assert len(said(A, {**B, "train_seconds": seconds})) == 2  # of one that is worse anyway nothing is said
    assert said(A, {**B, "may_be_best": True, "train_seconds": seconds}, apart=["train_seconds"]) == sentences[:2]


def test_what_else_is_said():
    edge = said(A, {**B, "edge": "lowest"}, {**BASE, "edge": None})
    assert edge[-1] == "The best rate of b is the lowest that was tried: a better one may lie beyond."
    edges = said({**A, "edge": "highest"}, {**B, "edge": "lowest"}, {**row("c", 1.6, 3), "edge": "lowest"})
    assert edges[-2:] == [
        "The best rate of b and c is the lowest that was tried: a better one may lie beyond.",
        "The best rate of a is the highest that was tried: a better one may lie beyond.",
    ]
    scaled = {
        "best": 0.5,
        "name": "b",
        "split": "validation",
        "gain": {"nats_per_token": 0.1, "low": 0.001, "high": 0.2},
    }
    assert said(A, scaled=[scaled])[1:] == [
        "With what was learned scaled, on the validation rows where that was found, b would be 0.100 nats a token "
        "better (0.001 to 0.200) at 0.5."
    ]
    other = {**scaled, "name": "c", "best": 1.2, "gain": {"nats_per_token": 0.02, "low": 0.01, "high": 0.03}}
    assert said(A, scaled=[scaled, other])[1].endswith("(0.001 to 0.200) at 0.5 and c 0.020 (0.010 to 0.030) at 1.2.")
    assert said(A, scaled=[{**scaled, "gain": {**scaled["gain"], "low": 0.0}}]) == [BEST]
    assert said(A, failed={"x": "why", "y": "so"}, why_apart="Why.")[1:] == ["Why.", "Not trained: x (why); y (so)."]


def test_the_table_in_markdown():
    rows = [
        A,
        {**B, "high": 2, "forgetting": 0.5, "width": [1e-3, 1e-3]},
        row("l", 2.0, None, rate=None, width=None, train_seconds=None),
    ]
    equal = {"b": {"seconds": 90.0, "step": 60.0, "validation_loss": 1.25}, "a": {"seconds": 90.0, "step": 30.4,
                                                                                 "validation_loss": 1.0}}  # fmt: skip
    content = {"rows": rows, "findings": ["One.", "Two."], "equal_seconds": equal, "chosen": {"a": "lora_r: 4\n"},
                     "groups": [["b", "a"]],
                     "budget": {"steps": 60}, "seeds": [7, 8], "trainings": 33, "seconds": 7200.0}  # fmt: skip
    assert "equal seconds" not in markdown({**content, "equal_seconds": {}}, 1200)
    text = markdown(content, 1200)
    lines = text.splitlines()
    assert lines[0] == "One. Two."
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [each[:7] for each in cells[2:]] == [
        ["1–2", "a", "1.000 (0.875 to 1.250)", "0.0100", "0.001", "0.0001 to 0.001", "1k"],
        ["2", "b", "1.500 (1.375 to 1.750)", "0.0100", "0.001", "0.001", "1k"],
        ["–", "l", "2.000 (1.875 to 2.250)", "0.0100", "–", "–", "1k"],
    ]
    assert len({len(each) for each in cells}) == 1 and [each[-1] for each in cells[2:]] == ["–", "0.5000", "–"]
    assert lines.index("- a: 1.0000 nats a token, at step 30") < lines.index("- b: 1.2500 nats a token, at step 60")
    assert (
        "60 steps each, rates searched on validation loss with seed 7, 2 seeds at the chosen rate, 1,200 test" in text
    )
    assert "**a**\n\n```yaml\nlora_r: 4\n```" in text


# study.json ----------------------------------------------------------------------------------------------------------


def test_a_study_and_its_runs(tmp_path):
    final = {"run": "a-1", "seed": 1, "curve": []}
    chosen = {"candidate": "c", "rate": 1e-3, "validation_loss": 1.0, "edge": "inside", "width": [1.0], "settings": {}}
    method = {
        "tried": {"c": [{"rate": 1e-3, "losses": {}}]},
        "finals": [final, {"run": "a-2", "seed": 2}],
        "failed": None,
        "chosen": chosen,
    }
    content = {"budget": {"steps": 6, "search_steps": 2}, "seeds": [1], "seconds": 1.0, "trainings": 1,
               "methods": {"a": method, "b": {**method, "finals": [], "chosen": None, "failed": "why"}}}  # fmt: skip
    write_json(tmp_path / "study.json", content)
    (tmp_path / "trials" / "a-1").mkdir(parents=True)
    given = [SimpleNamespace(path=tmp_path / "trials" / name) for name in ("a-1", "a-2")]
    read = {"schema_version": 1, **content, "runs": {"a": [given[0]], "b": []}}
    assert module.read_study(tmp_path, given) == read
    with pytest.raises(UserError, match=r"trials/a-1 is a final run of the study and was not given"):
        module.read_study(tmp_path, given[1:])
    write_json(tmp_path / "study.json", {**content, "methods": {"b": content["methods"]["b"]}})
    with pytest.raises(UserError, match="has no final runs yet"):
        module.read_study(tmp_path, given)
    lacking = [{key: value for key, value in chosen.items() if key != left_out} for left_out in chosen]
    methods = [{**method, "chosen": each} for each in (*lacking, {**chosen, "rate": "x"}, 3, None)]
    methods += [{**method, "tried": each} for each in ({}, {"c": 3}, {"c": [{"rate": 1.0}]}, {"c": [{"losses": {}}]})]
    methods += [{name: each for name, each in method.items() if name != "chosen"}]
    for wrong in ({"seeds": ["x"]}, *({"methods": {"a": each}} for each in methods)):
        write_json(tmp_path / "study.json", {**content, **wrong})
        with pytest.raises(UserError, match=r"study.json; write it again"):
            module.read_study(tmp_path, given)
    short = {"b": {"tried": {}, "finals": []}, "a": {**method, "finals": [final]}}  # what is null may be absent
    write_json(tmp_path / "study.json", {**content, "methods": short})
    assert module.read_study(tmp_path, given)["methods"]["b"] == {**short["b"], "chosen": None, "failed": None}
