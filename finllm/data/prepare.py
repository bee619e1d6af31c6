"""`finllm prepare SOURCE --output_dir DATASET_DIR`: raw rows → schema → clean → split → a dataset dir."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from finllm.data.build import write_dataset
from finllm.data.clean import STEPS, check_steps
from finllm.data.dataset_dir import FILES, DatasetDir, is_dataset_dir
from finllm.data.encoding import check_encoding
from finllm.data.forms import FIELDS, FORMS, TURNS_COLUMN, Asked
from finllm.data.rows import source_hash
from finllm.data.settings import DEFAULTS, Settings
from finllm.data.sources import SAMPLE, Source, find_source
from finllm.data.summary import print_reading, print_summary
from finllm.errors import UserError
from finllm.files import atomic_folder, sweep
from finllm.terminal import Terminal, say


def prepare(
    source: Path | str,
    output_dir: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_cleaning: Collection[str] = (),
    form: str | None = None,
    leave_out: Collection[str] = (),
    group_column: str | None = None,
    number_column: str | None = None,
    count_tokens: Callable[[list[str]], list[int]] | None = None,
    overwrite: bool = False,
    **settings: object,
) -> DatasetDir:
    """Make a dataset dir of a SOURCE (see `finllm.data.sources`) and print its summary to stdout.

    `columns` names those of instruction, input, output or messages that are not to be recognised; `settings` are those
    of `finllm.data.settings.Settings`. A dataset dir that already holds the same source with the same settings is left
    as it is. Any other folder that is not empty is refused, but for another dataset dir with `overwrite`.
    `count_tokens` gives the number of tokens of each text, for the summary. Raises `UserError` for everything that the
    user can mend.
    """
    asked = Asked(form, dict(columns or {}), frozenset(leave_out), group_column, number_column)
    chosen = Settings(asked=asked, skip_cleaning=frozenset(skip_cleaning), **settings)
    check_steps(skip_cleaning)
    check_encoding(chosen.encoding)
    where = Path(output_dir)
    sweep(where.resolve())
    found = _find(source, chosen.encoding, chosen.dataset_config)
    sha256 = source_hash(found)
    if _holds_the_same(where, found, sha256, chosen, overwrite):
        say(f"{where} already holds this dataset (same source, same settings): left as it is")
    else:
        _build(found, sha256, where, chosen, overwrite)
    dataset = DatasetDir(where)
    print_summary(dataset, count_tokens)
    return dataset


def resolve(name: Path | str, cache_dir: Path | str) -> DatasetDir:
    """Open the dataset dir `name`; any other SOURCE is first prepared, with default settings, inside `cache_dir`.

    The folder there is named after the source's content and the settings, so the same source is prepared once, also
    when several processes ask for it at once. What was read and what was dropped is printed to stderr, by one process
    of a machine.
    """
    if is_dataset_dir(name):
        return DatasetDir(name)
    try:
        source = find_source(name)
        sha256 = source_hash(source)
        stem = source.name if not source.files else Path(source.name).absolute().name.split(".")[0]
        readable = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-") or "dataset"
        where = Path(cache_dir) / f"{readable}-{DEFAULTS.key(sha256)}"
        sweep(where.resolve())
        done = "stands ready in"
        if not is_dataset_dir(where):
            _build(source, sha256, where, DEFAULTS)
            done = "was prepared into"
    except UserError as error:
        if " --" not in str(error):
            raise
        raise UserError(
            f"{error} (these are flags of finllm prepare: finllm prepare {name} --output_dir DATASET_DIR …, then name "
            "DATASET_DIR in the place of the source)",
            lines=error.lines,
        ) from None
    dataset = DatasetDir(where)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        console = Terminal(stderr=True)
        console.print(f"{source.name} {done} {where}", soft_wrap=True)
        print_reading(dataset, console)
    return dataset


def _find(source: Path | str, encoding: str, config: str) -> Source:
    if str(source) != SAMPLE and is_dataset_dir(source):
        raise UserError(f"{source} is a dataset dir already; use it as it is, or prepare the rows it was made from")
    return find_source(source, encoding, config)


def _build(source: Source, sha256: str, where: Path, settings: Settings, overwrite: bool = False) -> None:
    """Make the dataset dir beside its place and rename it, so that a reader sees all of it or nothing."""
    place = where.resolve()
    bad_file = place.with_name(f"{place.name}.bad_rows.jsonl")
    with atomic_folder(place) as building:
        aside = building.with_suffix(".old")
        write_dataset(building, source, sha256, settings, bad_file)
        bad_file.unlink(missing_ok=True)  # of a try before this one
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
    if any(path.resolve().is_relative_to(where.resolve()) for _, path in source.files):
        raise UserError(f"the source {source.name} lies inside {where}, which --overwrite would remove; move it first")
    return False


# Command line --------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `finllm prepare`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .json, .jsonl, .csv, .tsv, .parquet, .arrow or .zip file (texts may be .gz, .bz2, .xz or .zst), a "
        "folder of them, a hub id (owner/name), or 'sample'",
    )
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the dataset dir is made")
    parser.add_argument("--form", choices=FORMS, help="what the columns are, where they are not to be recognised")
    for field in (*FIELDS, TURNS_COLUMN):
        help = f"the source's column that holds the {field} (default: recognised)"
        parser.add_argument(f"--{field}_column", metavar="NAME", help=help)
    parser.add_argument(
        "--leave_out", nargs="+", default=[], metavar="COLUMN", help="columns to leave out though they hold something"
    )
    parser.add_argument(
        "--dataset_config",
        default="",
        metavar="NAME",
        help="the config of a hub dataset, or of a clone, that has several",
    )
    parser.add_argument("--encoding", default="", help="of all texts (default: UTF-8)")
    parser.add_argument(
        "--skip_bad_rows",
        action="store_true",
        help="go on without rows that cannot be read; they are in rejected.jsonl",
    )
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
            help=f"share of the questions for {split} where the source has no {split} split (default: %(default)s)",
        )
    parser.add_argument(
        "--ignore_own_splits", action="store_true", help="put the source's own splits together and split anew"
    )
    parser.add_argument(
        "--keep_shared_questions",
        action="store_true",
        help="keep rows of train whose question stands in the source's own test or validation too",
    )
    parser.add_argument(
        "--group_column", metavar="NAME", help="keep rows that have the same here (document, company) in one split"
    )
    parser.add_argument(
        "--number_column",
        metavar="NAME",
        help="the column with the number that each answer must reach (default: value, unit and tolerance together)",
    )
    parser.add_argument(
        "--cluster_near_duplicates",
        action="store_true",
        help="keep questions that are nearly the same, or one inside the other, in one split (see docs/data.md)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace another dataset dir in DIR")


def run(args: argparse.Namespace, count_tokens: Callable[[list[str]], list[int]] | None = None) -> None:
    """Run `finllm prepare` with parsed arguments."""
    named = {field: getattr(args, f"{field}_column") for field in (*FIELDS, TURNS_COLUMN)}
    same = ("form", "leave_out", "encoding", "dataset_config", "skip_bad_rows", "skip_cleaning", "seed",
            "validation_fraction", "test_fraction", "ignore_own_splits", "keep_shared_questions", "group_column",
            "number_column", "cluster_near_duplicates", "overwrite")  # fmt: skip
    prepare(
        args.source,
        args.output_dir,
        columns={field: column for field, column in named.items() if column is not None},
        count_tokens=count_tokens,
        **{name: getattr(args, name) for name in same},
    )
