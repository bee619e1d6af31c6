"""What the server of `processes.py` has imported before it forks: all that commands import, at the latest on their way.

Nothing is computed with torch here: the threads that it starts would be missing in a forked process.
"""

import gc
import importlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

MODULES = (
    "finllm.training.trainer finllm.training.summary finllm.training.plots finllm.training.config finllm.training.plan",
    "finllm.models.base finllm.models.generate finllm.models.merge finllm.data.prepare finllm.provenance",
    "eval.audits.audit eval.models.loading eval.models.transformers_lm eval.report.page eval.statistics.comparison",
    "baselines.scratch.model baselines.scratch.tokenizer baselines.scratch.lm",
    "eval.sharing eval.report.findings eval.report.study eval.metrics.perplexity finllm.training.going_on",
    "accelerate peft.tuners.lora.bnb peft.utils.transformers_weight_conversion torch.utils.checkpoint",
    "transformers.models.gpt2.modeling_gpt2 transformers.models.llama.modeling_llama",
)
for name in " ".join(MODULES).split():
    importlib.import_module(name)
# Made once a process: a table of hundreds of expressions, and the fonts of a plot
get_checkpoint_conversion_mapping("gpt2")
figure = Figure()
figure.add_subplot(xlabel="step", ylabel="loss")
FigureCanvasAgg(figure).draw()
# What is there by now is no garbage: a collection in a forked process would look through half a million objects, and
# copy the pages that they stand on.
gc.collect()
gc.freeze()
