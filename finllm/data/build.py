"""Building a dataset dir: read, form, clean and split, row by row, into its files."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from finllm.data.clean import Cleaning, Rejected, digested
from finllm.data.dataset_dir import dataset_hash
from finllm.data.forms import WANTED
from finllm.data.leftovers import BadRows, Changes, Rejections, as_read
from finllm.data.parts import Part
from finllm.data.rows import read_part, track
from finllm.data.schema import Row, Schema
from finllm.data.settings import Settings
from finllm.data.sources import Source, opened
from finllm.data.split import (
    SPLITS,
    Bounds,
    bounds_of,
    bounds_with_one_each,
    check_fractions,
    normalised_question,
    place_of,
    split_at,
)
from finllm.data.split_file import FURTHER, SplitFile, with_further
from finllm.errors import UserError, at_most
from finllm.files import atomic_open, write_json
from finllm.text.prompts import CHAT, TEMPLATE_HASH, TEMPLATE_ID

TRACKED_BYTES = 10 << 20  # a source of less is read before a progress bar could be
READ_FIRST = {"test": 0, "validation": 1}  # a question that they hold is kept out of what is read later
MOST_NAMED = 5  # shared questions that the manifest shows; all are in rejected.jsonl


def write_dataset(folder: Path, source: Source, sha256: str, settings: Settings, bad_file: Path) -> None:
    """Write the files of a dataset dir into `folder`. Where rows are bad and not skipped, all are in `bad_file`."""
    source = opened(source)
    parts = source.parts
    if settings.ignore_own_splits or {part.split for part in parts} <= {"", "train"}:
        parts = tuple(part._replace(split="") for part in parts)
    own = {part.split for part in parts} & set(READ_FIRST)
    if own and all(part.split in own for part in parts):
        raise UserError(
            f"{source.name} has {' and '.join(sorted(own))} and no other rows to train on; name a source with a train "
            "split, or pass --ignore_own_splits to put all rows together and split them anew"
        )
    check_fractions(settings.validation_fraction, settings.test_fraction, own)
    if not -(2**63) <= settings.seed < 2**63:  # as manifest.json is read
        raise UserError(f"seed is {settings.seed}; it must be from -2^63 to 2^63 - 1")
    parts = tuple(sorted(parts, key=lambda part: READ_FIRST.get(part.split, 2)))
    bounds = bounds_of(settings.validation_fraction, settings.test_fraction, own)
    writing = Writing(source, parts, own, settings, bounds)
    writing.write(folder, bad_file)
    if writing.empty() and (wider := bounds_with_one_each(bounds, writing.places, own)):
        writing = Writing(source, parts, own, settings, wider)
        writing.write(folder, bad_file)
    writing.check()
    write_json(folder / "manifest.json", writing.manifest(sha256, None if writing.bounds == bounds else writing.bounds))


class Writing:
    """One pass over a source: its rows into three splits, and what is told of it."""

    def __init__(self, source: Source, parts: tuple[Part, ...], own: set[str], settings: Settings, bounds: Bounds):
        self.source, self.parts, self.own, self.settings, self.bounds = source, parts, own, settings, bounds
        self.splits: dict[str, SplitFile] = {}
        self.places: set[float] = set()  # of the questions that a split was chosen for
        self.shared: dict[str, Any] = {}
        self.problems: list[str] = []
        self.further: dict[str, Any] = {}  # of FURTHER what some rows have, and so all

    def write(self, folder: Path, bad_file: Path) -> None:
        """Read, clean and deal all rows."""
        skip = self.settings.skip_bad_rows
        with contextlib.ExitStack() as stack:

            def file(name: str) -> IO[str]:
                return stack.enter_context(atomic_open(folder / name, "w+"))

            self.splits = {name: stack.enter_context(SplitFile.open(folder / f"{name}.jsonl")) for name in SPLITS}
            self.rejected = Rejections(file("rejected.jsonl"))
            self.changes = Changes(file("changed.jsonl"))
            found = self.rejected if skip else Rejections(stack.enter_context(tempfile.TemporaryFile("w+", dir=folder)))
            self.bad = BadRows(found)
            self.schema = Schema(self.settings.asked, self.bad.add, self.rejected.add)
            self.cleaning = Cleaning(self.settings.skip_cleaning, self.changes.add)
            self._deal(self._kept())
            problems, lines = [*dict.fromkeys(self.problems), *self.schema.problems()], []
            if self.bad.count and (not skip or self.bad.last):
                found.file.seek(0)
                with atomic_open(bad_file) as place:
                    place.writelines(found.file)
                problems.append(str(error := self.bad.error(self.source.name, str(bad_file))))
                lines = error.lines
            if problems:
                count = f"{len(problems)} problems in {self.source.name}: " if len(problems) > 1 else ""
                raise UserError(count + "; ".join(at_most(problems)), lines=lines)

    def _read(self) -> Iterator[Row]:
        large = sum(path.stat().st_size for _, path in self.source.files) >= TRACKED_BYTES
        for part in self.parts:
            raw_rows = read_part(self.source, part, self.settings.encoding, self._wanted())
            try:
                yield from self.schema.rows(part, track(raw_rows, "preparing") if large else raw_rows)
            except UserError as error:  # what is wrong with the other files is said too
                self.problems.append(str(error))

    def _wanted(self) -> frozenset[str]:
        return WANTED | {name.strip().lower() for name in self.settings.asked.columns.values()}

    def _kept(self) -> Iterator[Row]:
        for row in self.cleaning.clean(self._read()):
            if isinstance(row, Rejected):
                self.rejected.add_row(row.row, row.reason)
            else:
                yield row

    def _deal(self, rows: Iterable[Row]) -> None:
        """Write each row into the split that its question goes to, in the order of the source."""
        deciding: Iterable[str] | None = None
        if self.settings.cluster_near_duplicates or self.settings.asked.group_column:
            rows = list(rows)  # what belongs together may stand anywhere
            deciding = together(rows, self.settings.cluster_near_duplicates)
        ids: Counter[int] = Counter()
        where: dict[str, set[int]] = {name: set() for name in self.own}
        for row in rows:
            question = question_of(row)
            question_id = _sixteen_hex(question)
            decides = question if deciding is None else next(deciding)
            unit = int(_sixteen_hex(decides), 16) if deciding is not None else int(question_id, 16)
            if self._is_shared(row, unit, where, question_id):
                continue
            if row.split in self.own:
                split = row.split
                where[split].add(unit)
            else:
                place = place_of(decides, self.settings.seed)
                self.places.add(place)
                split = split_at(place, self.bounds)
            row_id = digested(hashlib.sha256(), row).hexdigest()[:16]
            ids[int(row_id, 16)] += 1
            copies = ids[int(row_id, 16)]
            fields = as_read(row)
            if new := [name for name in FURTHER if name in fields and name not in self.further]:
                held = [empty for name, empty in FURTHER.items() if name in new or name in self.further]
                self.further = {key: value for empty in held for key, value in empty.items()}
                for file in self.splits.values():
                    file.add_fields(self.further)
            written = {"id": row_id if copies == 1 else f"{row_id}-{copies}", "question_id": question_id}
            self.splits[split].add(with_further(written | fields, self.further))

    def _is_shared(self, row: Row, unit: int, where: dict[str, set[int]], question_id: str) -> bool:
        """Whether the row's question stands in a split of the source that was read before, and is so kept out."""
        found = next((name for name in where if name != row.split and unit in where[name]), None)
        if found is None:
            return False
        name = f"{row.split or 'train'} and {found}"
        told = self.shared.setdefault(name, {"rows": 0, "questions": [], "ids": set()})
        told["rows"] += 1
        if question_id not in told["ids"] and len(told["questions"]) < MOST_NAMED:
            told["questions"].append(row.history[0].content if row.history else row.instruction)
        told["ids"].add(question_id)
        if self.settings.keep_shared_questions:
            return False
        self.rejected.add_row(row, f"shared_question: it stands in {found} too")
        return True

    def rows_read(self) -> int:
        return sum(each["rows"] for each in self.schema.files)

    def empty(self) -> list[str]:
        """The splits without a row."""
        return [name for name, split in self.splits.items() if not split.rows]

    def check(self) -> None:
        """Refuse a dataset without rows, and one with a split without."""
        name, read, rejected = self.source.name, self.rows_read(), self.rejected.rows
        if not read:
            raise UserError(f"{name} holds no rows")
        if rejected == read:
            counts = {step.step: step.dropped for step in self.cleaning.counts() if step.dropped}
            counts |= {"turns": self.schema.turns["turns"]} if self.schema.turns["turns"] else {}
            counts |= {"bad rows": self.bad.count} if self.bad.count else {}
            counts |= {f"questions in {each}": told["rows"] for each, told in self.shared.items()}
            said = ", ".join(f"{step} {dropped:,}" for step, dropped in counts.items())
            raise UserError(f"{name}: cleaning dropped all {read:,} rows ({said}); see --skip_cleaning")
        if empty := self.empty():
            settings, least = self.settings, 3 - len(self.own)
            raise UserError(
                f"{name}: {' and '.join(empty)} would be empty: {len(self.places):,} distinct questions with "
                f"validation_fraction {settings.validation_fraction}, test_fraction {settings.test_fraction} and seed "
                f"{settings.seed}; {least} or more are needed, of which the fractions leave one for train: "
                + ("add rows" if len(self.places) < least else "give smaller fractions, as 0.05 each")
            )

    def manifest(self, sha256: str, wider: Bounds | None) -> dict[str, Any]:
        """What the dataset dir says of itself; `wider` are the bounds where small splits were given a question."""
        described = {name: split.described() for name, split in self.splits.items()}
        settings, schema = self.settings.in_manifest(), self.schema
        more: dict[str, Any] = {}
        if schema.turns:
            more["conversations"] = dict(schema.turns)
        if self.shared:
            more["shared_questions"] = {
                name: {"rows": told["rows"], "questions": len(told["ids"]), "some": told["questions"],
                       "kept": self.settings.keep_shared_questions} for name, told in self.shared.items()
            }  # fmt: skip
        if self.own:
            more["own_splits"] = sorted(self.own)
        if wider:
            more["fractions_used"] = {"test": wider.test, "validation": wider.validation - wider.test}
        return {
            "source": {
                "name": self.source.name,
                "sha256": sha256,
                "rows": self.rows_read(),
                **self.source.about_config(),
            },
            "template": _template("history" in self.further),
            **settings,
            "columns": next((each["columns"] for each in schema.files if each["columns"]), {}),
            "files": schema.files,
            "left_alone": [each._asdict() for each in self.source.left_alone],
            "left_out": dict(schema.columns),
            "bad_rows": self.bad.count,
            "cleaning": [step._asdict() for step in self.cleaning.counts()],
            "examples": self.changes.examples,
            **more,
            "splits": described,
            "rejected": self.rejected.rows,
            "sha256": dataset_hash({name: each["sha256"] for name, each in described.items()}),
        }


