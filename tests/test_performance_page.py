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
    linked = "[AMX](../benchmarks/results/peers-new.json)"
    assert f"| {linked} | GPT-2 124M, full | TRL | 777 | **3.0** | 2.0, 2.0 |" in text
    assert "[AMX, 2099-01-01](../benchmarks/results/peers-new.json), 64 rows, 8 a step, bfloat16" in text
    assert "| tokens a second, s, GiB | GPT-2 124M, full |\n|---|--:|\n| TRL | 259, 20, 2.0 |" in text
    assert "| LitGPT | cannot |" in text
    assert "\nLitGPT on GPT-2 124M: 'gpt2' is not a supported config name.\n" in text
    assert "- AMX: 2 cores of Intel(R) Xeon(R) Processor or 2 cores of Another Xeon, torch 2.13.0+cpu\n" in text
    assert "s, GiB | SmolLM2-135M, full | SmolLM2-135M, LoRA r=16 | GPT-2 124M, LoRA" in text
    again = {
        **new,
        "date": "2099-01-02",
        "measured": [{**one, "model": "smollm2-135m", "method": "lora"} for one in (run, other)],
    }
    (tmp_path / "peers-newer.json").write_text(json.dumps(again), "utf-8")
    text = page.text_of(records.read_all(tmp_path))
    assert "SmolLM2-135M, LoRA r=16 | TRL | 777 | **3.0**" in text
    assert "s, GiB | SmolLM2-135M, full | GPT-2 124M, LoRA r=16 |" in text  # what an older record still tells of
    assert page.hash_of(found) != page.hash_of(records.read_all())


def test_how_far_runs_were_from_their_plans(tmp_path):
    held = [one for one in records.read_all() if one["benchmark"] != "plan"]
    ran = {"planned_seconds": 10.0, "seconds": 12.0, "planned_gib": 4.0, "gib": 3.0}
    near = {**ran, "seconds": 9.0, "gib": 4.4}
    runs = [{"run": "GPT-2 124M, full", **ran}, {"run": "GPT-2 124M, lora", **near},
            {"run": "A model, lora on 8 bits", "cannot": "plan: there is none: the loss moves by 0.1"}]  # fmt: skip
    about = {"processor": "Some Xeon, AMX", "cores": 2, "date": "2099-01-01", "steps": 12, "file": "plan.json"}
    plan = {"benchmark": "plan", **about, "measured": runs}
    text = page.text_of([*held, plan])
    linked = "[AMX, 2099-01-01](../benchmarks/results/plan.json)"
    assert f"| {linked} | GPT-2 124M | 2, 12 | −10 % to +20 % | **−25 %** to +10 % | memory of full |" in text
    assert f"| {linked} | A model | 1, 12 | – | – | lora on 8 bits: plan: there is none |" in text


def test_every_newest_record_on_the_page_is_linked_and_its_machine_told():
    held = records.read_all()
    text = page.text_of(held)
    newest = {(one["benchmark"], page.kind_of(one)): one for one in held if one["benchmark"] != "method_speed"}
    once = {"demo"}  # of these the last of all
    last = {one["benchmark"]: one for one in held}
    for (benchmark, kind), one in newest.items():
        if benchmark not in once or one is last[benchmark]:
            assert f"(../benchmarks/results/{one['file']})" in text
            assert f"\n- {kind}: " in text


def test_what_a_processor_is_called():
    called = {"Some Xeon, AMX": "AMX", "Some EPYC, AVX512-BF16": "AVX512-BF16", "NVIDIA H100 80GB HBM3": "H100",
              "NVIDIA GeForce RTX 4090": "NVIDIA GeForce RTX 4090"}  # fmt: skip
    assert {name: page.kind_of({"processor": name}) for name in called} == called
    told = [{"benchmark": "engine", "processor": name, "cores": 4} for name in called]
    told[0]["packages"] = {"torch": "2.0"}
    other = {**told[0], "cores": 8, "packages": {"torch": "2.1"}}
    assert page.machines([*told, other, {**other, "cores": 1, "benchmark": "method_speed"}]) == {
        "AMX": "4 cores of Some Xeon or 8 cores of Some Xeon, torch 2.0 or torch 2.1",
        "AVX512-BF16": "4 cores of Some EPYC", "H100": "NVIDIA H100 80GB HBM3",
        "NVIDIA GeForce RTX 4090": "NVIDIA GeForce RTX 4090",
    }  # fmt: skip


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
