"""Results say by content which model made them: "nothing to do" only for that very model, data and settings."""

import json
import shutil
from pathlib import Path

import pytest
from evaluated_runs import leaderboard, make_run, report
from safetensors.torch import load_file, save_file

from eval.results import Results
from finllm.files import write_json
from finllm.models.base import base_model_hash
from finllm.run_dir import RunDir

FEW = ("--max_examples", 3, "--max_generated", 1, "--max_new_tokens", 4)


def nudge(weights: Path) -> None:
    """Change one tensor a little; the file keeps its name and size."""
    tensors = load_file(weights)
    name = max(tensors)
    save_file({**tensors, name: tensors[name] + 1e-4}, weights, {"format": "pt"})


def edit(path: Path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.fixture
def evaluate(command, dataset_dir, tmp_path):
    def call(model, *arguments):
        return command(
            "eval/run.py", "--model_name_or_path", model, "--output_dir", tmp_path / "out", "--dataset_name",
            dataset_dir, *FEW, *arguments,
        )  # fmt: skip

    return call


def test_results_are_of_one_base_model_wherever_it_lies(evaluate, gpt2_dir, llama_dir, dataset_dir, tmp_path):
    base = Path(shutil.copytree(gpt2_dir, tmp_path / "base"))
    done = evaluate(base)
    assert done.status == 0, done.err
    results = tmp_path / "out" / "eval" / "results.json"
    before, held = results.read_bytes(), Results.read(tmp_path / "out").hashes
    assert held["weights"] == base_model_hash(str(base)) and set(held) == {"weights", "tokenizer"}
    for same in (base, f"{base}/", gpt2_dir):
        done = evaluate(same, "--dataset_name", shutil.copytree(dataset_dir, tmp_path / "d", dirs_exist_ok=True))
        assert done.status == 0 and "nothing to do" in done.out, done.err

    def refused(model):
        done = evaluate(model)
        assert done.status == 2 and "nothing to do" not in done.out and "pass --overwrite to replace it" in done.err
        assert results.read_bytes() == before
        return done.err

    assert f"weights {held['weights'][:60]}, now {base_model_hash(str(llama_dir))[:60]}" in refused(llama_dir)
    nudge(base / "model.safetensors")
    said = refused(base)
    assert f"weights {held['weights'][:60]}, now {base_model_hash(str(base))[:60]}" in said and "tokenizer" not in said
    shutil.copy(gpt2_dir / "model.safetensors", base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    del tokenizer["model"]["merges"][-1]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = refused(base)
    assert f"tokenizer {held['tokenizer'][:60]}, now " in said and "weights" not in said
    shutil.copy(gpt2_dir / "tokenizer.json", base)
    config = json.loads((base / "config.json").read_text())
    edit(base / "config.json", layer_norm_epsilon=10 * config["layer_norm_epsilon"])
    assert "weights" in refused(base)

    done = evaluate(llama_dir, "--overwrite")
    assert done.status == 0, done.err
    origin = RunDir(tmp_path / "out").provenance()
    assert origin["base_model"] == str(llama_dir) and origin["base_model_hash"] == base_model_hash(str(llama_dir))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hashes": {}}, "does not say which weights were evaluated"),
        ({"signatures": {"rouge": "older", "bleu": "older"}}, "signatures {'rouge': 'older'"),
        ({"template": {"id": "alpaca", "hash": "t"}}, "template t, now "),
    ],
)
def test_results_of_another_version_are_not_taken_for_these(evaluate, gpt2_dir, tmp_path, changed, said):
    """Also those that were written before hashes were; the leaderboard reads them all the same."""
    assert evaluate(gpt2_dir).status == 0
    edit(tmp_path / "out" / "eval" / "results.json", **changed)
    done = evaluate(gpt2_dir)
    assert done.status == 2 and said in done.err and "--overwrite" in done.err
    done = leaderboard(tmp_path / "out", "--output_dir", tmp_path / "board")
    assert done.returncode == 0, done.stderr


