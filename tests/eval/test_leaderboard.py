import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated_runs import ROOT, Page, leaderboard, make_run, report
from scipy.stats import t

from finllm.files import read_jsonl, write_jsonl


def test_models_are_ranked_by_bits_per_byte_in_all_three_files(tmp_path):
    runs = [make_run(tmp_path / "full", 1.2, "full"), make_run(tmp_path / "gpt2", 1.9, "base")]
    runs += [make_run(tmp_path / "lora", 0.9), make_run(tmp_path / "scratch", 2.5, "scratch", base_model=None)]
    out = tmp_path / "out"
    done = leaderboard(*runs, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "leaderboard.json", "leaderboard.md"]
    content = json.loads((out / "leaderboard.json").read_text())
    order = ["lora", "full", "gpt2", "scratch"]
    assert content["schema_version"] == 1
    assert [(row["name"], row["position"]) for row in content["models"]] == list(zip(order, [1, 2, 3, 4], strict=True))
    assert [(row["rank_low"], row["rank_high"]) for row in content["models"]] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [row["reference"] for row in content["models"]] == ["gpt2", "gpt2", None, "gpt2"]
    assert [row["bits_per_byte_to_base"] for row in content["models"]] == pytest.approx([-1.0, -0.7, None, 0.6])
    assert content["models"][0]["metrics"]["perplexity"]["high"] == 99.0
    table = [line.split(" | ") for line in (out / "leaderboard.md").read_text().splitlines() if line.startswith("| ")]
    assert [line[2] for line in table[2:6]] == order
    assert table[2][4:7] == ["0.900 ± 0.050", "−1.000", f"{2 ** (0.9 * 20 / 5):.2f} (gpt2)"]
    assert table[2][10:] == ["250 (25 %)", "13 min", "2.5 GB |"]
    assert table[4][10:] == ["0 (0 %)", "–", "– |"]
    page = Page(out / "index.html")
    assert [model["name"] for model in page.data["models"]] == order
    names = [attributes["data-value"] for tag, attributes in page.tags if tag == "th" and "data-value" in attributes]
    assert names == order
    positions = [done.stdout.index(f"  {rank}      {rank}   {name} ") for rank, name in enumerate(order, 1)]
    assert positions == sorted(positions)
    assert str(out / "index.html") in done.stdout.replace("\n", "")


def test_the_finding_names_the_best_its_interval_and_its_base(tmp_path):
    runs = [make_run(tmp_path / "lora", 0.9), make_run(tmp_path / "gpt2", 1.9, "base")]
    finding = report(*runs, out=tmp_path / "out")["finding"]
    assert finding == [
        "lora predicts the reference answers best: 0.900 bits per byte (95 % interval 0.850 to 0.950), "
        "1.000 fewer than its base model gpt2 (1.900, 1.850 to 1.950).",
        "For every other model there is a surely better one, by paired tests of every two on the same questions.",
    ]
    page = Page(tmp_path / "out" / "index.html")
    assert page.text.lstrip().startswith("FinLLM leaderboard: finance (test)")
    assert finding[0] in page.text and finding[1] in page.text
    markdown = (tmp_path / "out" / "leaderboard.md").read_text()
    assert " ".join(finding) in markdown
    assert "do not compare it between tokenizers" in markdown
    assert "hold for 1 comparison at once" in markdown and "| gpt2 | +1.000 | +1.000 to +1.000 |" in markdown


