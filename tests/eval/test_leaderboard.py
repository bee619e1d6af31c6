import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from eval.lm import Description
from eval.results import GENERATION_METRICS, Interval, Results, SplitResults
from finllm.run import write_json, write_jsonl

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "eval" / "leaderboard.py"
COUNT, BYTES, TOKENS = 4, 20, 5  # examples of a run; bytes and tokens of each reference
FILES = ["index.html", "leaderboard.json", "leaderboard.md"]


def make_run(
    path: Path,
    bits: float,
    method: str = "lora",
    *,
    name: str | None = None,
    base_model: str | None = "gpt2",
    dataset_hash: str = "d1",
    ids: str = "abcd",
    instruction: str = "What is a bond?",
    answer: str | None = "A loan.",
    answered: str | None = None,
    audits: dict | None = None,
    margin: float = 0.05,
) -> Path:
    """A run dir as the other stages leave it, whose numbers belong together: `bits` ± `margin` bits per byte."""
    nll = bits * math.log(2) * BYTES
    answered = (ids if answered is None else answered) if answer is not None else ""
    rows = [
        {"id": id, "split": "test", "question_id": id, "instruction": instruction, "input": "", "prompt": "p"}
        | {
            "reference": "A loan to the state.",
            "prediction": answer if id in answered else None,
            "nll": nll,
            "tokens": TOKENS,
            "correct_tokens": 2,
        }
        | {
            "bytes": BYTES,
            "stopped": id != "a" if id in answered else None,
            "prediction_tokens": 3 if id in answered else None,
        }
        | dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 0.25 if id in answered else None)
        | {"bleu": 2.5 if id in answered else None}
        for id in ids
    ]
    metrics = {
        "nll_per_token": Interval(nll / TOKENS, nll / TOKENS - 0.1, nll / TOKENS + 0.1),
        "perplexity": Interval(math.exp(nll / TOKENS), 1.0, 99.0),
        "bits_per_byte": Interval(bits, bits - margin, bits + margin),
        "token_accuracy": Interval(0.4, 0.3, 0.5),
    }
    if answered:
        metrics |= {metric: Interval(0.25, 0.125, 0.5) for metric in GENERATION_METRICS}
    Results(
        name=name or path.name,
        model=Description(method, base_model, "gpt2" if base_model else "own", 1000, 0 if method == "base" else 250),
        dataset={"name": "data/finance", "hash": dataset_hash},
        template={"id": "alpaca", "hash": "t1"},
        splits={"test": SplitResults(len(ids), len(ids), TOKENS * len(ids), BYTES * len(ids), len(answered), metrics)},
        confidence={"level": 0.95, "method": "percentile bootstrap over questions", "resamples": 1000, "seed": 0},
        signatures={"rouge": "r", "bleu": "b"},
        decoding={"do_sample": False, "max_new_tokens": 64},
        audits=audits or {},
        seconds={"score": 1.0, "generate": 2.0},
    ).write(path)
    write_jsonl(path / "eval" / "predictions.jsonl", rows)
    write_json(path / "provenance.json", {"git_commit": "c0ffee", "packages": {"torch": "2.13"}, "seed": 42})
    if method != "base":
        lines = [{"step": 0, "epoch": 0, "validation_loss": 3.0}, {"step": 5, "epoch": 1, "loss": 2.0}]
        write_jsonl(path / "metrics.jsonl", [*lines, {"step": 5, "epoch": 1, "validation_loss": 2.5}])
        write_json(path / "summary.json", {"train_seconds": 754.0, "peak_memory_bytes": 2_500_000_000, "steps": 5})
        config = {"learning_rate": 0.0002, "hub_token": "hf_confidential"}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def leaderboard(*arguments, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def report(*runs: Path, out: Path) -> dict:
    done = leaderboard(*runs, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "leaderboard.json").read_text())


