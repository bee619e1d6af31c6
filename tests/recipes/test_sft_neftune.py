"""NEFTune by the command line: it moves the losses of training, and of nothing else."""

import json

import pytest

LORA = ("--use_peft", "true", "--lora_target_modules", "all-linear", "--lora_dropout", 0)


@pytest.mark.parametrize(
    ("base", "ways"),
    [("llama_dir", {"joined": (), "padded": ("--join_rows", "false")}), ("gpt2_dir", {"lora": LORA})],
)
def test_noise_on_embeddings_is_there_in_training_only(sft, request, base, ways, tmp_path):
    model = request.getfixturevalue(base)
    for way, flags in ways.items():
        validated, trained = {}, {}
        for alpha in (None, 20, 20.0):
            noise = () if alpha is None else ("--neftune_noise_alpha", alpha)
            done, run = sft(
                *flags, *noise, "--base_dropout", 0, output_dir=tmp_path / f"{way} {alpha!r}", steps=1, model=model
            )
            assert done.status == 0, done.err
            lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
            validated[repr(alpha)] = lines[0]["validation_loss"]
            trained[repr(alpha)] = next(line["loss"] for line in lines if "loss" in line)
        assert len({*validated.values()}) == 1, way
        assert trained["20"] == trained["20.0"], "the same seed draws the same noise"
        assert abs(trained["20"] - trained["None"]) > 1e-3, way


def test_noise_is_as_strong_on_joined_rows_as_on_padded_ones(sft, llama_dir, tmp_path, monkeypatch):
    """Its scale is alpha / sqrt(length · width), and rows end to end are longer than any of them."""
    from transformers.integrations import neftune

    strengths = {}
    hook = neftune.neftune_post_forward_hook

    def spied(module, inputs, output):
        noisy = hook(module, inputs, output)
        if module.training:
            strengths.setdefault(way, []).append(float((noisy - output).abs().max()))
        return noisy

    monkeypatch.setattr(neftune, "neftune_post_forward_hook", spied)
    for way, flags in (("joined", ()), ("padded", ("--join_rows", "false"))):
        done, _ = sft(*flags, "--neftune_noise_alpha", 5, output_dir=tmp_path / way, steps=2, model=llama_dir)
        assert done.status == 0, done.err
    assert strengths["joined"] == pytest.approx(strengths["padded"], rel=0.05)
