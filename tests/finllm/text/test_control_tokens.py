"""Texts that spell control tokens, through tokenizers of every kind: they are written as text, or named."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from finllm.errors import UserError
from finllm.models.find import load_tokenizer
from finllm.text.prompts import build_prompt
from finllm.text.tokens import count_tokens, encode, encode_prompt, encode_response, tokenize
from tests.conftest import ROOT

LINES = (ROOT / "finllm/data/sample/saving.jsonl").read_text(encoding="utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]


def trained(model, trainer, pre_tokenizer, decoder=None, normalizer=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if decoder:
        tokenizer.decoder = decoder
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([*LINES, "[]<>|_/#"], trainer)
    return tokenizer


def byte_level(*special):
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def gpt2():
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(end), bos_token=end, eos_token=end, unk_token=end)


def opt():
    """BOS in front, which is EOS too."""
    tokenizer = byte_level("<pad>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def chat():
    """Control tokens that have no task by name, one that is only reserved, and an added word that is text."""
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens(["<|reserved|>"])
    tokenizer.add_tokens(["<tool>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"]
    )


def llama():
    """BPE over words with a mark for the space, bytes for what it does not know, and an unknown token all the same."""
    numbers = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *numbers], show_progress=False
    )
    model = json.loads(trained(models.BPE(), trainer, pre_tokenizers.Metaspace()).to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        normalizers.BertNormalizer(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", eos_token="[SEP]",
    )  # fmt: skip


def unigram():
    """SentencePiece's other model, whose pieces hold the control tokens: it cannot write them otherwise."""
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<unk>", "<pad>"], unk_token="<unk>", show_progress=False
    )
    tokenizer = trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def words():
    """A word an id; what it does not know is EOS, the token that would end an answer."""
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=["<eos>"], show_progress=False)
    tokenizer = trained(models.WordLevel(unk_token="<eos>"), trainer, pre_tokenizers.WhitespaceSplit())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<eos>", eos_token="<eos>")


