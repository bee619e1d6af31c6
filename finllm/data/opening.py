"""A part of a source as a stream of bytes: a file or a member of a zip, unpacked as it is read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from finllm.data import parts
from finllm.data.parts import Part
from finllm.errors import UserError

LFS = b"version https://git-lfs.github.com"
UNPACK = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}


@contextlib.contextmanager
def opened(part: Part) -> Iterator[IO[bytes]]:
    """The bytes of a part, from its beginning. Raises `UserError` where they are damaged or are more than may be."""
    try:
        with contextlib.ExitStack() as stack:
            if part.member:
                archive = stack.enter_context(zipfile.ZipFile(part.path))
                stream = stack.enter_context(archive.open(part.member))
            else:
                stream = stack.enter_context(open(part.path, "rb"))
                if stream.peek(64).startswith(LFS):
                    raise UserError(f"{part.place} is a pointer of Git LFS and holds no rows; fetch them: git lfs pull")
            if part.compression == ".zst":
                import pyarrow

                stream = stack.enter_context(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream), "zstd"))
                stream = _Limited(stream, part.place)
            elif part.compression:
                stream = _Limited(stack.enter_context(_unpacked(part, stream)), part.place)
            yield io.BufferedReader(stream, 1 << 18) if part.compression else stream
    except (zipfile.BadZipFile, NotImplementedError) as error:
        # damaged in its directory, in its data, or cut off; packed by a method unknown here
        raise UserError(f"{part.path}: not a zip file that can be read ({error})") from None
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        what = "zip" if part.member and not part.compression else part.compression
        place = part.path if what == "zip" else part.place
        raise UserError(f"{place}: not a {what} file that can be read ({error})") from None
    except OSError as error:  # as pyarrow and bz2 say that what they unpack is damaged
        if not part.compression or error.errno is not None:
            raise
        raise UserError(f"{part.place}: not a {part.compression} file that can be read ({error})") from None


def _unpacked(part: Part, stream: IO[bytes]):
    return gzip.GzipFile(fileobj=stream, mode="rb") if part.compression == ".gz" else UNPACK[part.compression](stream)


class _Limited(io.RawIOBase):
    """What is unpacked, up to as much as a zip may hold."""

    def __init__(self, stream, place: str):
        self.stream, self.place, self.left = stream, place, parts.MAX_UNZIPPED_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        block = self.stream.read(len(buffer))
        self.left -= len(block)
        if self.left < 0:
            raise UserError(
                f"{self.place} unpacks to more than {parts.MAX_UNZIPPED_BYTES:,} bytes, which is the limit; unpack it "
                "and name what comes out"
            )
        buffer[: len(block)] = block
        return len(block)
