"""Where a text is taken for another encoding, on both sides of the limit; and a dataset that breaks off."""

import pyarrow
import pytest

from finllm.data import tables
from finllm.data.encoding import decoded, likely
from finllm.errors import UserError


def test_a_third_of_the_first_two_hundred_bytes_are_zero():
    two_thirds = b"ab\0" * 66
    for end, zeros in ((b"b\0", 67), (b"\0b", 67), (b"\0\0", 68), (b"bb", 66)):
        assert (two_thirds + end).count(0) == zeros
        for rest in (b"", b"b", b"\0", b"b" * 99, b"\0" * 99):
            block = two_thirds + end + rest
            if zeros > 66:
                with pytest.raises(
                    UserError, match=r"^x is not UTF-8; it looks like UTF-16-BE: give --encoding utf-16-be$"
                ):
                    decoded(block, "x", "")
            else:
                assert decoded(block, "x", "") == block.decode()
    for block in (b"\0b", b"\0bc"[:2] * 3, b"a\0"):
        with pytest.raises(UserError):
            decoded(block, "x", "")
    assert decoded(b"a\0b", "x", "") == "a\0b" and decoded(b"a\0bc\0d", "x", "") == "a\0bc\0d"


def test_what_would_have_been_refused_as_utf_16_is_not_likely_it():
    for text in ("\ufeffab cd".encode("utf-16-le"), "\ufeffbond".encode("utf-16-be"), "\ufeff债券".encode("utf-16-le")):
        assert not likely(text).startswith("utf")


class BrokenOff:
    """A dataset of which one batch can be read."""

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def iter(self, rows):
        yield pyarrow.table({"a": ["x", "y"]}).to_batches()[0]
        raise pyarrow.ArrowInvalid("cut")


def test_a_dataset_that_breaks_off():
    read = tables.read_dataset(BrokenOff(), "owner/name")
    assert [next(read).fields, next(read).fields] == [{"a": "x"}, {"a": "y"}]
    with pytest.raises(UserError) as raised:
        next(read)
    assert str(raised.value) == "owner/name, after row 2: not a dataset file that can be read (cut)"