def test_an_adapter_is_its_own_weights_and_its_bases_and_nothing_is_evaluated_before_all_is_looked_at(
    command, gpt2_dir, llama_dir, dataset_dir, tmp_path
):
    base = Path(shutil.copytree(gpt2_dir, tmp_path / "base"))
    run = RunDir(tmp_path / "lora")
    done = command(
        "recipes/sft.py", "--model_name_or_path", base, "--dataset_name", dataset_dir, "--output_dir", run.path,
        "--max_steps", 1, "--max_length", 256, "--save_strategy", "no", "--use_peft", "true",
        "--lora_target_modules", "c_attn", "--disable_tqdm", "true",
    )  # fmt: skip
    assert done.status == 0, done.err
    done = command("eval/run.py", run.path, *FEW)
    assert done.status == 0, done.err
    held = Results.read(run.path).hashes
    assert held["base"] == base_model_hash(str(base)) == run.provenance()["base_model_hash"]
    done = command("eval/run.py", shutil.copytree(run.path, tmp_path / "moved"), *FEW)
    assert done.status == 0 and "nothing to do" in done.out, done.err

    nudge(run.model / "adapter_model.safetensors")
    new = ("--model_name_or_path", llama_dir, "--output_dir", tmp_path / "new")
    done = command("eval/run.py", run.path, *new, *FEW)
    assert done.status == 2 and f"weights {held['weights'][:60]}, now " in done.err and "base" not in done.err
    assert not (tmp_path / "new").exists()  # llama would have come first
    done = leaderboard(run.path, "--output_dir", tmp_path / "board")
    assert done.returncode == 2 and "its weights are not those that were evaluated" in done.stderr
    done = command("eval/run.py", run.path, *FEW, "--overwrite")
    assert done.status == 0 and Results.read(run.path).hashes["weights"] != held["weights"], done.err

    done = command("eval/run.py", run.path, *FEW)
    assert done.status == 0 and "nothing to do" in done.out
    nudge(base / "model.safetensors")
    done = command("eval/run.py", run.path, *FEW)
    assert done.status == 2 and "nothing to do" not in done.out


def test_a_model_from_scratch_is_known_by_its_weights_too(command, dataset_dir, tmp_path):
    run = RunDir(tmp_path / "scratch")
    done = command(
        "baselines/scratch/train.py", "--dataset_name", dataset_dir, "--output_dir", run.path, "--max_steps", 1,
        "--layers", 1, "--width", 16, "--heads", 2, "--feed_forward", 16, "--vocabulary_size", 400,
    )  # fmt: skip
    assert done.status == 0, done.err
    for _ in range(2):
        done = command("eval/run.py", run.path, *FEW)
        assert done.status == 0, done.err
    assert "nothing to do" in done.out and set(Results.read(run.path).hashes) == {"weights", "tokenizer"}
    nudge(run.model / "model.safetensors")
    done = command("eval/run.py", run.path, *FEW)
    assert done.status == 2 and "was made with weights " in done.err
    done = leaderboard(run.path, "--output_dir", tmp_path / "board")
    assert done.returncode == 2 and "its weights are not those that were evaluated" in done.stderr


def test_a_run_is_held_against_the_base_that_it_was_made_from_whatever_it_is_called(tmp_path):
    """Two bases of one name in two folders, and one that lies elsewhere by now."""
    run = make_run(tmp_path / "lora", 0.9, base_model="final")
    bases = {"right": ("/moved/final", "b1", 1.5), "wrong": ("final", "b2", 1.9)}
    for name, (called, weights, bits) in bases.items():
        base = make_run(tmp_path / name, bits, "base", base_model=called)
        edit(base / "eval" / "results.json", hashes={"weights": weights, "tokenizer": "t"})
    write_json(run / "provenance.json", {"base_model_hash": "b1", "packages": {}})
    content = report(run, *(tmp_path / name for name in bases), out=tmp_path / "out")
    assert content["models"][0]["reference"] == "right" and "than its base model right" in content["finding"][0]
    content = report(run, tmp_path / "wrong", out=tmp_path / "other")
    assert "than the base model wrong" in content["finding"][0]
    assert any("which they were not made from: lora" in note for note in content["caveats"])


def test_seeds_are_pooled_by_what_was_trained_on_and_not_by_where_it_lay(tmp_path):
    def seeds(*origins, **more):
        runs = []
        for seed, origin in enumerate(origins):
            config = {"seed": seed, "dataset_name": f"/data/{seed}", "model_name_or_path": f"base{seed}", **more}
            runs.append(make_run(tmp_path / f"{len(list(tmp_path.iterdir()))}", 0.9 + seed / 100, config=config))
            write_json(runs[-1] / "provenance.json", origin)
        return report(*runs, out=tmp_path / f"out{len(list(tmp_path.iterdir()))}")["recipes"]

    made_of = {"dataset_hash": "d", "base_model_hash": "b", "packages": {}}
    assert [recipe["seeds"] for recipe in seeds(made_of, made_of)] == [[0, 1]]
    assert seeds(made_of, {**made_of, "base_model_hash": "c"}) == []
    assert seeds(made_of, {**made_of, "extended": [{"step": 4, "max_steps": 4}]}) == []
