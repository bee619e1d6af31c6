"""Training beside other programs: LLaMA-Factory, LitGPT, TRL, transformers' Trainer and this suite, by turns.

    finllm random-weights DIR_OF_GPT2_CONFIG --output_dir gpt2
    python benchmarks/peers.py --environments DIR --models smollm2-135m gpt2 [--rows 64] [--rounds 1]

Each is asked by its own command (benchmarks/programs.py) for one epoch of the same rows, in full and with LoRA. Those
that need other versions than ours get environments of their own from PyPI under `--environments`, made once. Every
training is a process of its own. Of each: seconds of its training loop as it says itself, seconds of the whole command,
supervised tokens a second of the loop, most resident memory, first and last loss. What cannot run is told in its words.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from programs import PROGRAMS, Asked, Program
from records import keep, versions
from rich.console import Console
from rich.table import Table

from finllm.cpu import processor
from finllm.data.prepare import resolve
from finllm.errors import UserError, run_command
from finllm.files import cache_dir, write_jsonl, write_text
from finllm.models.find import load_tokenizer, resolve_base_model
from finllm.text.prompts import build_prompt
from finllm.text.tokens import tokenize
from finllm.threads import cores

LIMIT = 1800  # seconds that one command may take
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time recipes/sft.py against other programs, by their own commands.")
    parser.add_argument("--environments", required=True, help="a folder for the environments of other programs")
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"], help="base models: names or folders")
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--dataset_name", default="sample", help="a dataset dir, or a source of rows")
    parser.add_argument("--rows", type=int, default=64, help="rows that are learned, in one epoch")
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--max_length", type=int, default=512, help="longer rows are left out for all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", help="write the measurements here (default: benchmarks/results/)")
    arguments = parser.parse_args()
    if arguments.rows % arguments.batch:
        raise UserError(f"--rows is {arguments.rows}, no multiple of --batch {arguments.batch}")
    console = Console()
    places = {name: environment(PROGRAMS[name], Path(arguments.environments), console) for name in arguments.programs}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            base = Path(resolve_base_model(model))
            rows, supervised = write_rows(base, Path(folder) / f"rows-{Path(model).name}", arguments)
            for turn in range(arguments.rounds):
                for method in arguments.methods:
                    for name, binaries in places.items():
                        with console.status(f"round {turn + 1}: {PROGRAMS[name].title}, {Path(model).name}, {method}"):
                            work = Path(tempfile.mkdtemp(dir=folder))
                            asked = Asked(
                                base, rows, work, method == "lora", bool(processor.multiplies_bf16()),
                                arguments.batch, arguments.max_length, arguments.rows // arguments.batch,
                            )  # fmt: skip
                            found = run(PROGRAMS[name], asked, binaries, supervised)
                            shutil.rmtree(work)
                        found = {"program": name, "model": Path(model).name, "method": method, **found}
                        console.print(said(found), soft_wrap=True)
                        measured.append(found)
    show(measured, console)
    path = keep(
        "peers", measured, arguments.output, of=[Path(model).name for model in arguments.models],
        rows=arguments.rows, batch=arguments.batch,
        max_length=arguments.max_length, bf16=bool(processor.multiplies_bf16()),
        environments={name: of_environment(binaries) for name, binaries in places.items()},
    )  # fmt: skip
    console.print(f"wrote {path}", soft_wrap=True)


def environment(program: Program, folder: Path, console: Console) -> str:
    """The folder of a program's commands; its environment is made of PyPI's packages where there is none yet.

    torch is the version that is here, so that programs are compared and not releases of it.
    """
    if program.packages is None:
        return str(Path(sys.executable).parent)
    place = folder / program.packages[0].partition("=")[0]
    if not (place / "ready").exists():
        with console.status(f"making an environment of {program.title}"):
            venv.create(place, with_pip=True, clear=True)
            pip = [str(place / "bin" / "python"), "-m", "pip", "--quiet"]
            here = versions(["torch"])["torch"].partition("+")[0]
            subprocess.run([*pip, "install", f"torch=={here}", *program.packages], check=True)
            if program.without:
                subprocess.run([*pip, "uninstall", "--yes", *program.without], check=True)
            for name in program.empty:
                next(place.glob("lib/python*/site-packages")).joinpath(f"{name}.py").touch()
            (place / "ready").touch()
    return str(place / "bin")


def of_environment(binaries: str) -> dict[str, str]:
    """The versions there of what decides speed."""
    done = subprocess.run([f"{binaries}/python", "-c", VERSIONS], capture_output=True, text=True, check=True)
    wanted = ("torch", "transformers", "trl", "peft", "accelerate", "llamafactory", "litgpt", "lightning")
    return {name: version for name, version in json.loads(done.stdout).items() if name.lower() in wanted}


def write_rows(base: Path, folder: Path, arguments: argparse.Namespace) -> tuple[Path, int]:
    """The same rows in the forms that the programs read, and how many tokens of them are supervised.

    Only rows that fit into `max_length` whole: programs cut what is longer at different ends.
    """
    tokenizer = load_tokenizer(str(base))
    split = resolve(arguments.dataset_name, cache_dir() / "datasets").split("train").shuffle(0)
    texts, places = [], []
    for place, row in enumerate(split):
        prompt = build_prompt(row["instruction"], row["input"])
        if len(tokenizer(prompt + row["output"])["input_ids"]) < arguments.max_length - 8:
            texts.append({**{name: row[name] for name in ("instruction", "input", "output")}, "prompt": prompt})
            places.append(place)
        if len(texts) == arguments.rows:
            break
    else:
        raise UserError(f"{arguments.dataset_name} has {len(texts)} rows of at most {arguments.max_length} tokens, "
                        f"and {arguments.rows} are wanted; give fewer --rows")  # fmt: skip
    rows, report = tokenize(tokenizer, split.select(places), arguments.max_length)
    assert len(rows) == len(texts), "a row was dropped, and the programs would learn different rows"
    pairs = [{"prompt": text["prompt"], "completion": text["output"]} for text in texts]
    plain = [{name: value for name, value in text.items() if name != "prompt"} for text in texts]
    (folder / "pairs").mkdir(parents=True)
    (folder / "alpaca").mkdir()
    write_jsonl(folder / "pairs" / "train.jsonl", pairs)
    write_jsonl(folder / "alpaca" / "train.jsonl", plain)
    write_jsonl(folder / "alpaca" / "validation.jsonl", [{**plain[0], "instruction": "What is not trained on?"}])
    write_text(folder / "train.json", json.dumps(plain))
    write_text(folder / "val.json", json.dumps(plain[:1]))
    # LLaMA-Factory's template without words of its own writes no end, so the rows bring it
    end = tokenizer.eos_token
    ended = [{**pair, "completion": pair["completion"] + end} for pair in pairs]
    write_text(folder / "llama_factory.json", json.dumps(ended))
    described = {"file_name": "llama_factory.json", "columns": {"prompt": "prompt", "response": "completion"}}
    write_text(folder / "dataset_info.json", json.dumps({"rows": described}))
    return folder, report.supervised_tokens


def run(program: Program, asked: Asked, binaries: str, supervised: int) -> dict:
    """What one training took; `error` is what it said where it could not."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(asked.output / "datasets"), "PYTHONUNBUFFERED": "1",
             "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    # What `import finllm` set in this process is not theirs
    ours = {"GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY", "HF_HUB_DISABLE_TELEMETRY"}
    around = {**{name: value for name, value in os.environ.items() if name not in ours}, **quiet}
    peak, whole, log = 0, 0.0, asked.output / "log"
    for command in program.command(asked, binaries):
        start = time.perf_counter()
        with log.open("w") as file:
            child = subprocess.Popen(command, cwd=asked.output, env=around, stdout=file, stderr=subprocess.STDOUT,
                                     stdin=subprocess.DEVNULL)  # fmt: skip
        while child.returncode is None:
            done, status, used = os.wait4(child.pid, os.WNOHANG)
            if done:
                child.returncode, peak = os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024
            elif time.perf_counter() - start > LIMIT:
                child.kill()
            time.sleep(0.05)
        whole = time.perf_counter() - start
        output = log.read_text("utf-8", "replace")
        if child.returncode:
            return {"error": words(output, asked), "exit_status": child.returncode}
    losses, seconds = program.losses(asked, output), program.seconds(asked, output)
    return {
        "seconds": seconds, "command_seconds": whole, "supervised": supervised, "steps": len(losses),
        "supervised_per_second": supervised / seconds, "peak_memory_bytes": peak, "first_loss": losses[0],
        "last_loss": losses[-1],
    }  # fmt: skip


