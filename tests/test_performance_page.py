"""docs/performance.md is what its records make, and no figure of it is typed."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import page  # noqa: E402
import records  # noqa: E402

from finllm.errors import UserError  # noqa: E402


def test_the_page_and_its_picture_are_what_the_records_make(tmp_path):
    held = records.read_all()
    assert page.text_of(held) == page.PAGE.read_text("utf-8"), "run: python benchmarks/page.py"
    png = (page.PAGE.parent / page.PICTURE).read_bytes()
    assert page.hash_of(held).encode() in png, "run: python benchmarks/page.py"
    page.draw(held, tmp_path / "picture.png")
    assert page.hash_of(held).encode() in (tmp_path / "picture.png").read_bytes()


def test_no_figure_stands_in_the_prose():
    """What the template says itself has no number with a unit, and no decimal fraction."""
    prose = (ROOT / "benchmarks" / "performance.md.j2").read_text("utf-8")
    prose = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", prose, flags=re.S)
    prose = re.sub(r"^    .*$", "", prose, flags=re.M)
    units = r"\d[\d,.]*\s*(?:%|times|×|s\b|ms\b|seconds|min|GiB|MiB|GFLOP|TFLOP)|\d+\.\d+"
    assert re.findall(units, prose) == []


def test_a_newer_record_takes_the_place_of_an_older(tmp_path):
    for path in records.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8")
    (old,) = [one for one in records.read_all() if one["benchmark"] == "peers" and page.kind_of(one) == "AMX"][-1:]
    run = {"program": "ours", "model": "gpt2", "method": "full", "seconds": 10.0, "supervised_per_second": 777.0,
           "command_seconds": 20.0, "peak_memory_bytes": 2**31, "first_loss": 3.0, "last_loss": 2.5}  # fmt: skip
    other = {**run, "program": "trl", "seconds": 30.0, "supervised_per_second": 259.0}
    slower = {**run, "program": "trainer", "seconds": 50.0, "supervised_per_second": 155.4}
    cannot = {"program": "litgpt", "model": "gpt2", "method": "full", "error": "'gpt2' is not a supported config name"}
    del old["file"]
    new = {**old, "date": "2099-01-01", "processor": "Another Xeon, AMX", "measured": [other, slower, cannot, run]}
    (tmp_path / "peers-new.json").write_text(json.dumps(new), "utf-8")
    found = records.read_all(tmp_path)
    text = page.text_of(found)
    assert "| AMX | GPT-2 124M, full | TRL | 777 | **3.0** | 2.0 GiB, 2.0 GiB |" in text
    assert "| | GPT-2 124M, full |\n|---|--:|\n| TRL | 259, 20 s, 2.0 GiB, 3.00 → 2.50 |" in text
    assert "| LitGPT | cannot: 'gpt2' is not a supported config name |" in text
    assert "Another Xeon" in text and "| | SmolLM2-135M, full | SmolLM2-135M, LoRA r=16 | GPT-2 124M, LoRA" in text
    again = {
        **new,
        "date": "2099-01-02",
        "measured": [{**one, "model": "smollm2-135m", "method": "lora"} for one in (run, other)],
    }
    (tmp_path / "peers-newer.json").write_text(json.dumps(again), "utf-8")
    text = page.text_of(records.read_all(tmp_path))
    assert "SmolLM2-135M, LoRA r=16 | TRL | 777 | **3.0**" in text
    assert "| | SmolLM2-135M, full | GPT-2 124M, LoRA r=16 |" in text  # what an older record still tells of
    assert page.hash_of(found) != page.hash_of(records.read_all())


def test_how_far_runs_were_from_their_plans(tmp_path):
    held = [one for one in records.read_all() if one["benchmark"] != "plan"]
    ran = {"planned_seconds": 10.0, "seconds": 12.0, "planned_gib": 4.0, "gib": 3.0}
    near = {**ran, "seconds": 9.0, "gib": 4.4}
    runs = [{"run": "GPT-2 124M, full", **ran}, {"run": "GPT-2 124M, lora", **near},
            {"run": "A model, lora on 8 bits", "cannot": "plan: there is none"}]  # fmt: skip
    about = {"processor": "Some Xeon, AMX", "cores": 2, "date": "2099-01-01", "steps": 12}
    plan = {"benchmark": "plan", **about, "measured": runs}
    text = page.text_of([*held, plan])
    assert "| AMX | GPT-2 124M | 2 | −10 % to +20 % | **−25 %** to +10 % | memory of full |" in text
    assert "| AMX | A model | 1 | – | – | lora on 8 bits: plan: there is none |" in text
    assert "- AMX: 2099-01-01, 2 cores of Some Xeon, AMX, 12 steps each." in text


def test_a_record_without_its_origin_is_refused(tmp_path):
    (tmp_path / "engine.json").write_text('{"schema_version": 1, "benchmark": "engine", "measured": {}}')
    with pytest.raises(UserError, match=r"engine\.json says nothing of command, cores, date, processor"):
        records.read_all(tmp_path)
    with pytest.raises(UserError, match="the page tells of parts, and no record is of it"):
        page.text_of([])


def test_a_record_says_where_and_by_what_and_names_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/finllm/benchmarks/engine.py", "--model_name_or_path", "/home/me/gpt2",
                                      "--output", str(tmp_path / "x.json"), "--rounds", "3"])  # fmt: skip
    path = records.keep("engine", {"ours": []}, str(tmp_path / "x.json"), rounds=3)
    held = json.loads(path.read_text("utf-8"))
    assert held["command"] == "python benchmarks/engine.py --model_name_or_path gpt2 --rounds 3"
    assert held["processor"] and held["cores"] >= 1 and re.fullmatch(r"\d{4}-\d\d-\d\d", held["date"])
    assert held["packages"]["torch"] and held["rounds"] == 3 and held["schema_version"] == 1
    named = records.place({**held, "processor": "Intel(R) Xeon(R), AMX", "date": "2026-11-26"}, None)
    assert named == records.RESULTS / "engine-intel-r-xeon-r-amx-2026-11-26.json"
