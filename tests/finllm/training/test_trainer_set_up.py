"""What a trainer is made of and what it saves, for every kind of model, adapter, device and engine that there is."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer

from finllm.errors import UserError
from finllm.training import trainer as module
from finllm.training.resumable import ResumableTrainer
from finllm.training.trainer import SupervisedTrainer


class Device(SimpleNamespace):
    def __str__(self):
        return self.type


class Base(nn.Module):
    """Three weights in bfloat16, the last of which does not train; notes which attention it is given."""

    def __init__(self, adapted=False):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(3)])
        self.weights[2].requires_grad_(False)
        self.config = SimpleNamespace(_attn_implementation="eager")
        self.attention = []
        if adapted:
            self.peft_config = {"default": None}

    def set_attn_implementation(self, name):
        self.attention.append(name)


def arguments(device="cpu", **settings):
    defaults = {"torch_compile": False, "join_rows": None, "packing": False, "dataset_kwargs": None, "lora_fa": False}
    return SimpleNamespace(device=Device(type=device), **defaults | settings)


@pytest.fixture
def made(monkeypatch):
    """Make a trainer of which transformers' own part is left out; what it was given, and what was done to its model."""
    told = {"head": [], "a": []}

    def init(self, **given):
        told["given"], self.model, self.args, self.data_collator = given, given["model"], given["args"], "padding"

    monkeypatch.setattr(ResumableTrainer, "__init__", init)
    monkeypatch.setattr(module.joined, "can_join", lambda model: model.joins)
    monkeypatch.setattr(module, "base_of", lambda model: model)
    monkeypatch.setattr(module, "add_supervised_head", told["head"].append)
    monkeypatch.setattr(module.optimizers, "keep_a_as_drawn", told["a"].append)
    monkeypatch.setattr(
        module, "prove", lambda trainer: [trainer._may_join, trainer.joins_rows, trainer.uses_own_logits]
    )

    def make(joins=True, adapted=False, stops=(), more=None, **settings):
        model = Base(adapted)
        model.joins = joins
        return SupervisedTrainer(model, args=arguments(**settings), stops=stops, **more or {}), told

    return make


@pytest.mark.parametrize(("settings", "may"), [
    ({}, True), ({"joins": False}, False), ({"device": "cuda"}, False), ({"torch_compile": True}, False),
    ({"join_rows": True}, True), ({"join_rows": False}, True), ({"joins": False, "join_rows": False}, False),
])  # fmt: skip
def test_rows_may_be_joined_on_a_cpu_alone_and_by_models_that_can(made, settings, may):
    found, told = made(**settings)
    assert found.proofs == [may, False, False]
    assert told["head"] == [found.model] and told["a"] == []
    assert (found._padding_collator, found._own_attention) == ("padding", "eager")


@pytest.mark.parametrize("settings", [{"joins": False}, {"device": "cuda"}, {"torch_compile": True}])
def test_rows_that_are_to_be_joined_and_cannot_be_are_refused(made, settings):
    with pytest.raises(UserError, match=r"join_rows is true and Base on '(cpu|cuda)' cannot"):
        made(join_rows=True, **settings)


def test_what_sft_trainer_is_given(made):
    found, told = made(more={"callbacks": ["own"], "run": "run"}, stops=(5, 6))
    given = told["given"]
    assert given.pop("compute_metrics") == found._validated
    assert given == {"model": found.model, "args": found.args, "callbacks": ["own", found.learning], "run": "run"}
    assert found._stops == (5, 6)
    assert made()[1]["given"]["callbacks"] != ["own", found.learning]


@pytest.mark.parametrize(("packing", "before", "after"), [
    (False, None, {"skip_prepare_dataset": True}), (False, {"x": 1}, {"x": 1, "skip_prepare_dataset": True}),
    (True, {"x": 1}, {"x": 1}), (True, None, None),
])  # fmt: skip
def test_rows_are_prepared_by_trl_under_packing_alone(made, packing, before, after):
    assert made(packing=packing, dataset_kwargs=before)[0].args.dataset_kwargs == after


def test_the_first_matrices_of_lora_fa_stay_as_they_are_drawn(made):
    found, told = made(lora_fa=True)
    assert told["a"] == [found.model]


