"""What lies in a folder may come from anyone: files, JSON and YAML are read within bounds, and plainly refused beyond.

Only a regular file is opened (a FIFO or a device would be waited for without end), and none beyond its size. JSON and
YAML give text, numbers, true, false, null, lists and objects: of bounded depth, no key twice, all text Unicode, all
numbers finite. YAML aliases are counted as what they stand for: nine lines of nine aliases each are 400 million values.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from finllm.errors import UserError

MOST_JSON_BYTES = 256 << 20
MOST_JSONL_BYTES = 2 << 30
MOST_YAML_BYTES = 256 << 10
MOST_YAML_VALUES = 20_000  # aliases counted as what they stand for
MOST_DEPTH = 40
MOST_INTEGER, MOST_FLOAT = 2**63, 1e300  # so that sums and squares of figures stay numbers
MOST_DIGITS = 100  # of a number in YAML


def require_regular(path: Path | str, most_bytes: int | None = None) -> None:
    """Refuse what is no regular file (links are followed), and one beyond `most_bytes`. Opens nothing."""
    try:
        held = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(held.st_mode):
        raise UserError(f"{path} is {kind_of(held.st_mode)}, not a regular file; remove it or put the file back")
    if most_bytes is not None and held.st_size > most_bytes:
        raise UserError(f"{path} has {held.st_size:,} bytes, and at most {most_bytes:,} are read; it is not ours")


def require_regular_files(folder: Path | str) -> None:
    """Refuse a folder that holds, at any depth, anything but folders and regular files; every such one is named.

    Links are followed, as a cache of models has them; for folders of our own see `refuse_links` in finllm/files.py.
    """
    require_unicode(folder)
    found = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            try:
                mode = os.stat(path).st_mode
            except OSError:
                continue  # a link to nothing, or removed meanwhile: whoever needs it will say so
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                found.append(f"{path} is {kind_of(mode)}")
    if found:
        more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
        raise UserError(f"{'; '.join(found[:3])}{more}: only regular files are read; remove what is none")


def require_unicode(path: Path | str) -> None:
    """Refuse a path whose bytes are no UTF-8."""
    if _SURROGATE.search(str(path)):  # as Python holds such bytes
        raise UserError(f"the path {path} is not UTF-8, and no file could name it; rename the folder")


def kind_of(mode: int) -> str:
    """What a mode says of something that is no regular file, in words."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((kind for test, kind in kinds if test(mode)), "a device")


def read_text(path: Path | str, most_bytes: int) -> str:
    """A regular file of at most `most_bytes` as UTF-8 text; else a `UserError`."""
    require_regular(path, most_bytes)
    try:
        # Without waiting: between the look and the opening the file may have become a FIFO.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(min(most_bytes, os.fstat(file.fileno()).st_size) + 1)  # so much is made ready at once
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8") from None


def each_json_line(path: Path | str) -> Iterator[Any]:
    """The value on each line of a regular file of JSON lines, within bounds; a broken line is named."""
    require_regular(path, MOST_JSONL_BYTES)
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            try:
                text = line.decode("utf-8").rstrip("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: byte 0x{line[error.start]:02x} is not UTF-8") from None
            yield parse_json(text, place, ".")


def parse_json(text: str, place: str, inside: str = ": ") -> Any:
    """The value of a JSON text within the bounds of this module; `place` is what messages call it, and `inside` joins
    it to the place of a value in it."""
    try:
        content = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise UserError(f"{place}{line}: not JSON ({error.msg}, column {error.colno})") from None
    except ValueError as error:  # a number of thousands of digits, a key twice
        raise UserError(f"{place}: not JSON that can be read ({error})") from None
    except RecursionError:
        raise UserError(f"{place}: lists or objects lie more than {MOST_DEPTH} deep in one another") from None
    if wrong := _beyond_bounds(content):
        raise UserError(f"{place}{inside}{wrong}")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return content


