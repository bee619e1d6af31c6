#!/bin/sh
# What needs a GPU, in under 10 minutes and without a network:
#
#     sh benchmarks/gpu.sh GPT2_CONFIG_DIR ROWS OUT [ROUNDS]
#
# GPT2_CONFIG_DIR holds GPT-2's config.json and tokenizer (weights are random), ROWS is a file of rows for
# `finllm prepare`, results go into the folder OUT: the engine beside TRL in 3 rounds, and what `finllm plan` foretells
# beside the trainings. torch, transformers, peft and accelerate are there; what else is missing is installed from
# wheels/ beside this checkout:
#
#     pip download --no-deps -d wheels trl datasets evaluate rouge_score sacrebleu ftfy …
set -eu
config=$1 rows=$2 out=$3 rounds=${4:-3}
if [ -d wheels ]; then
    python -m pip install --quiet --no-index --no-deps wheels/*.whl
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
python -m finllm.cli random-weights "$config" --output_dir "$out/gpt2"
python benchmarks/engine.py --model_name_or_path "$out/gpt2" --dataset_name "$rows" --rounds "$rounds" --steps 20 \
    --variants trl_best ours trl_best_lora ours_lora --output "$out/engine.json" | tee "$out/engine.txt"
python benchmarks/plans.py --models "$out/gpt2" --methods full lora --dataset_name "$rows" --steps 40 \
    --output "$out/plan.json"
rm -r "$out/gpt2"
