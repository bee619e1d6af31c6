"""What recipes/sft.py proves of a model before the first step and after the last, by its command line."""

import itertools
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, GPT2Model

from finllm.cpu import products
from finllm.data.dataset_dir import DatasetDir
from finllm.data.prepare import prepare
from finllm.models.base import load_run_model
from finllm.models.find import load_tokenizer
from finllm.text.tokens import encode
from finllm.training.trainer import SupervisedTrainer

FLOAT32 = ("--bf16", "false", "--dtype", "float32")


def proofs_of(run) -> dict[str, dict]:
    return {proof["name"]: proof for proof in run.proofs()}


def own_loss(model, tokenizer_dir, rows, max_length=256) -> float:
    """Nats a supervised token from the model's own logits, each row alone."""
    nll = tokens = 0.0
    tokenizer = load_tokenizer(str(tokenizer_dir))
    for row in rows:
        encoded = encode(tokenizer, row, max_length)
        labels = torch.tensor(encoded["labels"][1:])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded["input_ids"]])).logits[0, :-1]
        nll += cross_entropy(logits, labels, reduction="sum").item()
        tokens += int((labels != -100).sum())
    return nll / tokens


def capped(logits):
    return 0.05 * torch.tanh(logits / 0.05)


def softly_capped(logits):
    return 30.0 * torch.tanh(logits / 30.0)  # hardly seen at the size of a random model's logits


def rescaled(logits):
    return logits * 1.5


def shifted(logits):
    return logits - torch.linspace(0, 1, logits.shape[-1])


@pytest.mark.parametrize("change", [capped, softly_capped, rescaled, shifted])
def test_a_head_that_is_more_than_a_product_is_trained_and_validated_by_its_own_logits(
    change, sft, rows_of_validation, gpt2_dir, monkeypatch
):
    forward = GPT2LMHeadModel.forward

    def changed(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "forward", changed)
    done, run = sft(*FLOAT32, steps=2)
    assert done.status == 0, done.err
    assert "every loss is made of the model's own logits" in done.out
    proofs = proofs_of(run)
    assert not proofs["head"]["passed"] and proofs["loss, joined · logits"]["passed"]
    assert run.summary()["final_validation_loss"] == pytest.approx(
        own_loss(AutoModelForCausalLM.from_pretrained(run.model).eval(), gpt2_dir, rows_of_validation), rel=1e-4
    )


def test_every_tensor_that_the_own_loss_reaches_is_reached(sft, gpt2_dir, monkeypatch, tmp_path):
    """The head of a loss that is right in value and lets no gradient through to one tensor is not used."""
    before = GPT2Model.__init__

    def init(self, *args, **kwargs):
        before(self, *args, **kwargs)
        self.told = torch.nn.Parameter(torch.zeros(1))

    forward = GPT2LMHeadModel.forward

    def told(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + self.transformer.told * output.logits.detach()
        return output

    monkeypatch.setattr(GPT2Model, "__init__", init)
    monkeypatch.setattr(GPT2LMHeadModel, "forward", told)
    shutil.copytree(gpt2_dir, tmp_path / "base")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2LMHeadModel.config_class.from_pretrained(gpt2_dir)).save_pretrained(tmp_path / "base")
    done, run = sft(*FLOAT32, model=tmp_path / "base", steps=2)
    assert done.status == 0, done.err
    proofs = proofs_of(run)
    assert proofs["head"]["passed"] and proofs["loss, joined · head"]["passed"]
    assert not proofs["gradients, joined · head"]["passed"] and "told" in proofs["gradients, joined · head"]["said"]
    assert proofs["gradients, joined · logits"]["passed"]
    assert load_file(run.model / "model.safetensors")["transformer.told"].abs() > 0


@pytest.mark.parametrize("places", [1, 9])
def test_a_model_that_sees_the_future_is_refused_before_training(places, sft, monkeypatch):
    """Even if a position sees no more than the very token that it is to predict."""
    before = GPT2Model.__init__

    def look_ahead(module, args, output):
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden + 0.1 * torch.cat([hidden[:, places:], hidden[:, :places] * 0], 1)
        return output

    def init(self, *args, **kwargs):
        before(self, *args, **kwargs)
        self.register_forward_hook(look_ahead)

    monkeypatch.setattr(GPT2Model, "__init__", init)
    done, run = sft(steps=1)
    assert done.status == 2 and "sees the future: log-probabilities move by" in done.err
    assert not (run.path / "config.yaml").exists()


