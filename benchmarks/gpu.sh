#!/bin/sh
# What needs a GPU, in under 10 minutes and without a network:
#
#     sh benchmarks/gpu.sh GPT2_CONFIG_DIR ROWS OUT
#
# GPT2_CONFIG_DIR holds GPT-2's config.json and tokenizer (weights are random), ROWS is a file of rows for
# `finllm prepare`, results go into the folder OUT. torch, transformers, peft and accelerate are there; what else is
# missing is installed from wheels/ beside this checkout:
#
#     pip download --no-deps -d wheels trl datasets evaluate rouge_score sacrebleu ftfy …
set -eu
config=$1 rows=$2 out=$3
if [ -d wheels ]; then
    python -m pip install --quiet --no-index --no-deps wheels/*.whl
fi
python -m pip install --quiet --no-deps --no-build-isolation --editable .
mkdir -p "$out"
python -m finllm.cli random-weights "$config" --output_dir "$out/gpt2"
python benchmarks/engine.py --model_name_or_path "$out/gpt2" --dataset_name "$rows" \
    --rounds 3 --steps 20 --output "$out/engine.json" | tee "$out/engine.txt"
python recipes/sft.py --config recipes/configs/gpt2_lora.yaml --model_name_or_path "$out/gpt2" --dataset_name "$rows" \
    --max_steps 50 --warmup_steps 5 --eval_strategy no --load_best_model_at_end false --save_strategy no \
    --max_eval_samples 64 --output_dir "$out/lora" | tee "$out/lora.txt"
rm -r "$out/gpt2" "$out/lora/model"
