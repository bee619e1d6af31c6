"""What a SOURCE is: the parts that rows are read from, their own splits, and the files that are left alone.

    FILE        .json, .jsonl, .ndjson, .csv, .tsv (also .gz, .bz2, .xz, .zst), .parquet, .arrow, or a .zip of such
                files
    FOLDER      its files of those formats and those of its subfolders, in the order of their paths; hidden ones are
                left alone; a folder of `datasets.save_to_disk`
    sample      the dataset that comes with this package (a folder of that name is ./sample)
    OWNER/NAME  a dataset of the Hugging Face hub

A path that exists wins over a hub id. In a folder, a zip, a JSON object of lists and on the hub, what is named train,
validation or test (valid, dev, val and eval are validation too) is the source's own split.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finllm.data import json_rows, parts
from finllm.data.configs import CARD, chosen_config, configs_of, files_of
from finllm.data.dataset_dir import is_dataset_dir
from finllm.data.encoding import decoded
from finllm.data.opening import opened as stream_of
from finllm.data.parts import COMPRESSIONS, FORMATS, SUFFIXES, WORDS, Part, kind_of_name, split_of_name
from finllm.errors import UserError, did_you_mean

SAMPLE = "sample"
ENCRYPTED = 1  # bit of a zip member's flags (APPNOTE 6.3.10, section 4.4.4)
# What libraries write beside the data; none of it holds rows
NOTES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


class LeftAlone(NamedTuple):
    """A file of the source that no row is read from, and why."""

    file: str
    reason: str


class Source(NamedTuple):
    """What a user named. A hub dataset has no parts until `opened`."""

    name: str
    parts: tuple[Part, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    files: tuple[tuple[str, Path], ...] = ()  # all files on the disk that rows come from, with their names inside
    hub: Any = None  # the `datasets.DatasetDict`
    config: str = ""  # the one that is read
    configs: tuple[str, ...] = ()  # all that a folder has

    def about_config(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"config": self.config, "configs": list(self.configs)} if self.config else {}


def find_source(name: Path | str, encoding: str = "", config: str = "") -> Source:
    """Find out what a SOURCE is; a `UserError` says what was looked for when there is no such thing.

    Of files it reads a zip's directory, the beginning of texts, and all of a JSON object that holds lists. `encoding`
    is that of all texts, else they are UTF-8. `config` names one of several that a hub dataset or its clone has.
    """
    text, path = str(name), Path(name)
    if text == SAMPLE:
        return _folder(SAMPLE, Path(__file__).parent / SAMPLE, "")._replace(left_alone=())
    if path.is_dir():
        return _folder(text, path, encoding, config)
    if config and (text == SAMPLE or path.exists()):
        raise UserError(f"{text} has no configs, as hub datasets and their clones have; leave --dataset_config out")
    if path.exists():
        if kind_of_name(path.name) is None and path.suffix.lower() != ".zip":
            raise UserError(f"{path}: {_not_read(path.name)}; known are {', '.join(SUFFIXES)}")
        left = tuple(_left_in_zip(path)) if path.suffix.lower() == ".zip" else ()
        return Source(text, tuple(_parts_of_file(path, path.name, "", encoding)), left, ((path.name, path),))
    if text.startswith(("/", ".", "~")) or path.suffix.lower() in (*SUFFIXES, *COMPRESSIONS) or text.count("/") != 1:
        beside = [str(path.with_name(other.name)) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"missing file: there is no file or folder {path.absolute()}{did_you_mean(text, [*beside, SAMPLE])}; "
            f"a source is a file ({', '.join(SUFFIXES)}), a folder of them, a hub id (owner/name) or '{SAMPLE}'"
        )
    return Source(text, (), config=config)


def opened(source: Source) -> Source:
    """The source with its parts: a hub dataset is fetched, or found in the cache."""
    if source.parts or source.hub is not None:
        return source
    import datasets  # takes a second, which only this source pays

    try:
        splits = datasets.load_dataset(source.name, *filter(None, [source.config]))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"'{source.name}' is no file or folder here, and the hub did not give it ({error}); without the hub take a "
            f"local file, a folder, a cache filled before (HF_HUB_OFFLINE=1) or the built-in '{SAMPLE}'; "
            "of a dataset with several configs name one with --dataset_config"
        ) from error
    found = [Part(Path(), f"{source.name} ({key})", "hub", split_of_name(key, source.name), key=key) for key in splits]
    return source._replace(parts=tuple(found), hub=splits)


def hash_of_files(source: Source) -> str:
    """SHA-256 over the names, inside the source, and the bytes of its files."""
    digest = hashlib.sha256()
    for name, path in sorted(source.files):
        digest.update(name.encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# Folders -------------------------------------------------------------------------------------------------------------


def _folder(text: str, folder: Path, encoding: str, config: str = "") -> Source:
    configs = configs_of(folder)
    chosen = chosen_config(configs, config, text)
    wanted = files_of(folder, configs[chosen]) if chosen else None
    found: list[Part] = []
    left: list[LeftAlone] = []
    files: list[tuple[str, Path]] = []
    problems = []
    for path, name, split, saved in _walk(folder, folder, ""):
        try:
            if saved:
                found += _saved(path, name, split)
                files += ((f"{name}/{each.relative_to(path).as_posix()}".lstrip("./"), each)
                          for each in path.rglob("*") if each.is_file())  # fmt: skip
            elif wanted is not None and path.resolve() not in wanted:
                of_config = f"not of the config '{chosen}'"
                left.append(LeftAlone(name, _why_left_alone(path) or of_config))
            elif reason := _why_left_alone(path):
                left.append(LeftAlone(name, reason))
            else:
                own = split_of_name(_stem(path.name), name) or split
                own = own if wanted is None else split_of_name(wanted[path.resolve()], name)
                found += _parts_of_file(path, name, own, encoding)
                left += _left_in_zip(path) if path.suffix.lower() == ".zip" else ()
                files.append((name, path))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    if not found:
        which = f", of the config '{chosen}'" if chosen else ""
        raise UserError(f"the folder {folder} holds no file that can be read{which} ({', '.join(SUFFIXES)})")
    if chosen:
        files.append((CARD, folder / CARD))  # which says what is read
    return Source(text, tuple(found), tuple(left), tuple(files), config=chosen, configs=tuple(configs))


def _walk(root: Path, folder: Path, split: str) -> Iterator[tuple[Path, str, str, bool]]:
    """Files and saved datasets, with their names inside `root` and the split that a folder above them names."""
    if _is_saved(folder):
        yield folder, folder.relative_to(root).as_posix(), split, True
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and is_dataset_dir(path):
            yield path, path.relative_to(root).as_posix(), split, False
        elif path.is_dir() and not path.name.startswith((".", "__")):
            yield from _walk(root, path, WORDS.get(path.name.lower(), split))
        elif path.is_file():
            yield path, path.relative_to(root).as_posix(), split, False


def _why_left_alone(path: Path) -> str:
    if path.is_dir():
        return "a dataset dir, made by finllm prepare"
    if path.name.startswith("."):
        return "hidden"
    if path.name in NOTES:
        return "a note of the library datasets"
    if kind_of_name(path.name) is None and path.suffix.lower() != ".zip":
        return _not_read(path.name)
    return ""


def _not_read(name: str) -> str:
    suffix = Path(name).suffix
    if suffix.lower() in COMPRESSIONS:
        return f"'{name}' is compressed, and what it holds is not read so; unpack it"
    return f"the format '{suffix}' is not read" if suffix else f"'{name}' has no suffix that names a format"


def _stem(name: str) -> str:
    return Path(name).stem if Path(name).suffix.lower() not in COMPRESSIONS else Path(Path(name).stem).stem


def _is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` made the folder."""
    names = {path.name for path in folder.iterdir()}
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names


