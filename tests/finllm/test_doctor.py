"""`finllm doctor` by its command line, and its verdict on versions."""

import json
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from finllm import doctor

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
