"""An adapter that was saved, put on its base model again: proved to fit before anything is allocated."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from finllm.cpu.machine import memory_bytes
from finllm.errors import UserError, did_you_mean, raise_problems
from finllm.models import checked, conv1d
from finllm.models.adapters import as_it_answers
from finllm.models.methods import known_method
from finllm.models.patterns import check_patterns
from finllm.models.skeletons import numbers_at_most, shapes_made

FEW = 3  # tensors of an adapter's file that are named
MADE_LATER = ".lora_monteclora_sampler."  # MonteCLoRA's, which peft makes where there is memory only


def load_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`base` with the adapter saved in `folder`, which comes from others.

    Its tensors must be, in name and shape, those that its config makes on this very model. Else peft would allocate
    what the config asks for, or leave out what the file lacks. Where it was trained on layers that had been turned
    (finllm.models.conv1d), those of `base` are turned too.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model_state_dict

    held, shapes = checked.check_adapter(folder)
    kind, place = held.get("peft_type"), folder / checked.ADAPTER_CONFIG
    if kind not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        known = [str(each.value) for each in PEFT_TYPE_TO_CONFIG_MAPPING]
        raise UserError(
            f"{place}: peft_type is {kind!r}{did_you_mean(str(kind), known)}; peft has {', '.join(sorted(known))}"
        )
    if reason := known_method(str(kind)).refused:
        raise UserError(f"{place}: peft_type is {kind!r}; {reason}")
    if conv1d.was_turned(folder):
        conv1d.to_linear(base)
    check_patterns(held, base, str(place))
    own = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    what = f"{folder}, whose weights are not those that its config makes"
    try:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(str(folder), trust_remote_code=False)
        made = shapes_made(base, config)
        if made is not None:
            raise_problems(_differences(made, shapes, own), what, FEW)
        elif 4 * numbers_at_most(config, base) > memory_bytes():
            raise ValueError("its numbers are larger than this machine's memory")
        adapted = PeftModel.from_pretrained(base, str(folder), trust_remote_code=False)
        if made is None:
            saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            raise_problems(_differences({name: tuple(t.shape) for name, t in saved.items()}, shapes, own), what, FEW)
    except UserError:
        raise
    except Exception as error:  # of a config of somebody else's a library may raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{place} makes no adapter of {base.config.name_or_path}: {reason}") from error
    return as_it_answers(adapted)


def _differences(made: checked.Shapes, held: checked.Shapes, base: checked.Shapes) -> list[str]:
    """What an adapter's file lacks, has in another shape, or has beside; layers of the base may be saved with it."""
    found = [
        f"{name} is {held.get(name, 'missing')} and must be {shape}"
        for name, shape in made.items()
        if held.get(name) != shape
    ]
    beside = [name for name in held if name not in made and name.removeprefix("base_model.model.") not in base]
    found += [f"{name} belongs to nothing" for name in beside if MADE_LATER not in name]
    return found
