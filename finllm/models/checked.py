"""Folders of models that come from others, looked through before a library opens them.

A config that names code of its own (`auto_map`) makes transformers ask on the terminal whether to run it, and weights
that are no safetensors are pickles. So configs are read as JSON and weights by their headers, here, and the folder is
refused where one of them is not what it must be. Nothing of torch is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from finllm.errors import UserError, raise_problems

LARGEST_CONFIG = 64 << 20  # bytes; the largest index of shards that is known has some 10 MB
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ANEW = "get the folder anew from where it came, or take another"

Shapes = dict[str, tuple[int, ...]]  # of tensors, by name


def check_configs(folder: Path) -> None:
    """Refuse a folder with a config that is no JSON object or names code; all that is wrong with it at once."""
    raise_problems(_problems_of_configs(folder), f"{folder}; {ANEW}")


def check_base(folder: Path) -> None:
    """Refuse a folder of a whole model: as `check_configs`, and where weights or an index are not safetensors."""
    problems = list(_problems_of_configs(folder))
    if (folder / ADAPTER_CONFIG).exists():  # transformers would put it on, or load another model under it
        problems.append(f"{ADAPTER_CONFIG} says that this is an adapter; merge it into its base model, and name that")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not problems:
        problems.append("it holds no .safetensors file, and weights are read from nothing else")
    for path in weights:
        problems += _problems_of_weights(path)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        problems += _problems_of_index(index)
    raise_problems(problems, f"{folder}; {ANEW}")


def check_adapter(folder: Path) -> tuple[dict[str, Any], Shapes]:
    """The config of a saved adapter and the shapes of its tensors; refuse a folder that does not hold both soundly."""
    problems = list(_problems_of_configs(folder))
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).exists():
            others = ", ".join(sorted(path.name for path in folder.glob("adapter_model.*")))
            problems.append(f"{name} is missing" + (f", and {others} is not read" if others else ""))
    if (folder / ADAPTER_WEIGHTS).exists():
        problems += _problems_of_weights(folder / ADAPTER_WEIGHTS)
    raise_problems(problems, f"the adapter in {folder}; {ANEW}")
    return json.loads((folder / ADAPTER_CONFIG).read_bytes()), shapes_of(folder / ADAPTER_WEIGHTS)


def shapes_of(path: Path) -> Shapes:
    """The shapes of a safetensors file's tensors, from its header; a `UserError` where it is not a whole such file."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; {ANEW}")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} ({path.stat().st_size:,} bytes) is not a whole safetensors file: {error}") from None


def _problems_of_configs(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*config.json")):
        try:
            content = _object(path)
            for place, value in _places_of("auto_map", content):
                yield (
                    f"{path.name}: {place} names code of the model's own ({str(value)[:80]!r}), and no such code is "
                    "run here; where transformers knows the model without it, remove that key"
                )
            named = content.get("transformers_weights")
            if named and not str(named).endswith((".safetensors", ".safetensors.index.json")):
                yield f"{path.name}: transformers_weights is {named!r}, and weights are read from safetensors only"
        except UserError as error:
            yield str(error)


def _problems_of_weights(path: Path) -> Iterator[str]:
    try:
        shapes_of(path)
    except UserError as error:
        yield str(error)


def _problems_of_index(path: Path) -> Iterator[str]:
    """An index of shards must name files of its own folder that are safetensors, and they must be there."""
    try:
        shards = _object(path).get("weight_map")
    except UserError as error:
        yield str(error)
        return
    if not isinstance(shards, dict) or not shards:
        yield f"{path.name}: weight_map is {str(shards)[:80]!r}, not an object that names a file for each tensor"
        return
    for name in sorted({str(shard) for shard in shards.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            yield f"{path.name} names {name[:80]!r}, and weights are read from safetensors of the same folder only"
        elif not (path.parent / name).is_file():
            yield f"{path.name} names {name[:80]!r}, which is missing"


def _object(path: Path) -> dict[str, Any]:
    """A JSON object that another project wrote."""
    if not path.is_file():
        raise UserError(f"{path.name} is not a file")
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{path.name} has {path.stat().st_size:,} bytes; at most {LARGEST_CONFIG:,} are read")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # of bytes that are no text, of no JSON, of too many brackets
        raise UserError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds {str(content)[:60]!r}, not a JSON object")
    return content


def _places_of(key: str, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where `key` has a value that is not empty, at any depth, and that value."""
    left: list[tuple[str, Any]] = [("", content)]
    while left:
        place, inner = left.pop()
        items = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for name, value in items:
            where = f"{place}.{name}" if place else str(name)
            if name == key and value:
                yield where, value
            else:
                left.append((where, value))