WRITE = {"gpt2": gpt2, "opt": opt, "chat": chat, "llama": llama, "bert": bert, "byt5, in Python": ByT5Tokenizer}
CANNOT = {"unigram": unigram, "words": words}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tokenizer by name, saved and loaded as the recipe does."""

    def load(name):
        made = ({**WRITE, **CANNOT})[name]()
        folder = tmp_path_factory.mktemp("tokenizer")
        made.save_pretrained(folder)
        return load_tokenizer(str(folder))

    return load


def control_of(tokenizer) -> set[int]:
    return {*tokenizer.all_special_ids, *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)}


@pytest.mark.parametrize("name", WRITE)
def test_text_that_spells_a_control_token_is_written_as_text(saved, name):
    tokenizer = saved(name)
    control = control_of(tokenizer)
    begins = [id for id in tokenizer("a").input_ids if id in control and id != tokenizer.eos_token_id]
    if name == "opt":
        begins = [tokenizer.bos_token_id]
    for id in sorted(control):
        text = f"Yes {tokenizer.convert_ids_to_tokens(id)} and{tokenizer.convert_ids_to_tokens(id)}"
        response, prompt = encode_response(tokenizer, text), encode_prompt(tokenizer, build_prompt(text))
        assert not control & {*response[:-1]} and response[-1] == tokenizer.eos_token_id, text
        assert [id for id in prompt if id in control] == begins, text
        assert prompt[: len(begins)] == begins
        written = tokenizer.decode(response[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(written.split()).casefold() == "".join(text.split()).casefold()
        assert count_tokens(tokenizer, [text]) == [len(response) - 1]


@pytest.mark.parametrize("name", [*WRITE, "unigram"])
def test_ordinary_texts_have_the_tokens_that_they_always_had(saved, name):
    tokenizer = saved(name)
    assert len(ROWS) > 40
    for row in ROWS:
        prompt = build_prompt(row["instruction"], row.get("input", ""))
        ids = tokenizer(prompt).input_ids
        assert encode_prompt(tokenizer, prompt) == (ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids)
        response = tokenizer(row["output"], add_special_tokens=False).input_ids
        assert encode_response(tokenizer, row["output"]) == [*response, tokenizer.eos_token_id]


def test_an_added_word_that_controls_nothing_stays_one_token(saved):
    tokenizer = saved("chat")
    assert tokenizer.convert_tokens_to_ids("<tool>") in encode_response(tokenizer, "Use <tool> now")


@pytest.mark.parametrize(("name", "text"), [("unigram", "Yes </s> no"), ("words", "Yes <eos> no"), ("words", "Żółw")])
def test_what_a_tokenizer_cannot_write_is_refused_and_never_a_control_token(saved, name, text):
    tokenizer = saved(name)
    for encoder in (encode_prompt, encode_response):
        with pytest.raises(UserError, match=r"which this tokenizer can only write as a control token; change the text"):
            encoder(tokenizer, text)


def rows_with(*outputs) -> Dataset:
    return Dataset.from_list(
        [{"id": f"row{n}", "instruction": "Why?", "input": "", "output": output} for n, output in enumerate(outputs)]
    )


def test_rows_are_counted_or_dropped_by_name(saved):
    outputs = ("Yes.", "Yes </s> no", "It is </s>")
    for name, spells, dropped in (("opt", 2, []), ("unigram", 0, ["row1", "row2"])):
        tokenizer = saved(name)
        tokenized, report = tokenize(tokenizer, rows_with(*outputs), None)
        assert report.spells_control == spells
        assert [id for id, _ in report.dropped] == dropped
        assert all("its text holds '</s>'" in reason for _, reason in report.dropped)
        for labels in tokenized["labels"]:
            assert labels.count(tokenizer.eos_token_id) == 1 and labels[-1] == tokenizer.eos_token_id
    with pytest.raises(UserError, match=r"all 1 rows were dropped: its text holds '</s>'.*take another base model"):
        tokenize(saved("unigram"), rows_with("A </s>"), None)


def test_a_character_that_is_unknown_controls_nothing(saved):
    encoded = encode(saved("unigram"), {"instruction": "Żółw?", "input": "", "output": "Żółw"})
    assert not encoded["spells"] and not encoded["unwritable"]


def test_questions_reach_the_model_as_text(gpt2_dir, command, monkeypatch, tmp_path):
    """`finllm generate`, for one question and for a file of them."""
    from transformers import GPT2LMHeadModel

    asked = []
    generate = GPT2LMHeadModel.generate

    def spied(self, *arguments, **others):
        asked.append(others["input_ids"])
        return generate(self, *arguments, **others)

    monkeypatch.setattr(GPT2LMHeadModel, "generate", spied)
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"instruction": "Is <|endoftext|> an end?"}) + "\n")
    few = ("--max_new_tokens", 2)
    done = command("finllm/cli.py", "generate", gpt2_dir, "Is <|endoftext|> an end?", *few)
    assert done.status == 0, done.err
    done = command("finllm/cli.py", "generate", gpt2_dir, "--file", file, "--output", tmp_path / "answers.jsonl", *few)
    assert done.status == 0, done.err
    tokenizer = AutoTokenizer.from_pretrained(gpt2_dir)
    assert len(asked) == 2 and torch.equal(*asked)
    assert tokenizer.eos_token_id not in asked[0]
    assert "Is <|endoftext|> an end?" in tokenizer.decode(asked[0][0])


def test_a_base_model_that_cannot_write_a_text_is_refused_by_command(llama_dir, saved, command, tmp_path):
    """`finllm generate` has exit status 2, names the token and answers nothing; evaluation names it too."""
    import shutil

    from eval.models.transformers_lm import load_base

    base = tmp_path / "base"
    shutil.copytree(llama_dir, base)
    saved("unigram").save_pretrained(base)
    done = command("finllm/cli.py", "generate", base, "What is </s>?")
    assert done.status == 2 and "its text holds '</s>'" in done.err and done.out == ""
    done = command("finllm/cli.py", "generate", base, "What is tax?", "--max_new_tokens", 2)
    assert done.status == 0, done.err
    with pytest.raises(UserError, match="its text holds '</s>'"):
        load_base(str(base), 2).encode("What is tax?", "It is </s>")
