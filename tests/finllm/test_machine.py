"""What finllm does to the process it runs in."""

import json

import pytest

from finllm import machine
from finllm.run import UserError

FAULTS = """
import json, os, resource, sys
os.environ.pop("THP_MEM_ALLOC_ENABLE", None)  # another test of this process may have set it
import finllm, torch
from finllm import machine

kept = machine.keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    a = torch.ones(20, 2**20)  # 80 MiB
    return a.add(1).mul_(2).sum()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(json.dumps({"kept": kept, "faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}))
"""


def test_freed_memory_is_used_again_without_page_faults(shell):
    default = json.loads(shell("python", "-c", FAULTS, "default").out)
    kept = json.loads(shell("python", "-c", FAULTS, "keep").out)
    if not kept["kept"]:
        assert default["kept"] is None  # another allocator than glibc's: nothing is promised
        return
    assert default["faults"] > 100_000  # 5 steps of 160 MiB in pages of 4 KiB
    assert kept["faults"] < default["faults"] / 20


def test_one_process_on_several_gpus_is_told_the_command_for_all(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    command = ["recipes/sft.py", "--config", "my run.yaml"]
    said = r"--multi_gpu --num_processes 4 recipes/sft.py --config 'my run.yaml'; for one .* CUDA_VISIBLE_DEVICES=0"
    with pytest.raises(UserError, match=said):
        machine.check_all_gpus_are_used(1, command)
    machine.check_all_gpus_are_used(4, command)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    machine.check_all_gpus_are_used(1, command)
