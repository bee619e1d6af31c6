"""The settings of `finllm prepare`: what beside the source decides what a dataset dir holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finllm.data.clean import STEPS
from finllm.data.schema import COLUMNS
from finllm.text.prompts import TEMPLATE_HASH, TEMPLATE_ID


@dataclass(frozen=True)
class Settings:
    """Everything beside the source that decides what a dataset dir holds."""

    columns: Mapping[str, str]
    skip_cleaning: frozenset[str]
    seed: int
    validation_fraction: float
    test_fraction: float
    cluster_near_duplicates: bool = False

    def in_manifest(self) -> dict[str, Any]:
        return {
            "template": {"id": TEMPLATE_ID, "hash": TEMPLATE_HASH},
            "columns": dict(self.columns),
            "split": {
                "seed": self.seed,
                "validation_fraction": self.validation_fraction,
                "test_fraction": self.test_fraction,
                "cluster_near_duplicates": self.cluster_near_duplicates,
            },
        }

    def differences(self, manifest: dict[str, Any], source_sha256: str) -> list[str]:
        """In which parts a dataset dir is another than what this source and these settings make."""
        cleaning = [(step["step"], step["enabled"]) for step in manifest["cleaning"]]
        same = {key: manifest[key] == value for key, value in self.in_manifest().items()}
        same["source"] = manifest["source"]["sha256"] == source_sha256
        same["cleaning"] = cleaning == [(step, step not in self.skip_cleaning) for step in STEPS]
        return sorted(part for part, is_same in same.items() if not is_same)

    def key(self, source_sha256: str) -> str:
        """16 hex digits that name what this source and these settings make."""
        parts = {"source": source_sha256, "skip": sorted(self.skip_cleaning), "steps": STEPS, **self.in_manifest()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


DEFAULTS = Settings(COLUMNS, frozenset(), seed=42, validation_fraction=0.05, test_fraction=0.05)
