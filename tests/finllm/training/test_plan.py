"""`finllm plan` by its command line, held against the run that it predicts."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from finllm.files import read_json
from finllm.run_dir import RunDir
from finllm.training.config import TrainingConfig, parse
from finllm.training.probe import Joined, Padded, Probe, probed, way_on

LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear")


VIRTUAL = [("--peft_type", kind) for kind in ("prompt_tuning", "p_tuning", "prefix_tuning", "multitask_prompt_tuning")]
FEW_BITS = [(*LORA, f"--load_in_{bits}bit", "true") for bits in (4, 8)]


ODD = [("--peft_type", kind) for kind in ("shira", "osf")]  # sparse weights; Conv1D turned into linear layers


@pytest.mark.parametrize("adapter", [(), LORA, *FEW_BITS, *VIRTUAL, *ODD])
def test_what_can_be_counted_is_planned_exactly_and_the_summary_compares_the_rest(
    command, gpt2_dir, dataset_dir, tmp_path, adapter
):
    flags = (
        "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "run",
        "--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2,
        "--max_length", 256, "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true", *adapter,
    )  # fmt: skip
    planned = command("finllm/cli.py", "plan", *flags)
    assert planned.status == 0, planned.err
    plan = read_json(tmp_path / "run" / "plan.json")
    done = command("recipes/sft.py", *flags)
    assert done.status == 0, done.err
    assert done.out.count("of the plan") == 3  # time, rate, memory
    summary = RunDir(tmp_path / "run").summary()
    for name in ("total_parameters", "trainable_parameters", "steps"):
        assert plan[name] == summary[name], name
    assert 2 * plan["supervised_tokens"] == summary["supervised_tokens"]
    assert plan["train_seconds"] > 0 and plan["flops_per_step"] > 0


def test_a_step_as_on_a_gpu_has_the_models_own_loss_of_padded_rows(gpt2_dir):
    """What a GPU test holds against a run there, as far as a CPU can: positions, tokens and loss of one batch."""
    model = AutoModelForCausalLM.from_pretrained(gpt2_dir).eval()
    rows = [{"input_ids": [*range(9, 9 + count)], "labels": [-100, -100, *range(11, 9 + count)]} for count in (6, 4)]
    own = [model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss for row in rows]
    way = Padded(model, model)
    batch = way.batch([{**row, "seq_lengths": [len(row["input_ids"])]} for row in rows])
    assert batch["input_ids"].shape == (2, 6) and way.size(rows) == (12, 10)
    assert way.nll(model, batch).item() == pytest.approx((4 * own[0] + 2 * own[1]).item(), rel=1e-5)
    assert way_on(torch.device("cuda", 0)) is Padded and way_on(torch.device("cpu")) is Joined


def test_a_plan_of_another_run_is_not_compared(command, gpt2_dir, dataset_dir, tmp_path):
    flags = (
        "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "run",
        "--max_length", 256, "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true",
    )  # fmt: skip
    assert command("finllm/cli.py", "plan", *flags, "--max_steps", 50, "--use_peft", "true").status == 0
    done = command("recipes/sft.py", *flags, "--max_steps", 2, "--learning_rate", 1e-3)
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert "plan.json is of another run" in said and "max_steps 50 and not 2" in said
    assert "it is not compared" in said and "of the plan" not in said and "learning_rate" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--trainable", "h.1"), "trainable names weights of a model with all its layers"),
        (("--peft_type", "lora", "--peft", '{"layers_to_transform": [1]}'), "peft.layers_to_transform"),
        (("--peft_type", "lora", "--peft", '{"init_lora_weights": "eva"}'), "init_lora_weights: eva"),
    ],
)
def test_a_plan_names_what_it_cannot_know(flags, said, command, gpt2_dir, dataset_dir):
    done = command(
        "finllm/cli.py", "plan", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", "x",
        *flags,
    )  # fmt: skip
    assert done.status == 2 and said in done.err, done.err


@pytest.mark.parametrize(("bits", "bytes_a_weight"), [("", 4), ("4", 0.5 + 4 / 64), ("8", 1)])
def test_what_a_layer_holds_is_its_weights_in_their_bits(bits, bytes_a_weight, llama_dir, monkeypatch):
    """In 4 bits a block of 64 weights has a number of 4 bytes beside them. A LoRA of float32 has two moments too."""
    monkeypatch.setattr("finllm.training.probe.TIMED", 1)
    flags = (f"--load_in_{bits}bit", "true") if bits else ()
    recipe, training, model = parse(
        ["--model_name_or_path", str(llama_dir), "--dataset_name", "d", "--output_dir", "o", "--use_cpu", "true",
         *LORA, "--dtype", "float32", *flags]
    )  # fmt: skip
    batch = [{"input_ids": [*range(9)], "labels": [*range(9)]}]
    held = [
        probed(AutoConfig.from_pretrained(llama_dir), layers, recipe, training, model, [batch], batch).held_bytes
        for layers in (1, 2)
    ]
    linear, lora = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48, 16 * (2 * 64 + 2 * 48 + 3 * 80)
    assert held[1] - held[0] == bytes_a_weight * linear + 4 * 2 * 32 + 12 * lora


@pytest.mark.parametrize(("trainable", "peak"), [((50, 70), 1000 + 3 * 10 + 3 * 20 + 30), ((150, 250), 1090)])
def test_gaps_between_buffers_grow_with_the_layers_as_far_as_they_are_frozen(
    trainable, peak, command, gpt2_dir, dataset_dir, tmp_path, monkeypatch
):
    """Of six layers three are measured: 40 bytes of gaps become 40 more, times the frozen share, 3/4 or nothing."""
    config = AutoConfig.from_pretrained(gpt2_dir, n_layer=6)

    def measured(config, layers, *others):
        of_a_layer = {"held_bytes": 10 * layers, "activation_bytes": 20 * layers, "gradient_bytes": 5 * layers}
        counted = {"total": 100 + 50 * layers, "trainable": trainable[layers == 3]}
        return Probe(1.0, 0.0, 0.0, peak_memory_bytes=1000, gap_bytes=40, **of_a_layer, **counted)

    monkeypatch.setattr("finllm.training.plan.causal_config", lambda *given: config)
    monkeypatch.setattr("finllm.training.plan.probed", measured)
    flags = ("--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--max_length", 256)
    done = command("finllm/cli.py", "plan", *flags, "--output_dir", tmp_path / "run")
    assert done.status == 0, done.err
    assert read_json(tmp_path / "run" / "plan.json")["peak_memory_bytes"] == peak


def test_of_several_gpus_a_plan_measures_one(command, gpt2_dir, dataset_dir, monkeypatch):
    monkeypatch.setattr(TrainingConfig, "device", property(lambda self: torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    done = command(
        "finllm/cli.py", "plan", "--model_name_or_path", gpt2_dir, "--dataset_name", dataset_dir, "--output_dir", "x"
    )
    assert (
        done.status == 2 and "has 2 GPUs and finllm plan measures one; run it with CUDA_VISIBLE_DEVICES=0" in done.err
    )


def test_a_plan_reads_the_recipes_flags(command):
    done = command("finllm/cli.py", "plan", "--lora_rnk", 8)
    assert done.status == 2 and "unknown flag --lora_rnk (did you mean" in done.err


def test_activation_checkpointing_is_proposed_where_the_run_does_not_fit_and_needs_less(
    command, llama_dir, dataset_dir, tmp_path, monkeypatch
):
    flags = (
        "--model_name_or_path", llama_dir, "--dataset_name", dataset_dir, "--output_dir", tmp_path / "run",
        "--max_length", 256,
    )  # fmt: skip
    done = command("finllm/cli.py", "plan", *flags)
    assert "This will not fit" not in done.out
    monkeypatch.setattr("finllm.cpu.machine.memory_bytes", lambda: 100 << 20)
    done = command("finllm/cli.py", "plan", *flags)
    assert "This will not fit: add --activation_checkpointing true and plan again" in done.out
    done = command("finllm/cli.py", "plan", *flags, "--activation_checkpointing", "true")
    assert "This will not fit: halve per_device_train_batch_size" in done.out
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["activation_checkpointing"] and plan["memory_bytes"] == 100 << 20
