"""`finllm prepare SOURCE --output_dir DATASET_DIR`: raw rows → schema → clean → split → a dataset dir."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from finllm.data.clean import STEPS, Cleaning, Rejected, check_steps, text_of
from finllm.data.dataset_dir import FILES, DatasetDir, dataset_hash, is_dataset_dir
from finllm.data.near_duplicates import clusters
from finllm.data.rows import RawRow, Source, find_source, read_rows, source_hash, track
from finllm.data.schema import COLUMNS, FIELDS, Row, check_rows
from finllm.data.settings import DEFAULTS, Settings
from finllm.data.split import SPLITS, check_fractions, normalised_question, split_of
from finllm.data.summary import print_summary
from finllm.errors import UserError
from finllm.files import atomic_folder, atomic_open, sweep, write_json
from finllm.terminal import say

TRACKED_BYTES = 10 << 20  # a source of less is read before a progress bar could be


def prepare(
    source: Path | str,
    output_dir: Path | str,
    *,
    columns: Mapping[str, str] = COLUMNS,
    skip_cleaning: Collection[str] = (),
    seed: int = DEFAULTS.seed,
    validation_fraction: float = DEFAULTS.validation_fraction,
    test_fraction: float = DEFAULTS.test_fraction,
    cluster_near_duplicates: bool = DEFAULTS.cluster_near_duplicates,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    overwrite: bool = False,
) -> DatasetDir:
    """Make a dataset dir of a SOURCE (see `finllm.data.rows`) and print its summary to stdout.

    A dataset dir that already holds the same source with the same settings is left as it is. Any other folder that is
    not empty is refused, but for another dataset dir with `overwrite`. With `cluster_near_duplicates`, questions that
    are near duplicates (finllm.data.near_duplicates) go to one split. `count_tokens` gives the number of tokens of each
    text, for the summary. Raises `UserError` for everything that the user can mend.
    """
    settings = Settings(
        columns, frozenset(skip_cleaning), seed, validation_fraction, test_fraction, cluster_near_duplicates
    )
    check_steps(skip_cleaning)
    check_fractions(validation_fraction, test_fraction)
    where = Path(output_dir)
    sweep(where.resolve())
    found = _find(source)
    sha256 = source_hash(found)
    if _holds_the_same(where, found, sha256, settings, overwrite):
        say(f"{where} already holds this dataset (same source, same settings): left as it is")
    else:
        _build(found, sha256, where, settings, overwrite)
    dataset = DatasetDir(where)
    print_summary(dataset, count_tokens)
    return dataset


def resolve(name: Path | str, cache_dir: Path | str) -> DatasetDir:
    """Open the dataset dir `name`; any other SOURCE is first prepared, with default settings, inside `cache_dir`.

    The folder there is named after the source's content and the settings, so the same source is prepared once, also
    when several processes ask for it at once.
    """
    if is_dataset_dir(name):
        return DatasetDir(name)
    source = find_source(name)
    sha256 = source_hash(source)
    stem = source.name if not source.files else Path(source.name).absolute().name.split(".")[0]
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-") or "dataset"
    where = Path(cache_dir) / f"{readable}-{DEFAULTS.key(sha256)}"
    sweep(where.resolve())
    if not is_dataset_dir(where):
        _build(source, sha256, where, DEFAULTS)
        say(f"prepared {source.name} into {where}", file=sys.stderr)
    return DatasetDir(where)


def _find(source: Path | str) -> Source:
    found = find_source(source)
    if found.files and is_dataset_dir(source) and Path(source) == Path(found.name):
        raise UserError(f"{source} is a dataset dir already; use it as it is, or prepare the rows it was made from")
    return found


# Building ------------------------------------------------------------------------------------------------------------


def _build(source: Source, sha256: str, where: Path, settings: Settings, overwrite: bool = False) -> None:
    """Make the dataset dir beside its place and rename it, so that a reader sees all of it or nothing."""
    place = where.resolve()
    with atomic_folder(place) as building:
        aside = building.with_suffix(".old")
        _write(building, source, sha256, settings)
        held = os.open(place, os.O_RDONLY) if overwrite and place.exists() else None
        if held is not None:  # locked, so that nobody takes it for what a killed process set aside
            with contextlib.suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(place, aside)
        try:
            os.replace(building, place)
        except OSError:
            if aside.exists():
                os.replace(aside, place)
            # Another process may have put the same dataset there since we looked; then its work is ours.
            if overwrite or not _holds_the_same(where, source, sha256, settings, overwrite=False):
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if held is not None:
                os.close(held)


def _write(folder: Path, source: Source, sha256: str, settings: Settings) -> None:
    """Read, check, clean and split the source, row by row, into the files of a dataset dir."""
    cleaning = Cleaning(settings.skip_cleaning)
    rows_read = rejected = 0

    def counted() -> Iterator[RawRow]:
        nonlocal rows_read
        rows = read_rows(source)
        large = sum(path.stat().st_size for path in source.files) >= TRACKED_BYTES
        for row in track(rows, "preparing") if large else rows:
            rows_read += 1
            yield row

    with contextlib.ExitStack() as stack:
        splits = {name: stack.enter_context(SplitFile.open(folder / f"{name}.jsonl")) for name in SPLITS}
        dropped = stack.enter_context(atomic_open(folder / "rejected.jsonl"))

        def kept() -> Iterator[Row]:
            nonlocal rejected
            for row in cleaning.clean(check_rows(counted(), settings.columns, source.name)):
                if isinstance(row, Rejected):
                    rejected += 1
                    texts = dict(zip(FIELDS, row.row[:3], strict=True))
                    line = {"row": texts, "file": row.row.file, "line": row.row.number, "reason": row.reason}
                    dropped.write(json.dumps(line, ensure_ascii=False) + "\n")
                else:
                    yield row

        _deal(kept(), splits, settings)
    if not rows_read:
        raise UserError(f"{source.name} holds no rows")
    if rejected == rows_read:
        counts = ", ".join(f"{step.step} {step.dropped:,}" for step in cleaning.counts() if step.dropped)
        raise UserError(f"{source.name}: cleaning dropped all {rows_read:,} rows ({counts}); see --skip_cleaning")
    empty = [name for name, split in splits.items() if not split.rows]
    if empty:
        distinct = len(set().union(*(split.deciding for split in splits.values())))
        raise UserError(
            f"{source.name}: {' and '.join(empty)} would be empty: {distinct:,} distinct questions with "
            f"validation_fraction {settings.validation_fraction}, test_fraction {settings.test_fraction} and seed "
            f"{settings.seed}; change the fractions or the seed, or add rows"
        )
    manifest = {
        "source": {"name": source.name, "sha256": sha256, "rows": rows_read},
        **settings.in_manifest(),
        "cleaning": [step._asdict() for step in cleaning.counts()],
        "splits": {name: split.described() for name, split in splits.items()},
        "rejected": rejected,
        "sha256": dataset_hash({name: split.described()["sha256"] for name, split in splits.items()}),
    }
    write_json(folder / "manifest.json", manifest)


class SplitFile:
    """A split as it is written: the file, its hash, and its questions by their ids."""

    def __init__(self, file: IO[str]):
        self.file, self.rows, self.digest = file, 0, hashlib.sha256()
        self.questions: set[int] = set()
        self.deciding: set[int] = set()  # the first questions of its clusters of near duplicates

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[SplitFile]:
        with atomic_open(path, "w+") as file:
            yield cls(file)

    def add(self, row: dict[str, Any], deciding: str) -> None:
        self._write(row)
        self.rows += 1
        self.questions.add(int(row["question_id"], 16))
        self.deciding.add(int(deciding, 16))

    def add_conversation_fields(self) -> None:
        """Give the rows written so far the two fields of a conversation, empty: all rows of a dataset have the same."""
        self.file.seek(0)
        rows = [json.loads(line) for line in self.file]
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        for row in rows:
            self._write({**row, "system": "", "history": []})

    def _write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self.file.write(line)
        self.digest.update(line.encode())

    def described(self) -> dict[str, Any]:
        return {"rows": self.rows, "questions": len(self.questions), "sha256": self.digest.hexdigest()}


def _deal(rows: Iterable[Row], splits: dict[str, SplitFile], settings: Settings) -> None:
    """Write each row into the split that its question goes to, in the order of the source."""
    questions: list[str] | None = None
    if settings.cluster_near_duplicates:  # a question goes where the first of its near duplicates goes: all are held
        rows = list(rows)
        questions = [question_of(row) for row in rows]
        first = clusters([f"{row.instruction}\n{row.input}" for row in rows])
    ids: Counter[int] = Counter()
    conversations = False
    for number, row in enumerate(rows):
        question = question_of(row)
        row_id = _sixteen_hex(text_of(row))
        ids[int(row_id, 16)] += 1
        copies = ids[int(row_id, 16)]
        decides = question if questions is None else questions[first[number]]
        split = split_of(decides, settings.seed, settings.validation_fraction, settings.test_fraction)
        written = {"id": row_id if copies == 1 else f"{row_id}-{copies}", "question_id": _sixteen_hex(question)}
        written |= zip(FIELDS, row[:3], strict=True)
        if (row.system or row.history) and not conversations:
            conversations = True
            for file in splits.values():
                file.add_conversation_fields()
        if conversations:
            written |= {"system": row.system, "history": [turn._asdict() for turn in row.history]}
        splits[split].add(written, _sixteen_hex(decides))


def question_of(row: Row) -> str:
    """The normalised question of a row: its system text and what the user said before the first answer."""
    asked = (row.history[0].content, "") if row.history else (row.instruction, row.input)
    return normalised_question(f"{row.system}\n{asked[0]}" if row.system else asked[0], asked[1])


def _sixteen_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _holds_the_same(where: Path, source: Source, sha256: str, settings: Settings, overwrite: bool) -> bool:
    """Whether the folder already is what would be made; a `UserError` where it holds what must not be replaced."""
    if not where.exists() or (where.is_dir() and not any(where.iterdir())):
        return False
    if not is_dataset_dir(where):
        what = "is not empty and holds no dataset" if where.is_dir() else "is a file"
        raise UserError(f"{where} {what}; take another --output_dir")
    try:
        held = DatasetDir(where)
        differences = settings.differences(held.manifest, sha256)
        if not differences:
            held.check()
            return True
    except UserError as error:
        if not overwrite:
            raise UserError(f"{error} (--overwrite replaces it)") from None
    else:
        if not overwrite:
            raise UserError(
                f"{where} holds another dataset (different {', '.join(differences)}); "
                "pass --overwrite to replace it, or take another --output_dir"
            )
    others = sorted({path.name for path in where.iterdir()} - set(FILES))
    if others:
        raise UserError(f"{where} also holds {', '.join(others)}, which --overwrite would remove; move that first")
    if any(path.resolve().is_relative_to(where.resolve()) for path in source.files):
        raise UserError(f"the source {source.name} lies inside {where}, which --overwrite would remove; move it first")
    return False


# Command line --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `finllm prepare`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .json, .jsonl, .csv, .parquet or .zip file, a folder of them, a hub id (owner/name), or 'sample'",
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the dataset dir is made")
    for field in FIELDS:
        help = f"the source's column that holds the {field} (default: {COLUMNS[field]})"
        parser.add_argument(f"--{field}_column", default=COLUMNS[field], metavar="NAME", help=help)
    parser.add_argument(
        "--skip_cleaning", nargs="+", default=[], metavar="STEP", help=f"steps to leave out: {', '.join(STEPS)}"
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS.seed, help="seed of the split (default: %(default)s)")
    for split in ("validation", "test"):
        parser.add_argument(
            f"--{split}_fraction",
            type=float,
            default=getattr(DEFAULTS, f"{split}_fraction"),
            metavar="F",
            help=f"share of the questions that go to {split} (default: %(default)s)",
        )
    parser.add_argument(
        "--cluster_near_duplicates",
        action="store_true",
        help="keep questions that are nearly the same, or one inside the other, in one split (see docs/data.md)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another dataset dir in DIR")


def run(args: argparse.Namespace, count_tokens: Callable[[list[str]], list[int]] | None = None) -> None:
    """Run `finllm prepare` with parsed arguments."""
    prepare(
        args.source,
        args.output_dir,
        columns={field: getattr(args, f"{field}_column") for field in FIELDS},
        skip_cleaning=args.skip_cleaning,
        seed=args.seed,
        validation_fraction=args.validation_fraction,
        test_fraction=args.test_fraction,
        cluster_near_duplicates=args.cluster_near_duplicates,
        count_tokens=count_tokens,
        overwrite=args.overwrite,
    )
