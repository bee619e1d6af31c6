"""Where `make demo BASE=…` puts its runs: a folder for each base model, whatever it is called."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def folder_of(*given: str) -> str:
    """The one folder into which the commands of `make demo` would write."""
    demo = ["make", "--dry-run", "demo", "--assume-old=setup", *given]
    done = subprocess.run(demo, cwd=ROOT, capture_output=True, text=True, check=True)
    folders = {Path(place).parent for place in re.findall(r"--output_dir (\S+)", done.stdout)}
    assert len(folders) == 1, folders
    return str(folders.pop())


def test_two_bases_never_share_a_folder():
    bases = [
        "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "v1/final", "v2/final", "a/b", "a-b", "a--b", "a_b",
        "a/b/", "/data/base.gguf", "/data/base.Q4.gguf", "/data/base", "data/base", "Modell/ü", "Modell/ö",
        "b c", "b'c", "--", "x" * 300 + "/1", "x" * 300 + "/2", "Base", "base",
    ]  # fmt: skip
    folders = {base: folder_of(f"BASE={base}") for base in bases}
    assert [pair for pair in itertools.combinations(bases, 2) if folders[pair[0]] == folders[pair[1]]] == []
    assert len({folder.lower() for folder in folders.values()}) == len(bases)  # for disks that know no case
    for folder in folders.values():
        parent, name = folder.split("/")
        assert parent == "runs" and re.fullmatch(r"demo-[A-Za-z0-9._-]{1,100}", name)
    assert "meta-llama-Llama-3.2-1B-" in folders["meta-llama/Llama-3.2-1B"]
    assert folder_of("BASE=v1/final") == folders["v1/final"]


@pytest.mark.parametrize(("given", "folder"), [((), "runs/demo"), (("BASE=gpt2", "DEMO=mine/here"), "mine/here")])
def test_the_bundled_base_and_a_named_folder_are_taken_as_they_are(given, folder):
    assert folder_of(*given) == folder
