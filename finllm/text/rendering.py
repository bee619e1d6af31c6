"""Conversations through a chat template, which is a program that a stranger wrote: bounded, and never in this process.

Jinja's sandbox keeps a template from Python and from files, and does not keep it from going on for ever or from filling
the memory. So it is rendered by finllm/text/sandbox.py in a process of its own, which the kernel ends.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finllm.errors import UserError
from finllm.text.prompts import Message

SECONDS = 5.0  # of computing, for one conversation; usual templates take less than a thousandth of it
MOST_SOURCE = 1 << 20  # characters of a template; the longest known has some 30,000
MOST_ADDED = 1 << 20  # characters that a template may write besides eight times the conversation's own
AT_ONCE = 4 << 20  # characters of conversations that one process is given


@dataclass(frozen=True)
class Job:
    """A conversation to be rendered: with `asks`, up to where the model answers. `day` is an ISO date, or today."""

    messages: Sequence[Message]
    asks: bool
    day: str | None = None

    @property
    def length(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Rendered:
    """What became of a job: its text, or why there is none."""

    text: str
    error: str = ""


def render(source: str, special: dict[str, Any], jobs: Sequence[Job]) -> list[Rendered]:
    """Each job's text. `special` are the variables that transformers gives a template: a tokenizer's special tokens."""
    if len(source) > MOST_SOURCE:
        raise UserError(f"a chat template of {len(source):,} characters is none; at most {MOST_SOURCE:,} are read")
    found: list[Rendered] = []
    begin, length = 0, 0
    for end, job in enumerate(jobs, 1):
        length += job.length
        if length >= AT_ONCE or end == len(jobs):
            found += _in_a_process(source, special, jobs[begin:end])
            begin, length = end, 0
    return found


def _in_a_process(source: str, special: dict[str, Any], jobs: Sequence[Job]) -> list[Rendered]:
    asked = {
        "source": source,
        "special": special,
        "seconds": SECONDS,
        "most": MOST_ADDED + 8 * max(job.length for job in jobs),
        "jobs": [{"messages": list(job.messages), "asks": job.asks, "day": job.day} for job in jobs],
    }
    program = Path(__file__).with_name("sandbox.py")
    done = subprocess.run(
        [sys.executable, "-P", str(program)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    whole = done.stdout[: done.stdout.rfind("\n") + 1]  # its end may have come in the middle of a line
    found = [Rendered(line.get("text", ""), line.get("error", "")) for line in map(json.loads, whole.splitlines())]
    if len(found) < len(jobs):
        if done.returncode == -signal.SIGPROF:
            said = f"it had not ended after {SECONDS:g} s of computing"
        else:
            last = (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
            said = f"the process that renders it ended with status {done.returncode}: {last[:200]}"
        found += [Rendered("", said)] * (len(jobs) - len(found))
    return found
