"""Evaluation speed: scoring beside lm-evaluation-harness, answering in batches beside answering one by one.

    pip install "lm-eval>=0.4.13,<0.5"
    python benchmarks/evaluation.py --model_name_or_path DIR --dataset_name FILE [--rounds 3]

Both score the same responses after the same prompts, in float32 and batches of 16; both write the same greedy tokens.
The peers load the model themselves, as it comes. Every turn is a process of its own, and the ways go by turns. Loading
is not counted, and neither is a first small batch.

The floor of scoring is the time of its matrix products alone, at the rate of float32's 1,024³: of all tokens through
the layers, of the answers' through the head. A fifth way writes 32 answers in one batch, in bfloat16 where the machine
is fast at that. Its floor is the time in which the weights are read from memory once for each token of an answer; that
of reading the keys and values of what stands before the token, for each row, is told beside it, and the time of the
products alone: of the prompts' tokens at the rate of 1,024³, and one after the other, as a token needs them, those of
32 rows with every layer's matrices and the head's.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from records import keep
from rich.console import Console
from rich.table import Table
from turns import by_turns, common_flags, set_up

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finllm.cpu import machine
from finllm.errors import run_command
from finllm.files import cache_dir

WAYS = {
    "lm_eval": ("scoring", "lm-eval"),
    "ours": ("scoring", "this suite"),
    "one_by_one": ("answering", "model.generate, one by one"),
    "batched": ("answering", "this suite"),
    "together": ("answering, 32 in a batch", "this suite"),
}
TOGETHER = 32
BATCH = 16
WARMUP = 2  # texts before the clock starts


def main() -> None:
    parser = argparse.ArgumentParser(description="Time eval/run.py's scoring and answering against their peers.")
    common_flags(parser)
    parser.add_argument("--texts", type=int, default=200, help="that are scored")
    parser.add_argument("--answers", type=int, default=64, help="that are written")
    parser.add_argument("--new_tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return
    console = Console()
    measured = by_turns({way: ", ".join(WAYS[way]) for way in arguments.ways}, arguments.rounds, console)
    show(measured, console)
    path = keep("evaluation", measured, arguments.output, rounds=arguments.rounds)
    console.print(f"wrote {path}", soft_wrap=True)


def show(measured: dict[str, list[dict]], console: Console) -> None:
    """Median seconds with their spread, how much faster ours is, peak memory, and how far the results differ."""
    table = Table(title=f"Evaluation on {machine.cores()} cores", title_justify="left")
    for column in ("", "", "seconds", "low – high", "times faster", "memory"):
        table.add_column(column, justify="right" if column else "left")
    medians = {way: statistics.median(run["seconds"] for run in runs) for way, runs in measured.items()}
    for way, runs in measured.items():
        seconds, peer = [run["seconds"] for run in runs], {"ours": "lm_eval", "batched": "one_by_one"}.get(way)
        faster = f"{medians[peer] / medians[way]:.1f}" if peer in medians else ""
        memory = statistics.median(run["peak_memory_bytes"] for run in runs)
        table.add_row(
            *WAYS[way], f"{medians[way]:.1f}", f"{min(seconds):.1f} – {max(seconds):.1f}", faster,
            f"{memory / 2**30:.1f} GiB",
        )  # fmt: skip
    console.print(table)
    for one, other, what in (("lm_eval", "ours", "nats a token"), ("one_by_one", "batched", "of the tokens, 0 to 1")):
        if one in measured and other in measured:
            apart = abs(measured[one][0]["result"] - measured[other][0]["result"])
            console.print(f"{WAYS[one][0]}: the two differ by {apart:.1e} {what}")


def measure(arguments: argparse.Namespace) -> dict:
    """Seconds of one way, its peak memory in bytes, and a number that the two ways must agree on."""
    from finllm.data.prepare import resolve
    from finllm.text.prompts import build_prompt

    set_up(ours=arguments.child in ("ours", "batched", "together"))
    rows = resolve(arguments.dataset_name, cache_dir() / "datasets").split("test").shuffle(0)
    count = max(arguments.texts, arguments.answers)
    rows = rows.select(range(min(count, len(rows)))).to_list()
    # lm-eval moves white space between prompt and response, so the prompt ends without any for both.
    prompts = [build_prompt(row["instruction"], row["input"]).rstrip() for row in rows]
    work = {"lm_eval": lm_eval_scoring, "ours": scoring, "one_by_one": one_by_one, "batched": batched,
            "together": together}[arguments.child]  # fmt: skip
    seconds, result, *more = work(prompts, [row["output"] for row in rows], arguments)
    return {"seconds": seconds, "result": result, "peak_memory_bytes": machine.peak_memory_bytes(), **dict(*more)}


def clocked(work: Callable, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    return_value = work(*arguments)
    return time.perf_counter() - start, return_value


def scoring(prompts: list[str], responses: list[str], arguments) -> tuple[float, float, dict]:
    """`TransformersLM.score`; the mean nll a token in nats, and the floor of its products in seconds."""
    from eval.models.transformers_lm import load_base

    model = load_base(arguments.model_name_or_path, BATCH)
    prompts, responses = prompts[: arguments.texts], responses[: arguments.texts]
    model.score(prompts[:WARMUP], responses[:WARMUP])
    seconds, scores = clocked(model.score, prompts, responses)
    scored = sum(score.tokens for score in scores)
    read = sum(len(model.encode(*pair)[0]) for pair in zip(prompts, responses, strict=True)) + scored - len(scores)
    head = model.model.get_output_embeddings().weight.numel()
    layers = sum(each.numel() for name, each in model.model.named_parameters() if ".h." in name or ".layers." in name)
    floor = 2 * (layers * read + head * scored) / machine.matrix_product_rate()
    return seconds, sum(score.nll for score in scores) / scored, {"floor_seconds": floor}


def lm_eval_scoring(prompts: list[str], responses: list[str], arguments) -> tuple[float, float]:
    """lm-eval's own Hugging Face model; the mean nll a token in nats."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from finllm.text.tokens import encode_response

    harness = HFLM(pretrained=arguments.model_name_or_path, dtype="float32", batch_size=BATCH, device="cpu")
    tokenizer = harness.tokenizer
    requests = [
        Instance("loglikelihood", {}, (prompt, response + tokenizer.eos_token), number)
        for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ][: arguments.texts]
    harness.loglikelihood(requests[:WARMUP], disable_tqdm=True)
    seconds, found = clocked(lambda: harness.loglikelihood(requests, disable_tqdm=True))
    tokens = sum(len(encode_response(tokenizer, response)) for response in responses[: arguments.texts])
    return seconds, -sum(value for value, _ in found) / tokens


