"""A decoder-only transformer (Radford et al. 2018, section 3.1), small enough to read in one sitting.

Every tensor's name ends in its shape:

    B batch   T tokens   S tokens attended to   C model width   H heads   D head width = C / H
    F feed-forward width   V vocabulary   N positions picked out of B x T   1 a dimension of one

    ids_BT ─▶ token vectors · √C + positions ─▶ layers x Block ─▶ Norm ─▶ hidden_BTC ─▶ logits_NV
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from baselines.scratch.attention import KeyValueCache
from baselines.scratch.blocks import Block
from baselines.scratch.losses import cross_entropy, next_token_pairs
from baselines.scratch.positional import LearnedPositions, SinusoidalPositions
from finllm.run import atomic_open, read_json, write_json


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model: C = `width`, H = `heads`, F = `feed_forward`, V = `vocabulary_size`."""

    vocabulary_size: int
    max_length: int  # tokens that one training text may have
    layers: int
    width: int
    heads: int
    feed_forward: int
    dropout: float
    positions: str  # sinusoidal, learned
    tie_embeddings: bool  # one matrix VC for the tokens read and the tokens written (Press and Wolf 2017)


class CausalTransformer(nn.Module):
    """Reads tokens, predicts each next one from those before it.

    `forward` is what training runs; `hidden` and `logits` are its two halves; `hidden_of_next` goes on with a cache.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        if config.positions == "learned":
            self.positions = LearnedPositions(config.max_length, config.width)
        else:
            self.positions = SinusoidalPositions(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.feed_forward, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        if not config.tie_embeddings:
            self.vocabulary = nn.Linear(config.width, config.vocabulary_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Weights from N(0, 1 / n), n the inputs of a map: what comes out varies as what goes in (LeCun et al. 1998,
        section 4.6). Token and position vectors likewise with n = C. Biases are 0.

        The two maps that write into the residual stream of each block start smaller by 1 / √(2 · layers), so that
        their sum over all blocks does not grow with depth (Radford et al. 2019, section 2.3). That paper's N(0, 0.02²)
        is 1 / n for n = 2,500; a narrow model learns more slowly from it.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                residual = name.endswith("output.weight")
                inputs = parameter.shape[1] * (2 * self.config.layers if residual else 1)
                nn.init.normal_(parameter, std=1 / math.sqrt(inputs))

    def forward(self, ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """The negative log-likelihood of each supervised token, in nats: nll_N, row after row."""
        hidden_NC, labels_N = next_token_pairs(self.hidden(ids_BT), labels_BT)
        return cross_entropy(self.logits(hidden_NC), labels_N)

    def hidden(self, ids_BT: torch.Tensor, caches: list[KeyValueCache] | None = None) -> torch.Tensor:
        """hidden_BTC of texts that start at position 0; padding may follow a text, never precede it.

        Empty `caches` (one a layer) are filled on the way, for `hidden_of_next`.
        """
        positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        return self._layers(ids_BT, positions_1T, caches, causal=True)

    def hidden_of_next(
        self,
        ids_B1: torch.Tensor,
        positions_B1: torch.Tensor,
        caches: list[KeyValueCache],
        visible_BS: torch.Tensor,
    ) -> torch.Tensor:
        """hidden_B1C of one more token of each text. `visible_BS`: which cached tokens, this one included, are text."""
        return self._layers(ids_B1, positions_B1, caches, causal=False, visible_BS=visible_BS)

    def _layers(
        self,
        ids_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        caches: list[KeyValueCache] | None,
        causal: bool,
        visible_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Vaswani et al. 2017, section 3.4: token vectors are multiplied by √C before the positions are added.
        x_BTC = self.tokens(ids_BT) * math.sqrt(self.config.width) + self.positions(positions_BT)
        x_BTC = self.dropout(x_BTC)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x_BTC = block(x_BTC, causal, visible_BS, cache)
        return self.norm(x_BTC)

    @property
    def position_limit(self) -> float:
        """How many positions there are: `max_length` learned ones, or sinusoids without end."""
        return self.config.max_length if self.config.positions == "learned" else math.inf

    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """logits_NV: how likely each token of the vocabulary is to come next."""
        matrix_VC = self.tokens.weight if self.config.tie_embeddings else self.vocabulary.weight
        return functional.linear(hidden_NC, matrix_VC)

    def empty_caches(self, batch: int, length: int) -> list[KeyValueCache]:
        """One cache a layer, with room for `length` tokens of `batch` texts."""
        shape_BHSD = (batch, self.config.heads, length, self.config.width // self.config.heads)
        make = self.tokens.weight.new_empty
        return [KeyValueCache(make(shape_BHSD), make(shape_BHSD)) for _ in self.blocks]

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors`, of these weights or of those given."""
        write_json(folder / "config.json", dataclasses.asdict(self.config))
        with atomic_open(folder / "model.safetensors", "wb") as file:
            file.write(safetensors.torch.save(weights or self.state_dict()))

    @classmethod
    def load(cls, folder: Path) -> CausalTransformer:
        """The model that `save` wrote, on the CPU, in evaluation mode."""
        config = read_json(folder / "config.json")
        del config["schema_version"]
        model = cls(ModelConfig(**config))
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        return model.eval()