@pytest.mark.parametrize(("device", "adapted", "cast"), [
    ("cpu", False, True), ("cpu", True, True), ("cuda", True, True), ("cuda", False, False),
])  # fmt: skip
def test_what_trains_is_float32_on_a_cpu_and_in_an_adapter(made, device, adapted, cast):
    found, _ = made(device=device, adapted=adapted)
    trains = torch.float32 if cast else torch.bfloat16
    assert [weight.dtype for weight in found.model.weights] == [trains, trains, torch.bfloat16]


def test_a_way_is_the_models_attention_the_form_of_a_batch_and_the_kind_of_logits(made):
    found, _ = made()
    steps = [("joined", "head"), ("joined", "logits"), ("padded", "logits"), ("padded", "head"), ("joined", "head")]
    seen = []
    for rows, loss in steps:
        found.set_way(rows, loss)
        seen.append((found.joins_rows, found.uses_own_logits, found.data_collator))
    join = module.joined.collate
    assert seen == [(True, False, join), (True, True, join), (False, True, "padding"), (False, False, "padding"),
                    (True, False, join)]  # fmt: skip
    assert found.model.attention == [module.joined.NAME, "eager", module.joined.NAME]  # each change, and no other


def test_virtual_tokens_stand_among_the_ids_of_joined_rows(made, monkeypatch):
    found, _ = made()
    monkeypatch.setattr(module.virtual, "tokens_among_ids", lambda model: 3 if model is found.model else 7)
    found.set_way("joined", "head")
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
    assert found.data_collator(rows)["input_ids"][0].tolist()[:6] == [-1, -1, -1, 5, 6, 7]
    found.set_way("padded", "head")
    assert found.data_collator == "padding"


@pytest.mark.parametrize("rows", ["joined", "padded"])
def test_the_proof_of_dropout_is_kept_and_made_without_virtual_tokens(made, monkeypatch, rows):
    found, _ = made()
    monkeypatch.setattr(module.virtual, "tokens_among_ids", lambda model: 3)
    monkeypatch.setattr(module, "prove_dropout_of", lambda trainer, share: (trainer.data_collator, share))
    found.set_way(rows, "head")
    before = found.data_collator
    found.prove_dropout(0.25)
    assert found.proofs[3:] == [(module.joined.collate if rows == "joined" else "padding", 0.25)]
    assert found.data_collator is before and before is not module.joined.collate


@pytest.mark.parametrize("given", [None, "other"])
def test_an_optimizer_is_made_once_of_the_model_that_is_asked_for(made, monkeypatch, given):
    found, _ = made()
    found.optimizer, found.get_decay_parameter_names = None, lambda model: [f"{model}'s", f"{model}'s"]
    asked = []
    monkeypatch.setattr(module.optimizers, "create", lambda *of: asked.append(of) or "made")
    monkeypatch.setattr(Trainer, "create_optimizer", lambda self, model: (self.optimizer, model))
    whole = given or found.model
    assert found.create_optimizer(given) == found.create_optimizer(given) == ("made", given)
    assert asked == [(found.args, whole, {f"{whole}'s"})]


def test_without_a_budget_or_groups_the_samplers_are_not_ours(made, monkeypatch):
    found, _ = made()
    found.args.max_tokens_per_batch, found.args.train_sampling_strategy = None, "random"
    found.train_dataset = None
    monkeypatch.setattr(Trainer, "_get_train_sampler", lambda self, dataset: ("theirs", dataset))
    assert found._get_train_sampler("rows") == ("theirs", "rows") and found._get_train_sampler() == ("theirs", None)
    sampler = found._get_eval_sampler([5, 6, 7])
    assert type(sampler) is SequentialSampler and list(sampler) == [0, 1, 2]


def test_the_warning_of_rows_without_a_mask_is_no_warning_here():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addHandler(handler)
    try:
        logger.warning("We strongly recommend passing in an `attention_mask` since your input has pads")
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
    assert said == ["something else"]


