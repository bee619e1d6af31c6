"""What is installed, what starts quickly and quietly, and that the documents name files that are there."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from setuptools import build_meta

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [path for pattern in ("*.md", "docs/*.md", "baselines/**/*.md", "finllm/**/*.md", "Makefile", ".ci/run",
             "benchmarks/*.sh") for path in sorted(ROOT.glob(pattern))]  # fmt: skip
OURS = r"(?<![\w./-])(?:finllm|eval|baselines|recipes|tests|benchmarks|docs)/[\w/.-]*\w"
MADE = {"eval/results.json", "eval/predictions.jsonl", "eval/.partial"}  # by eval/run.py in a run dir


def test_the_wheel_holds_the_library_the_sample_and_nothing_else(tmp_path, monkeypatch):
    for name in ("finllm", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    wheel = build_meta.build_wheel(str(tmp_path / "dist"))
    held = {name for name in zipfile.ZipFile(tmp_path / "dist" / wheel).namelist() if ".dist-info/" not in name}
    sample = Path("finllm/data/sample")
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "finllm").rglob("*.py")}
    wanted |= {str(sample / path.name) for path in (ROOT / sample).iterdir() if path.is_file()}
    assert held == {name for name in wanted if not name.startswith(str(sample / "generator"))}
    assert str(sample / "computed.jsonl") in held


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_files_that_are_there(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(OURS, text)) - MADE
    assert [name for name in sorted(named) if not any(ROOT.glob(f"{name}*"))] == []  # a Makefile puts names together
    linked = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert [link for link in sorted(linked) if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_into_documents_name_headings_that_are_there(path):
    for name, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        headings = re.findall(r"^#+ (.+)$", (path.parent / name if name else path).read_text(encoding="utf-8"), re.M)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], name


COMMANDS = [
    ["-m", "finllm.cli"], ["recipes/sft.py"], ["eval/run.py"], ["eval/leaderboard.py"], ["eval/export.py"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_prints_help_and_nothing_else(command):
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ") and done.stderr == ""


@pytest.mark.parametrize("command", ["-m finllm.cli plan", "-m finllm.cli generate", "baselines/scratch/train.py"])
def test_so_does_help_of_what_imports_no_more_than_those(command, forked):
    script, *arguments = [command] if " " not in command else [command.rpartition(" ")[0], command.rpartition(" ")[2]]
    done = forked(script, *arguments, "--help")
    assert done.status == 0 and done.out.startswith("usage: ") and done.err == ""


def test_a_kernel_that_is_never_used_is_not_missed():
    """bitsandbytes says this when it is imported on a CPU with bfloat16; what else it has to say is heard."""
    said = (
        "import finllm, logging; logger = logging.getLogger('bitsandbytes.backends.cpu.ops'); "
        "logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s.', 'no kernels'); "
        "logger.warning('Failed to load anything: %s.', 'broken')"
    )
    done = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "Failed to load anything: broken.\n"


def test_showing_an_example_loads_neither_torch_nor_a_trainer(dataset_dir, tokenizer_dir, tmp_path):
    """A tokenizer and a row are read in two seconds; with torch, datasets, trl and peft it would be ten."""
    (tmp_path / "config.json").write_text("{}")
    for path in tokenizer_dir.iterdir():
        shutil.copy(path, tmp_path / path.name)
    code = (
        "import sys; from finllm import cli; cli.main(); "
        "heavy = {'torch', 'datasets', 'trl', 'peft', 'bitsandbytes', 'accelerate', 'scipy'}; "
        "print('loaded', sorted(name for name in heavy if sys.modules.get(name)))"
    )
    command = [sys.executable, "-c", code, "data", "show", str(dataset_dir), "--tokenizer", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "supervised" in done.stdout and done.stdout.endswith("loaded []\n") and not done.stderr
