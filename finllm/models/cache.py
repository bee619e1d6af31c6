"""One token after another, cheaper, on any model that keeps transformers' plain cache. No number changes by it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from finllm.models.adapters import base_of

LEAST_ROOM = 32  # tokens


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer, (B, heads, T, width), at the beginning of buffers that have room for more.

    transformers' own joins what it holds and what is new for each token, so it copies all of it each time. Here that
    happens when the room is used up, which then grows by a quarter.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = {}
        self.keys = self._with("keys", key_states)
        self.values = self._with("values", value_states)
        return self.keys, self.values

    def _with(self, name: str, new: Tensor) -> Tensor:
        held, room = getattr(self, name), self._rooms.get(name)
        before = held.shape[-2] if held.numel() else 0
        after = before + new.shape[-2]
        # What others put in the place of these (rows chosen anew, a cut) begins elsewhere or has other rows.
        ours = room is not None and room.data_ptr() == held.data_ptr() and room.shape[:-2] == held.shape[:-2]
        if not ours or room.shape[-2] < after:
            more = max(LEAST_ROOM, after // 4)
            room = self._rooms[name] = new.new_empty(*new.shape[:-2], after + more, new.shape[-1])
            if before:
                room[..., :before, :] = held
        room[..., before:after, :] = new
        return room[..., :after, :]


@contextmanager
def roomy_cache(model: PreTrainedModel) -> Iterator[list[DynamicCache]]:
    """Inside, the cache that `generate` makes for the model has room, where it is transformers' plain one; the list is
    of these.

    Which cache a model has, and whether it takes any, is for transformers to say: what it has made is changed, and only
    where each of its layers keeps all keys and values, as yet none.
    """
    base = base_of(model)
    own, made = base._prepare_cache_for_generation, []

    def prepare(generation_config: GenerationConfig, given: dict[str, Any], *others: Any, **more: Any) -> None:
        own(generation_config, given, *others, **more)
        cache = given.get("past_key_values")
        if type(cache) is DynamicCache and all(
            type(layer) is DynamicLayer and not layer.is_initialized for layer in cache.layers
        ):
            cache.layers = [RoomyLayer() for _ in cache.layers]
            made.append(cache)

    base._prepare_cache_for_generation = prepare
    try:
        yield made
    finally:
        del base._prepare_cache_for_generation


@contextmanager
def head_of_last_positions(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the head is given its positions in a tensor of their own.

    After a prompt it is asked for the last position of each row alone, a piece of a larger tensor, and torch then
    copies the head's weights once for each row: of GPT-2 and 32 rows, 2.4 GB in bfloat16 for one token.
    """
    head = base_of(model).get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(
        lambda _, given: tuple(each.contiguous() if isinstance(each, Tensor) else each for each in given)
    )
    try:
        yield
    finally:
        hook.remove()
