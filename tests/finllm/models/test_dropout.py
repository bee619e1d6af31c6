"""Dropout of base models of many kinds: what was set is what happens, or the model is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finllm.errors import UserError
from finllm.models.dropout import StaysRandom, prove_dropout, set_dropout

V = 100
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
BY_N = {"n_embd": 32, "n_layer": 2, "n_head": 2}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 48}
GROUPED = {**SMALL, "num_key_value_heads": 1}
ARCHITECTURES = {
    "gpt2": BY_N,
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "layerdrop": 0.3},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {**SMALL, "hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]],
        "max_position_embeddings": 64,
    },
    "gpt_neox": SMALL,
    "gptj": {**BY_N, "rotary_dim": 8},
    "gpt_bigcode": BY_N,
    "llama": SMALL,
    "qwen2": GROUPED,
    "phi": SMALL,
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 2, "layerdrop": 0.3},
    "biogpt": SMALL,
    "persimmon": SMALL,
    "ctrl": {**BY_N, "dff": 48},
    "openai-gpt": BY_N,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "bert": {**SMALL, "is_decoder": True},
    "electra": {**SMALL, "is_decoder": True, "embedding_size": 16},
    "trocr": {**DECODER, "decoder_layerdrop": 0.3},
    "bart": {**DECODER, "decoder_layerdrop": 0.3},
}  # fmt: skip
IDS = torch.arange(3, 43).view(2, 20)


def small(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=V, **ARCHITECTURES[name])
    return AutoModelForCausalLM.from_config(config).train()


def loss_of(model: PreTrainedModel):
    @torch.no_grad()
    def loss() -> float:
        logits = model(input_ids=IDS).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()))

    return loss


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_does_what_was_set(name):
    model = small(name)
    loss = loss_of(model)
    set_dropout(model, 0.9)
    assert loss() != loss()
    set_dropout(model, 0.0)
    model.eval()
    evaluated = loss()
    model.train()
    assert loss() == loss() == pytest.approx(evaluated, abs=1e-5)
    before = torch.random.get_rng_state()
    assert prove_dropout(model, 0.5, loss, 1e-5) == 0
    assert torch.equal(torch.random.get_rng_state(), before), "a run goes on as it would have without the proof"
    assert loss() != loss(), "the share that was asked for is left"


def test_a_model_that_stays_random_is_refused():
    model = small("llama")

    def shaken(module, arguments, output):
        return output + 0.1 * torch.randn_like(output) if module.training else output

    model.get_input_embeddings().register_forward_hook(shaken)
    with pytest.raises(StaysRandom, match=r"base_dropout is 0, and with all its dropout at 0 this model stays random"):
        prove_dropout(model, 0.0, loss_of(model), 1e-5)


def test_a_model_without_dropout_is_refused_where_some_is_asked_for():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba", vocab_size=V, hidden_size=32, num_hidden_layers=2)
    ).train()
    assert prove_dropout(model, 0.0, loss_of(model), 1e-5) == 0
    with pytest.raises(UserError, match=r"base_dropout is 0.5 and drops nothing in this model.*remove base_dropout"):
        prove_dropout(model, 0.5, loss_of(model), 1e-5)


def test_an_adapters_own_dropout_stays():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(small("llama"), LoraConfig(lora_dropout=0.25, target_modules=["q_proj"]))
    set_dropout(model.get_base_model(), 0.0)
    own = [module.p for name, module in model.named_modules() if name.endswith("lora_dropout.default")]
    assert own == [0.25, 0.25]


def test_whole_layers_are_dropped_as_the_config_says_unless_nothing_is():
    model = small("opt")
    set_dropout(model, 0.2)
    assert model.model.decoder.layerdrop == 0.3 and model.model.decoder.layers[0].dropout == 0.2
    set_dropout(model, 0.0)
    assert model.model.decoder.layerdrop == 0.0


@pytest.mark.parametrize("name", ["opt", "bloom", "falcon", "gpt_neo"])
def test_base_dropout_reaches_the_model_that_trains(name, command, dataset_dir, tokenizer_dir, tmp_path):
    from transformers import AutoTokenizer

    config = AutoConfig.for_model(name, vocab_size=600, **{**ARCHITECTURES[name], "max_position_embeddings": 512})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(tmp_path / "base")
    losses = {}
    for share in (0, 0.9):
        done = command(
            "recipes/sft.py", "--model_name_or_path", tmp_path / "base", "--dataset_name", dataset_dir, "--output_dir",
            tmp_path / str(share), "--max_steps", 1, "--max_length", 256, "--per_device_train_batch_size", 4,
            "--logging_steps", 1, "--eval_on_start", "false", "--save_strategy", "no", "--disable_tqdm", "true",
            "--base_dropout", share,
        )  # fmt: skip
        assert done.status == 0, done.err
        lines = (tmp_path / str(share) / "metrics.jsonl").read_text().splitlines()
        losses[share] = next(float(line.split('"loss": ')[1].split(",")[0]) for line in lines if '"loss"' in line)
    assert losses[0] != losses[0.9]


def test_base_dropout_is_refused_by_the_recipe_where_there_is_none(command, dataset_dir, tokenizer_dir, tmp_path):
    from transformers import AutoTokenizer

    config = AutoConfig.for_model("mamba", vocab_size=600, hidden_size=32, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(tmp_path / "base")
    done = command(
        "recipes/sft.py", "--model_name_or_path", tmp_path / "base", "--dataset_name", dataset_dir, "--output_dir",
        tmp_path / "run", "--max_steps", 1, "--max_length", 256, "--base_dropout", 0.5, "--report_to", "none",
    )  # fmt: skip
    assert done.status == 2 and "base_dropout is 0.5 and drops nothing in this model" in done.err
    assert not (tmp_path / "run" / "config.yaml").exists()
