"""Answers in any script: what is the same scores full marks, copies are found, and what means nothing says so."""

import json
import shutil

import numpy as np
import pytest
import yaml
from evaluated_runs import Page, make_run, report

from eval.audits import overlap
from eval.metrics import bleu, figures
from eval.metrics.bleu import Bleu
from eval.metrics.rouge import Rouge
from finllm.data.prepare import prepare
from finllm.files import read_json, read_jsonl
from finllm.text.words import words

TEXTS = {
    "Chinese": "指数基金是一种跟踪市场指数的投资基金，费用通常较低。",
    "Japanese": "インデックスファンドは市場の指数に連動する投資信託です。",
    "Thai": "กองทุนดัชนีคือกองทุนที่ลงทุนตามดัชนีตลาด",
    "Lao": "ກອງທຶນດັດຊະນີແມ່ນກອງທຶນທີ່ຕິດຕາມຕະຫຼາດ",
    "Khmer": "មូលនិធិសន្ទស្សន៍គឺជាមូលនិធិវិនិយោគ",
    "Burmese": "အညွှန်းကိန်းရန်ပုံငွေသည်ရင်းနှီးမြှုပ်နှံမှု",
    "Russian": "Индексный фонд следует за рыночным индексом и стоит недорого.",
    "Arabic": "صندوق المؤشر هو صندوق استثمار يتبع مؤشر السوق بتكلفة منخفضة.",
    "Persian": "صندوق شاخصی می‌خواهد از شاخص بازار پیروی کند و کم‌هزینه است.",
    "Hindi": "इंडेक्स फंड बाजार सूचकांक का अनुसरण करता है और सस्ता होता है।",
    "Greek": "Ένα αμοιβαίο κεφάλαιο δείκτη ακολουθεί τον δείκτη της αγοράς.",
    "Hebrew": "קרן מחקה היא קרן שעוקבת אחרי מדד השוק בעלות נמוכה.",
    "Korean": "인덱스 펀드는 시장 지수를 추종하는 투자 펀드이며 비용이 낮다.",
    "combining marks": "Le cafe\u0301 coûte cher a\u0300 Paris depuis la dernière hausse des prix.",
    "emoji and words": "Stocks rose 📈 and bonds fell 📉 after the news 👍🏽 today.",
    "mixed": "ETF（交易所买卖基金）通常跟踪 S&P 500 指数，费用约为 0.1%。",
    "English": "An index fund is a fund that tracks a market index at a low cost.",
}
WITHOUT_WORDS = ("👍👍👍", "。。。！？", "… — !", "📈 📉 🤷‍♀️ ❤️")


