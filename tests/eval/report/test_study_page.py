"""The study view: methods ranked by the seeds of their runs, findings made from the figures, page and study.md."""

import json
import re
import shutil
from pathlib import Path

import pytest
from evaluated_runs import Page, leaderboard, make_run

from finllm.files import write_json

# method: bits per byte of its seeds, parameters, seconds, rate, edge
METHODS = {
    "lora": ((1.20, 1.21, 1.205), 1000, 60.0, 1e-3, "inside"),
    "dora": ((1.203, 1.214, 1.208), 1000, 120.0, 1e-3, "inside"),
    "ia3": ((1.30, 1.31, 1.305), 10, 50.0, 3.16e-3, "highest"),
}
CURVE = [[0, 3.0], [30, 2.0], [60, 1.5]]


def make_study(folder: Path) -> tuple[Path, list[Path]]:
    """A study dir of three methods that were trained and one that was not, and its run dirs."""
    runs, methods = [make_run(folder / "base", 1.70, "base", noise=0.02)], {}
    for number, (name, (bits, parameters, seconds, rate, edge)) in enumerate(METHODS.items()):
        finals = []
        for seed, value in enumerate(bits):
            run = f"{name}-{rate:g}-seed{seed}"
            path = make_run(folder / "trials" / run, value, noise=0.02 + number / 1000,
                            config={"seed": seed, "learning_rate": rate, "method": name})  # fmt: skip
            results = json.loads((path / "eval" / "results.json").read_text())
            results["model"]["trainable_parameters"] = parameters
            results["hashes"] = {}
            write_json(
                path / "eval" / "results.json", {key: results[key] for key in results if key != "schema_version"}
            )
            write_json(path / "summary.json", {"train_seconds": seconds, "peak_memory_bytes": 10**9, "steps": 60})
            finals.append({"seed": seed, "run": run, "done": True, "failed": None, "validation_loss": value,
                           "curve": CURVE, "train_seconds": seconds, "steps": 60})  # fmt: skip
            runs.append(path)
        tried = [{"rate": rate, "run": finals[0]["run"], "losses": {"20": 2.1, "60": 1.5}, "failed": None},
                 {"rate": rate / 3.16, "run": "x", "losses": {"20": 2.2, "60": 1.6}, "failed": None},
                 {"rate": rate * 3.16, "run": "y", "losses": {"20": 2.4}, "failed": None}]  # fmt: skip
        methods[name] = {
            "tried": {name: tried}, "finals": finals, "failed": None,
            "chosen": {"candidate": name, "settings": {"lora_r": 16}, "rate": rate, "validation_loss": 1.5,
                       "neighbours": [], "edge": edge, "width": [rate / 3.16 if edge == "inside" else rate, rate],
                       "width_decades": 0.5},
        }  # fmt: skip
    methods["odd"] = {"tried": {"odd": []}, "chosen": None, "finals": [], "failed": "<b>no layers</b>"}
    content = {"budget": {"steps": 60, "search_steps": 20}, "seeds": [0, 1, 2], "study": {}, "complete": True,
               "seconds": 7200.0, "trainings": 33, "methods": methods}  # fmt: skip
    write_json(folder / "study.json", content)
    return folder, runs


def of_another_tokenizer(runs: list[Path]) -> None:
    for run in runs:
        held = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(json.dumps({**held, "tokenizer_hash": "another"}))


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path / "study")


def shown(folder: Path, runs: list[Path], out: Path) -> tuple[dict, Page, str]:
    done = leaderboard(*runs, "--study", folder, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "leaderboard.json").read_text())["study"]
    return content, Page(out / "index.html"), (out / "study.md").read_text()


def test_methods_are_ranked_by_their_seeds_and_what_cannot_be_told_apart_is_said(study, tmp_path):
    content, page, markdown = shown(*study, tmp_path / "out")
    rows = {row["name"]: row for row in content["rows"]}
    assert [*rows] == ["lora", "dora", "ia3", "base"]
    assert rows["lora"]["bits_per_byte"] == pytest.approx(1.205) and rows["lora"]["spread"] == pytest.approx(0.005)
    assert [(rows[name]["low"], rows[name]["high"]) for name in rows] == [(1, 2), (1, 2), (3, 3), (4, 4)]
    text = " ".join(content["findings"])
    assert text.startswith("lora predicts the reference answers best: 1.205 bits per byte")
    assert "lora and dora cannot be told apart" in text
    assert "Of lora's gain over the base model ia3 has 80 % with 0.01 of its trainable parameters." in text
    assert "dora takes 2.0 times the training time of lora, for no difference that 12 questions can show" in text
    assert "The best rate of ia3 is the highest that was tried" in text
    assert "Not trained: odd" in text and "Nor can" not in text
    assert page.data["study"]["curves"][0]["whole"] == [[1e-3, 1.5], [1e-3 / 3.16, 1.6]]
    assert all(each in page.words for each in ("Which method, at which rate", "not trained: <b>no layers</b>"))
    assert "0.000316456 to 0.001" in page.words and not re.search(r"([\d.]+) to \1(?![\d.])", page.words + markdown)
    widths = {line.count(" |") for line in markdown.splitlines() if line.startswith("| ")}
    assert len(widths) == 1 and "| forgetting |" in markdown
    assert "| 1–2 | lora | 1.205 (" in markdown and "learning_rate: 0.001" in markdown and "\\<b\\>" in markdown


