"""Folders of models as others may have made them: copies of sound ones with one thing changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def changed(folder: Path, to: Path, file: str, **keys: Any) -> Path:
    """A copy of `folder` in `to`, with these keys of one of its JSON files."""
    shutil.copytree(folder, to)
    content = json.loads((to / file).read_text(encoding="utf-8"))
    (to / file).write_text(json.dumps({**content, **keys}), encoding="utf-8")
    return to


def written(folder: Path, to: Path, file: str, content: bytes) -> Path:
    """A copy of `folder` in `to`, with other bytes in one of its files."""
    shutil.copytree(folder, to)
    (to / file).write_bytes(content)
    return to
