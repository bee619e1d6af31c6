"""How fast the baseline from scratch is: training beside torch's own transformer, generation with and without a cache.

python benchmarks/scratch.py [--output runs/benchmarks/scratch.json] [--seconds 20] [--vocabulary_size 8000] …

All is measured in one run, the rivals by turns, so that they share whatever else the machine does. Training is a whole
step: forward, backward, clipping, AdamW. Each token of each text is supervised. The limit is the time that the step's
matrix products alone would take at the best rate this machine reaches with one large product.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import torch
from records import keep
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from baselines.scratch.config import TrainConfig
from baselines.scratch.generation import Cached, Recomputed
from baselines.scratch.loop import adamw
from baselines.scratch.model import Transformer
from finllm.cpu import machine
from finllm.errors import UserError, run_command
from finllm.provenance import provenance

SHAPE = ("layers", "width", "heads", "feed_forward", "vocabulary_size", "texts", "length", "answers", "new_tokens")
DEFAULTS = (4, 256, 4, 512, 8000, 16, 256, 64, 64)
PROMPT = 64  # tokens of each prompt that is answered


class TorchTransformer(nn.Module):
    """The same model of torch's own parts: nn.TransformerEncoder with a causal mask, pre-norm."""

    def __init__(self, ours: Transformer):
        super().__init__()
        config = ours.config
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = ours.decoder.positions
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.feed_forward, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.vocabulary = nn.Linear(config.width, config.vocabulary_size, bias=False)

    def forward(self, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        length = ids_BT.shape[1]
        positions_1T = torch.arange(length, device=ids_BT.device)[None]
        x_BTC = self.tokens(ids_BT) * math.sqrt(self.tokens.embedding_dim) + self.positions(positions_1T)
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length, device=ids_BT.device)
        logits_BTV = self.vocabulary(self.encoder(x_BTC, mask=mask_TT, is_causal=True))
        return nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="sum"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the baseline from scratch beside torch's own transformer.")
    parser.add_argument("--output", default="runs/benchmarks/scratch.json", help="where the JSON goes")
    parser.add_argument("--seconds", type=float, default=20, help="for each of the rivals; default 20")
    for name, default in zip(SHAPE, DEFAULTS, strict=True):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    arguments = parser.parse_args()
    small = [name for name in SHAPE if getattr(arguments, name) < 1]
    if small or arguments.seconds <= 0:
        raise UserError(f"{', '.join(small) or 'seconds'} must be above 0")
    machine.keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    shape = {name: getattr(arguments, name) for name in SHAPE[:4]}
    config = TrainConfig("", "", max_length=arguments.length + PROMPT + arguments.new_tokens, **shape)
    ours = Transformer(config.model(arguments.vocabulary_size)).to(device)
    kinds = [torch.float32, *([torch.bfloat16] if machine.bf16_is_fast() else [])]
    peaks = {str(kind).removeprefix("torch."): matrix_product_rate(kind, device) for kind in kinds}
    training = measure_training(ours, config, arguments, device, peaks)
    generation = measure_generation(ours, arguments, device)
    content = {
        "shape": {name: getattr(arguments, name) for name in SHAPE},
        "device": str(device),
        "threads": torch.get_num_threads(),
        "matrix_product_flops_per_second": peaks,
        "flops_per_token": flops_per_token(ours, arguments.length),
        "training": training,
        "generation": generation,
        "provenance": provenance(),
    }
    keep("scratch", content, str(arguments.output))
    show(content, arguments.output)


def matrix_product_rate(kind: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """The best rate of a size x size product in ten, in operations a second (a multiply and an add are two)."""
    a, b = torch.randn(2, size, size, device=device, dtype=kind)
    return 2 * size**3 / min(timed(lambda: a @ b, device) for _ in range(10))


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def flops_per_token(model: Transformer, length: int) -> int:
    """Operations of a training step's matrix products a token: 2 a weight forward, 4 backward (Kaplan et al. 2020,
    section 2.1), and the two products of attention over the tokens before, length / 2 on average. The token vectors
    are looked up, not multiplied.
    """
    config = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name != "tokens.weight")
    attention = 2 * config.layers * config.width * length // 2
    return 6 * (matrices + attention)


