"""The settings of `finllm prepare`: what beside the source decides what a dataset dir holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from finllm.data.clean import STEPS
from finllm.data.forms import Asked

RULES = 3  # raised whenever the same source and settings make other rows than before


@dataclass(frozen=True)
class Settings:
    """Everything beside the source that decides what a dataset dir holds."""

    seed: int = 42
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    cluster_near_duplicates: bool = False
    asked: Asked = field(default_factory=Asked)
    skip_cleaning: frozenset[str] = frozenset()
    encoding: str = ""  # of all texts, or UTF-8
    dataset_config: str = ""  # of a source that has several
    skip_bad_rows: bool = False
    ignore_own_splits: bool = False
    keep_shared_questions: bool = False

    def in_manifest(self) -> dict[str, Any]:
        return {
            "split": {
                "seed": self.seed,
                "validation_fraction": self.validation_fraction,
                "test_fraction": self.test_fraction,
                "cluster_near_duplicates": self.cluster_near_duplicates,
            },
            "asked": {
                "form": self.asked.form,
                "columns": dict(self.asked.columns),
                "leave_out": sorted(self.asked.leave_out),
                "group_column": self.asked.group_column,
                "number_column": self.asked.number_column,
                "encoding": self.encoding,
                "dataset_config": self.dataset_config,
                "ignore_own_splits": self.ignore_own_splits,
                "keep_shared_questions": self.keep_shared_questions,
            },
            "rules": RULES,
        }

    def differences(self, manifest: dict[str, Any], source_sha256: str) -> list[str]:
        """In which parts a dataset dir is another than what this source and these settings make."""
        cleaning = [(step["step"], step["enabled"]) for step in manifest["cleaning"]]
        asked = self.in_manifest()
        held = manifest.get("asked", {})
        same = {key: manifest.get(key) == asked[key] for key in ("split", "rules")}
        same |= {key: held[key] == value for key, value in asked["asked"].items() if key in held}
        same["source"] = manifest["source"]["sha256"] == source_sha256
        same["cleaning"] = cleaning == [(step, step not in self.skip_cleaning) for step in STEPS]
        same["skip_bad_rows"] = self.skip_bad_rows or not manifest.get("bad_rows")
        return sorted(part for part, is_same in same.items() if not is_same)

    def key(self, source_sha256: str) -> str:
        """16 hex digits that name what this source and these settings make."""
        parts = {"source": source_sha256, "skip": sorted(self.skip_cleaning), "steps": STEPS, **self.in_manifest()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


DEFAULTS = Settings()
