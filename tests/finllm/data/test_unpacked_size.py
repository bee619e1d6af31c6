"""The limit of what a zip may unpack to is the 2 GiB that the documents name, held against what its directory says."""

import json
import zipfile

import pytest

from finllm.data.rows import read_rows
from finllm.data.sources import find_source
from finllm.errors import UserError

SIZE = 24  # where the size stands in an entry of a zip's directory, four bytes


@pytest.mark.parametrize(("size", "refused"), [((2 << 30) + 1, True), (2 << 30, False)])
def test_a_zip_that_says_it_unpacks_to_more_than_2_gib_is_refused_before_it_is_unpacked(tmp_path, size, refused):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", json.dumps({"instruction": "Why?", "output": "So."}))
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + SIZE
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    try:
        list(read_rows(find_source(path)))
        said = ""
    except UserError as error:
        said = str(error)
    assert ("and the limit is 2,147,483,648" in said) == refused
