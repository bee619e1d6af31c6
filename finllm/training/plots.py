"""The loss plot of a run dir."""

from __future__ import annotations

import io

from finllm.files import atomic_open, read_jsonl
from finllm.run_dir import RunDir


def plot_loss(run: RunDir) -> None:
    """Draw training and validation loss of `metrics.jsonl`, in nats per supervised token, into `loss.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_jsonl(run.metrics)
    training = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    validation = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    figure = Figure(figsize=(8, 4.5), dpi=130)
    # Margins that hold every label of a loss: to find the least ones, matplotlib would draw the figure once more.
    axes = figure.add_axes((0.12, 0.12, 0.86, 0.8))
    if training:
        axes.plot(*zip(*training, strict=True), color="#8fb8de", linewidth=1.2, label="training")
    if validation:
        axes.plot(
            *zip(*validation, strict=True), color="#c2410c", linewidth=2, marker="o", markersize=4, label="validation"
        )
        step, loss = validation[-1]
        axes.annotate(
            f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, 8), ha="right", color="#c2410c"
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.set_title(run.path.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    with atomic_open(run.path / "loss.png", "wb") as file:
        file.write(picture.getvalue())
