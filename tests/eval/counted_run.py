"""eval/run.py, with a line on what each of its processes computes and writes: `counted_run.py LOG KILLED ARGUMENT …`.

LOG gets a line a call: the rank, `score`, `generate` or `write`, and the texts or the path. It stands outside of the
product, at the model itself and at the renaming of files, so it counts what is done and not what is said to be done.
KILLED is `never`, or the call at whose end the process kills itself, as `generate:2`: computed, and nobody was told.
"""

import json
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from eval.models.transformers_lm import TransformersLM  # noqa: E402

LOG, (KILLED, _, COUNT) = sys.argv.pop(1), sys.argv.pop(1).partition(":")
calls = Counter()


def note(what: str, items: list[str]) -> None:
    with open(LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps([os.environ.get("RANK", "0"), what, items]) + "\n")


def counted(name: str, inputs: int) -> None:
    original = getattr(TransformersLM, name)

    def call(self, *arguments):
        items = ["\n".join(texts) for texts in zip(*arguments[:inputs], strict=True)]
        found = original(self, *arguments)
        calls[name] += 1
        if name == KILLED and calls[name] == int(COUNT):
            os.kill(os.getpid(), signal.SIGKILL)
        note(name, items)
        return found

    setattr(TransformersLM, name, call)


counted("score", 2)
counted("generate", 1)
replace = os.replace


def noted_replace(source, target, **how):
    replace(source, target, **how)
    note("write", [str(target)])


os.replace = noted_replace
sys.argv[0] = "eval/run.py"
runpy.run_path(str(ROOT / "eval/run.py"), run_name="__main__")
