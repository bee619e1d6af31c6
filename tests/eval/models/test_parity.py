"""The same numbers as the tools that others trust: lm-evaluation-harness, sacrebleu's command line, rouge_score."""

import json

import pytest
import sacrebleu
from record_lm_eval import FIXTURE, TEXTS, formula_model
from rouge_score import rouge_scorer

from eval.metrics import bleu, rouge
from eval.metrics.figures import measure
from eval.models.language_model import Description
from eval.models.transformers_lm import TransformersLM
from finllm.files import write_json, write_jsonl

ANSWERS = ["A bond is a loan to a firm or a state.", "Tax is due, in April — of “next” year!", "It costs $1,200.50."]
REFERENCES = [
    "A bond is a loan you make to a state.",
    "Tax falls due in April of next year.",
    "It costs $1,200.50 now.",
]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_likelihood_is_that_of_lm_eval(batch_size):
    """Within 1e-4 nats a token, of response and EOS, of a model and texts that record_lm_eval.py recorded.

    None of these texts is the likeliest one: of the likeliest tokens test_set_probabilities.py tells.
    """
    model, tokenizer = formula_model()
    lm = TransformersLM(model, tokenizer, Description("base", "formula", "bytes", 1, 0), batch_size)
    recorded = json.loads(FIXTURE.read_text(encoding="utf-8"))["texts"]
    assert [(text["prompt"], text["response"]) for text in recorded] == TEXTS
    scores = lm.score(*zip(*TEXTS, strict=True))
    for score, text in zip(scores, recorded, strict=True):
        assert abs(score.nll + text["log_likelihood"]) / score.tokens < 1e-4


def rows():
    return [
        {"question_id": str(number), "nll": 9.0, "tokens": 3, "correct_tokens": 1, "bytes": len(reference.encode()),
         "reference": reference, "prediction": answer, "stopped": True}
        for number, (answer, reference) in enumerate(zip(ANSWERS, REFERENCES, strict=True))
    ]  # fmt: skip


def test_bleu_is_that_of_sacrebleus_command_line(shell, tmp_path):
    (tmp_path / "answers").write_text("\n".join(ANSWERS) + "\n")
    (tmp_path / "references").write_text("\n".join(REFERENCES) + "\n")
    done = shell("sacrebleu", tmp_path / "references", "-i", tmp_path / "answers", "-m", "bleu", "-w", 10)
    assert done.status == 0, done.err
    said = json.loads(done.out)
    assert f"{measure(rows()).metrics['bleu'].value:.10f}" == f"{said['score']:.10f}"
    assert bleu.signature() == said["signature"].removeprefix("BLEU|")


def test_rouge_is_that_of_rouge_score():
    scorer = rouge_scorer.RougeScorer(rouge.TYPES)
    each = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    found = measure(rows()).metrics
    for type in rouge.TYPES:
        assert found[type].value == pytest.approx(sum(score[type].fmeasure for score in each) / 3, abs=1e-15)


def test_sentence_bleu_is_that_of_sacrebleu():
    measured = rows()
    measure(measured)
    assert [row["bleu"] for row in measured] == [
        sacrebleu.sentence_bleu(answer, [reference]).score
        for answer, reference in zip(ANSWERS, REFERENCES, strict=True)
    ]


def test_export_is_read_as_lm_eval_writes_it(shell, tmp_path):
    from evaluated_runs import make_run

    run = make_run(tmp_path / "lora", 0.9)
    done = shell("python", "eval/export.py", run, "--output", tmp_path / "results_lora.json")
    assert done.status == 0, done.err
    content = json.loads((tmp_path / "results_lora.json").read_text())
    task = "finance_test"
    figures = content["results"][task]
    assert figures["bits_per_byte,none"] == pytest.approx(0.9)
    assert figures["bits_per_byte_stderr,none"] == pytest.approx(0.05 / 1.959964, rel=1e-6)
    assert content["higher_is_better"][task]["bits_per_byte"] is False
    assert content["higher_is_better"][task]["rougeL"] is True
    assert content["n-samples"][task] == {"original": 12, "effective": 12}
    assert {"configs", "versions", "n-shot", "config", "git_hash", "model_name", "task_hashes"} <= set(content)
    before = (tmp_path / "results_lora.json").read_bytes()
    again = shell("python", "eval/export.py", run, "--output", tmp_path / "results_lora.json")
    assert again.status == 2 and "exists" in again.err
    assert (tmp_path / "results_lora.json").read_bytes() == before


def test_what_cannot_be_exported_is_said(shell, tmp_path):
    write_json(tmp_path / "eval" / "results.json", {})
    write_jsonl(tmp_path / "eval" / "predictions.jsonl", [])
    done = shell("python", "eval/export.py", tmp_path, "--output", tmp_path / "out.json")
    assert done.status == 2 and "name is missing" in done.err and not (tmp_path / "out.json").exists()