def _template(conversations: bool) -> dict[str, str | None]:
    """The template that asks all rows: alpaca where each is a single question, else the base model's own."""
    return {"id": CHAT, "hash": None} if conversations else {"id": TEMPLATE_ID, "hash": TEMPLATE_HASH}


def together(rows: list[Row], near_duplicates: bool) -> Iterator[str]:
    """For each row what decides its split: one text for all rows of a question, a group or a cluster."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    from finllm.data.near_duplicates import clusters  # and numpy with it, which a source of plain rows has no use for

    questions = [question_of(row) for row in rows]
    first: dict[str, int] = {}
    pairs = [(place, first.setdefault(f"q{question}", place)) for place, question in enumerate(questions)]
    pairs += [(place, first.setdefault(f"g{row.group}", place)) for place, row in enumerate(rows) if row.group]
    if near_duplicates:
        pairs += enumerate(clusters([asked_of(row) for row in rows]))
    one, other = zip(*pairs, strict=True) if pairs else ((), ())
    joined = coo_matrix(([1] * len(one), (one, other)), shape=(len(rows), len(rows)))
    label = connected_components(joined, directed=False)[1]
    decides: dict[int, str] = {}
    return iter([decides.setdefault(each, question) for each, question in zip(label, questions, strict=True)])


def asked_of(row: Row) -> str:
    """What the user says before the first answer, as it is written."""
    return row.history[0].content if row.history else f"{row.instruction}\n{row.input}"


def question_of(row: Row) -> str:
    """The normalised question of a row: its system text and what the user says before the first answer."""
    instruction, input = (row.history[0].content, "") if row.history else (row.instruction, row.input)
    return normalised_question(f"{row.system}\n{instruction}" if row.system else instruction, input)


def _sixteen_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