def batched(prompts: list[str], responses: list[str], arguments) -> tuple[float, float]:
    """`TransformersLM.generate` on all prompts; how many tokens were written, of all that may be."""
    from eval.models.transformers_lm import load_base

    model = load_base(arguments.model_name_or_path, arguments.answers)
    prompts = prompts[: arguments.answers]
    model.generate(prompts[:WARMUP], 2)
    seconds, answers = clocked(model.generate, prompts, arguments.new_tokens)
    return seconds, sum(answer.tokens for answer in answers) / (arguments.answers * arguments.new_tokens)


def together(prompts: list[str], responses: list[str], arguments) -> tuple[float, float, dict]:
    """As `batched`, no answer ending early; with the dtype, and in seconds the floors of reading weights and cache, and
    of the products."""
    import torch
    from transformers import AutoModelForCausalLM

    from finllm.models.find import load_tokenizer
    from finllm.models.generate import answer_all, decoding

    dtype = "bfloat16" if machine.bf16_is_fast() else "float32"
    model = AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path, dtype=dtype, trust_remote_code=False)
    tokenizer = load_tokenizer(arguments.model_name_or_path)
    prompts = (prompts * TOGETHER)[:TOGETHER]
    config = decoding(tokenizer, arguments.new_tokens)
    config.min_new_tokens = arguments.new_tokens
    answer_all(model.eval(), tokenizer, prompts[:WARMUP], config, TOGETHER)
    seconds, answers = clocked(answer_all, model, tokenizer, prompts, config, TOGETHER)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    much = torch.ones(2**28)  # 1 GiB, more than any cache
    read = min(clocked(much.sum)[0] for _ in range(5)) / (much.numel() * much.element_size())  # seconds a byte
    with torch.inference_mode():
        layers = model(torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values.layers
    one = sum(part.numel() * part.element_size() for layer in layers for part in (layer.keys, layer.values))
    held = [len(ids) + arguments.new_tokens / 2 for ids in tokenizer(prompts).input_ids]  # tokens, on average
    floors = {"floor_seconds": size * read, "cache_floor_seconds": sum(held) * one * read}
    head = model.get_output_embeddings().weight
    layers = [
        each for name, each in model.named_parameters() if each.ndim == 2 and (".h." in name or ".layers." in name)
    ]
    rows = {width: torch.ones(TOGETHER, width, dtype=head.dtype) for each in (*layers, head) for width in each.shape}

    def products() -> None:
        for each in layers:
            rows[each.shape[0]] @ each
        rows[head.shape[1]] @ head.T

    with torch.inference_mode():
        floors["products_floor_seconds"] = min(clocked(products)[0] for _ in range(10))
    prompt = 2 * sum(map(torch.numel, layers)) * sum(map(len, tokenizer(prompts).input_ids))
    floors = {name: each * arguments.new_tokens for name, each in floors.items()}
    floors["products_floor_seconds"] += prompt / machine.matrix_product_rate(head.dtype)
    written = sum(answer.tokens for answer in answers) / (TOGETHER * arguments.new_tokens)
    return seconds, written, {"dtype": dtype} | floors


def one_by_one(prompts: list[str], responses: list[str], arguments) -> tuple[float, float]:
    """`model.generate` for each prompt, as most scripts have it; how many tokens were written, of all that may be."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from finllm.models.generate import decoding

    model = AutoModelForCausalLM.from_pretrained(
        arguments.model_name_or_path, dtype="float32", trust_remote_code=False
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.eos_token  # never used: a prompt alone has no padding
    config = decoding(tokenizer, arguments.new_tokens)

    @torch.inference_mode()
    def write() -> int:
        written = 0
        for prompt in prompts[: arguments.answers]:
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(**inputs, generation_config=config)
            written += output.shape[1] - inputs.input_ids.shape[1]
        return written

    seconds, written = clocked(write)
    return seconds, written / (arguments.answers * arguments.new_tokens)


if __name__ == "__main__":
    run_command(main)
