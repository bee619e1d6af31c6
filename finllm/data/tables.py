"""Rows of tables that pyarrow and datasets read batch by batch: Parquet, Arrow, saved datasets and those of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from finllm.data.parts import BadRow, Part, RawRow
from finllm.errors import UserError

BATCH = 1024  # rows
PIECE = 2**20  # bytes of a column


def read_parquet(stream: IO[bytes], file: str, place: str) -> Iterator[RawRow]:
    """The rows of a Parquet file."""
    import pyarrow.parquet

    def batches() -> Iterator[pyarrow.RecordBatch]:
        # A row group may be the whole file: its columns are read in pieces, and not by threads that hold several.
        table = pyarrow.parquet.ParquetFile(stream, buffer_size=PIECE, pre_buffer=False)
        return table.iter_batches(BATCH, use_threads=False)

    yield from _rows(batches, file, place, "Parquet")


def read_arrow(stream: IO[bytes], file: str, place: str) -> Iterator[RawRow]:
    """The rows of an Arrow file, of the random access or of the streaming kind."""
    import pyarrow

    def batches() -> Iterator[pyarrow.RecordBatch]:
        try:
            reader = pyarrow.ipc.open_file(stream)
            yield from map(reader.get_batch, range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            stream.seek(0)
            yield from pyarrow.ipc.open_stream(stream)

    yield from _rows(batches, file, place, "Arrow")


def read_saved(part: Part) -> Iterator[RawRow]:
    """The rows of a folder, or of a split in it, that `datasets.save_to_disk` wrote."""
    import datasets

    try:
        dataset = datasets.load_from_disk(str(part.path / part.key))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{part.place}: not a saved dataset that can be read ({error})") from None
    yield from read_dataset(dataset, part.name)


def read_dataset(dataset: Any, file: str) -> Iterator[RawRow]:
    """The rows of a `datasets.Dataset`."""
    batches = dataset.with_format("arrow").iter(BATCH)
    yield from _rows(lambda: batches, file, file, "dataset")


def _rows(batches: Any, file: str, place: str, what: str) -> Iterator[RawRow | BadRow]:
    import pyarrow

    number = 0
    try:
        for batch in batches():
            for fields in _texts_of_halves(batch).to_pylist():
                number += 1
                yield RawRow(fields, file, number, "row")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{place}, after row {number}: not a {what} file that can be read ({error})") from None


def _texts_of_halves(batch: Any) -> Any:
    """The batch with numbers of 16 and 32 bits as the shortest text that is them: as 64 bits 9.4 would be 9.3999996."""
    import numpy
    import pyarrow
    import pyarrow.compute

    for place, field in enumerate(batch.schema):
        column = batch.column(place)
        if field.type == pyarrow.float32():
            texts = pyarrow.compute.cast(column, pyarrow.string())
        elif field.type == pyarrow.float16():  # for which pyarrow has no text
            numbers = column.to_pylist()
            texts = pyarrow.array([None if n is None else str(numpy.float16(n)) for n in numbers], pyarrow.string())
        else:
            continue
        batch = batch.set_column(place, pyarrow.field(field.name, pyarrow.string()), texts)
    return batch
