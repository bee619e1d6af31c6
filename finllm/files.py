"""How anything here is written to disk and read back.

Every file is written beside its place, synced and renamed, so a reader sees the old file or the new one and never half
of one. Every JSON carries a `schema_version`, and a reader refuses one it does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from finllm.bounded import MOST_JSON_BYTES, each_json_line, parse_json, read_text
from finllm.errors import UserError, shortened

SCHEMA_VERSION = 1


def cache_dir() -> Path:
    """Where converted base models and prepared datasets are kept: `$FINLLM_CACHE`, else `~/.cache/finllm`."""
    return Path(os.environ.get("FINLLM_CACHE", Path.home() / ".cache" / "finllm"))


@contextlib.contextmanager
def atomic_open(path: Path | str, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path`; on leaving without an error it is synced and takes the place of `path`."""
    with _written_beside(Path(path), mode) as (file, temporary):
        yield file
        _sync(file)
        os.replace(temporary, path)


@contextlib.contextmanager
def _written_beside(path: Path, mode: str = "w") -> Iterator[tuple[IO, str]]:
    """A temporary file beside `path` and its name; it is closed on leaving, and removed where that was by an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
            yield file, temporary
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _sync(file: IO) -> None:
    file.flush()
    os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
    os.fsync(file.fileno())


def write_together(texts: dict[Path, str]) -> None:
    """Write several files that belong together: all are on the disk before the first takes its place.

    A full disk or a folder in the place of a file leaves the old ones. Only a kill between two renames, which follow
    each other at once, can leave some of both.
    """
    for path in texts:
        if path.is_dir():
            raise UserError(f"{path} is a folder, and a file of this name is to be written; move it away")
    with contextlib.ExitStack() as stack:
        written = {path: stack.enter_context(_written_beside(path)) for path in texts}
        for path, (file, _) in written.items():
            file.write(texts[path])
            _sync(file)
        for path, (_, temporary) in written.items():
            os.replace(temporary, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_open(path) as file:
        file.write(text)


def write_json(path: Path | str, content: dict[str, Any]) -> None:
    """Write `content` as `json_text` makes it, whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: dict[str, Any]) -> str:
    """`content` with its `schema_version` first, indented; NaN and infinity are refused."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object of this project; refuses a missing file, what finllm/bounded.py refuses, and an unknown
    `schema_version`."""
    content = parse_json(read_text(path, MOST_JSON_BYTES), str(path))
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {shortened(version)}, this version of finllm reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or make it anew"
        )
    return content


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    with atomic_open(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path | str) -> list[Any]:
    """Read the JSON values, one a line, of a file that this project wrote; a broken line is named."""
    return list(each_json_line(path))


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(path.name.encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