def test_models_that_a_paired_test_cannot_tell_apart_have_ranks_in_common(tmp_path):
    """b is as good as a on half of the questions and better on the others by turns; c is worse on every one."""
    runs = [make_run(tmp_path / "a", 0.90), make_run(tmp_path / "b", 0.91, noise=0.2), make_run(tmp_path / "c", 0.93)]
    out = tmp_path / "out"
    content = report(*runs, make_run(tmp_path / "d", 1.9, noise=0.1), out=out)
    places = [(row["name"], row["position"], row["rank_low"], row["rank_high"]) for row in content["models"]]
    assert places == [("a", 1, 1, 2), ("b", 2, 1, 3), ("c", 3, 2, 3), ("d", 4, 4, 4)]
    said = "The truly best one is among a and b (95 % sure, by paired tests of every two on the same questions)."
    assert content["finding"][1] == said
    assert [row["may_be_best"] for row in content["models"]] == [True, True, False, False]
    pairs = {(each["a"], each["b"]): each for each in content["comparisons"]}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert pairs["a", "c"]["difference"] == pytest.approx(-0.03)
    least = 2 / 2**12  # that all twelve questions favour one of two equals
    assert pairs["a", "c"]["p_value"] == least and pairs["a", "c"]["p_adjusted"] == least * 6
    assert pairs["a", "b"]["low"] < 0 < pairs["a", "b"]["high"] and pairs["a", "b"]["p_adjusted"] > 0.05
    markdown = (out / "leaderboard.md").read_text()
    assert "| b | +0.010 | " in markdown and "| c | +0.030 | +0.030 to +0.030 | 0.003 |" in markdown
    placed = re.findall(r"^\| (\d \| [\d–]+ \| \w) \|", markdown, re.MULTILINE)
    assert placed == ["1 | 1–2 | a", "2 | 1–3 | b", "3 | 2–3 | c", "4 | 4 | d"]
    assert "1    1–2   a " in leaderboard(*runs, "--output_dir", tmp_path / "again").stdout


def test_a_steady_model_stands_above_an_unsteady_one_with_more_bits(tmp_path):
    """b is worse than a on every question by a little; c is much better and much worse by turns."""
    runs = [make_run(tmp_path / "a", 0.90), make_run(tmp_path / "b", 0.92), make_run(tmp_path / "c", 0.95, noise=0.5)]
    content = report(*runs, out=tmp_path / "out")
    places = [(row["name"], row["rank_low"], row["rank_high"]) for row in content["models"]]
    assert places == [("a", 1, 2), ("b", 1, 3), ("c", 1, 3)]  # c may be the best, and b above it has its low end
    assert [row["may_be_best"] for row in content["models"]] == [True, False, True]
    assert "among a and c (95 % sure" in content["finding"][1]


def test_a_difference_that_few_questions_decide_is_said_with_their_share(tmp_path):
    runs = [make_run(tmp_path / "a", 0.90), make_run(tmp_path / "b", 0.90)]
    path = runs[1] / "eval" / "predictions.jsonl"
    rows = read_jsonl(path)
    rows[3]["nll"] += 0.1  # of 12 questions: its square about the mean is 121 of 132
    write_jsonl(path, rows)
    content = report(*runs, out=tmp_path / "out")
    assert content["comparisons"][0]["few_questions"] == {"questions": 1, "share": pytest.approx(121 / 132)}
    said = "- a and b: few questions decide this difference: 1 of 12 holds 92 % of its variance"
    assert said in (tmp_path / "out" / "leaderboard.md").read_text()


def test_too_few_questions_for_a_test_have_no_interval(tmp_path):
    runs = [make_run(tmp_path / "a", 0.90, ids="abcd"), make_run(tmp_path / "b", 1.90, ids="abcd")]
    content = report(*runs, out=tmp_path / "out")
    (found,) = content["comparisons"]
    assert (found["low"], found["high"], found["p_adjusted"]) == (None, None, 2 / 2**4)
    assert [(row["rank_low"], row["rank_high"]) for row in content["models"]] == [(1, 2), (1, 2)]
    assert "| b | +1.000 | too few questions | 0.125 |" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_the_score_on_the_clean_part_is_said(tmp_path):
    run = make_run(tmp_path / "lora", 0.9)
    content = json.loads((run / "eval" / "results.json").read_text())
    split = content["splits"]["test"]
    bits = {"value": 1.2, "low": 1.1, "high": 1.3}
    clean = {**split, "examples": 9, "questions": 9, "metrics": {**split["metrics"], "bits_per_byte": bits}}
    edit(run / "eval" / "results.json", splits={"test": {**split, "clean": clean}})
    content = report(run, out=tmp_path / "out")
    assert content["models"][0]["clean"]["metrics"]["bits_per_byte"] == bits
    assert content["caveats"][0].endswith("how many are left of 12: lora 1.200 (9).")
    assert "Clean part no near duplicates" in (words := Page(tmp_path / "out" / "index.html").words)
    assert "1.200 1.100–1.300" in words


