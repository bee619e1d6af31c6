"""The page as text: its numbers, what it says of audits, ties and data, and that nobody's text becomes markup."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml
from evaluated_runs import Page, make_run, report

from eval.results import Results
from finllm.data.dataset_dir import dataset_hash
from finllm.data.split import SPLITS
from finllm.files import sha256_of_file, write_json

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\u2028& \"' {{ 7 * 7 }} ${1} <b>|`*"
CAUSALITY = "log-probabilities move by up to 2.31 nats when only later tokens change"


def page_of(*runs: Path, out: Path) -> Page:
    report(*runs, out=out)
    return Page(out / "index.html")


def test_numbers_in_the_page_are_those_of_results_json(tmp_path):
    runs = [make_run(tmp_path / "lora", 0.9123456), make_run(tmp_path / "gpt2", 1.9876543, "base")]
    page = page_of(*runs, out=tmp_path / "out")
    cells = [
        attributes
        for tag, attributes in page.tags
        if tag == "td" and attributes.get("data-key", "position") != "position"
    ]
    for number, run in enumerate(runs):
        results = Results.read(run)
        metrics = results.splits["test"].metrics
        shown = {cell["data-key"]: cell["data-value"] for cell in cells[9 * number : 9 * number + 9]}
        for metric in ("bits_per_byte", "perplexity", "rougeL", "bleu", "stop_rate"):
            assert float(shown[metric]) == metrics[metric].value
        assert int(shown["trainable"]) == results.model.trainable_parameters
        bits = metrics["bits_per_byte"]
        assert page.data["models"][number]["bits_per_byte"] == vars(bits)
        assert f"{bits.value:.3f}" in page.text and f"{bits.low:.3f}–{bits.high:.3f}" in page.text
    assert page.questions == [["What is a bond?", "", "A loan to the state.", ["A loan.", "A loan."], []]] * 12
    scores = [model["scores"] for model in page.data["models"]]
    assert [score["bits"][0] for score in scores] == [0.9123, 1.9877]
    assert scores[0]["rougeL"] == [0.25] * 12 and scores[0]["stopped"] == [0] + [1] * 11
    assert page.data["models"][0]["training"] == [[5, 2.0]]
    assert page.data["models"][0]["validation"] == [[0, 3.0], [5, 2.5]]
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert page.data["comparisons"] == content["comparisons"] and len(content["comparisons"]) == 1


def test_a_model_without_answers_has_none_in_the_page(tmp_path):
    page = page_of(make_run(tmp_path / "gpt2", 1.9, "base", answer=None), out=tmp_path / "out")
    assert page.questions[0][3] == [None]
    assert page.data["models"][0]["scores"]["rougeL"] == page.data["models"][0]["scores"]["stopped"] == [None] * 12
    assert "No config.yaml" in page.text
    assert not [attributes for _, attributes in page.tags if attributes.get("id") == "compare"]


def test_each_place_has_its_interval_of_ranks(tmp_path):
    runs = [make_run(tmp_path / "a", 0.90), make_run(tmp_path / "b", 0.91, noise=0.2), make_run(tmp_path / "c", 1.5)]
    page = page_of(*runs, out=tmp_path / "out")
    assert "1 1–2 a lora · rank 1–2" in page.words and "2 1–2 b lora · rank 1–2" in page.words
    assert "3 3 c lora · rank 3" in page.words
    marked = [attributes["class"] for _, attributes in page.tags if "candidate" in attributes.get("class", "")]
    assert len(marked) == 2  # a and b may be the best
    assert "A row may be better than one above it" in page.words and "no paired test" not in page.words
    assert "rarer than 1 in 4 may be missing from these 12 questions" in page.words  # (1 − 1/4)^12 = 3 %


def test_audits_are_badges_with_their_meaning_and_an_unranked_model_has_its_reason(tmp_path):
    copying = {"copy the question": {"rouge1": 0.2, "rougeL": 0.142, "bleu": 0.6}}
    audits = {
        "causality": {"passed": True, "summary": "nothing moved"},
        "contamination": {"passed": False, "summary": "1 of 12 has a duplicate", "contaminated": ["c"]},
        "memorisation": {"passed": True, "summary": "no long passages", "baselines": copying},
    }
    good = make_run(tmp_path / "good", 0.9, audits=audits)
    cheat = make_run(tmp_path / "cheat", 0.1, audits={"causality": {"passed": False, "summary": CAUSALITY}})
    page = page_of(good, cheat, out=tmp_path / "out")
    assert "✓ 2 audits passed" in page.words and "✗ 1 of 1 audits failed" in page.words
    assert page.words.count("1 of 12 has a duplicate") == 1 and "Stopping" not in page.words  # an audit that no run has
    assert page.words.index("0.900") < page.words.index("Not ranked") < page.words.index(f"future. {CAUSALITY}.")
    assert "Copy the question" in page.words and "0.142" in page.words
    assert page.data["duplicated"] == [2]
    assert [model["position"] for model in page.data["models"]] == [1, None]


def test_contamination_is_said_once_of_the_data_and_of_a_model_only_where_its_training_data_differ(tmp_path):
    def copies(*ids):
        return {"contamination": {"passed": not ids, "summary": f"{len(ids)} copies", "contaminated": list(ids)}}

    sound = {"question": {"passed": True, "summary": "sound"}}
    runs = [make_run(tmp_path / name, bits, audits=sound | copies("a", "c")) for name, bits in (("x", 0.9), ("y", 1.5))]
    alike = report(*runs, out=tmp_path / "alike")
    head = "2 of the 12 examples compared on have a duplicate in the training data: see the data card."
    page, text = Page(tmp_path / "alike/index.html"), (tmp_path / "alike/leaderboard.md").read_text()
    assert alike["finding"][-1] == head and alike["contamination"]["models"] == ["x", "y"]
    assert page.words.count("2 copies") == 1 and "Contamination ✗ 2 copies" in page.words
    assert page.words.count(head) == 1 and page.words.count("✓ 1 audits passed") == 2
    assert text.count(head) == 1 and "did not pass" not in text
    assert page.data["duplicated"] == [0, 2]

    runs.append(make_run(tmp_path / "z", 2.0, audits=sound | copies("b")))
    content = report(*runs, out=tmp_path / "apart")
    page, text = Page(tmp_path / "apart/index.html"), (tmp_path / "apart/leaderboard.md").read_text()
    assert content["finding"][-1].endswith("in the training data of x and y: see the data card.")
    assert page.words.count("✗ 1 of 2 audits failed") == 1 and page.words.count("see the data ") >= 2
    assert "z, contamination: 1 copies" in text and "2 copies" not in text
    assert page.data["duplicated"] == [0, 1, 2]

    write_json(tmp_path / "z/provenance.json", {"dataset_hash": "d1"})  # one of each: the data are those evaluated on
    content = report(runs[0], runs[2], out=tmp_path / "one_of_each")
    assert content["contamination"]["models"] == ["z"] and "contamination" in content["models"][0]["audits"]
    gone = {"contamination": {"passed": False, "summary": "its data are not here"}}
    content = report(make_run(tmp_path / "gone", 1.0, audits=gone), out=tmp_path / "of_gone")
    assert content["contamination"] is None and "contamination" in content["models"][0]["audits"]


def test_without_audits_nothing_is_said_of_them(tmp_path):
    page = page_of(make_run(tmp_path / "lora", 0.9), out=tmp_path / "out")
    assert not [attributes for _, attributes in page.tags if "badge" in attributes.get("class", "")]
    assert "audits" not in {attributes.get("id") for _, attributes in page.tags}


def dataset_at(place: Path, rows: str = "", **changed) -> str:
    """A dataset dir whose splits hold `rows`, with a manifest to be shown; returns its hash."""
    place.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name in SPLITS:
        (place / f"{name}.jsonl").write_text(rows)
        splits[name] = {"rows": 2080, "questions": 1900, "sha256": sha256_of_file(place / f"{name}.jsonl")}
    (place / "rejected.jsonl").write_text("")
    whole = dataset_hash({name: split["sha256"] for name, split in splits.items()})
    content = {
        "source": {"name": "bonds.csv", "sha256": "5" * 64, "rows": 2323},
        "template": {"id": "alpaca", "hash": "t1"},
        "columns": {},
        "cleaning": [{"step": "repeated_halves", "enabled": True, "changed": 31, "dropped": 7}],
        "split": {"seed": 42, "validation_fraction": 0.05, "test_fraction": 0.05},
        "splits": splits,
        "rejected": 7,
        "sha256": whole,
    } | changed
    write_json(place / "manifest.json", content)
    return whole


def test_the_data_card_shows_the_manifest_of_the_very_data_that_was_evaluated_on(tmp_path):
    place = tmp_path / "finance"
    held = dataset_at(tmp_path / "elsewhere")
    run = make_run(tmp_path / "lora", 0.9, dataset_hash=held)  # evaluated on data/finance
    assert "not at hand: no dataset dir with this hash" in page_of(run, out=tmp_path / "none").words
    other = dataset_at(place, "{}\n")
    assert f"holds another dataset, hash {other}" in page_of(run, out=tmp_path / "other").words
    dataset_at(place, "{}\n", sha256=held)  # which says that it is the one
    words = page_of(run, out=tmp_path / "claimed").words
    assert "names the dataset" in words and "bonds.csv" not in words
    dataset_at(place)
    words = page_of(run, out=tmp_path / "found").words
    assert "bonds.csv, 2,323 rows" in words and "repeated halves 31 7" in words
    assert "seed 42, validation fraction 0.05, test fraction 0.05" in words
    (place / "manifest.json").write_text("{")
    assert "not JSON" in page_of(run, out=tmp_path / "broken").words


def test_provenance_holds_what_makes_a_run_again(tmp_path):
    words = page_of(make_run(tmp_path / "lora", 0.9), out=tmp_path / "out").words
    for said in ("Git commit c0ffee", "torch 2.13", "Seed 42", "hash d1", "alpaca, hash t1", "learning_rate: 0.0002"):
        assert said in words
    assert "hf_confidential" not in (tmp_path / "out" / "index.html").read_text()


def test_hostile_text_becomes_no_element(tmp_path):
    sources = (("x", "bonds.csv"), ("y", HOSTILE))
    data, _ = (
        dataset_at(tmp_path / folder / "finance", source={"name": source, "sha256": source, "rows": 1})
        for folder, source in sources
    )
    audits = {"question": {"passed": True, "summary": "fine"}}
    evil_audits = {"question": {"passed": True, "summary": HOSTILE}}
    plain = [
        make_run(tmp_path / "x" / "lora", 0.9, name="lora", audits=audits, dataset_hash=data),
        make_run(tmp_path / "x" / "gpt2", 1.9, "base", name="gpt2", audits=audits, dataset_hash=data),
    ]
    hostile = {"base_model": HOSTILE, "answer": HOSTILE, "instruction": HOSTILE, "audits": evil_audits}
    hostile["dataset_hash"] = data
    evil = make_run(tmp_path / "y" / "lora", 0.9, name=HOSTILE, **hostile)
    base = make_run(tmp_path / "y" / "gpt2", 1.9, "base", name=HOSTILE + "2", **hostile)
    (evil / "config.yaml").write_text(yaml.safe_dump({"note": HOSTILE}))
    harmless, attacked = page_of(*plain, out=tmp_path / "plain"), page_of(evil, base, out=tmp_path / "evil")
    shape = [(tag, sorted(attributes)) for tag, attributes in harmless.tags]
    assert [(tag, sorted(attributes)) for tag, attributes in attacked.tags] == shape
    assert (attacked.script, attacked.style) == (harmless.script, harmless.style)  # what runs is ours alone
    assert attacked.data["models"][0]["name"] == HOSTILE
    assert attacked.questions[0][0] == HOSTILE and attacked.questions[0][3] == [HOSTILE, HOSTILE]
    assert not set("<>&\u2028\u2029") & set(attacked.figures + "".join(attacked.packs))
    assert HOSTILE in attacked.text  # the run's name, shown as it is


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = page_of(make_run(tmp_path / "lora", 0.9), make_run(tmp_path / "b", 1.9), out=tmp_path / "out")
    targets = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert targets and all(target[0] == "#" and target[1:] in ids for target in targets)
    assert not re.search(r"url\(|@import", page.style)
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp|import\("
    assert not re.search(forbidden, page.script)
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    style, script = (
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (page.style, page.script)
    )
    assert policy.startswith("default-src 'none'; ") and f"style-src '{style}'; script-src '{script}'" in policy
    names = [name for _, attributes in page.tags for name in attributes]
    assert "style" not in names and not [name for name in names if name.startswith("on")]


@pytest.mark.parametrize("count", [1, 50, 51])
def test_questions_are_packed_fifty_at_a_time(tmp_path, count):
    ids = "".join(chr(0x4E00 + number) for number in range(count))
    page = page_of(make_run(tmp_path / "lora", 0.9, ids=ids), out=tmp_path / "out")
    assert len(page.questions) == page.data["questions"] == count
    assert len(page.packs) == (count + 49) // 50
