"""How much of a JSON file is held at a time, and how far the row after a broken one is searched, as they are."""

import io
import tracemalloc

import pytest

from finllm.data.json_rows import read_json
from finllm.data.parts import BadRow


def rows_of(content, layout="array", key=""):
    return read_json(io.BytesIO(content), layout, key, "a.json", "a.json", "")


@pytest.mark.parametrize(("before", "layout"), [(b"", "array"), (b'{"version": 2, "rows": ', "object")])
def test_no_more_is_held_than_a_window(before, layout):
    content = b"[" + b",\n".join(b'{"a": "%05d %s"}' % (number, b"x" * 1000) for number in range(4000)) + b"]"
    content = before + content + b"}" * bool(before)
    tracemalloc.start()
    try:
        count = sum(len(row.fields["a"]) == 1006 for row in rows_of(content, layout, "rows"))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4000 and len(content) > 4_000_000
    assert held < 1_500_000, held


def test_sixteen_million_characters_are_searched_and_twice_as_many_are_not():
    """The window doubles: what is found after 17 million of them lies within it, what lies beyond 34 million not."""
    for characters, found in ((17_000_000, 2), (34_000_000, 1)):
        rows = list(rows_of(b'[\n{"a" 1},\n' + b"x" * characters + b'\n{"a": 1}\n]'))
        assert len(rows) == found and isinstance(rows[0], BadRow) and rows[0].last is (found == 1)
        assert found == 1 or rows[1].fields == {"a": 1}
