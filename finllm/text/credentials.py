"""What looks like a credential: kept out of everything that is written, printed and shown.

A key tells by its last word (`token`, `api_key`, `Authorization`), unless it names a token of the vocabulary; a value
by the form that its maker gives it (`hf_…`, `ghp_…`, `AKIA…`), or by standing in a URL before its host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

WORD = "token|pass(?:word|wd|phrase|code)|pwd|secret|credential|bearer|cookie|auth|authorization"
KEY = re.compile(rf"(?:^|_)(?:{WORD}|(?:api|access|private|secret|account|auth|signing)_?key)s?_?\d*$")
VOCABULARY = re.compile(r"(?:^|_)(?:eos|bos|pad|unk|sep|cls|mask)_tokens?$")
MARKED = re.compile(r"<.*>|\[.*\]")  # as tokens of a vocabulary are written
RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w+/=.-]{16,}")  # the value of some `…_key`
VALUE = re.compile(
    r"""\bhf_(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{16,} | \bhf_[A-Za-z0-9]{24,} | \bapi_org_[A-Za-z0-9]{16,}
    | \bgh[pousr]_[A-Za-z0-9]{16,} | \bgithub_pat_\w{16,} | \bglpat-[\w-]{16,} | \bnpm_[A-Za-z0-9]{24,}
    | \bpypi-[\w-]{16,} | \bsk-(?:[a-z0-9]+-){0,3}\w{16,} | \bA(?:KI|SI)A[0-9A-Z]{12,} | \bAIza[\w-]{30,}
    | \bxox[abeoprs]-[A-Za-z0-9-]{8,} | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,} | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | (?i:\bbearer\s+[\w.~+/=-]{8,}) | (?i:\b[a-z][a-z0-9+.-]*://[^/\s@]+@)
    | (?i:(?:password|passwd|secret|api[_-]?key|authorization|(?:hf|hub|access|auth|api)[_-]?token|[?&"']token)
       ["']?\s*[=:]\s*["']?[^\s"'&]{4,})""",
    re.VERBOSE,
)
LEFT_OUT = "(left out: it looks like a credential)"


def credentials(content: Any, place: str = "", secret: bool = False) -> Iterator[str]:
    """The places, as `model_init_kwargs.headers.Authorization`, whose key or value looks like a credential."""
    if isinstance(content, dict):
        for key, value in content.items():
            shown = LEFT_OUT if VALUE.search(str(key)) else str(key)
            yield from credentials(value, f"{place}.{shown}" if place else shown, secret or _secret(str(key), value))
            if shown == LEFT_OUT:
                yield f"{place}.{shown}" if place else shown
    elif isinstance(content, (list, tuple, set)):
        for number, value in enumerate(content):
            yield from credentials(value, f"{place}.{number}", secret)
    elif content not in (None, "") and not isinstance(content, bool) and (secret or VALUE.search(str(content))):
        yield place


def without_credentials(content: Any) -> Any:
    """The same with every key left out whose key or value looks like a credential, and every such text masked."""
    if isinstance(content, dict):
        return {
            key: without_credentials(value)
            for key, value in content.items()
            if not [*credentials({key: None if isinstance(value, (dict, list, tuple)) else value})]
            and not (_secret(str(key), value) and [*credentials({key: value})])
        }
    if isinstance(content, (list, tuple)):
        return [without_credentials(value) for value in content]
    return LEFT_OUT if [*credentials(content)] else content


def without_credentials_of_flags(arguments: list[str]) -> list[str]:
    """The words of a command line, those masked that follow or hold a credential."""
    masked, before = [], ""
    for word in arguments:
        flag, equals, value = word.partition("=")
        if before.startswith("--") and [*credentials({before[2:]: word})]:
            masked.append("…")
        elif flag.startswith("--") and equals and [*credentials({flag[2:]: value})]:
            masked.append(f"{flag}=…")
        else:
            masked.append("…" if [*credentials(word)] else word)
        before = word
    return masked


def _secret(key: str, value: Any) -> bool:
    """Whether a key says that what stands under it is a credential."""
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower())
    if words.endswith("_key") and isinstance(value, str) and RANDOM.fullmatch(value):
        return True
    if not KEY.search(words) or VOCABULARY.search(words):
        return False
    if words.rstrip("_0123456789").endswith(("token", "tokens")):  # numbers are counts and ids
        return not isinstance(value, (int, float)) and not (isinstance(value, str) and MARKED.fullmatch(value))
    return True
