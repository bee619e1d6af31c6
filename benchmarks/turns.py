"""Measurements in processes of their own: none inherits another's memory, threads or caches."""

import argparse
import json
import os
import subprocess
import sys

from rich.console import Console

from finllm.cpu import machine


def common_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that benchmarks by turns have in common."""
    parser.add_argument("--model_name_or_path", required=True, help="a folder of GPT-2, random weights will do")
    parser.add_argument("--dataset_name", required=True, help="a dataset dir, or a source of rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="write the record here (default: a file in benchmarks/results/)")
    parser.add_argument("--child", help=argparse.SUPPRESS)


def set_up(ours: bool) -> None:
    """Threads for all; the allocator and the bounded caches for ours, and for a peer that is given our settings."""
    machine.use_all_cores()
    if ours:
        machine.keep_freed_memory()
    else:  # as torch has them, where no finllm is imported; read at the first product
        os.environ.update(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")


def measured_in_child(child: str, title: str) -> dict:
    """What this script prints as JSON, last, when it is run again with its own arguments and `--child CHILD`."""
    command = [sys.executable, sys.argv[0], *sys.argv[1:], "--child", child]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{title} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def by_turns(titles: dict[str, str], rounds: int, console: Console) -> dict[str, list[dict]]:
    """Each child of `titles` once a round, so that a slow minute of the machine hits all of them alike."""
    measured: dict[str, list[dict]] = {child: [] for child in titles}
    for number in range(rounds):
        for child, title in titles.items():
            with console.status(f"round {number + 1} of {rounds}: {title}"):
                measured[child].append(measured_in_child(child, title))
    return measured
