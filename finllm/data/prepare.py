"""`finllm prepare SOURCE --output_dir DATASET_DIR`: raw rows → schema → clean → split → a dataset dir."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from finllm.data.clean import STEPS, Rejected, StepCount, check_steps, clean
from finllm.data.dataset_dir import FILES, DatasetDir, dataset_hash, is_dataset_dir
from finllm.data.near_duplicates import clusters
from finllm.data.rows import RawRow, Source, find_source, read_rows, source_hash, track
from finllm.data.schema import COLUMNS, FIELDS, Row, check_rows
from finllm.data.settings import DEFAULTS, Settings
from finllm.data.split import SPLITS, check_fractions, normalised_question, split_of
from finllm.data.summary import print_summary
from finllm.run import UserError, write_json, write_jsonl

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
    found = _find(source)
    rows = None if found.files else _read(found)
    sha256 = source_hash(found, rows)
    if _holds_the_same(where, found, sha256, settings, overwrite):
        print(f"{where} already holds this dataset (same source, same settings): left as it is")
    else:
        _build(found, rows, sha256, where, settings, overwrite)
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
    rows = None if source.files else _read(source)
    sha256 = source_hash(source, rows)
    stem = source.name if not source.files else Path(source.name).absolute().name.split(".")[0]
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-") or "dataset"
    where = Path(cache_dir) / f"{readable}-{DEFAULTS.key(sha256)}"
    if not is_dataset_dir(where):
        _build(source, rows, sha256, where, DEFAULTS)
        print(f"prepared {source.name} into {where}", file=sys.stderr)
    return DatasetDir(where)


def _find(source: Path | str) -> Source:
    found = find_source(source)
    if found.files and is_dataset_dir(source) and Path(source) == Path(found.name):
        raise UserError(f"{source} is a dataset dir already; use it as it is, or prepare the rows it was made from")
    return found


def _read(source: Source) -> list[RawRow]:
    rows = read_rows(source)
    size = sum(path.stat().st_size for path in source.files)
    return list(track(rows, "reading") if size >= TRACKED_BYTES else rows)


# Building ------------------------------------------------------------------------------------------------------------


def _build(
    source: Source,
    raw_rows: list[RawRow] | None,
    sha256: str,
    where: Path,
    settings: Settings,
    overwrite: bool = False,
) -> None:
    """Make the dataset dir beside its place and rename it, so that a reader sees all of it or nothing."""
    raw_rows = _read(source) if raw_rows is None else raw_rows
    if not raw_rows:
        raise UserError(f"{source.name} holds no rows")
    rows = check_rows(raw_rows, settings.columns, source.name)
    kept, rejected, steps = clean(track(rows, "cleaning", len(rows)), settings.skip_cleaning)
    if not kept:
        counts = ", ".join(f"{step.step} {step.dropped:,}" for step in steps if step.dropped)
        raise UserError(f"{source.name}: cleaning dropped all {len(rows):,} rows ({counts}); see --skip_cleaning")
    splits = _split(kept, settings, source.name)

    place = where.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    building = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    aside = building.with_name(f"{building.name}.old")
    building.mkdir()
    try:
        _write(building, source, len(raw_rows), sha256, settings, splits, rejected, steps)
        if overwrite and place.exists():
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
        for left in (building, aside):
            shutil.rmtree(left, ignore_errors=True)


def _split(rows: list[Row], settings: Settings, name: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each split as they are written, in the order of the source."""
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    questions = [normalised_question(row.instruction, row.input) for row in rows]
    # A question goes where its own hash sends it, or that of the first of its near duplicates.
    deciding = clusters(questions) if settings.cluster_near_duplicates else range(len(rows))
    ids: Counter[str] = Counter()
    for row, question, first in zip(rows, questions, deciding, strict=True):
        texts = dict(zip(FIELDS, row[:3], strict=True))
        row_id = _sixteen_hex("\0".join(row[:3]))
        ids[row_id] += 1
        unique = row_id if ids[row_id] == 1 else f"{row_id}-{ids[row_id]}"
        split = split_of(questions[first], settings.seed, settings.validation_fraction, settings.test_fraction)
        splits[split].append({"id": unique, "question_id": _sixteen_hex(question), **texts})
    empty = [split for split in SPLITS if not splits[split]]
    if empty:
        distinct = len({questions[first] for first in deciding})
        raise UserError(
            f"{name}: {' and '.join(empty)} would be empty: {distinct:,} distinct questions with "
            f"validation_fraction {settings.validation_fraction}, test_fraction {settings.test_fraction} and seed "
            f"{settings.seed}; change the fractions or the seed, or add rows"
        )
    return splits


def _sixteen_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(
    folder: Path,
    source: Source,
    rows_read: int,
    sha256: str,
    settings: Settings,
    splits: dict[str, list[dict[str, str]]],
    rejected: list[Rejected],
    steps: list[StepCount],
) -> None:
    described = {}
    for split, rows in splits.items():
        path = folder / f"{split}.jsonl"
        write_jsonl(path, rows)
        described[split] = {
            "rows": len(rows),
            "questions": len({row["question_id"] for row in rows}),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    write_jsonl(
        folder / "rejected.jsonl",
        (
            {"row": dict(zip(FIELDS, row[:3], strict=True)), "file": row.file, "line": row.number, "reason": reason}
            for row, reason in rejected
        ),
    )
    manifest = {
        "source": {"name": source.name, "sha256": sha256, "rows": rows_read},
        **settings.in_manifest(),
        "cleaning": [step._asdict() for step in steps],
        "splits": described,
        "rejected": len(rejected),
        "sha256": dataset_hash({split: described[split]["sha256"] for split in SPLITS}),
    }
    write_json(folder / "manifest.json", manifest)


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
        help="keep questions that share half of their word 5-grams in one split",
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
