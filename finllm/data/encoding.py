"""Bytes as text: UTF-8 unless --encoding says otherwise, and which encoding it may be where it is neither."""

from __future__ import annotations

import codecs
import re

from finllm.errors import UserError, did_you_mean

MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
KNOWN = ("utf-8", "utf-16", "cp1252", "latin-1", "cp1251", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
# Two bytes a character, both beyond ASCII or the second anything: what CJK texts are made of
_HIGH = re.compile(rb"[\x80-\xff]+")


def check_encoding(name: str) -> None:
    """Refuse an encoding that Python does not know."""
    try:
        codecs.lookup(name or "utf-8")
    except LookupError:
        raise UserError(
            f"--encoding '{name}' is not known{did_you_mean(name, KNOWN)}; take one of {', '.join(KNOWN)}, or another "
            "that Python knows"
        ) from None


def codec(encoding: str) -> str:
    """What decodes a text: of UTF-8, whether it is asked for or not, a byte order mark is no part of the text."""
    return "utf-8-sig" if codecs.lookup(encoding or "utf-8").name == "utf-8" else encoding


def decoded(block: bytes, place: str, encoding: str) -> str:
    """The beginning of a file as text; what cannot be decoded there is left out. Raises `UserError` for UTF-16."""
    if encoding:
        return codecs.getincrementaldecoder(codec(encoding))("replace").decode(block)
    if block[:2] in MARKS or 3 * block[:200].count(0) > len(block[:200]):
        of_two = MARKS.get(block[:2]) or ("utf-16-le" if block[1:2] == b"\0" else "utf-16-be")
        raise UserError(f"{place} is not UTF-8; it looks like {of_two.upper()}: give --encoding {of_two}")
    return block.decode("utf-8-sig", "replace")


def undecoded(text: str) -> str:
    """What is to be said of a text that holds a byte which could not be decoded; nothing where there is none."""
    found = re.search("[\udc80-\udcff]", text)
    return f"byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8" if found else ""


def likely(sample: bytes) -> str:
    """The encoding that bytes which are not UTF-8 most likely have.

    Where most of the bytes beyond ASCII stand alone, they are accents in a text of Latin letters.
    """
    runs = [len(run) for run in _HIGH.findall(sample)]
    if runs and sum(length == 1 for length in runs) >= 0.7 * len(runs):
        return "cp1252"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=[name for name in KNOWN if name not in ("utf-8", "utf-16")]).best()
    return best.encoding if best else "cp1252"