def test_seeds_of_one_recipe_are_pooled_with_their_spread(tmp_path):
    runs = [make_run(tmp_path / f"s{seed}", bits, config={"seed": seed, "output_dir": f"s{seed}"})
            for seed, bits in ((1, 0.9), (2, 1.0), (3, 1.1))]  # fmt: skip
    other = make_run(tmp_path / "other", 1.5, config={"seed": 1, "learning_rate": 0.1})
    base = make_run(tmp_path / "gpt2", 1.9, "base")
    content = report(*runs, other, base, out=tmp_path / "out")
    (recipe,) = content["recipes"]
    assert recipe["runs"] == ["s1", "s2", "s3"] and recipe["seeds"] == [1, 2, 3]
    assert recipe["metrics"]["bits_per_byte"] == pytest.approx(
        {"mean": 1.0, "spread": 0.1, "lowest": 0.9, "highest": 1.1}
    )
    assert recipe["bits_per_byte"]["value"] == pytest.approx(1.0)
    assert "bits per byte are 1.000 ± 0.100 (standard deviation between seeds)" in content["finding"][-1]
    # Questions are all alike, so seeds alone vary: 1 ± t(2 degrees) · 0.1 / √3
    markdown = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| s1, s2, s3 | 1, 2, 3 | 1.000 (0.752 to 1.248) | ± 0.100 |" in markdown
    (compared,) = content["recipe_comparisons"]
    assert (compared["a"], compared["b"]) == (["s1", "s2", "s3"], ["gpt2"])
    assert [compared[key] for key in ("difference", "low", "high")] == pytest.approx([-0.9, -1.1484, -0.6516], abs=1e-4)
    assert compared["p_adjusted"] == pytest.approx(2 * t.sf(0.9 / (0.1 / 3**0.5), 2))
    assert "| s1, s2, s3 | gpt2 | -0.900 | -1.148 to -0.652 | 0.004 |" in markdown
    words = Page(tmp_path / "out" / "index.html").words
    assert (
        "s1, s2, s3 1, 2, 3 1.000 0.752–1.248 ± 0.100" in words
        and "gpt2 -0.900 -1.148 to -0.652 0.004" in words
        and "Clean part" not in words
    )


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
    assert content["comparisons"] == content["recipes"] == []


def test_a_model_that_sees_the_future_is_listed_and_not_ranked(tmp_path):
    blind = make_run(tmp_path / "cheat", 0.1, audits={"causality": {"passed": False, "summary": "it moved"}})
    content = report(blind, make_run(tmp_path / "lora", 0.9), out=tmp_path / "out")
    assert [(row["name"], row["position"]) for row in content["models"]] == [("lora", 1), ("cheat", None)]
    assert [row["rank_high"] for row in content["models"]] == [1, None] and content["comparisons"] == []
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
        "ROUGE, BLEU and stop rate cover 12 answers, but only 0 of gpt2.",
    ]
    assert all(note in (tmp_path / "out" / "leaderboard.md").read_text() for note in caveats)
    assert report(runs[0], out=tmp_path / "alone")["caveats"] == []
    half = make_run(tmp_path / "half", 0.9, answered="ab")
    assert report(half, out=tmp_path / "half_out")["caveats"] == ["Answers were written to 2 of the 12 examples."]


def test_long_training_curves_are_averaged_and_repeated_steps_count_once(tmp_path):
    run = make_run(tmp_path / "lora", 0.9)
    lines = [{"step": step, "loss": float(step % 2)} for step in range(1, 1201)]
    write_jsonl(run / "metrics.jsonl", [{"step": 3, "loss": 50.0}, *lines])
    report(run, out=tmp_path / "out")
    curve = Page(tmp_path / "out" / "index.html").data["models"][0]["training"]
    assert len(curve) == 300
    assert curve[0] == [4, 0.5] and curve[-1] == [1200, 0.5]


def test_hostile_names_do_not_break_the_markdown_table(tmp_path):
    report(make_run(tmp_path / "lora", 0.9, name="a | b\n<img src=x>"), out=tmp_path / "out")
    lines = (tmp_path / "out" / "leaderboard.md").read_text().splitlines()
    assert lines[4].startswith("| 1 | 1 | a \\| b \\<img src=x\\> | lora |")
    assert not re.search(r"(?<!\\)<", "\n".join(lines))


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
        f"{fewer} was evaluated on other examples (3) of dataset d1 than {good} (12)",
        f"{torn}: eval/results.json and eval/predictions.jsonl do not belong together",
        "results count 12 examples, predictions hold 3",
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
        "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'evaluate'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
