"""What the server of `processes.py` has imported before it forks: all that commands import, at the latest on their way.

Nothing is computed with torch here: the threads that it starts would be missing in a forked process.
"""

import gc
import importlib
import sys

MODULES = (
    "finllm.training.trainer finllm.training.summary finllm.training.plots finllm.training.config finllm.training.plan",
    "finllm.models.base finllm.models.generate finllm.models.merge finllm.data.prepare finllm.provenance",
    "eval.audits.audit eval.models.loading eval.models.transformers_lm eval.report.page eval.statistics.comparison",
    "baselines.scratch.model baselines.scratch.tokenizer baselines.scratch.lm",
    "eval.sharing eval.report.findings eval.report.study eval.metrics.perplexity finllm.training.going_on",
    "accelerate peft.tuners.lora.bnb peft.utils.transformers_weight_conversion torch.utils.checkpoint",
    "transformers.models.gpt2.modeling_gpt2 transformers.models.llama.modeling_llama transformers.conversion_mapping",
    "matplotlib.backends.backend_agg matplotlib.figure",
)
gc.disable()  # collections take a fifth of the time of all these imports, and find nothing
for name in " ".join(MODULES).split():
    importlib.import_module(name)
# Made once a process: a table of hundreds of expressions, and the fonts of a plot
sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("gpt2")
figure = sys.modules["matplotlib.figure"].Figure()
figure.add_subplot(xlabel="step", ylabel="loss")
sys.modules["matplotlib.backends.backend_agg"].FigureCanvasAgg(figure).draw()
# What is there by now is no garbage: a collection in a forked process would look through half a million objects, and
# copy the pages that they stand on.
gc.collect()
gc.freeze()
gc.enable()
