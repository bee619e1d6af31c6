"""How anything here is written to disk and read back.

Every file is written beside its place, synced and renamed, so a reader sees the old file or the new one and never half
of one. Every JSON carries a `schema_version`, and a reader refuses one it does not know.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from finllm.bounded import MOST_JSON_BYTES, each_json_line, kind_of, parse_json, read_text, require_unicode
from finllm.errors import MANY, UserError, raise_problems, shortened

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
        os.replace(temporary, path)  # while the file is open, and so locked


@contextlib.contextmanager
def _written_beside(path: Path, mode: str = "w") -> Iterator[tuple[IO, str]]:
    """A temporary file beside `path` and its name; it is closed on leaving, and removed where that was by an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    encoding = None if "b" in mode else "utf-8"
    while True:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        if _hold(descriptor, temporary):
            break
        os.close(descriptor)
    try:
        with naming(path), open(descriptor, mode, encoding=encoding, newline=None if "b" in mode else "\n") as file:
            yield file, temporary
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(place: Path) -> Iterator[Path]:
    """A hidden folder beside `place`, to be filled and then renamed to it; where it was not, it is removed again."""
    place.parent.mkdir(parents=True, exist_ok=True)
    sweep(place)
    while True:
        work = place.with_name(f".{place.name}.{secrets.token_hex(8)}.part")
        work.mkdir()
        try:
            descriptor = os.open(work, os.O_RDONLY)
        except FileNotFoundError:  # another has swept it away between being made and being held
            continue
        if _hold(descriptor, work):
            break
        os.close(descriptor)
    try:
        with naming(place):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(descriptor)


def put_in_place(work: Path, place: Path) -> None:
    """Rename the folder `work` to `place`, which must be absent or empty, once all it holds is on the disk."""
    for path in [*work.rglob("*"), work]:
        sync(path)
    try:
        os.rename(work, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(f"{place} was filled meanwhile; take another --output_dir") from None
    sync(place.parent)


def sync(path: Path) -> None:
    """Have the kernel write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(place: Path) -> Iterator[None]:
    """Let what the disk refuses inside be an `OSError` that names `place`: libraries leave out the name or the kind."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors says it
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(place)) from error


def sweep(place: Path) -> None:
    """Remove what killed processes left of making `place`. What a living one makes is locked, and stays.

    Where one was killed between setting an old `place` aside and the new one, the old one comes back.
    """
    left = re.compile(rf"\.{re.escape(place.name)}\.\w+\.(part|old)")
    names = os.listdir(place.parent) if place.parent.is_dir() else ()
    for path in (place.parent / name for name in sorted(names) if left.fullmatch(name)):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone meanwhile, a link, or somebody else's
            continue
        try:
            if not _hold(descriptor, path, or_else=False):
                continue
            if path.suffix == ".old" and not place.exists():
                os.replace(path, place)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Inside, no other holds a lock on the file `path`; a BlockingIOError where one does and `wait` is False.

    The kernel drops the lock with this process, however it ends. It is let go of by name, not by closing the file: a
    process that another thread is just starting has a copy of the open file until its own program begins, and with the
    copy the lock.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _hold(descriptor: int, path: Path | str, or_else: bool = True) -> bool:
    """Lock what is being made for as long as this process lives; False where another holds it or has swept it away.

    `or_else` is the answer of a file system without locks: there who makes goes on, and nobody sweeps.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return or_else


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
            with naming(path):
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


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which a link leads out of it, or which holds what is neither a file nor a folder.

    The folder itself may be a link. What is written or removed under a name that leads out is somebody else's.
    """
    require_unicode(folder)
    root, problems = Path(os.path.realpath(folder)), []
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in sorted((*folders, *files))):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a temporary file of a process that is at work there
                continue
            if stat.S_ISLNK(mode):
                if not Path(os.path.realpath(path)).is_relative_to(root):
                    problems.append(f"{path.relative_to(folder)} is a link to {os.readlink(path)!r}{_led_to(path)}")
            elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                problems.append(f"{path.relative_to(folder)} is {kind_of(mode)}")
    raise_problems(problems, f"{folder}, which must hold its files itself; put copies there, or remove them", MANY)


def _led_to(link: Path) -> str:
    """What a link leads to, where that is there and neither a file nor a folder."""
    mode = os.stat(link).st_mode if os.path.exists(link) else stat.S_IFREG
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else f", {kind_of(mode)}"


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
