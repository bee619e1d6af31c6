"""Do TRL and this suite train the same model? Both on the same batches, their losses step by step and at the end.

    python benchmarks/curves.py --model_name_or_path DIR --dataset_name FILE [--steps 200] [--output FOLDER]

(b) is TRL with its best flags, (d) is this suite, as in engine.py. The final validation loss of both is computed by one
and the same code, Σ nll / Σ supervised tokens. Written: curves.json and curves.png.
"""

import finllm  # isort: skip  # noqa: F401  before torch: it sets how threads wait

import argparse
import json
import tempfile
from pathlib import Path

from engine import BATCH, LENGTH, VARIANTS, dataset_for, trainer_for
from records import keep
from rich.console import Console
from turns import measured_in_child, set_up

from finllm.errors import run_command
from finllm.files import cache_dir

PAIR = ("trl_best", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the training curves of TRL and recipes/sft.py.")
    parser.add_argument("--model_name_or_path", required=True, help="a folder of GPT-2, random weights will do")
    parser.add_argument("--dataset_name", required=True, help="a dataset dir, or a source of rows")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--max_length", type=int, default=LENGTH)
    parser.add_argument("--validation_rows", type=int, default=200)
    parser.add_argument("--output", default="curves", help="folder for curves.json and curves.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(train(arguments)))
        return
    console, curves = Console(), {}
    for variant in PAIR:
        with console.status(f"{VARIANTS[variant]}: {arguments.steps} steps"):
            curves[variant] = measured_in_child(variant, VARIANTS[variant])
        console.print(f"{VARIANTS[variant]}: validation loss {curves[variant]['validation_loss']:.4f} nats a token")
    theirs, ours = (curves[variant]["validation_loss"] for variant in PAIR)
    console.print(f"(d) against (b): {ours / theirs - 1:+.3%}")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    keep("curves", curves, str(output / "curves.json"))
    draw(curves, output / "curves.png")


def train(arguments: argparse.Namespace) -> dict:
    """The training loss of every step, and the validation loss at the end."""
    from transformers import AutoModelForCausalLM, set_seed

    from finllm.data.prepare import resolve
    from finllm.models.adapters import base_of
    from finllm.models.find import load_tokenizer, resolve_base_model
    from finllm.run_dir import RunDir
    from finllm.text.tokens import lengths_of, tokenize
    from finllm.training.batches import LengthGroupedSampler
    from finllm.training.config import TrainingConfig
    from finllm.training.trainer import SupervisedTrainer

    variant = arguments.child
    set_up(ours=variant == "ours")
    base = resolve_base_model(arguments.model_name_or_path)
    tokenizer = load_tokenizer(base)
    dataset = resolve(arguments.dataset_name, cache_dir() / "datasets")
    split = dataset.split("train").shuffle(0).select(range(BATCH * arguments.steps))
    rows, _ = tokenize(tokenizer, split, arguments.max_length)
    validation = dataset.split("validation").select(range(arguments.validation_rows))
    validation_rows, _ = tokenize(tokenizer, validation, arguments.max_length)
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype="float32", attn_implementation="sdpa", trust_remote_code=False
    )
    with tempfile.TemporaryDirectory() as folder:
        form = dataset_for(variant, split, rows, tokenizer)
        trainer = trainer_for(variant, model, tokenizer, form, folder, length=arguments.max_length)
        # TRL's order comes from the global generator, ours from the seed: both get one, over the rows that both keep.
        assert len(trainer.train_dataset) == len(rows)
        trainer._get_train_sampler = lambda *_: LengthGroupedSampler(lengths_of(rows), BATCH, seed=0)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        base_of(trainer.model).set_attn_implementation("sdpa")  # as it was before training
        args = TrainingConfig(output_dir=folder, report_to="none", disable_tqdm=True, max_length=arguments.max_length)
        judge = SupervisedTrainer(
            trainer.model,
            run=RunDir(folder),
            args=args,
            train_dataset=rows,
            eval_dataset=validation_rows,
            processing_class=tokenizer,
        )
        return {"losses": losses, "validation_loss": judge.evaluate()["eval_loss"]}


def draw(curves: dict, path: Path) -> None:
    """Both curves in one picture; the thinner lies on the other where they agree."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for variant, width, color in zip(PAIR, (4, 1.2), ("#f0b070", "#1d4ed8"), strict=True):
        losses = curves[variant]["losses"]
        axes.plot(range(1, len(losses) + 1), losses, linewidth=width, color=color, label=VARIANTS[variant])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss, nats per supervised token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    run_command(main)