def measure_training(
    ours: Transformer, config: TrainConfig, arguments: argparse.Namespace, device: torch.device, peaks: dict[str, float]
) -> list[dict]:
    """Whole steps of both models by turns, in each number format that is fast here."""
    theirs = TorchTransformer(ours).to(device)
    ids_BT = torch.randint(4, arguments.vocabulary_size, (arguments.texts, arguments.length), device=device)
    seconds: dict[tuple[str, str], list[float]] = {}
    rivals = {"ours": (ours, adamw(ours, config)), "nn.TransformerEncoder": (theirs, adamw(theirs, config))}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, kind: str) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            loss = model(ids_BT, ids_BT)
        (loss / ids_BT.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    for kind in peaks:
        for rival in rivals.values():
            step(*rival, kind)  # the first one also makes buffers
        started = time.perf_counter()
        while time.perf_counter() - started < len(rivals) * arguments.seconds or len(seconds[kind, "ours"]) < 3:
            for name, rival in rivals.items():
                took = timed(lambda rival=rival, kind=kind: step(*rival, kind), device)
                seconds.setdefault((kind, name), []).append(took)
    flops = flops_per_token(ours, arguments.length)
    results = []
    for (kind, name), taken in seconds.items():
        rate = ids_BT.numel() / statistics.median(taken)
        share = rate * flops / peaks[kind]
        results.append(
            {"model": name, "dtype": kind, "tokens_per_second": rate, "share_of_peak": share, "steps": len(taken)}
        )
    return results


@torch.inference_mode()
def measure_generation(model: Transformer, arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds to write all answers greedily in one batch; EOS ends none, so that both write the same tokens."""
    model.eval()
    prompts = torch.randint(4, arguments.vocabulary_size, (arguments.answers, PROMPT)).tolist()

    def write(open_session: Callable[[], Cached | Recomputed]) -> list[torch.Tensor]:
        session, written = open_session(), []
        for _ in range(arguments.new_tokens):
            written.append(session.next_logits()[:, 4:].argmax(dim=-1) + 4)
            session.add(written[-1])
        return written

    sessions = {
        "with_cache": lambda: Cached(model, prompts, arguments.new_tokens),
        "without_cache": lambda: Recomputed(model, prompts),
    }
    answers: dict[str, list[torch.Tensor]] = {}
    seconds = {}
    for name, session in track(list(sessions.items()), "generating", transient=True):
        seconds[name] = timed(lambda name=name, session=session: answers.update({name: write(session)}), device)
    a, b = (torch.stack(answers[name]) for name in sessions)
    return {**seconds, "times_faster": seconds["without_cache"] / seconds["with_cache"],
            "same_tokens": (a == b).float().mean().item()}  # fmt: skip


def show(content: dict, output: str) -> None:
    console = Console(highlight=False)
    shape = ", ".join(f"{name} {value:,}" for name, value in content["shape"].items())
    console.print(f"{content['device']}, {content['threads']} threads; {shape}")
    table = Table("training", "numbers", title_justify="left")
    for column in ("tokens/s", "share of the limit", "GFLOP/s of one product"):
        table.add_column(column, justify="right")
    for row in content["training"]:
        peak = content["matrix_product_flops_per_second"][row["dtype"]]
        rate, share = f"{row['tokens_per_second']:,.0f}", f"{row['share_of_peak']:.1%}"
        table.add_row(row["model"], row["dtype"], rate, share, f"{peak / 1e9:,.0f}")
    console.print(table)
    generation = content["generation"]
    table = Table("generation", "seconds", title_justify="left")
    for name in ("with_cache", "without_cache"):
        table.add_row(name.replace("_", " "), f"{generation[name]:.2f}")
    table.add_row("times faster", f"{generation['times_faster']:.1f}")
    table.add_row("tokens that are the same", f"{generation['same_tokens']:.1%}")
    console.print(table)
    console.print(f"Written: {output}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
