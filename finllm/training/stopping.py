"""How a training run is stopped from outside, and gone on with: SIGTERM, SIGINT, and the command that resumes."""

from __future__ import annotations

import os
import shlex
import signal
import sys

import torch

from finllm.terminal import say
from finllm.text.credentials import without_credentials_of_flags


class Stop:
    """SIGTERM and SIGINT are noted, for the training loop to end its step, save and leave. A second ends at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal = 0  # that this process was sent, or another one and `agree` was called
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Take the signals, until `leave`."""
        self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def leave(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if self.signal:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        # os.write, since print may be the very call that the signal interrupted
        os.write(2, f"\n{signal.Signals(number).name}: ending this step; once more to end at once\n".encode())

    def agree(self, processes: int, device: torch.device) -> int:
        """The signal that any of the processes was sent, or 0. Called by all of them after every step."""
        if processes > 1:
            received = torch.tensor(self.signal, device=device)
            torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
            self.signal = int(received)
        return self.signal

    def exit(self, step: int, processes: int, says: bool) -> None:
        """End this process with 143 or 130, as the shell expects after SIGTERM and SIGINT."""
        if says:
            say(f"stopped at step {step:,}; go on with:\n  {resume_command(processes)}", flush=True)
        sys.exit(128 + self.signal)


def resume_command(processes: int) -> str:
    """The command that goes on with the run of this process, on one machine."""
    arguments = sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume", "auto"]
    command = "python" if processes == 1 else f"torchrun --nproc-per-node {processes}"
    return f"{command} {shlex.join(without_credentials_of_flags(arguments))}"