def _saved(folder: Path, name: str, split: str) -> list[Part]:
    name = folder.name if name == "." else name
    if not (folder / "dataset_dict.json").exists():
        return [Part(folder, name, "saved", split)]
    keys = sorted(json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    return [Part(folder / key, f"{name}/{key}", "saved", split_of_name(key, name)) for key in keys]


# Files that hold several parts ---------------------------------------------------------------------------------------


def _parts_of_file(path: Path, name: str, split: str, encoding: str) -> Iterator[Part]:
    if path.suffix.lower() == ".zip":
        for member in members(path):
            kind = kind_of_name(member)
            own = split_of_name(_stem(Path(member).name), f"{path}/{member}") or _split_above(member) or split
            part = Part(path, f"{name}/{member}", kind[0], own, kind[1], member)
            yield from _parts_of_text(part, encoding) if kind[0] in ("json", "csv") else [part]
        return
    format, compression = kind_of_name(name)
    part = Part(path, name, format, split, compression)
    yield from _parts_of_text(part, encoding) if format in ("json", "csv") else [part]


def _parts_of_text(part: Part, encoding: str) -> Iterator[Part]:
    """A part of text, its layout found out: one part, or of a JSON object one for each of its lists of rows."""
    with stream_of(part) as stream:
        if part.format == "csv":
            decoded(stream.read(json_rows.HEAD), part.place, encoding)
            yield part
            return
        layout = json_rows.layout_of(stream, part.member or part.name, part.place, encoding)
    if layout != "object":
        yield part._replace(format=layout)
        return
    with stream_of(part) as stream:
        lists = json_rows.lists_of(stream, part.place, encoding)
    splits = {key: split_of_name(key, part.place) for key in lists}
    if len(lists) > 1 and not all(splits.values()):
        raise UserError(
            f"{part.place}: the JSON object holds {len(lists)} lists ({', '.join(lists)}), wanted is one list of rows, "
            "or lists named train, validation and test; save that list alone"
        )
    for key, own in splits.items():
        name = part.name if len(lists) == 1 else f"{part.name} ({key})"
        yield part._replace(format=layout, key=key, split=own or part.split, name=name)


def _split_above(member: str) -> str:
    return next((WORDS[part.lower()] for part in reversed(member.split("/")[:-1]) if part.lower() in WORDS), "")


def members(path: Path) -> list[str]:
    """The members of a zip that can be read here, in the order of their names."""
    wanted = [name for name, reason in _members(path) if not reason]
    if not wanted:
        raise UserError(f"{path} holds no file that can be read ({', '.join(FORMATS)})")
    return wanted


def _left_in_zip(path: Path) -> Iterable[LeftAlone]:
    return [LeftAlone(f"{path.name}/{name}", reason) for name, reason in _members(path) if reason]


def _members(path: Path) -> list[tuple[str, str]]:
    """The files of a zip, in the order of their names, each with why it is left alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = sorted(archive.infolist(), key=lambda member: member.filename)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: not a zip file that can be read ({error})") from None
    for member in infos:
        names = member.filename.replace("\\", "/").split("/")
        if names[0] == "" or ":" in names[0] or ".." in names:
            raise UserError(f"{path}: its member '{member.filename}' leads outside the archive; pack it anew")
        if member.flag_bits & ENCRYPTED:
            raise UserError(f"{path}: its member '{member.filename}' is encrypted; pack it anew without a password")
    if (size := sum(member.file_size for member in infos)) > parts.MAX_UNZIPPED_BYTES:
        raise UserError(
            f"{path} unpacks to {size:,} bytes and the limit is {parts.MAX_UNZIPPED_BYTES:,}; unpack it and name the "
            "folder"
        )
    found = []
    for member in infos:
        hidden = any(part.startswith((".", "__MACOSX")) for part in member.filename.split("/"))
        if member.is_dir():
            continue
        name = Path(member.filename).name
        reason = "hidden" if hidden else "a note of the library datasets" if name in NOTES else ""
        found.append((member.filename, reason or ("" if kind_of_name(name) else _not_read(name))))
    return found