def words(output: str, asked: Asked) -> str:
    """The last line that a program said, without the folders of this machine."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "nothing"
    for path in (asked.output, asked.rows, asked.model):
        last = last.replace(str(path), path.name)
    return last[:300]


def said(found: dict) -> str:
    about = f"{PROGRAMS[found['program']].title}, {found['model']}, {found['method']}"
    if "error" in found:
        return f"{about}: cannot, and says: {found['error']}"
    return (
        f"{about}: {found['seconds']:.1f} s of {found['command_seconds']:.1f}, "
        f"{found['supervised_per_second']:.0f} supervised tokens/s, {found['peak_memory_bytes'] / 2**30:.1f} GiB, "
        f"loss {found['first_loss']:.3f} to {found['last_loss']:.3f} in {found['steps']} steps"
    )


def medians(measured: list[dict]) -> list[dict]:
    """Of each program, model and method the rounds' medians, and how many times ours is as fast; errors as they are."""
    rounds: dict[tuple, list[dict]] = {}
    for found in measured:
        rounds.setdefault((found["model"], found["method"], found["program"]), []).append(found)
    result = []
    for runs in rounds.values():
        fine = [one for one in runs if "error" not in one]
        names = fine[0].keys() - {"program", "model", "method"} if fine else ()
        result.append({**runs[-1], **{name: statistics.median(one[name] for one in fine) for name in names}})
    for found in result:
        own = next((one for one in result if one["program"] == "ours" and one["model"] == found["model"]
                    and one["method"] == found["method"] and "error" not in one), None)  # fmt: skip
        if own and "error" not in found:
            found["ours_times_faster"] = own["supervised_per_second"] / found["supervised_per_second"]
    return result


def show(measured: list[dict], console: Console) -> None:
    """Medians by model and method, ours beside the others."""
    table = Table(title=f"{processor.name()}, {cores()} cores", title_justify="left")
    columns = ("model", "method", "program", "tokens/s", "ours is", "seconds", "whole", "memory", "loss")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if 2 < number < 8 else "left")
    for found in medians(measured):
        head = (found["model"], found["method"], PROGRAMS[found["program"]].title)
        if "error" in found:
            table.add_row(*head, "cannot", "", "", "", "", found["error"][:60])
            continue
        faster = f"{found['ours_times_faster']:.1f}×" if "ours_times_faster" in found else "–"
        table.add_row(
            *head, f"{found['supervised_per_second']:.0f}", faster, f"{found['seconds']:.1f}",
            f"{found['command_seconds']:.1f}", f"{found['peak_memory_bytes'] / 2**30:.1f} GiB",
            f"{found['first_loss']:.3f} → {found['last_loss']:.3f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    run_command(main)
