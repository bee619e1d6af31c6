"""What the mutation run is told exists: modules, files of tests and single tests of them."""

import re
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def test_every_module_and_test_that_is_named_is_there():
    modules = tomllib.loads((HERE / "modules.toml").read_text(encoding="utf-8"))
    reasons = tomllib.loads((HERE / "cannot_matter.toml").read_text(encoding="utf-8"))
    assert {*reasons} <= {*modules} and [name for name in modules if not (ROOT / name).is_file()] == []
    missing = []
    for name in {name for names in modules.values() for name in names}:
        file, _, test = name.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        if not re.search(rf"^def {test}\b" if test else r"^def test_", text, re.MULTILINE):
            missing.append(name)
    assert missing == []
