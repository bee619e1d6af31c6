"""Answers that have ended leave their batch: the others are written as they would be beside them, by fewer rows."""

import pytest
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    StoppingCriteria,
)

from finllm.models.leaving import _Ending, write

WORDS, ROOM, ROWS = 60, 24, 16
SMALL = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
         "intermediate_size": 16, "num_key_value_heads": 2, "initializer_range": 1.0}  # fmt: skip
MAKE = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, initializer_range=1.0)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "no cache": lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2)),
    "a state": lambda: MambaForCausalLM(MambaConfig(vocab_size=WORDS, hidden_size=16, num_hidden_layers=2)),
}


@pytest.fixture
def model():
    """A model that writes all kinds of words, and in `model.rows` of how many rows each of its passes was."""

    def call(name):
        torch.manual_seed(5)
        made = MAKE[name]().eval()
        made.rows = []
        made.register_forward_pre_hook(
            lambda _, args, given: made.rows.append(len(given["input_ids"])), with_kwargs=True
        )
        return made

    return call


def asked(rows=ROWS, padded=True):
    """Prompts of several lengths, padded on the left."""
    ids = torch.randint(1, WORDS, (rows, 6), generator=torch.Generator().manual_seed(2))
    lengths = torch.arange(rows)[:, None] % (3 if padded else 1)
    mask = (torch.arange(6) >= lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def config_of(**more):
    return GenerationConfig(
        **{"max_new_tokens": ROOM, "do_sample": False, "pad_token_id": 0, "eos_token_id": [58]} | more
    )


def ends_of(model):
    """Words of which each row writes one, the first ones soon and the last ones late."""
    written = model.generate(**asked(), generation_config=config_of(eos_token_id=[WORDS - 1]))[:, 6:]
    model.rows.clear()
    return sorted({int(row[min(number * 3 // 2, written.shape[1] - 1)]) for number, row in enumerate(written)})


class Has(StoppingCriteria):
    """Ends an answer that holds a word, as those do that look for a text."""

    def __init__(self, word, prompt=6):
        self.word, self.prompt = word, prompt

    def __call__(self, input_ids, scores, **others):
        return (input_ids[:, self.prompt :] == self.word).any(1)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("more", [
    {}, {"num_return_sequences": 3}, {"min_new_tokens": 5}, {"min_new_tokens": 17}, {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2}, {"max_new_tokens": 1}, {"max_new_tokens": 2}, {"eos_token_id": [58]},
])  # fmt: skip
def test_the_others_go_on_as_if_all_were_still_there(model, name, more):
    each = more.get("num_return_sequences", 1)
    if each > 1:  # greedily all sequences are one; drawn they depend on how many rows there are
        more = {**more, "do_sample": True, "top_k": 1}
    written = model(name)
    config = config_of(**{"eos_token_id": ends_of(written), **more})
    wanted = written.generate(**asked(), generation_config=config)
    alone = [*written.rows]
    written.rows.clear()
    found = write(written, config, [], **asked())
    assert torch.equal(found, wanted) and config.max_new_tokens == more.get("max_new_tokens", ROOM)
    ended = (torch.isin(wanted[:, 6:], torch.tensor(config.eos_token_id)).cumsum(1) > 0).sum(0)
    assert alone == [ROWS * each] * (wanted.shape[1] - 6) and len(written.rows) == len(alone)
    for step, rows in enumerate(written.rows[1:]):  # as many as had not ended, or fewer than twice that
        going_on = ROWS * each - int(ended[step])
        assert going_on <= rows < 2 * going_on
    if not more or each > 1:
        assert len({*written.rows}) >= 3  # some ended soon, some late


@torch.inference_mode()
def test_who_ends_by_a_text_leaves_too(model):
    written = model("llama")
    config = config_of(eos_token_id=[58])
    wanted = written.generate(**asked(), generation_config=config)
    word = max(range(WORDS), key=lambda word: int((wanted[:, 6:] == word).any(1).sum()))  # which most of them write
    written.rows.clear()
    found = write(written, config, [Has(word)], **asked())
    for one, other in zip(found, wanted, strict=True):  # what stands beyond a text's end is cut by who asked
        end = 6 + [*(other[6:] == word).tolist(), True].index(True)
        assert torch.equal(one[: end + 1], other[: end + 1])
    assert len({*written.rows}) >= 2


@torch.inference_mode()
@pytest.mark.parametrize("name", ["window", "no cache", "a state"])
def test_from_a_cache_of_another_kind_no_row_is_taken(model, name):
    written, given = model(name), asked(padded=False)
    wanted = written.generate(**given, generation_config=config_of())
    written.rows.clear()
    assert torch.equal(write(written, config_of(), [], **given), wanted)
    assert {*written.rows} == {ROWS}


@torch.inference_mode()
def test_rows_after_virtual_tokens_stay(gpt2_dir, monkeypatch):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(gpt2_dir), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    rows = []
    adapted.base_model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["attention_mask"])), with_kwargs=True
    )
    config = config_of(eos_token_id=[*range(1, 600, 3), *range(2, 600, 3)])
    wanted = adapted.generate(**asked(), generation_config=config)
    ended = torch.isin(wanted[:, 6:], torch.tensor(config.eos_token_id)).any(1)
    assert torch.equal(write(adapted, config, [], **asked()), wanted)
    assert {*rows} == {ROWS} and 2 * int(ended.sum()) >= ROWS


@pytest.mark.parametrize(("device", "caches", "wanted"), [
    ("cpu", [None], [True] * 4), ("cpu", [], [True, True, False, False]), ("meta", [None], None),
])  # fmt: skip
def test_all_end_where_half_have_and_rows_can_be_taken_out(device, caches, wanted):
    """Elsewhere than on a CPU a step of fewer rows takes as long."""
    ending = _Ending(config_of(eos_token_id=[3, 8]), [], caches)
    found = ending(torch.tensor([[1, 3], [1, 8], [1, 4], [1, 5]], device=device), None)
    assert (found is ending.ended) == (wanted != [True] * 4)
    assert wanted is None or found.tolist() == wanted
    if wanted == [True, True, False, False]:
        assert ending(torch.tensor([[3, 0], [8, 0], [4, 5], [5, 5]]), None).tolist() == wanted
    few = _Ending(config_of(eos_token_id=[3, 8]), [], caches)(torch.tensor([[1, 3], [1, 5], [1, 4]]), None)
    assert few.tolist() == [True, False, False]