class Page(HTMLParser):
    """The start tags of a page, the text of its <script> and <style> elements, and all other text."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.tags, self.raw, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.raw.append("")

    def handle_data(self, data):
        if self.cdata_elem:
            self.raw[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict:
        return json.loads(self.raw[1])


def test_models_are_ranked_by_bits_per_byte_in_all_three_files(tmp_path):
    runs = [make_run(tmp_path / "full", 1.2, "full"), make_run(tmp_path / "gpt2", 1.9, "base")]
    runs += [make_run(tmp_path / "lora", 0.9), make_run(tmp_path / "scratch", 2.5, "scratch", base_model=None)]
    out = tmp_path / "out"
    done = leaderboard(*runs, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == FILES
    content = json.loads((out / "leaderboard.json").read_text())
    order = ["lora", "full", "gpt2", "scratch"]
    assert content["schema_version"] == 1
    assert [(row["name"], row["rank"]) for row in content["models"]] == list(zip(order, [1, 2, 3, 4], strict=True))
    assert [row["reference"] for row in content["models"]] == ["gpt2", "gpt2", None, "gpt2"]
    assert [row["bits_per_byte_to_base"] for row in content["models"]] == pytest.approx([-1.0, -0.7, None, 0.6])
    assert content["models"][0]["metrics"]["perplexity"]["high"] == 99.0
    table = [line.split(" | ") for line in (out / "leaderboard.md").read_text().splitlines() if line.startswith("| ")]
    assert [line[1] for line in table[2:]] == order
    assert table[2][3:6] == ["0.900 ± 0.050", "−1.000", f"{2 ** (0.9 * BYTES / TOKENS):.2f} (gpt2)"]
    assert table[2][9:] == ["250 (25 %)", "13 min", "2.5 GB |"]
    assert table[4][9:] == ["0 (0 %)", "–", "– |"]
    page = Page(out / "index.html")
    assert [model["name"] for model in page.data["models"]] == order
    names = [attributes["data-value"] for tag, attributes in page.tags if tag == "th" and "data-value" in attributes]
    assert names == order
    positions = [done.stdout.index(f"  {rank}   {name} ") for rank, name in enumerate(order, 1)]
    assert positions == sorted(positions)
    assert str(out / "index.html") in done.stdout.replace("\n", "")


def test_the_finding_names_the_best_its_interval_and_its_base(tmp_path):
    runs = [make_run(tmp_path / "lora", 0.9), make_run(tmp_path / "gpt2", 1.9, "base")]
    finding = report(*runs, out=tmp_path / "out")["finding"]
    assert finding == [
        "lora predicts the reference answers best: 0.900 bits per byte (95 % interval 0.850 to 0.950), "
        "1.000 fewer than its base model gpt2 (1.900, 1.850 to 1.950).",
        "No other model's interval overlaps its own.",
    ]
    page = Page(tmp_path / "out" / "index.html")
    assert page.text.lstrip().startswith("FinLLM leaderboard: finance (test)")
    assert finding[0] in page.text and finding[1] in page.text
    markdown = (tmp_path / "out" / "leaderboard.md").read_text()
    assert " ".join(finding) in markdown
    assert "do not compare it between tokenizers" in markdown.splitlines()[-1]


def test_models_whose_intervals_overlap_are_not_called_different(tmp_path):
    runs = [make_run(tmp_path / "a", 0.90), make_run(tmp_path / "b", 0.98), make_run(tmp_path / "c", 0.99)]
    content = report(*runs, make_run(tmp_path / "d", 1.1), out=tmp_path / "out")
    assert content["finding"][1] == "Its interval overlaps those of b and c, so they are not called different here."
    assert [row["overlaps_best"] for row in content["models"]] == [True, True, True, False]
    page = Page(tmp_path / "out" / "index.html")
    assert page.text.count("overlaps the best") == 2


def test_a_base_model_that_no_training_improved_is_said_so(tmp_path):
    runs = [make_run(tmp_path / "gpt2", 0.9, "base"), make_run(tmp_path / "lora", 1.5)]
    finding = report(*runs, out=tmp_path / "out")["finding"]
    assert finding[0].startswith("No trained model here predicts the reference answers better than the base model gpt2")


def test_one_base_model_alone_has_a_report_without_curves_or_cost(tmp_path):
    content = report(make_run(tmp_path / "gpt2", 1.9, "base", answer=None), out=tmp_path / "out")
    assert content["finding"] == [
        "gpt2 predicts the reference answers with 1.900 bits per byte (95 % interval 1.850 to 1.950)."
    ]
    page = Page(tmp_path / "out" / "index.html")
    assert page.data["models"][0]["training"] == page.data["models"][0]["validation"] == []
    assert page.data["questions"][0]["answers"] == [[None, 1.9, None, None, None]]
    assert "No config.yaml" in page.text


def test_a_model_that_sees_the_future_is_listed_and_not_ranked(tmp_path):
    blind = make_run(tmp_path / "cheat", 0.1, audits={"causality": {"passed": False}})
    content = report(blind, make_run(tmp_path / "lora", 0.9), out=tmp_path / "out")
    assert [(row["name"], row["rank"]) for row in content["models"]] == [("lora", 1), ("cheat", None)]
    assert content["finding"] == [
        "lora predicts the reference answers with 0.900 bits per byte (95 % interval 0.850 to 0.950)."
    ]
    assert any("not ranked" in note and "cheat" in note for note in content["caveats"])


def test_what_must_not_be_compared_is_said(tmp_path):
    runs = [make_run(tmp_path / "lora", 0.9), make_run(tmp_path / "gpt2", 1.9, "base", answer=None)]
    runs += [make_run(tmp_path / "scratch", 2.5, "scratch", base_model=None)]
    caveats = report(*runs, out=tmp_path / "out")["caveats"]
    assert caveats == [
        "There are 2 tokenizers: compare perplexities only between models of the same one.",
        "Held against the only base model here, which they were not made from: scratch.",
        "ROUGE, BLEU and stop rate cover 4 answers, but only 0 of gpt2.",
    ]
    assert all(note in (tmp_path / "out" / "leaderboard.md").read_text() for note in caveats)
    assert report(runs[0], out=tmp_path / "alone")["caveats"] == []
    half = make_run(tmp_path / "half", 0.9, answered="ab")
    assert report(half, out=tmp_path / "half_out")["caveats"] == ["Answers were written to 2 of the 4 examples."]


def test_numbers_in_the_page_are_those_of_results_json(tmp_path):
    runs = [make_run(tmp_path / "lora", 0.9123456), make_run(tmp_path / "gpt2", 1.9876543, "base")]
    report(*runs, out=tmp_path / "out")
    page = Page(tmp_path / "out" / "index.html")
    cells = [attributes for tag, attributes in page.tags if tag == "td" and "data-key" in attributes]
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
    assert page.data["questions"][0]["answers"] == [
        ["A loan.", 0.9123, 0.25, False, 3],
        ["A loan.", 1.9877, 0.25, False, 3],
    ]
    assert page.data["models"][0]["training"] == [[5, 2.0]]
    assert page.data["models"][0]["validation"] == [[0, 3.0], [5, 2.5]]


def test_long_training_curves_are_averaged_and_repeated_steps_count_once(tmp_path):
    run = make_run(tmp_path / "lora", 0.9)
    lines = [{"step": step, "loss": float(step % 2)} for step in range(1, 1201)]
    write_jsonl(run / "metrics.jsonl", [{"step": 3, "loss": 50.0}, *lines])
    report(run, out=tmp_path / "out")
    curve = Page(tmp_path / "out" / "index.html").data["models"][0]["training"]
    assert len(curve) == 300
    assert curve[0] == [4, 0.5] and curve[-1] == [1200, 0.5]


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\u2028& \"' {{ 7 * 7 }} ${1} <b>|`*"


def test_hostile_text_becomes_no_element(tmp_path):
    plain = [
        make_run(tmp_path / "x" / "lora", 0.9, name="lora"),
        make_run(tmp_path / "x" / "gpt2", 1.9, "base", name="gpt2"),
    ]
    evil = make_run(tmp_path / "y" / "lora", 0.9, name=HOSTILE, base_model=HOSTILE, instruction=HOSTILE, answer=HOSTILE)
    base = make_run(tmp_path / "y" / "gpt2", 1.9, "base", name=HOSTILE + "2", base_model=HOSTILE, answer=HOSTILE)
    (evil / "config.yaml").write_text(yaml.safe_dump({"note": HOSTILE}))
    report(*plain, out=tmp_path / "plain")
    report(evil, base, out=tmp_path / "evil")
    harmless, attacked = Page(tmp_path / "plain" / "index.html"), Page(tmp_path / "evil" / "index.html")
    shape = [(tag, sorted(attributes)) for tag, attributes in harmless.tags]
    assert [(tag, sorted(attributes)) for tag, attributes in attacked.tags] == shape
    assert attacked.raw[2:] == harmless.raw[2:]  # the script that runs is ours alone
    assert attacked.data["models"][0]["name"] == HOSTILE
    assert attacked.data["questions"][0]["instruction"] == HOSTILE
    assert attacked.data["questions"][0]["answers"][0][0] == HOSTILE
    assert not set("<>&\u2028\u2029") & set(attacked.raw[1])
    assert HOSTILE in attacked.text  # the run's name, shown as it is


def test_hostile_names_do_not_break_the_markdown_table(tmp_path):
    report(make_run(tmp_path / "lora", 0.9, name="a | b\n<img src=x>"), out=tmp_path / "out")
    lines = (tmp_path / "out" / "leaderboard.md").read_text().splitlines()
    assert lines[4].startswith("| 1 | a \\| b \\<img src=x\\> | lora |")
    assert not re.search(r"(?<!\\)<", "\n".join(lines))


def test_the_page_needs_nothing_from_outside(tmp_path):
    report(make_run(tmp_path / "lora", 0.9), out=tmp_path / "out")
    page = Page(tmp_path / "out" / "index.html")
    targets = [attributes[key] for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    assert targets and all(target.startswith("#") for target in targets)
    style, data, script = page.raw
    assert not re.search(r"url\(|@import", style)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp|import\(", script
    )
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    hashes = ["sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src '{hashes[0]}'; script-src '{hashes[1]}'" in policy
    assert not [
        attributes for _, attributes in page.tags if "style" in attributes or any(key[:2] == "on" for key in attributes)
    ]
    assert json.loads(data)["questions"]


def test_a_secret_of_the_config_stays_out_of_the_page(tmp_path):
    report(make_run(tmp_path / "lora", 0.9), out=tmp_path / "out")
    text = Page(tmp_path / "out" / "index.html").text
    assert "learning_rate: 0.0002" in text and "c0ffee" in text
    assert "hf_confidential" not in (tmp_path / "out" / "index.html").read_text()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [make_run(tmp_path / seed / "lora", bits) for seed, bits in (("seed1", 0.9), ("seed2", 1.0))]
    content = report(*runs, make_run(tmp_path / "full", 1.2, "full"), out=tmp_path / "out")
    assert [row["name"] for row in content["models"]] == ["seed1/lora", "seed2/lora", "full"]


def edit(path: Path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_everything_that_forbids_a_comparison_is_refused_at_once(tmp_path):
    good = make_run(tmp_path / "good", 0.9)
    other = make_run(tmp_path / "other", 1.0, dataset_hash="d2")
    fewer = make_run(tmp_path / "fewer", 1.0, ids="abc")
    torn = make_run(tmp_path / "torn", 1.0)
    lines = (torn / "eval" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (torn / "eval" / "predictions.jsonl").write_text("".join(lines[:3]))
    stale = make_run(tmp_path / "stale", 1.0)
    (stale / "eval" / "predictions.jsonl").write_text("".join(lines).replace('"nll": ', '"nll": 1'))
    bare = tmp_path / "bare"
    bare.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("the report of yesterday")
    done = leaderboard(good, other, fewer, torn, stale, bare, good, "--output_dir", out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 6 problems in the runs to compare: ")
    for said in (
        f"{good} is given 2 times",
        f"{other} was evaluated on another dataset (data/finance, hash d2) than {good} (data/finance, hash d1)",
        f"{fewer} was evaluated on other examples (3) of dataset d1 than {good} (4)",
        f"{torn}: eval/results.json and eval/predictions.jsonl do not belong together",
        "results count 4 examples, predictions hold 3",
        "results say 1.0000 bits per byte, the predictions' nll gives ",
        f"{bare / 'eval' / 'results.json'} does not exist; evaluate the run: python eval/run.py {bare}",
    ):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("index.html", "the report of yesterday")]


def test_no_runs_an_unknown_split_and_a_file_as_folder_are_refused(tmp_path):
    run, out = make_run(tmp_path / "lora", 0.9), tmp_path / "out"
    cases = {
        ("--output_dir", out): "no run dirs given",
        (run, "--output_dir", out, "--split", "train"): "has no results on split 'train' (it has: test)",
        (run, "--output_dir", run / "config.yaml"): "config.yaml is a file; --output_dir names a folder",
    }
    for arguments, said in cases.items():
        done = leaderboard(*arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not out.exists()


def test_a_schema_version_from_the_future_is_refused(tmp_path):
    run = make_run(tmp_path / "lora", 0.9)
    edit(run / "eval" / "results.json", schema_version=9)
    done = leaderboard(run, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "schema_version 9" in done.stderr
    assert not (tmp_path / "out").exists()


def test_it_runs_as_a_module_and_as_a_file_from_another_folder(tmp_path):
    run = make_run(tmp_path / "lora", 0.9)
    command = [sys.executable, "-m", "eval.leaderboard", str(run), "--output_dir", str(tmp_path / "module")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert leaderboard("lora", "--output_dir", "file", cwd=tmp_path).returncode == 0
    pages = [(tmp_path / folder / "index.html").read_text() for folder in ("module", "file")]
    assert pages[0].replace(str(run), "lora") == pages[1]


def test_torch_and_its_company_are_not_imported(tmp_path):
    run = make_run(tmp_path / "lora", 0.9)
    code = (
        "import sys\nfrom eval.leaderboard import main\n"
        f"main([{str(run)!r}, '--output_dir', {str(tmp_path / 'out')!r}])\n"
        "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
