"""What eval/run.py hands to whom: which models on which data, and from scores and answers to what is written.

Models, data and audits are set, so that every figure and every call is known; nothing is computed with torch.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval import run as module
from eval.models import transformers_lm, transformers_reader
from eval.models.language_model import Description, Generation, Score
from eval.results import AUDITS, Results, predictions
from finllm.errors import UserError
from finllm.text.conversations import END, START, without_marks

# The command ---------------------------------------------------------------------------------------------------------


class Run:
    """A run dir, as far as the command looks into it."""

    complete = True

    def __init__(self, path):
        self.path, self.eval, self.looked_at = Path(path), Path(path) / "eval", []

    def require_complete(self):
        if "broken" in self.path.name:
            raise UserError(f"{self.path.name} is not complete")
        self.looked_at.append("complete")
        return self

    def refuse_links(self):
        self.looked_at.append("links")

    def config(self):
        return {"dataset_name": f"data-{self.path.name}"}

    def __repr__(self):
        return self.path.name


@pytest.fixture
def main(monkeypatch, tmp_path):
    """`main(flags, left_out={dataset: ids})`: what the command had done, in order; paths are names."""

    def call(*flags, left_out=None, runs=("a", "b")):
        told = SimpleNamespace(asked=None, known=[], evaluated=[])

        def left_out_of_all(subjects, arguments):
            told.asked = [subject.run.path.name for subject in subjects]
            return {f"hash of {name}": {name} for name in left_out or {}}

        def wanted_of(subject, arguments, out):
            return (subject.run.path.name, arguments.split, sorted(out))

        def evaluate(subject, arguments, out):
            told.evaluated.append((subject.run.path.name, subject.dataset.hash, sorted(out)))
            told.loaded.append((subject.reader(), subject.load()))

        told.loaded = []
        monkeypatch.setattr(module, "RunDir", Run)
        monkeypatch.setattr(module, "_dataset", lambda name: SimpleNamespace(hash=f"hash of {name}", name=name))
        monkeypatch.setattr(module, "left_out_of_all", left_out_of_all)
        monkeypatch.setattr(module, "wanted_of", wanted_of)
        monkeypatch.setattr(
            module, "already_evaluated", lambda subject, *known: told.known.append((subject.run.path.name, *known))
        )
        monkeypatch.setattr(module, "_evaluate", evaluate)
        for part, name in ((module, "open_reader"), (module, "open_run"), (transformers_lm, "load_base"),
                           (transformers_reader, "base_reader")):  # fmt: skip
            monkeypatch.setattr(part, name, lambda *asked, name=name: (name, *map(str, asked)))
        monkeypatch.setattr(sys, "argv", ["run.py", *(str(tmp_path / run) for run in runs), *map(str, flags)])
        module.main()
        return told

    return call


def base(tmp_path, *more):
    return ("--model_name_or_path", "gpt2", "--output_dir", tmp_path / "base", *more)


def test_each_run_is_evaluated_on_its_own_data(main, tmp_path):
    told = main("--batch_size", 3, "--template", "chat")
    assert told.evaluated == [("a", "hash of data-a", []), ("b", "hash of data-b", [])]
    assert told.loaded == [(("open_reader", name, "chat"), ("open_run", name, "3")) for name in "ab"]
    assert told.asked == ["a", "b"] and told.known == []
    told = main("--dataset_name", "other", left_out=["other", "data-a"])
    assert told.evaluated == [("a", "hash of other", ["other"]), ("b", "hash of other", ["other"])]


def test_a_base_model_comes_first_and_its_template_is_its_own(main, tmp_path):
    told = main(*base(tmp_path, "--template", "chat", "--batch_size", 5), left_out=["data-b"])
    assert told.evaluated == [("base", "hash of data-a", []), ("a", "hash of data-a", []),
                              ("b", "hash of data-b", ["data-b"])]  # fmt: skip
    assert told.loaded == [
        (("base_reader", "gpt2", "chat"), ("load_base", "gpt2", "5", "chat")),
        (("open_reader", "a", "None"), ("open_run", "a", "5")), (("open_reader", "b", "None"), ("open_run", "b", "5")),
    ]  # fmt: skip
    told = main(*base(tmp_path, "--dataset_name", "other"), runs=())
    assert told.evaluated == [("base", "hash of other", [])]
    assert told.loaded == [(("base_reader", "gpt2", "None"), ("load_base", "gpt2", "16", "None"))]


def test_what_is_evaluated_already_is_looked_at_before_anything_else_is_done(main, tmp_path):
    (tmp_path / "b" / "eval").mkdir(parents=True)
    (tmp_path / "b" / "eval" / "results.json").write_text("{}")
    told = main(*base(tmp_path), "--split", "validation", left_out=["data-a"])
    assert told.asked == ["base", "a"] and [name for name, *_ in told.evaluated] == ["base", "a"]
    assert told.known == [("b", ("b", "validation", []), "validation")]
    told = main("--skip_too_long", left_out=["data-a", "data-b"])  # what one cannot read is left out of all
    assert told.asked == ["a", "b"] and told.evaluated == [("a", "hash of data-a", ["data-a"])]
    assert told.known == [("b", ("b", "test", ["data-b"]), "test")]
    told = main("--overwrite")
    assert told.asked == ["a", "b"] and [name for name, *_ in told.evaluated] == ["a", "b"] and not told.known
    told = main(runs=("b", "a"))
    assert told.asked == ["a"] == [name for name, *_ in told.evaluated] and [name for name, *_ in told.known] == ["b"]


def test_what_was_begun_is_not_evaluated_yet(main, tmp_path):
    (tmp_path / "a" / "eval" / ".partial").mkdir(parents=True)
    (tmp_path / "a" / "eval" / "predictions.jsonl").write_text("")
    told = main()
    assert told.asked == ["a", "b"] == [name for name, *_ in told.evaluated] and told.known == []


@pytest.mark.parametrize("runs", [("broken", "a"), ("a", "broken")])
def test_every_run_must_be_complete(main, runs):
    with pytest.raises(UserError, match="broken is not complete"):
        main(runs=runs)


@pytest.mark.parametrize("name", ["max_examples", "max_new_tokens", "batch_size"])
def test_counts_are_at_least_one(main, name):
    assert main(f"--{name}", 1).evaluated
    for wrong in (0, -1):
        with pytest.raises(UserError, match=f"--{name} is {wrong}; it must be at least 1"):
            main(f"--{name}", wrong)


@pytest.mark.parametrize(("flags", "runs", "said"), [
    (("--model_name_or_path", "gpt2"), ("a",), "needs both"), (("--output_dir", "x"), ("a",), "needs both"),
    ((), (), "give run dirs"), (("--dataset_name", "data"), (), "give run dirs"),
    (("--model_name_or_path", "gpt2", "--output_dir", "x"), (), "give run dirs"),
])  # fmt: skip
def test_there_must_be_something_to_evaluate(main, flags, runs, said):
    with pytest.raises(UserError, match=said):
        main(*flags, runs=runs)


def test_a_training_run_is_no_place_for_a_base_model(main, tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr(Run, "refuse_links", lambda self: looked_at.append(self.path.name))
    main(*base(tmp_path))
    assert looked_at == ["base"]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.yaml").write_text("")
    with pytest.raises(UserError, match="base holds a training run; take another --output_dir"):
        main(*base(tmp_path))


@pytest.mark.parametrize("run", ["base", "a", "b"])
@pytest.mark.parametrize("name", ["", "results.json", "predictions.jsonl"])
def test_what_is_in_the_way_of_any_of_them_is_said_first(main, tmp_path, run, name):
    place = tmp_path / run / "eval" / name
    place.parent.mkdir(parents=True)
    place.mkdir() if name else place.write_text("a file")
    with pytest.raises(UserError, match=rf"{run}/eval/?{name} is in the way of what is to be written; move it away"):
        main(*base(tmp_path))
    place.rmdir() if name else place.unlink()
    place.write_text("{}") if name else place.mkdir()
    assert main(*base(tmp_path)).evaluated


def test_a_source_is_prepared_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(module, "resolve", lambda name, folder: (name, folder))
    assert module._dataset("sample") == ("sample", tmp_path / "datasets")


# One evaluation ------------------------------------------------------------------------------------------------------

OUTPUTS = {"d": "It is £4.", "b": "Two words", "a": "Æ", "c": "It is £4."}
NLL = {"Æ": 1.0, "Two words": 2.0, "It is £4.": 4.0}
TRAINING = [{"id": "t", "question_id": "t", "instruction": "What is £4?", "input": "", "output": "It is £4."}]


def asked_as(id):
    """With the characters that mark what people wrote, which nobody is to read."""
    return f"{START}prompt{END} {id}"


class Model:
    """Of each output the nats of NLL, a token a byte; it answers with its prompt, and ends where that is short."""

    description = Description("full", "gpt2", "bytes", 10, 10)

    def __init__(self, told, wrong=None):
        self.told, self.wrong = told, wrong
        prompts = lambda rows: [asked_as(row["id"]) for row in rows]  # noqa: E731
        self.template = SimpleNamespace(id="alpaca", hash="t" * 64, prompts=prompts)

    def encode(self, prompt, response):
        return list(prompt.encode()), list(response.encode())

    def score(self, prompts, responses):
        self.told.append(("score", prompts, responses))
        return [
            Score(math.nan if without_marks(prompt) == self.wrong else NLL[text], len(text.encode()), 1)
            for prompt, text in zip(prompts, responses, strict=True)
        ]

    def generate(self, prompts, tokens):
        self.told.append(("generate", prompts, tokens))
        return [Generation(f"answer to {without_marks(prompt)}", 3, prompt.endswith("a")) for prompt in prompts]


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """Evaluate `Model` on OUTPUTS, with `contaminated` copied from training; what it was asked, and its run dir."""

    def call(contaminated=(), left_out=(), complete=True, wrong=None, main=True, **settings):
        told, audited = [], []
        examples = [
            {"id": id, "question_id": f"q{id}", "instruction": "How much?", "input": "", "output": output}
            for id, output in OUTPUTS.items()
        ]
        data = SimpleNamespace(path=tmp_path / "data", hash="d" * 64,
                               rows=lambda split: TRAINING if split == "train" else examples)  # fmt: skip
        model = Model(told, wrong)
        reader = SimpleNamespace(hashes=lambda: {"weights": "w" * 64, "tokenizer": "k" * 64}, template=model.template)
        run = Run(tmp_path / "run")
        run.complete = complete
        run.eval.mkdir(parents=True, exist_ok=True)
        run.provenance = lambda: {"dataset_hash": data.hash}
        for name in ("results.json", "predictions.jsonl"):  # what a kill left of an earlier writing
            (run.eval / f".{name}.abcdefgh.part").write_text("half")
        arguments = SimpleNamespace(
            split="test", max_examples=None, max_generated=None, max_new_tokens=9, batch_size=2, template=None,
            model_name_or_path="gpt2",
        )  # fmt: skip
        vars(arguments).update(settings)

        def audit(*given):
            audited.append(given)
            found = {name: {"passed": True, "summary": f"{name} is fine"} for name in AUDITS}
            return found | {"contamination": {"passed": True, "summary": "copies"} | (
                {} if contaminated is None else {"contaminated": list(contaminated)})}  # fmt: skip

        process = module.processes()
        own = SimpleNamespace(is_main_process=main, device=process.device,
                              local_main_process_first=process.local_main_process_first)  # fmt: skip
        monkeypatch.setattr(module, "processes", lambda: own)
        monkeypatch.setattr(module, "audit", audit)
        monkeypatch.setattr(module, "provenance", lambda **of: {"packages": {"torch": "1"}, **of})
        monkeypatch.setattr(module, "package_versions", lambda: {"torch": "1"})
        try:
            module._evaluate(
                module.Subject(run, data, lambda: reader, lambda: told.append("loaded") or model),
                arguments, set(left_out),
            )  # fmt: skip
        finally:
            monkeypatch.undo()
        return told, run, audited

    return call


def test_scores_and_answers_become_figures(evaluated, tmp_path):
    told, run, audited = evaluated()
    scored = [pair for what, *asked in told[1:] if what == "score" for pair in zip(*asked, strict=True)]
    assert told[0] == "loaded" and sorted(scored) == [(asked_as(id), OUTPUTS[id]) for id in "abcd"]
    asked = [call for call in told if call[0] == "generate"]
    assert sorted(prompt for call in asked for prompt in call[1]) == [asked_as(id) for id in "abcd"]
    assert {call[2] for call in asked} == {9} and all(len(call[1]) == 2 for call in told[1:])
    results, rows = Results.read(run.path), predictions(run.path)
    split = results.splits["test"]
    assert (split.examples, split.generated, split.tokens, split.bytes) == (4, 4, 31, 31)
    assert split.metrics["nll_per_token"].value == pytest.approx(11 / 31)
    assert split.metrics["stop_rate"].value == 0.25 and split.left_out == []
    assert [(row["id"], row["nll"], row["prompt"], row["prediction"], row["stopped"]) for row in rows] == [
        (id, NLL[OUTPUTS[id]], f"prompt {id}", f"answer to prompt {id}", id == "a") for id in "abcd"
    ]
    assert (results.name, results.model) == ("run", Model.description)
    assert results.dataset == {"name": str(tmp_path / "data"), "hash": "d" * 64}
    assert results.template == {"id": "alpaca", "hash": "t" * 64}
    assert results.hashes == {"weights": "w" * 64, "tokenizer": "k" * 64}
    assert results.decoding == {"do_sample": False, "max_new_tokens": 9}
    assert set(results.signatures) == {"rouge", "bleu", "number"} and results.confidence["level"] == 0.95
    assert set(results.audits) == {*AUDITS} and results.audits["padding"]["summary"] == "padding is fine"
    seconds = json.loads((run.eval / "results.json").read_text())["seconds"]
    assert set(seconds) == {"score", "generate", "audit"} and all(0 <= each < 60 for each in seconds.values())
    # Two answers reach £4 by chance: the most frequent number of the training rows is right for both.
    assert split.numbers == 2 and split.number_floors["the most frequent number"] == 1
    ((model, its_run, training, examples, seen, pairs, scores),) = audited
    assert (its_run, training) == (run, TRAINING) and isinstance(model, Model)
    assert [(row["id"], row["output"]) for row in examples] == [(id, OUTPUTS[id]) for id in "abcd"]
    assert [(row["id"], row["nll"]) for row in seen] == [(id, NLL[OUTPUTS[id]]) for id in "abcd"]
    assert pairs == [(list(asked_as(id).encode()), list(OUTPUTS[id].encode())) for id in "abcd"]
    assert {index: score.nll for index, score in scores.items()} == {0: 1.0, 1: 2.0, 2: 4.0, 3: 4.0}
    assert sorted(path.name for path in run.eval.iterdir()) == ["predictions.jsonl", "results.json"]
    assert not (run.path / "provenance.json").exists()  # training wrote it


@pytest.mark.parametrize(("contaminated", "clean"), [(None, None), ((), 4), (("a",), 3), (("b",), 3),
                                                     (("a", "c", "d"), 1), ((*"abcd",), None)])  # fmt: skip
def test_the_part_that_training_did_not_hold(evaluated, contaminated, clean):
    _, run, _ = evaluated(contaminated=contaminated)
    split = Results.read(run.path).splits["test"]
    assert (split.clean and split.clean.examples) == clean and split.examples == 4
    if clean:
        left = [output for id, output in OUTPUTS.items() if id not in contaminated]
        nats, tokens = sum(NLL[output] for output in left), sum(len(output.encode()) for output in left)
        assert split.clean.metrics["nll_per_token"].value == pytest.approx(nats / tokens)


def test_where_training_held_none_of_it_the_part_is_the_whole(evaluated):
    _, run, _ = evaluated(left_out=["b"])
    split = Results.read(run.path).splits["test"]
    assert split.clean == dataclasses.replace(split, clean=None) and split.clean.left_out == ["b"]
    assert split.number_floors == split.clean.number_floors == {
        "a number of the question": 0.0, "the most frequent number": 1.0
    }  # fmt: skip


def test_without_numbers_there_is_no_floor(evaluated):
    _, run, _ = evaluated(left_out=["c", "d"])
    split = Results.read(run.path).splits["test"]
    assert (split.examples, split.numbers, split.number_floors) == (2, 0, {})


def test_what_is_left_out_is_in_no_figure(evaluated):
    _, run, audited = evaluated(left_out=["c", "a"])
    split = Results.read(run.path).splits["test"]
    assert (split.examples, split.left_out, split.metrics["nll_per_token"].value) == (
        2,
        ["a", "c"],
        pytest.approx(6 / 19),
    )
    assert [row["id"] for row in predictions(run.path)] == ["b", "d"] == [row["id"] for row in audited[0][3]]


def test_the_first_ones_are_scored_and_of_them_the_first_are_answered(evaluated):
    told, run, _ = evaluated(max_examples=3, max_generated=1)
    assert [call for call in told if call[0] == "generate"] == [("generate", [asked_as("a")], 9)]
    split = Results.read(run.path).splits["test"]
    assert (split.examples, split.generated) == (3, 1)
    assert [row["prediction"] for row in predictions(run.path)] == ["answer to prompt a", None, None]


@pytest.mark.parametrize("wrong", [*"abcd"])
def test_a_likelihood_that_is_no_number_ends_it_and_nothing_is_written(evaluated, tmp_path, wrong):
    with pytest.raises(UserError, match=rf"the likelihood of 1 of 4 examples is not finite \({wrong}\); the weights"):
        evaluated(wrong=f"prompt {wrong}")
    assert [path.name for path in (tmp_path / "run" / "eval").iterdir()] == []


def test_a_base_models_dir_says_what_it_is_made_of(evaluated):
    _, run, audited = evaluated(complete=False)
    origin = json.loads((run.path / "provenance.json").read_text())
    made_of = {"dataset_hash": "d" * 64, "base_model": "gpt2", "base_model_hash": "w" * 64, "template": "alpaca",
               "template_hash": "t" * 64}  # fmt: skip
    assert {key: origin[key] for key in made_of} == made_of
    assert audited[0][2] == TRAINING
    _, run, _ = evaluated(complete=False, template="chat")
    assert json.loads((run.path / "provenance.json").read_text())["template"] == "chat"


def test_another_process_scores_and_answers_and_writes_nothing(evaluated):
    told, run, audited = evaluated(main=False)
    assert {call[0] for call in told[1:]} == {"score", "generate"} and not audited
    assert sorted(path.name for path in run.eval.iterdir()) == [".partial"]


def test_another_process_leaves_what_was_kept_to_the_first_one(evaluated, tmp_path):
    with pytest.raises(UserError, match="is not finite"):
        evaluated(wrong="prompt a", main=False)
    assert ".partial" in {path.name for path in (tmp_path / "run" / "eval").iterdir()}


def test_what_is_kept_is_of_all_that_the_figures_depend_on(evaluated, monkeypatch):
    kept, asked = module.Kept, []
    monkeypatch.setattr(module, "Kept", lambda folder, **of: asked.append((folder, of)) or kept(folder, **of))
    _, run, _ = evaluated(max_examples=1)
    ((folder, of),) = asked
    settings = of.pop("settings")
    assert folder == run.eval and settings["hashes"] == {"weights": "w" * 64, "tokenizer": "k" * 64}
    assert (settings["dataset"], settings["split"], settings["examples"]) == ("d" * 64, ["test"], 1)
    assert of == {
        "description": vars(Model.description), "texts": [(list(asked_as("a").encode()), list("Æ".encode()))],
        "batch_size": 2, "device": "cpu", "versions": {"torch": "1"},
    }  # fmt: skip


def test_results_that_cannot_stand_leave_the_old_answers(evaluated, monkeypatch, tmp_path):
    _, run, _ = evaluated()
    before = (run.eval / "predictions.jsonl").read_text()
    monkeypatch.setattr(Model, "description", Description("Full Model", "gpt2", "bytes", 10, 10))
    with pytest.raises(UserError, match="method"):
        evaluated(max_examples=2)
    assert (run.eval / "predictions.jsonl").read_text() == before


def test_what_was_found_is_shown(evaluated, capsys):
    evaluated(left_out=["a"])
    said = " ".join(capsys.readouterr().out.split())
    assert "run: 3 examples, 3 answers, 1 left out as too long" in said and "padding passed: padding is fine" in said