def row(number: int, reference: str, answer: str | None) -> dict:
    return {
        "id": f"e{number}", "question_id": f"q{number}", "reference": reference, "prediction": answer, "nll": 9.0,
        "tokens": 5, "correct_tokens": 1, "bytes": len(reference.encode()), "stopped": True, "instruction": "?",
        "input": "", "output": reference,
    }  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_identical_texts_have_full_marks_and_other_texts_have_not(text):
    split = figures.measure([row(0, text, text), row(1, text[::-1], text[::-1])])
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio"):
        assert split.metrics[name].value == pytest.approx(1), name
    assert split.metrics["bleu"].value == pytest.approx(100)
    other = next(other for other in TEXTS.values() if other != text)
    mine = [row(0, text, other)]
    figures.measure(mine)
    assert mine[0]["rougeL"] < 0.5 and mine[0]["bleu"] < 50
    half = words(text)[: len(words(text)) // 2]
    part = row(0, text, text[: len(text) // 2])
    figures.measure([part])
    assert 0.4 < part["rouge1"] < 0.9 and len(half) >= 2
    assert Rouge()._compute([text], [text])["rougeL"] == 1 and Bleu()._compute([text], [text])["bleu"] > 99.99


@pytest.mark.parametrize("text", WITHOUT_WORDS)
def test_where_a_reference_has_no_words_there_is_no_figure(text):
    rows = [row(0, text, text), row(1, text, "An answer.")]
    split = figures.measure(rows)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"):
        assert split.metrics[name] is None and rows[0][name] is None
    assert split.metrics["stop_rate"].value == 1
    both = figures.measure([*rows, row(2, TEXTS["Russian"], TEXTS["Russian"])])
    assert both.metrics["rougeL"].value == 1 and both.metrics["bleu"].value == pytest.approx(100)
    assert np.isfinite(both.metrics["rougeL"].low)
    empty = figures.measure([row(0, TEXTS["Thai"], "")])  # nothing was said: that is 0, not nothing to say
    assert empty.metrics["rougeL"].value == empty.metrics["bleu"].value == 0
    short = figures.measure([row(0, "Да.", "Да."), row(1, "Нет", "Нет")])
    assert short.metrics["rouge1"].value == 1 and short.metrics["bleu"] is None  # no four words, no BLEU


@pytest.mark.parametrize(
    ("languages", "tokenizer"),
    [("Greek", "13a"), ("Russian", "13a"), ("Korean", "13a"), ("Chinese", "zh"), ("mixed", "zh"),
     ("Japanese", "char"), ("Thai", "char"), ("Khmer", "char")],
)  # fmt: skip
def test_the_references_choose_the_tokenizer_of_bleu_and_the_signature_names_it(languages, tokenizer):
    assert bleu.tokenizer_for([TEXTS[languages]] * 3) == tokenizer
    assert f"tok:{tokenizer}|" in bleu.signature(tokenizer)
    english = [TEXTS["English"]] * 30
    assert bleu.tokenizer_for([*english, "The 元 is a currency."]) == "13a"  # a sign among words changes nothing
    rows = [row(0, TEXTS[languages], TEXTS["English"]), row(1, TEXTS[languages], TEXTS[languages])]
    one, other = figures.measure(rows[:1]), figures.measure([{**rows[0], "prediction": TEXTS[languages]}])
    assert one.metrics["bleu"].value < other.metrics["bleu"].value  # whatever the model answers


@pytest.mark.parametrize("language", [name for name in TEXTS if name != "emoji and words"])
def test_copies_are_found_by_the_audits(language):
    text = TEXTS[language]
    long = f"{text} {TEXTS['Chinese'] if language != 'Chinese' else TEXTS['Japanese']} {text}"
    asked = {"instruction": text, "input": "", "output": long, "id": "t0", "question_id": "t0"}
    training = [{**asked, "id": "a", "question_id": "a", "output": "1"}, {**asked, "instruction": "?", "id": "b"}]
    found = overlap.contamination([asked], training)
    assert not found["passed"] and found["exact_questions"] == found["exact_answers"] == 1
    near = [{**asked, "instruction": text + "新", "output": long + " 新", "id": "c"}]
    found = overlap.contamination([asked], near)
    assert found["near_answers"] == 1, found
    recited = [row(0, text, long)]
    figures.measure(recited)
    found = overlap.memorisation(recited, [asked], trained=True)
    assert not found["passed"] and found["longest_words"] >= 20
    copied = figures.repetition(" ".join([text] * 3))
    assert copied > 0.3


def test_a_chinese_dataset_from_rows_to_results(command, gpt2_dir, tmp_path):
    parts = ("股票", "债券", "基金", "期货", "外汇", "黄金", "房产", "保险", "存款", "国债", "信托", "期权")
    rows = [{"instruction": f"请问什么是{a}和{b}？", "output": f"{a}是一种投资工具，{b}也是，它们的风险不同。"}
            for a in parts for b in parts if a != b]  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")
    data = tmp_path / "data"
    prepare(source, data, validation_fraction=0.1, test_fraction=0.1)
    shown = command("finllm/cli.py", "data", "show", data, "--tokenizer", gpt2_dir)
    assert shown.status == 0 and "\ufffd" not in shown.out
    first = read_jsonl(data / "train.jsonl")[0]
    assert first["output"] in shown.out.replace("\n", "")
    done = command(
        "eval/run.py", "--model_name_or_path", gpt2_dir, "--dataset_name", data, "--output_dir", tmp_path / "base",
        "--max_new_tokens", 4, "--max_examples", 4,
    )  # fmt: skip
    assert done.status == 0, done.err
    results = read_json(tmp_path / "base" / "eval" / "results.json")
    assert "tok:zh" in results["signatures"]["bleu"]
    assert results["audits"]["contamination"]["near_answers"] > 0  # they differ in two words of a dozen
    assert results["audits"]["memorisation"]["baselines"]["nearest training answer"]["rougeL"] > 0.5


def test_figures_that_mean_nothing_are_dashes_in_the_report(tmp_path):
    nothing = {"copy the question": dict.fromkeys(("rouge1", "rougeL", "bleu"))}
    audits = {"memorisation": {"passed": True, "summary": "s", "baselines": nothing}}
    run = make_run(tmp_path / "emoji", 1.5, audits=audits)
    other = make_run(tmp_path / "other", 1.9)
    for path in (run, other):
        results = json.loads((path / "eval" / "results.json").read_text())
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu"):
            results["splits"]["test"]["metrics"][name] = None
        (path / "eval" / "results.json").write_text(json.dumps(results))
    for number in (1, 2):  # pooled seeds, too
        shutil.copytree(other, tmp_path / f"s{number}")
        (tmp_path / f"s{number}" / "config.yaml").write_text(yaml.safe_dump({"seed": number}))
    made = report(run, other, tmp_path / "s1", tmp_path / "s2", out=tmp_path / "out")
    assert all(model["metrics"]["rougeL"] is None for model in made["models"])
    assert "| – | – |" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert "None" not in Page(tmp_path / "out" / "index.html").words