@pytest.fixture
def with_tokens(gpt2_dir, tmp_path):
    """The tiny GPT-2 with a tokenizer that knows more tokens than the embedding has rows."""

    def make(**special):
        folder = tmp_path / "base"
        shutil.copytree(gpt2_dir, folder)
        tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
        if words := special.pop("words", None):
            tokenizer.add_tokens(words)
        tokenizer.add_special_tokens(special)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_a_pad_token_beyond_the_embedding_becomes_eos_and_the_model_loads_again(sft, with_tokens):
    done, run = sft("--model_name_or_path", with_tokens(pad_token="<pad>"), steps=1)
    assert done.status == 0, done.err
    assert proofs_of(run)["saved model"]["passed"]
    tokenizer = load_tokenizer(str(run.model))
    assert tokenizer.pad_token == tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(run.model)
    assert model.config.pad_token_id is None or model.config.pad_token_id < 600


def test_a_special_token_that_no_row_can_hold_may_lie_beyond_the_embedding(sft, with_tokens, tmp_path):
    """It changes nothing: rows that spell it are written in letters, and the weights are those without it."""
    folder = with_tokens(additional_special_tokens=["<image>"])
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.convert_tokens_to_ids("<image>") == 600 and max(tokenizer("<image>").input_ids) == 600
    source = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"What is <image> {n}?", "output": f"An <image> of {n}."} for n in range(30)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(source, tmp_path / "data", validation_fraction=0.2, test_fraction=0.2)
    flags = ("--dataset_name", tmp_path / "data")
    done, run = sft(*flags, "--model_name_or_path", folder, steps=1)
    assert done.status == 0, done.err
    train = len(DatasetDir(tmp_path / "data").rows("train"))
    assert re.search(rf"rows that spell a control token, kept as text\W+{train}\W", done.out), done.out
    _, without = sft(*flags, steps=1, output_dir=tmp_path / "without")
    assert load_tokenizer(str(run.model)).convert_tokens_to_ids("<image>") == 600
    assert (run.model / "model.safetensors").read_bytes() == (without.model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("special", [{"eos_token": "<end>"}, {"bos_token": "<begin>"}, {"words": ["interest"]}])
def test_ids_beyond_the_embedding_are_refused_with_both_numbers(special, sft, with_tokens):
    done, run = sft("--model_name_or_path", with_tokens(**special), steps=1)
    assert done.status == 2 and "id 600" in done.err and "600 rows" in done.err
    assert not (run.path / "config.yaml").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_saved_model_that_is_not_the_trained_one_is_refused(method, sft, monkeypatch):
    save = SupervisedTrainer.save_model

    def save_another(self, folder, *args, **kwargs):
        save(self, folder, *args, **kwargs)
        for path in self.run.path.glob(".model/*.safetensors"):
            tensors = load_file(path)
            name = max(tensors, key=lambda name: tensors[name].numel())
            save_file({**tensors, name: tensors[name].flip(0)}, path, metadata={"format": "pt"})

    monkeypatch.setattr(SupervisedTrainer, "save_model", save_another)
    flags = ("--use_peft", "true", "--lora_target_modules", "c_attn") if method == "lora" else ()
    done, run = sft(*flags, steps=1)
    assert done.status == 2 and "is not the one that was trained" in done.err and not run.complete


def test_an_adapter_whose_base_is_drawn_anew_at_every_load_is_refused(sft, monkeypatch, tmp_path):
    """PiSSA by a randomised decomposition: loaded beside the trained one it looks right, on a fresh base it is not."""
    pissa = ("--peft_type", "lora", "--peft", '{"init_lora_weights": "pissa_niter_1", "r": 4}')
    done, run = sft(*FLOAT32, *pissa, output_dir=tmp_path / "kept")
    assert done.status == 0, done.err
    saved = json.loads((run.model / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True and saved["r"] == 8
    monkeypatch.setattr("finllm.models.starts.save_as_plain_lora", lambda adapted, folder: None)
    done, run = sft(*FLOAT32, *pissa)
    assert done.status == 2 and "is not the one that was trained" in done.err and not run.complete


def test_proofs_stand_in_the_run_dir_the_model_card_and_the_report(sft, command, tmp_path):
    done, run = sft(*FLOAT32, steps=1)
    assert done.status == 0, done.err
    proofs = json.loads((run.path / "proofs.json").read_text())["proofs"]
    assert [proof["name"] for proof in proofs] == [
        "sees no future", "head", "loss, joined · head", "gradients, joined · head", "rows stay apart, joined",
        "has learned", "saved model",
    ]  # fmt: skip
    assert all(proof["passed"] and proof["figure"] <= proof["limit"] for proof in proofs)
    card = (run.model / "README.md").read_text()
    assert all(f"- {proof['said']}\n" in card for proof in proofs)
    assert command("eval/run.py", run.path, "--max_generated", 1, "--max_new_tokens", 2).status == 0
    assert command("eval/leaderboard.py", run.path, "--output_dir", tmp_path / "board").status == 0
    page = (tmp_path / "board" / "index.html").read_text()
    assert all(f"<li>{proof['said'].replace(chr(39), '&#39;')}</li>" in page for proof in proofs)


ADAPTER = ("--use_peft", "true", "--lora_target_modules", "all-linear")


@pytest.mark.parametrize("precision", [("--bf16", "true"), ("--bf16", "true", *ADAPTER)], ids=["full", "lora"])
def test_a_run_in_bfloat16_is_proved_in_float32_and_once_more_as_it_computes(precision, sft, monkeypatch):
    """In bfloat16 alone a model that reads its neighbours a little would pass for one that rounds."""
    monkeypatch.setattr("finllm.training.config.bf16_is_fast", lambda gpu: True)
    done, run = sft(*precision, steps=1)
    assert done.status == 0, done.err
    proofs = proofs_of(run)
    exact = ("head", "loss, joined · head", "rows stay apart, joined", "saved model")
    assert all(proofs[name]["figure"] <= proofs[name]["limit"] <= 1e-4 for name in exact)
    roughly = proofs["loss, joined · head, as it trains"]
    assert proofs["loss, joined · head"]["figure"] < roughly["figure"] < roughly["limit"]


def test_a_full_model_that_was_loaded_in_bfloat16_is_read_as_it_was_trained(sft):
    """On a CPU what trains is float32; read again in the dtype that loaded it, it would be another model."""
    done, run = sft("--bf16", "false", "--dtype", "bfloat16", steps=1)
    assert done.status == 0, done.err
    saved = proofs_of(run)
    assert saved["saved model"]["figure"] < 1e-5 and load_run_model(run)[0].dtype == torch.float32


@pytest.mark.parametrize("wrong", [False, True], ids=["rounded", "wrong"])
def test_coarse_gradients_that_nearly_cancel_may_be_as_far_off_as_the_models_own(wrong, sft, monkeypatch):
    """IA3's are sums that nearly cancel: by a limit alone its runs in bfloat16 were refused."""
    monkeypatch.setattr("finllm.training.config.bf16_is_fast", lambda gpu: True)
    monkeypatch.setattr("finllm.training.proving.COARSE_GRADIENT", 1e-6)  # which no rounding keeps
    if wrong:
        product = products.product
        monkeypatch.setattr(  # of the loss, in bfloat16
            "finllm.cpu.loss.product", lambda left, right: product(left, right) * (1 + (left.dtype == torch.bfloat16))
        )
    done, run = sft("--bf16", "true", *ADAPTER, steps=1)
    if wrong:
        assert done.status == 2 and "precision that is not good enough" in done.err and "lora_B" in done.err
        return
    assert done.status == 0, done.err
    proof = proofs_of(run)["gradients, joined · head, as it trains"]
    assert 1e-6 < proof["figure"] <= proof["limit"] < 0.2 and "the model's own within" in proof["said"]


@pytest.mark.parametrize(("method", "blocks"), [
    ((), 2),  # the model and its way to the loss, and what was saved
    (("--base_dropout", "0.5"), 3),  # its dropout, where one was asked for
    (("--use_peft", "true", "--lora_target_modules", "all-linear"), 5),  # and before and after the adapter was put in
])  # fmt: skip
def test_what_proofs_take_is_counted_and_shown(sft, monkeypatch, method, blocks):
    """By a clock that goes on by one second whenever it is looked at: one for each block, where nothing is nested."""
    monkeypatch.setattr("finllm.models.proofs.time", SimpleNamespace(perf_counter=itertools.count().__next__))
    done, run = sft(*method)
    assert done.status == 0, done.err
    assert run.summary()["proof_seconds"] == blocks
    assert re.search(rf"proofs, before and after +│ +{blocks}\.0 s", done.out)
