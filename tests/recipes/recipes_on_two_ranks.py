"""recipes/sft.py on two gloo ranks, once for each list of flags in a JSON file; they import torch and trl once.

torchrun --nproc-per-node 2 tests/recipes/recipes_on_two_ranks.py FLAGS.json
"""

import json
import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parents[2]


def main(file: Path) -> None:
    sys.path.insert(0, str(ROOT))
    for flags in json.loads(file.read_text()):
        sys.argv = ["recipes/sft.py", *flags]
        runpy.run_path(str(ROOT / "recipes" / "sft.py"), run_name="__main__")
        AcceleratorState._reset_state()  # the ranks stay together, and the next run begins anew


if __name__ == "__main__":
    main(Path(sys.argv[1]))
