"""What takes half of a tiny run's time and says nothing of a model: the picture, and collecting garbage."""

import gc

import pytest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("finllm.training.plots.plot_loss", lambda run: None)
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