# What is saved -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saving(made, monkeypatch, tmp_path):
    """A trainer that has come to its end, and what it does to the folder that it saves, in order."""

    def make(held=7, stops=(), first=True, fsdp=False, deepspeed=False):
        found, _ = made(stops=stops)
        found.done = []
        found.run = SimpleNamespace(path=tmp_path, model=tmp_path / "model")
        found.model.generation_config = SimpleNamespace(eos_token_id=held, repetition_penalty=1.3)
        found.processing_class = SimpleNamespace(bos_token_id=1, pad_token_id=2)
        found.accelerator = SimpleNamespace(unwrap_model=lambda model: ("bare", model))
        found.is_world_process_zero = lambda: first
        found.is_fsdp_enabled, found.is_deepspeed_enabled = fsdp, deepspeed
        found.proofs = ["before"]
        found.learning = SimpleNamespace(proof=lambda model: ["learned"])
        monkeypatch.setattr(module, "allocation_proof", lambda model: ["allocated"])
        work = tmp_path / ".model"

        def save_model(folder):
            work.mkdir()
            (work / "training_args.bin").write_text("")
            found.done.append(("save", folder))

        def note(name, result=None):
            return lambda *given: found.done.append((name, *given)) or result

        found.save_model = save_model
        monkeypatch.setattr(module.checkpoints, "check_weights", note("check"))
        monkeypatch.setattr(module.checkpoints, "move_whole", note("move"))
        monkeypatch.setattr(module.conv1d, "write_record", note("record"))
        monkeypatch.setattr(module.starts, "save_as_plain_lora", note("plain"))
        monkeypatch.setattr(module, "prove_saved", note("prove", ["saved"]))
        return found, work

    return make


@pytest.mark.parametrize(("held", "stops", "saved"), [
    (7, (), 7), (None, (), None), ([7, 8], (), [7, 8]), (7, (9,), [9, 7]), (7, (7,), 7), ([8, 7], (7, 9), [7, 9, 8]),
    (None, (9,), 9),
])  # fmt: skip
def test_what_is_saved_stops_at_every_end_and_holds_nothing_else_of_the_base(saving, held, stops, saved):
    found, work = saving(held, stops)
    found.save_to_run("load")
    config = json.loads((work / "generation_config.json").read_text())
    assert (config.get("eos_token_id"), config["bos_token_id"], config["pad_token_id"]) == (saved, 1, 2)
    assert "repetition_penalty" not in config and found.model.generation_config.eos_token_id == saved


def test_a_model_is_checked_and_proved_before_it_has_its_name(saving, tmp_path):
    found, work = saving()
    found.save_to_run("load")
    model = found.model
    assert found.done == [("save", str(work)), ("check", work), ("record", model, work),
                          ("plain", ("bare", model), work), ("prove", found, work, "load"),
                          ("move", work, tmp_path / "model")]  # fmt: skip
    assert found.proofs == ["before", "learned", "allocated", "saved"] and not (work / "training_args.bin").exists()


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_of_a_sharded_model_no_process_can_prove_anything(saving, engine):
    found, _ = saving(**{engine: True})
    found.save_to_run("load")
    assert [name for name, *_ in found.done] == ["save", "check", "record", "plain", "move"]
    assert found.proofs == ["before"]


def test_other_processes_save_their_shards_and_no_more(saving):
    found, work = saving(first=False)
    found.save_to_run("load")
    assert found.done == [("save", str(work))] and (work / "training_args.bin").exists()


def test_a_generation_config_that_was_saved_stays(saving):
    found, work = saving()
    save = found.save_model
    found.save_model = lambda folder: (save(folder), (work / "generation_config.json").write_text("{}"),
                                       (work / "training_args.bin").unlink())  # fmt: skip
    found.save_to_run("load")
    assert (work / "generation_config.json").read_text() == "{}"


@pytest.mark.parametrize("wrote", [True, False])
def test_what_a_full_disk_left_is_removed(saving, wrote):
    found, work = saving()

    def save_model(folder):
        if wrote:
            work.mkdir()
        raise OSError(28, "No space left on device")

    found.save_model = save_model
    with pytest.raises(Exception, match="No space left on device"):
        found.save_to_run("load")
    assert not work.exists() and not found.done
