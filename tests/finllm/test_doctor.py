"""`finllm doctor` by its command line, and its verdict on versions."""

import json
import os
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from finllm import doctor
from finllm.cpu import machine, processor

ROOT = Path(__file__).resolve().parents[2]


def test_the_json_names_every_dependency_and_its_verdict_is_the_exit_status(command):
    done = command("finllm/cli.py", "doctor", "--json")
    content = json.loads(done.out)
    assert content["schema_version"] == 1
    whats = {finding["what"].split()[0] for finding in content["findings"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(line).name for line in project["dependencies"]} <= whats
    assert {"python", "bitsandbytes", "tensorboard", "cores", "memory", "bfloat16", "disk", "hub"} <= whats
    bad = [each for each in content["findings"] if each["required"] and each["verdict"] != "fine"]
    assert content["ready"] is not bool(bad) and done.status == bool(bad)
    assert all(each["fix"] for each in content["findings"] if each["verdict"] != "fine")
    hub = next(each for each in content["findings"] if each["what"] == "hub")
    assert hub["verdict"] == "fine" and "not asked" in hub["found"]


def test_a_missing_requirement_fails_with_its_fix_and_a_missing_extra_does_not(command, monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_DISK", 0)  # what this machine's disks hold is not asked here
    known = doctor.importlib.metadata.requires("finllm")
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: [*known, 'absent-a>=2,<3 ; extra == "qlora"'])
    optional = command("finllm/cli.py", "doctor")
    assert optional.status == 0, optional.out
    assert "-m pip install 'absent-a<3,>=2'" in optional.out
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: [*known, "absent-b>=2,<3"])
    required = command("finllm/cli.py", "doctor")
    assert required.status == 1
    assert "-m pip install 'absent-b<3,>=2'" in required.out


@pytest.mark.parametrize(
    ("version", "verdict"),
    [("2.0", "fine"), ("2.9.1+cpu", "fine"), ("1.9", "too old"), ("3.0", "too new"), (None, "missing")],
)
def test_a_version_is_judged_by_its_range(version, verdict):
    finding = doctor.judge(Requirement("thing>=2,<3"), version)
    assert finding.verdict == verdict
    assert (finding.fix is None) == (verdict == "fine")


def test_an_unreachable_hub_is_told_and_is_no_failure(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    finding = doctor._hub()
    assert finding.verdict == "unreachable" and not finding.required
    assert "files on disk will do" in finding.found


def test_a_full_disk_is_a_gap(monkeypatch, tmp_path):
    assert [each.verdict for each in doctor._disks({"cache": tmp_path / "not" / "yet"})] in (["fine"], ["too little"])
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**80)
    (finding,) = doctor._disks({"cache": tmp_path / "not" / "yet"})
    assert finding.verdict == "too little" and finding.required and "FINLLM_CACHE" in finding.fix


def test_what_the_processor_says_is_what_torch_says():
    if processor.multiplies_bf16() is None:
        pytest.skip("only torch can tell here")
    if "ONEDNN_MAX_CPU_ISA" not in os.environ:
        by_torch = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        assert processor.multiplies_bf16() is by_torch
    assert processor.multiplies_bf16() is machine.bf16_is_fast(gpu=False)
    assert processor.instructions() in processor.name()


@pytest.mark.parametrize(
    ("flags", "widest", "fast"),
    [
        ("avx avx2", "AVX2", False),
        ("avx2 avx512f", "AVX512", False),
        ("avx2 avx512f avx512_bf16", "AVX512-BF16", True),
        ("amx_tile avx2 avx512f avx512_bf16", "AMX", True),
        ("sse4_1", None, False),
        (None, None, None),
    ],
)
def test_a_processor_is_known_by_its_flags(flags, widest, fast, monkeypatch):
    described = {"model name": "Some CPU"} | ({} if flags is None else {"flags": flags})
    monkeypatch.setattr(processor, "_described", lambda: described)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert (processor.instructions(), processor.multiplies_bf16()) == (widest, fast)
    assert processor.name() == (f"Some CPU, {widest}" if widest else "Some CPU")


@pytest.mark.parametrize(
    ("limit", "widest"),
    [
        ("AVX512_CORE_AMX_FP16", "AMX"), ("all", "AMX"), ("DEFAULT", "AMX"), ("AVX512_CORE_FP16", "AVX512-BF16"),
        ("AVX512_CORE_BF16", "AVX512-BF16"), ("AVX512_CORE_VNNI", "AVX512"), ("avx2_vnni", "AVX2"), ("SSE41", None),
    ],
)  # fmt: skip
def test_what_onednn_may_not_use_is_no_instruction_of_the_processor(limit, widest, monkeypatch):
    flags = {"amx": "amx_tile avx2 avx512f avx512_bf16", "old": "avx2"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(processor, "_described", lambda: {"flags": flags["amx"]})
    assert processor.instructions() == widest
    assert machine.bf16_is_fast(gpu=False) is (widest in ("AMX", "AVX512-BF16"))
    monkeypatch.setattr(processor, "_described", lambda: {"flags": flags["old"]})
    assert processor.instructions() == ("AVX2" if widest else None)  # a limit gives no processor what it has not


def test_a_torch_that_cannot_be_loaded_is_a_gap_with_its_fix(monkeypatch, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "version.py").write_text("cuda = hip = xpu = None")
    (tmp_path / "lib" / "libtorch_python.so").write_text("no library")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: False)
    gap = doctor._machine()[-1]
    assert (gap.what, gap.verdict) == ("import torch", "missing") and "--force-reinstall torch" in gap.fix
    assert "libtorch_python.so" in gap.found
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert "torch is not installed" in doctor._machine()[-1].found


def test_a_torch_for_gpus_is_asked_itself(monkeypatch, tmp_path):
    (tmp_path / "version.py").write_text("cuda = '12.8'\nhip = None")
    assert doctor._built_for(tmp_path / "version.py") == {"cuda"}
    monkeypatch.setattr(doctor, "_built_for", lambda version: {"cuda"})
    monkeypatch.setattr(machine, "bf16_is_fast", lambda: "torch was asked")
    assert doctor._arithmetic()[0] == "torch was asked"
