"""`finllm merge`: the folder that it leaves is the run, for other programs too, or there is none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from finllm.errors import UserError
from finllm.models import plain
from finllm.models.base import load_run_model
from finllm.models.proofs import in_float32

LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_r", 4)


def merge(command, run, folder, *flags):
    return command("finllm/cli.py", "merge", run.path, "--output_dir", folder, *flags)


def logits(model) -> torch.Tensor:
    with torch.no_grad(), in_float32(model):  # where bfloat16 is fast, a frozen base is in it
        return model.eval()(input_ids=torch.arange(9)[None]).logits.float()


def record(folder) -> dict:
    return json.loads((folder / "finllm.json").read_text())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_merged_run_is_read_by_transformers_alone_and_says_how_it_was_proved(kind, train, command, tmp_path, request):
    done, run = train(kind, *LORA)
    assert done.status == 0, done.err
    folder = tmp_path / "plain"
    done = merge(command, run, folder, "--max_shard_size", "40KB")
    assert done.status == 0, done.err
    assert "validation rows" in done.out and "bits per byte" in done.out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (logits(model) - logits(load_run_model(run)[0])).abs().max() < 1e-5
    base = load_file(request.getfixturevalue(f"{kind}_dir") / "model.safetensors")
    shards = sorted(folder.glob("model-*.safetensors"))
    held = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert len(shards) > 1 and {name: t.shape for name, t in held.items()} == {
        name: t.shape for name, t in base.items()
    }
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False
    )
    assert asked.endswith("### Response:\n")
    (proof,) = record(folder)["proofs"]
    assert proof["passed"] and 0 < proof["figure"] < proof["limit"] == plain.LARGEST
    card = (folder / "README.md").read_text()
    assert "It was not evaluated before" in card and proof["said"] in card and "has learned" not in card
    assert all(earlier["said"] in card for earlier in run.proofs())


def test_the_card_has_the_results_of_these_weights_and_no_others(train, command, tmp_path):
    done, run = train("llama", *LORA)
    assert done.status == 0, done.err
    done = command("eval/run.py", run.path, "--max_examples", 3, "--max_generated", 1, "--max_new_tokens", 4)
    assert done.status == 0, done.err
    assert merge(command, run, tmp_path / "first").status == 0
    results = json.loads((run.eval / "results.json").read_text())
    figure = f"{results['splits']['test']['metrics']['bits_per_byte']['value']:.4g}"
    card = (tmp_path / "first" / "README.md").read_text()
    assert f"| test | 3 | bits_per_byte | {figure} |" in card and results["audits"]["causality"]["summary"] in card
    results["hashes"]["weights"] = "0" * 64
    (run.eval / "results.json").write_text(json.dumps(results))
    assert merge(command, run, tmp_path / "second").status == 0
    card = (tmp_path / "second" / "README.md").read_text()
    assert figure not in card and "of other weights" in card
    (run.eval / "results.json").write_text('{"schema_version": 1, "hashes": []}')
    done = merge(command, run, tmp_path / "third")
    assert done.status == 2 and "evaluate the run again" in done.err and not (tmp_path / "third").exists()


def test_a_full_run_becomes_the_same_folder(train, command, tmp_path):
    done, run = train("gpt2")
    assert done.status == 0, done.err
    done = merge(command, run, tmp_path / "plain")
    assert done.status == 0, done.err
    before, after = load_file(run.model / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    done = merge(command, run, tmp_path / "half", "--dtype", "bfloat16")
    assert done.status == 0, done.err
    held = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    (proof,) = record(tmp_path / "half")["proofs"]
    assert 0 < proof["figure"] < proof["limit"] == plain.MOST_SHIFT
    for flags, said in (
        (("--dtype", "float16", "--max_shift", 0), "allow more with --max_shift"),
        (("--into", "original"), "--into is for adapters on 4 or 8 bits"),
        (("--max_examples", 0), "--max_examples is 0"),
        (("--max_shard_size", "many"), "--max_shard_size is 'many'"),
    ):
        done = merge(command, run, tmp_path / "refused", *flags)
        assert done.status == 2 and said in done.err and not (tmp_path / "refused").exists(), done.err
    done = merge(command, run, tmp_path / "plain")
    assert done.status == 2 and "is not empty" in done.err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_from_4_bits_nothing_shifts_unless_the_original_weights_are_asked_for(kind, train, command, tmp_path):
    done, run = train(kind, *LORA, "--load_in_4bit", "true", "--bnb_4bit_quant_type", "nf4", "--dtype", "float32")
    assert done.status == 0, done.err
    for name, flags in (("same", ()), ("moved", ("--into", "original"))):
        done = merge(command, run, tmp_path / name, *flags)
        assert done.status == 0, done.err
    adapted = logits(load_run_model(run)[0])
    same, moved = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("same", "moved"))
    assert (logits(same) - adapted).abs().max() < 1e-4 < (logits(moved) - adapted).abs().max()
    assert type(same) is type(moved) and not hasattr(same.config, "quantization_config")
    proofs = [record(tmp_path / name)["proofs"][0] for name in ("same", "moved")]
    assert [proof["limit"] for proof in proofs] == [plain.LARGEST, plain.MOST_SHIFT] and proofs[1]["figure"] > 0


def test_what_is_another_model_is_not_written(train, command, tmp_path, monkeypatch):
    """A merge that leaves out the adapter of one layer, and a folder that is saved otherwise than it was in memory."""
    done, run = train("llama", *LORA)
    assert done.status == 0, done.err
    merged, saved = plain.merged, PreTrainedModel.save_pretrained

    def without_one(adapted):
        adapted.base_model.model.model.layers[1].mlp.down_proj.lora_B["default"].weight.data.zero_()
        return merged(adapted)

    def damaged(model, work, **settings):
        saved(model, work, **settings)
        tensors = load_file(work / "model.safetensors")
        tensors["model.norm.weight"] *= 1.01
        save_file(tensors, work / "model.safetensors", {"format": "pt"})

    for owner, name, broken in ((plain, "merged", without_one), (PreTrainedModel, "save_pretrained", damaged)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(UserError, match="is another model"):
                plain.merge_run(str(run.path), tmp_path / "plain", dtype="bfloat16")
        assert not (tmp_path / "plain").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_rows_of_another_dataset_are_refused_and_a_moved_one_is_named(train, command, tmp_path, dataset_dir):
    data = tmp_path / "data"
    shutil.copytree(dataset_dir, data)
    done, run = train("llama", *LORA, "--dataset_name", data)
    assert done.status == 0, done.err
    data.rename(tmp_path / "elsewhere")
    done = merge(command, run, tmp_path / "plain")
    assert done.status == 2 and "name where it lies now with --dataset_name" in done.err
    other = command("finllm/cli.py", "prepare", "finllm/data/sample/saving.jsonl", "--output_dir", tmp_path / "other")
    assert other.status == 0, other.err
    done = merge(command, run, tmp_path / "plain", "--dataset_name", tmp_path / "other")
    assert done.status == 2 and "was trained on one of hash" in done.err
    done = merge(command, run, tmp_path / "plain", "--dataset_name", tmp_path / "elsewhere", "--max_examples", 2)
    assert done.status == 0 and "on 2 of " in done.out, done.err