def _beyond_bounds(content: Any, numbers: bool = True) -> str | None:
    """The first value that is too deep, too large, not finite or no Unicode, with its place; None where all is well."""
    waiting: list[tuple[Any, tuple, int]] = [(content, (), 0)]
    while waiting:
        value, path, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth == MOST_DEPTH:
                return f"{_place(path)} lies more than {MOST_DEPTH} lists or objects deep"
            inside: Iterable = value.items() if isinstance(value, dict) else enumerate(value)
            for key, each in inside:
                if isinstance(key, str) and _SURROGATE.search(key):
                    return f"a key of {_place(path)} holds half of a surrogate pair, which is no Unicode text"
                waiting.append((each, (path, key), depth + 1))
        elif isinstance(value, str):
            if _SURROGATE.search(value):
                return f"{_place(path)} holds half of a surrogate pair, which is no Unicode text"
        elif isinstance(value, float):
            if numbers and not (math.isfinite(value) and abs(value) <= MOST_FLOAT):
                return f"{_place(path)} is {value}, not a finite number up to {MOST_FLOAT:g}"
        elif isinstance(value, int) and abs(value) >= MOST_INTEGER:
            return f"{_place(path)} is a whole number of {value.bit_length():,} bits; at most 63 are read"
    return None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _place(path: tuple) -> str:
    keys = []
    while path:
        path, key = path
        keys.append(f"[{key}]" if isinstance(key, int) else f".{key}")
    return "".join(reversed(keys)).lstrip(".") or "the whole"


# YAML ----------------------------------------------------------------------------------------------------------------


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML without dates: 2026-01-01 is text, as it is in JSON. With libyaml it takes a tenth of the time."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping of a YAML file, its keys text, within the bounds of this module; an empty file is an empty one."""
    return copy.deepcopy(_mapping(read_text(path, MOST_YAML_BYTES), str(path)))


@functools.lru_cache(8)  # an evaluation asks for a run's config.yaml some seventeen times
def _mapping(text: str, path: str) -> dict[str, Any]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path} must map keys to values and holds {_NAMES.get(node.id, node.id)}")
        _count(node, path, {}, 0)
        content = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        if isinstance(error, RecursionError) or "maximum nesting depth" in str(error):
            raise UserError(f"{path}: lists or mappings lie more than {MOST_DEPTH} deep in one another") from None
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise UserError(f"{path} is not YAML that can be read: {error}") from None
    wrong = next((key for key in content if not isinstance(key, str)), None)
    if wrong is not None:
        raise UserError(f"{path}: the key {wrong!r} is no text; put it into quotes")
    if problem := _beyond_bounds(content, numbers=False):
        raise UserError(f"{path}: {problem}")
    return content


_NAMES = {"sequence": "a list", "scalar": "a single value"}


def _count(node: yaml.Node, path: Path | str, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for, aliases followed; refuses what is beyond bounds before any is made."""
    if id(node) in known:
        if not known[id(node)]:
            raise UserError(f"{path}, line {node.start_mark.line + 1}: the value holds itself by an alias")
        return known[id(node)]
    place = f"{path}, line {node.start_mark.line + 1}"
    if depth > MOST_DEPTH:
        raise UserError(f"{place}: lists or mappings lie more than {MOST_DEPTH} deep in one another")
    if node.tag not in _PLAIN:
        raise UserError(f"{place}: a value of type {node.tag.removeprefix(_TAG)}; only text, numbers, lists, mappings")
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.MappingNode):
        keys = [key for key, _ in node.value]
        for key in keys:
            if key.tag not in (_TAG + "str", _TAG + "int", _TAG + "merge"):
                written = repr(key.value) if isinstance(key, yaml.ScalarNode) else _NAMES.get(key.id, "a mapping")
                raise UserError(f"{place}: the key {written} is no text; put it into quotes")
        if len({key.tag for key in keys} - {_TAG + "merge"}) > 1:
            raise UserError(f"{place}: some keys are text and some are numbers; put all into quotes")
        seen: set[str] = set()
        for key in keys:
            if key.value in seen:
                raise UserError(
                    f"{path}, line {key.start_mark.line + 1}: the key {key.value!r} stands twice in one mapping"
                )
            seen.add(key.value)
        count += sum(_count(value, path, known, depth + 1) for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(value, path, known, depth + 1) for value in node.value)
    elif node.tag in (_TAG + "int", _TAG + "float") and len(node.value) > MOST_DIGITS:
        raise UserError(f"{place}: a number of {len(node.value):,} characters; at most {MOST_DIGITS} are read")
    if count > MOST_YAML_VALUES:
        raise UserError(
            f"{place}: the values, aliases counted as what they stand for, are more than {MOST_YAML_VALUES:,}"
        )
    known[id(node)] = count
    return count