def test_what_was_learned_is_drawn_by_its_scale_and_a_better_one_is_told(study, tmp_path):
    folder, runs = study
    held = {"split": "validation", "max_examples": 64, "scales": [0.0, 0.5, 1.0], "weights": None, "reason": None,
            "nats_per_token": [2.0, 1.4, 1.5], "best": 0.5, "examples": 64}  # fmt: skip
    gain = {"nats_per_token": 0.1, "low": 0.05, "high": 0.15}
    write_json(runs[1] / "eval" / "scaling.json", {**held, "gain": gain})
    write_json(runs[4] / "eval" / "scaling.json", {**held, "gain": {**gain, "low": -0.05}})
    write_json(runs[7] / "eval" / "scaling.json", {**held, "gain": gain, "weights": "others"})
    content, page, _ = shown(folder, runs, tmp_path / "out")
    assert [each["name"] for each in content["scaled"]] == ["lora", "dora"], "ia3's is of other weights"
    told = [each for each in content["findings"] if "scaled" in each]
    assert told == [
        "With what was learned scaled, on the validation rows where that was found, lora would be 0.100 nats a token "
        "better (0.050 to 0.150) at 0.5."
    ]
    assert page.data["study"]["scaled"][0]["nats_per_token"] == [2.0, 1.4, 1.5] and "What was learned" in page.words
    write_json(runs[1] / "eval" / "scaling.json", {"weights": None, "scales": "all"})
    done = leaderboard(*runs, "--study", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "scaling.json" in done.stderr and "scales" in done.stderr


def test_a_seed_that_could_not_be_trained_is_told(study, tmp_path):
    folder, runs = study
    content = json.loads((folder / "study.json").read_text())
    lost = content["methods"]["dora"]["finals"][1]
    lost["failed"] = "killed by SIGKILL"
    del lost["curve"]
    (folder / "study.json").write_text(json.dumps(content))
    kept = [run for run in runs if run.name != lost["run"]]
    found, page, _ = shown(folder, kept, tmp_path / "out")
    assert {row["name"]: row["seeds"] for row in found["rows"]}["dora"] == 2
    assert "Not trained: odd (<b>no layers</b>); dora with seed 1 (killed by SIGKILL)." in found["findings"]
    assert "dora with seed 1" in page.words


def test_a_method_of_which_one_seed_is_left_is_neither_worse_nor_alike(study, tmp_path):
    folder, runs = study
    content = json.loads((folder / "study.json").read_text())
    content["methods"]["lora"]["finals"] = content["methods"]["lora"]["finals"][:1]
    (folder / "study.json").write_text(json.dumps(content))
    kept = [run for run in runs if not run.name.startswith("lora") or run.name.endswith("seed0")]
    text = " ".join(shown(folder, kept, tmp_path / "out")[0]["findings"])
    assert text.startswith("dora predicts the reference answers best")
    assert "Of one seed nothing can be said of how another training would compare: lora." in text
    assert "told apart" not in text and "Every other method is surely worse" in text


def test_of_one_seed_nothing_is_compared(study, tmp_path):
    folder, runs = study
    content = json.loads((folder / "study.json").read_text())
    content["seeds"] = [0]
    for method in content["methods"].values():
        method["finals"] = method["finals"][:1]
    (folder / "study.json").write_text(json.dumps(content))
    kept = [run for run in runs if "seed" not in run.name or run.name.endswith("seed0")]
    text = " ".join(shown(folder, kept, tmp_path / "out")[0]["findings"])
    assert "Of one seed nothing can be said" in text and "surely" not in text and "told apart" not in text
    assert "The best rate of ia3 is the highest" in text and "Not trained: odd" in text


def test_methods_at_equal_seconds_are_read_off_their_curves(study, tmp_path):
    content, _, markdown = shown(*study, tmp_path / "out")
    equal = content["equal_seconds"]
    assert {name: round(each["step"]) for name, each in equal.items()} == {"lora": 50, "dora": 25, "ia3": 60}
    assert equal["lora"]["validation_loss"] == pytest.approx(2.0 - 0.5 * 20 / 30)
    assert equal["dora"]["validation_loss"] == pytest.approx(3.0 - 25 / 30)
    assert "**After equal seconds**, validation loss after 50 s of training:" in markdown


def test_the_times_of_different_machines_are_neither_compared_nor_drawn(study, tmp_path):
    folder, runs = study
    for number, run in enumerate(runs):
        held = json.loads((run / "provenance.json").read_text())
        held["hardware"] = {"processor": "a CPU", "cores": 2} | ({"gpu": "a GPU"} if number == 2 else {})
        (run / "provenance.json").write_text(json.dumps(held))
    content, page, markdown = shown(folder, runs, tmp_path / "out")
    said = "so times and memory are not compared: lora, dora, ia3 on a CPU, 2 cores; lora on a GPU."
    assert said in " ".join(content["findings"]) and said in page.words
    assert "times the training time" not in " ".join(content["findings"]) and content["equal_seconds"] == {}
    assert "After equal seconds" not in markdown and "**Chosen settings**" in markdown
    assert page.data["study"]["apart"] == ["train_seconds", "peak_memory_bytes"]
    assert "Trained on different machines, so that times and memory are not to be compared" in page.words


def test_what_was_trained_under_other_versions_is_told(study, tmp_path):
    """A newer peft may train a method otherwise; one that is missing somewhere is no other version."""
    folder, runs = study
    for number, run in enumerate(runs):
        held = json.loads((run / "provenance.json").read_text())
        versions = {"torch": "2.13.0", "peft": "0.22.0" if number == 2 else "0.21.2"}
        held["packages"] = versions | ({"bitsandbytes": "0.50"} if number == 1 else {})
        (run / "provenance.json").write_text(json.dumps(held))
    content, page, markdown = shown(folder, runs, tmp_path / "out")
    said = "Trained under different versions, so a difference may be theirs: peft 0.21.2 ("
    (told,) = (finding for finding in content["findings"] if finding.startswith(said))
    assert told == f"{said}lora, dora, ia3) and 0.22.0 (lora)." and told in page.words and told in markdown


def test_losses_a_token_are_compared_among_methods_of_one_tokenizer_alone(study, tmp_path):
    """IA3 is the quickest; of another tokenizer, it is no measure of the others' seconds any more."""
    folder, runs = study
    of_another_tokenizer(runs[-3:])
    content, page, markdown = shown(folder, runs, tmp_path / "out")
    assert content["groups"] == [["lora", "dora"], ["ia3"]] == page.data["study"]["groups"]
    assert {name: (each["seconds"], round(each["step"])) for name, each in content["equal_seconds"].items()} == {
        "lora": (60.0, 60), "dora": (60.0, 30), "ia3": (50.0, 60),
    }  # fmt: skip
    first, second = markdown.split("Of another tokenizer, whose tokens are not those above, after 50 s of training:")
    assert "- ia3:" in second and "- ia3:" not in first and "- lora:" in first and "- lora:" not in second
    assert "Of another tokenizer, whose tokens are not those above:" in page.words


def test_a_study_whose_runs_are_not_those_given_is_refused(study, tmp_path):
    folder, runs = study
    done = leaderboard(*runs[:-1], "--study", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "ia3-0.00316-seed2 is a final run of the study and was not given" in done.stderr
    broken = json.loads((folder / "study.json").read_text())
    broken["methods"]["lora"]["chosen"]["rate"] = "fast"
    (folder / "study.json").write_text(json.dumps(broken))
    done = leaderboard(*runs, "--study", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 2 and "methods.lora.chosen.rate is 'fast'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_forgetting_counts_only_where_all_seeds_have_it_of_their_own_weights(study, tmp_path):
    folder, runs = study
    lora, dora, ia3 = runs[1:4], runs[4:7], runs[7:]
    for group, weights, nats in ((lora, None, 0.1), (dora, "of another training", 0.2), (ia3[:2], None, 0.3)):
        for run in group:
            held = {"nats_per_token": nats, "base": "b", "texts": 5, "seed": 0, "weights": weights}
            write_json(run / "eval" / "forgetting.json", held)
    content, *_ = shown(folder, runs, tmp_path / "out")
    assert [row["forgetting"] for row in content["rows"]] == [pytest.approx(0.1), None, None, None]


def test_the_charts_are_drawn(study, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page is opened")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed: the page is not opened")
    folder, runs = study
    of_another_tokenizer(runs[-3:])
    for run in runs[1:-3]:  # IA3 has forgotten nothing that is known
        write_json(run / "eval" / "forgetting.json", {"nats_per_token": 0.1, "base": "b", "texts": 5, "seed": 0})
    shown(folder, runs, tmp_path / "out")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=300_000)
        page = browser.new_page(viewport={"width": 390, "height": 900}, offline=True)
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "out" / "index.html").as_uri())
        rings = [page.locator(f"#rate-chart-{group} .ring") for group in (0, 1)]
        assert [each.count() for each in rings] == [2, 1] and page.locator("#rate-legend-1 button").count() == 1
        page.locator("#rate-legend-0 button").first.click()
        assert [each.count() for each in rings] == [1, 1]
        # DoRA is as good as LoRA as far as can be told: only a surely better one would push it off the front
        assert page.locator("#study-chart svg").get_attribute("aria-label").endswith("on the front: lora, dora, ia3")
        page.get_by_role("button", name="Forgetting, nats a token").click()
        assert page.locator("#study-chart svg").get_attribute("aria-label").endswith("on the front: lora, dora")
        assert wrong == [] and page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
