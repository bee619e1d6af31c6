"""Methods at equal seconds, read off the curves of their final runs."""

from __future__ import annotations

from typing import Any

import numpy as np


def losses_at_equal_seconds(content: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each method its validation loss after as many seconds as the quickest one's whole training took, read off its
    curve, mean over seeds; and at which step that was. Between two validations a straight line is drawn.
    """
    done = {
        method: [run for run in held["finals"] if "curve" in run]
        for method, held in content["methods"].items()
        if any("curve" in run for run in held["finals"])
    }
    if not done:
        return {}
    pace = {
        method: float(np.mean([run["train_seconds"] / run["steps"] for run in runs])) for method, runs in done.items()
    }
    seconds = min(pace[method] * runs[0]["steps"] for method, runs in done.items())
    found = {}
    for method, runs in done.items():
        step = seconds / pace[method]
        losses = [float(np.interp(step, *zip(*run["curve"], strict=True))) for run in runs]
        found[method] = {"seconds": seconds, "step": step, "validation_loss": float(np.mean(losses))}
    return found
