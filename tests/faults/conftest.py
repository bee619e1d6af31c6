"""Fixtures of the fault tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from fine_runs import Fine


@pytest.fixture(scope="session")
def wholes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wholes")


@pytest.fixture
def fine(gpt2_dir, dataset_dir, tmp_path, wholes) -> Fine:
    return Fine(gpt2_dir, dataset_dir, tmp_path, wholes)
