"""Every one of peft's methods through the recipe, on a tiny GPT-2 and a tiny Llama, or refused with its reason.

The types are read from peft, so a new one shows up here, by a failure until it trains or stands in `REFUSED`.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file

from finllm.models.base import load_run_model
from finllm.models.generate import answer_all, decoding
from finllm.models.merge import CannotMerge, merged
from finllm.models.proofs import in_float32
from finllm.models.virtual import virtual_tokens
from finllm.run_dir import RunDir
from finllm.text.tokens import encode
from finllm.training.config import parse

KINDS = sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
REFUSED = {
    "LILY": "mean over all tokens",
    "SHADOW": "states of one batch",
    "TRAINABLE_TOKENS": "tied head",
    "XLORA": "LoRAs that were trained before",
}
STAY_ADAPTERS = {  # since they are no change of the weights that are there
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING",
    "P_TUNING",
}  # fmt: skip
ELSEWHERE = {"CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "UNILORA",
             "VBLORA"}  # fmt: skip
AT_LEAST = {"gpt2": 38, "llama": 40}


def test_enough_of_pefts_types_train():
    assert len(KINDS) - len(REFUSED) >= max(AT_LEAST.values()) and {*REFUSED} <= {*KINDS}


# Some of each kind on GPT-2: layers that are Conv1D and that must be linear, virtual tokens, ranks that move. Others
# run where they are asked for, with -m soak.
ON_GPT2 = ("ADALORA", "C3A", "IA3", "LN_TUNING", "OFT", "OSF", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "VERA")
PAIRS = [("llama", kind) for kind in KINDS] + [
    pytest.param("gpt2", kind, marks=[] if kind in ON_GPT2 or kind in REFUSED else [pytest.mark.soak]) for kind in KINDS
]


@pytest.mark.parametrize(("model", "kind"), PAIRS)
def test_every_method_trains_is_proved_saved_loaded_and_merged_or_refused(kind, model, train, dataset_dir):
    if kind == "ADAMSS":
        pytest.importorskip("sklearn", reason="AdaMSS needs scikit-learn (finllm[adamss])")
    done, run = train(model, "--peft_type", kind.lower())
    if kind in REFUSED:
        assert done.status == 2 and REFUSED[kind] in done.err and not run.path.exists(), done.err
        return
    assert done.status == 0, done.err
    proofs = {proof["name"]: proof for proof in run.proofs()}
    assert proofs["starts as the base"]["passed"] or kind in ELSEWHERE, proofs["starts as the base"]
    for name in ("gradients of the method", "sees no future", "has learned", "saved model", "loss, joined · head"):
        assert proofs[name]["passed"], proofs[name]
    assert run.summary()["method"] == kind.lower() and run.summary()["trainable_parameters"] > 0
    # Loaded on a fresh base, by whoever evaluates: the nats of the validation loss that training wrote
    loaded, tokenizer = load_run_model(run)
    loaded.eval()
    rows = [json.loads(line) for line in (Path(dataset_dir) / "validation.jsonl").read_text().splitlines()]
    row = encode(tokenizer, rows[0], 96)
    ids = torch.tensor([row["input_ids"]])
    # Where bfloat16 is fast the frozen base is in it: what is the same is so without its rounding
    with torch.no_grad(), in_float32(loaded):
        logits = loaded(input_ids=ids).logits
        assert logits.shape == (1, ids.shape[1], len(loaded.get_input_embeddings().weight))
        padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
        mask = (torch.arange(padded.shape[1]) >= 5).long()[None]
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        left = loaded(input_ids=padded, attention_mask=mask, position_ids=places).logits[:, 5:]
    assert (logits - left).abs().max() < 1e-4, "padding on the left moves it"
    answers = answer_all(
        loaded, tokenizer, ["Why save?", "What is a bond, and who would buy one?"], decoding(tokenizer, 4)
    )
    assert all(answer.tokens for answer in answers)
    no_bias_to_add_to = kind == "BEFT" and model == "llama"
    if kind in STAY_ADAPTERS or no_bias_to_add_to:
        assert "cannot be merged" in proofs["merged model"]["said"]
        with pytest.raises(CannotMerge):
            merged(loaded)
        return
    assert proofs["merged model"]["passed"] and proofs["merged model"]["figure"] <= 1e-4, proofs["merged model"]
    with torch.no_grad(), in_float32(loaded):
        plain = merged(loaded)
        assert (plain(input_ids=ids).logits - logits).abs().max() < 1e-4
    layers = [type(module).__name__ for module in plain.modules()]
    assert "Conv1D" in layers if model == "gpt2" else "Linear" in layers


IN_BFLOAT16 = {  # what is made of the base's weights or added to them, and one that is refused; the rest with -m soak
    "LORA": {}, "DORA": {"use_dora": True}, "OFT": {}, "IA3": {}, "PROMPT_TUNING": {}, "LN_TUNING": {},
    "PISSA": {"init_lora_weights": "pissa"}, "ORTHOGONAL": {"init_lora_weights": "orthogonal"},
    "MODULES": {"modules_to_save": ["norm"]}, "BIAS": {"bias": "lora_only"},
}  # fmt: skip
NEEDS_FLOAT32 = {"ADAMSS", "ADAPTION_PROMPT", "BIAS", "FROD", "LN_TUNING", "MODULES", "ORTHOGONAL", "OSF", "PISSA",
                 "PSOFT"}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        *IN_BFLOAT16,
        *(pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS if kind not in {*REFUSED, *IN_BFLOAT16}),
    ],
)
def test_on_a_frozen_base_in_bfloat16_a_method_begins_as_it_or_is_refused(kind, train):
    fields = IN_BFLOAT16.get(kind, {})
    name = "lora" if fields else kind.lower()
    done, run = train("llama", "--peft_type", name, "--dtype", "bfloat16", "--peft", json.dumps(fields))
    if kind in NEEDS_FLOAT32:
        assert done.status == 2 and "needs its base model in float32; remove dtype" in done.err, done.err
        return
    assert done.status == 0, done.err
    proofs = {proof["name"]: proof for proof in run.proofs()}
    assert proofs["starts as the base"]["passed"] or kind in ELSEWHERE, proofs["starts as the base"]
    assert proofs["saved model"]["passed"], proofs["saved model"]


@pytest.mark.parametrize("kind", ["LORA", "DORA", "IA3", "LN_TUNING", "PISSA"])
def test_where_bfloat16_is_fast_the_frozen_base_is_in_it_unless_the_method_needs_float32(kind, monkeypatch):
    monkeypatch.setattr("finllm.training.config.bf16_is_fast", lambda gpu: True)
    fields = IN_BFLOAT16[kind]
    model = parse([
        "--model_name_or_path", "none", "--dataset_name", "none", "--output_dir", "none", "--learning_rate", "1e-3",
        "--peft_type", "lora" if fields else kind.lower(), "--peft", json.dumps(fields),
    ])[2]  # fmt: skip
    assert model.dtype == ("float32" if kind in NEEDS_FLOAT32 else "bfloat16")


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["prompt_tuning", "cpt", "prefix_tuning"])
def test_virtual_tokens_train_alike_with_rows_end_to_end_and_padded(kind, model, train):
    """Positions, what each row sees, and what is counted: the same adapter after three steps, and the same figures."""
    flags = ("--peft_type", kind, "--bf16", "false", "--dtype", "float32", "--optim", "sgd", "--learning_rate", "0.1")
    runs = [train(model, *flags, "--join_rows", joins, name=f"joins_{joins}") for joins in ("true", "false")]
    assert all(done.status == 0 for done, _ in runs), [done.err for done, _ in runs]
    assert {"loss, joined · head", "gradients, joined · head"} <= {
        proof["name"] for proof in runs[0][1].proofs() if proof["passed"]
    }
    one, other = (load_file(run.model / "adapter_model.safetensors") for _, run in runs)
    assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    one, other = (run.summary() for _, run in runs)
    assert one["final_validation_loss"] == pytest.approx(other["final_validation_loss"], abs=1e-5)
    assert one["supervised_tokens"] == other["supervised_tokens"]
    tokens = [each["tokens_per_second"] * each["train_seconds"] for each in (one, other)]
    assert tokens[0] == pytest.approx(tokens[1], rel=1e-6)


@pytest.mark.parametrize(
    "kind", ["lora", "prompt_tuning", "oft", "adalora", pytest.param("p_tuning", marks=pytest.mark.soak)]
)
def test_a_resumed_run_is_the_same_bit_for_bit(kind, train, halved, tmp_path):
    flags = ("--peft_type", kind, "--save_strategy", "steps", "--save_steps", 2)
    whole = train("llama", *flags, name="whole", steps=4)[1]
    halved(whole, tmp_path / "stopped")
    done, stopped = train("llama", *flags, "--resume", "auto", name="stopped", steps=4)
    assert done.status == 0, done.err
    first, second = (load_file(run.model / "adapter_model.safetensors") for run in (whole, stopped))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--peft_type", "lorra"), "did you mean 'lora'"),
        (("--peft_type", "ia3", "--peft", '{"feedforward_module": []}'), "did you mean 'feedforward_modules'"),
        (("--peft_type", "ia3", "--peft", '{"lora_alpha": 8}'), "it belongs to"),
        (("--peft_type", "ia3", "--lora_r", 4), "two methods at once"),
        (("--peft_type", "lora", "--lora_r", 4, "--peft", '{"r": 4}'), "two ways to say one thing"),
        (("--peft_type", "lora", "--peft", '{"r": "four"}'), "must be a whole number"),
        (("--peft_type", "lora", "--peft", '{"r": 33}'), "no more than the smaller side"),
        (("--peft_type", "lora", "--peft", '{"r": 0}'), "at least 1"),
        (("--peft_type", "loha", "--peft", '{"r": 10000}'), "the largest that fits is 32"),
        (("--peft_type", "lora", "--peft", '{"rank_pattern": {"c_attm": 2}}'), "no layer that is adapted is called so"),
        (("--peft_type", "lora", "--peft", '{"rank_pattern": {"c_attn": 64}}'), "smaller side of each layer"),
        (("--peft_type", "lora", "--peft", '{"alpha_pattern": {"h.7": 2}}'), "no layer that is adapted is called so"),
        (("--peft_type", "ia3", "--peft", '{"target_modules": ["ln_1"]}'), "its linear layers are c_attn"),
        (("--peft_type", "vera", "--peft", '{"target_modules": ["c_atn"]}'), "names 'c_atn'"),
        (("--peft_type", "road", "--peft", '{"group_size": 6}'), "divide every layer's output"),
        (("--peft_type", "boft", "--peft", '{"boft_block_size": 5}'), "divide every layer's input"),
        (("--peft_type", "oft", "--peft", '{"oft_block_size": 9}'), "divide every layer's input"),
        (("--peft_type", "adalora", "--peft", '{"total_step": 3}'), "set by the recipe"),
        (("--peft_type", "adalora", "--peft", '{"target_r": 12}'), "target_r must be below init_r"),
        (("--peft_type", "lora", "--peft", '{"use_qalora": true}'), "plain LoRA"),
        (("--peft_type", "lora", "--peft", '{"eva_config": {"roh": 2.0}}'), "did you mean 'rho'"),
        (("--peft_type", "lora", "--peft", '{"target_modules": ["lm_head"]}'), "adapts the head"),
        (("--peft_type", "lora", "--peft", "{"), "is not JSON"),
        (("--trainable", "ln_9"), "no weight of this model is called so"),
        (("--trainable", "bias", "--peft_type", "lora"), "remove one of them"),
        (("--peft_type", "prompt_tuning", "--peft", '{"num_virtual_tokens": 480}'), "for virtual tokens"),
        (("--peft_type", ""), "peft_type is ''"),
        (("--peft_type", "cpt", "--peft", '{"cpt_token_ids": [600]}'), "the model's tokens are 0 to 599"),
        (
            ("--peft_type", "lora", "--peft", '{"trainable_token_indices": [5, -1]}'),
            "peft.trainable_token_indices has -1",
        ),
        (("--peft_type", "prefix_tuning", "--peft", '{"num_virtual_tokens": 0}'), "must be at least 1"),
        (("--peft_type", "p_tuning", "--peft", '{"num_virtual_tokens": 1000000000}'), "some of the model's 512"),
    ],
)
def test_mistakes_are_answered_with_the_fix(flags, said, train):
    done, run = train("gpt2", *flags)
    assert done.status == 2 and said in done.err and "Traceback" not in done.err, done.err
    assert not (run.path / "model").exists()


@pytest.mark.parametrize(("flags", "rate"), [((), 2e-3), (("--learning_rate", 7e-4), 7e-4)])
def test_a_method_that_is_named_has_a_rate_of_its_own(flags, rate, capsys):
    _, training, _ = parse(["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", "o",
                            "--peft_type", "ia3", *map(str, flags)])  # fmt: skip
    assert training.learning_rate == rate and ("0.001 to 0.005" in capsys.readouterr().out) == (not flags)


def test_some_of_the_weights_train_and_no_others(train, gpt2_dir):
    done, run = train("gpt2", "--trainable", "h.1", "ln_f")
    assert done.status == 0, done.err
    before, after = load_file(gpt2_dir / "model.safetensors"), load_file(run.model / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".h.1." in name or ".ln_f." in name}
    assert run.summary()["method"] == "partial"


def test_a_merged_run_is_a_plain_model(train, command, tmp_path):
    from transformers import AutoModelForCausalLM

    done, run = train("gpt2", "--peft_type", "oft")
    assert done.status == 0, done.err
    assert json.loads((run.model / "base_layers.json").read_text())["conv1d_as_linear"] is True
    done = command("finllm/cli.py", "merge", run.path, "--output_dir", tmp_path / "plain")
    assert done.status == 0, done.err
    plain, (adapted, _) = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval(), load_run_model(run)
    ids = torch.arange(9)[None]
    with torch.no_grad(), in_float32(adapted):
        assert (plain(input_ids=ids).logits - adapted.eval()(input_ids=ids).logits).abs().max() < 1e-5


def test_virtual_tokens_take_positions_and_evaluation_knows(train, command):
    done, run = train("gpt2", "--peft_type", "prompt_tuning")
    assert done.status == 0, done.err
    done = command("eval/run.py", run.path, "--max_generated", 2, "--max_new_tokens", 4)
    assert done.status == 0, done.err
    audits = json.loads((run.eval / "results.json").read_text())
    text = json.dumps(audits)
    assert "prompt_tuning" in text and RunDir(run.path).complete
    model, _ = load_run_model(run)
    assert virtual_tokens(model) == 20


@pytest.mark.parametrize(
    "fields",
    [{"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"},
     {"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"},
     {"init_lora_weights": "mica"}, {"init_lora_weights": "eva"}, {"init_lora_weights": "corda"},
     {"init_lora_weights": "lora_ga"}, {"rank_pattern": {"c_attn": 2}}, {"modules_to_save": ["ln_f"]},
     {"layers_to_transform": [1]}, {"monteclora_config": {}}, {"trainable_token_indices": [3, 5]},
     {"bias": "lora_only"}],
    ids=lambda fields: "-".join(map(str, *fields.items())),
)  # fmt: skip
def test_variants_of_lora_train_and_load_as_what_was_trained(fields, train):
    done, run = train("gpt2", "--peft_type", "lora", "--peft", json.dumps({"r": 4, **fields}), "--base_dropout", 0)
    assert done.status == 0, done.err
    proofs = {proof["name"]: proof for proof in run.proofs()}
    for name in ("starts as the base", "gradients of the method", "has learned", "saved model", "merged model"):
        assert proofs[name]["passed"], proofs[name]
    is_variant = fields in ({"use_dora": True}, {"init_lora_weights": "mica"}, {"monteclora_config": {}})
    assert ("variant" in proofs) == is_variant


@pytest.mark.parametrize(
    ("kind", "said"),
    [("ia3", None), ("oft", None), ("prompt_tuning", None), ("lokr", "without load_in_4bit"),
     ("unilora", "no finite gradient"),
     ("deft", "deft"), ("lora", None)],
)  # fmt: skip
def test_in_4_bits_a_method_trains_or_says_that_it_cannot(kind, said, train, command, tmp_path):
    done, run = train("llama", "--peft_type", kind, "--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4")
    if said:
        assert done.status == 2 and said in done.err and "Traceback" not in done.err, done.err
        return
    assert done.status == 0, done.err
    assert run.summary()["method"] == ("qlora" if kind == "lora" else f"{kind}_in_4bit")
    done = command("finllm/cli.py", "merge", run.path, "--output_dir", tmp_path / "plain")
    if kind == "prompt_tuning":
        assert done.status == 2 and "cannot be merged" in done.err
    else:
        assert done.status == 0 and "merged into what its 4 bits stand for" in done.out, done.err


@pytest.mark.parametrize("variant", ["kasa_config", "monteclora_config"])
def test_a_variant_that_4_bits_make_plain_lora_is_refused(variant, train):
    flags = ("--peft_type", "lora", "--peft", json.dumps({variant: {}}), "--load_in_4bit", "true")
    done, _ = train("llama", *flags)
    assert done.status == 2 and variant in done.err and "plain LoRA" in done.err, done.err


NOT_IN_8_BITS = {  # peft 0.21 builds what trains out of the weights themselves, which are whole numbers then
    "ADAMSS": "adamss on model.layers.0", "DELORA": "delora on model.layers.0", "FROD": "frod on model.layers.0",
    "GLORA": "Linear8bitLt", "OSF": "osf on model.layers.0", "PSOFT": "psoft on model.layers.0",
    "TINYLORA": "tinylora on model.layers.0", "SUPERTUNING": "without load_in_8bit",
    "DEFT": "no load_in_8bit", "HRA": "no load_in_8bit", "UNILORA": "no finite gradient",
}  # fmt: skip
SOME_IN_8_BITS = ("C3A", "DEFT", "LORA", "SUPERTUNING")  # the rest with -m soak


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in SOME_IN_8_BITS else [pytest.mark.soak])
        for kind in KINDS
        if kind not in REFUSED
    ],
)
def test_in_8_bits_a_method_trains_or_says_that_it_cannot(kind, train):
    done, run = train("llama", "--peft_type", kind.lower(), "--load_in_8bit", "true")
    if kind in NOT_IN_8_BITS:
        assert done.status == 2 and NOT_IN_8_BITS[kind] in done.err and "4bit" not in done.err, done.err
        return
    assert done.status == 0 and "will be cast" not in done.err, done.err
    proofs = {proof["name"]: proof for proof in run.proofs()}
    for name in ("gradients of the method", "sees no future", "has learned", "saved model"):
        assert proofs[name]["passed"], proofs[name]
