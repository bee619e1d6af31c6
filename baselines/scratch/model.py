"""Three transformers of the same parts, small enough to read in one sitting.

Every tensor's name ends in its shape:

    B batch   T tokens   S tokens attended to   C model width   H heads   D head width = C / H
    F feed-forward width   V vocabulary   N positions picked out of B x T   1 a dimension of one

    as_published   prompt + response ─▶ encoder ─▶ logits        each token sees all: the one to be predicted too
    causal         prompt + response ─▶ decoder ─▶ logits        each token sees those before it
    seq2seq        prompt ─▶ encoder ─▶ keys and values ┐
                   response ───────────────────────────▶ decoder ─▶ logits

    encoder, decoder:   token vectors · √C + positions ─▶ layers x Block ─▶ hidden_BTC
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from baselines.scratch.attention import Keys, KeyValueCache, Visible
from baselines.scratch.blocks import Stack
from baselines.scratch.config import ModelConfig
from baselines.scratch.losses import Objective, next_token_pairs
from baselines.scratch.tokenizer import PAD
from finllm.cpu.loss import linear_cross_entropy
from finllm.cpu.machine import attend_at_any_length
from finllm.errors import UserError, raise_problems
from finllm.files import atomic_open, read_json, write_json
from finllm.models.checked import Shapes, shapes_of


class Transformer(nn.Module):
    """Reads tokens, predicts each next one.

    as_published  a bidirectional encoder trained to predict the next token, which it sees: a low loss and no language
    causal        a decoder (Radford et al. 2018, section 3.1)
    seq2seq       encoder and decoder (Vaswani et al. 2017, section 3.1)

    `forward` is what training runs; `hidden` and `logits` are its two halves; `hidden_of_next` goes on with a cache.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        attend_at_any_length()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        if config.variant != "as_published":
            self.decoder = Stack(config, cross=config.variant == "seq2seq")
        if not config.tie_embeddings:
            self.vocabulary = nn.Linear(config.width, config.vocabulary_size, bias=False)
        if config.variant != "causal":
            self.encoder = Stack(config)
        self._initialise()

    def _initialise(self) -> None:
        """Weights from N(0, 1 / n), n the inputs of a map: what comes out varies as what goes in (LeCun et al. 1998,
        section 4.6). Token and position vectors likewise with n = C. Biases are 0, the factors of a norm 1.

        With pre-norm, the two or three maps that write into the residual stream of each block start smaller by
        1 / √(their number), so that their sum does not grow with depth (Radford et al. 2019, section 2.3). That paper's
        N(0, 0.02²) is 1 / n for n = 2,500; a narrow model learns more slowly from it.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                inputs = parameter.shape[1]
                if name.endswith("output.weight") and self.config.norm == "pre":
                    cross = self.config.variant == "seq2seq" and name.startswith("decoder")
                    inputs *= (3 if cross else 2) * self.config.layers
                nn.init.normal_(parameter, std=1 / math.sqrt(inputs))

    def forward(
        self,
        ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        source_BS: torch.Tensor | None = None,
        objective: Objective = Objective(),  # noqa: B008  it is frozen
    ) -> torch.Tensor:
        """The loss, summed over the supervised tokens, in nats; without an objective their negative log-likelihood."""
        hidden_NC, labels_N, texts_N = next_token_pairs(self.hidden(ids_BT, self.read(source_BS)), labels_BT)
        if objective == Objective():  # the same without holding N x V logits
            return linear_cross_entropy(hidden_NC, self.matrix_VC, labels_N)[0]
        return objective(self.logits(hidden_NC), labels_N, texts_N).sum()

    def nll(self, ids_BT: torch.Tensor, labels_BT: torch.Tensor, source_BS: torch.Tensor | None = None) -> torch.Tensor:
        """The negative log-likelihood of each text's supervised tokens, in nats: nll_B, float64."""
        hidden_NC, labels_N, texts_N = next_token_pairs(self.hidden(ids_BT, self.read(source_BS)), labels_BT)
        nll_N = linear_cross_entropy(hidden_NC, self.matrix_VC, labels_N)[1]
        return nll_N.new_zeros(len(ids_BT), dtype=torch.float64).index_add(0, texts_N, nll_N.double())

    def read(self, source_BS: torch.Tensor | None) -> list[Keys] | None:
        """What the encoder makes of the prompts, ready for each layer's cross-attention; None but for seq2seq."""
        if self.config.variant != "seq2seq":
            return None
        encoded_BSC, visible = self._encode(source_BS)
        return [Keys(*block.cross_attention.keys_of(encoded_BSC), visible) for block in self.decoder.blocks]

    def _encode(self, ids_BT: torch.Tensor) -> tuple[torch.Tensor, Visible]:
        visible = Visible(keys_BS=ids_BT != PAD)
        return self.encoder(self._vectors(ids_BT), _positions(ids_BT), visible), visible

    def hidden(
        self, ids_BT: torch.Tensor, prompt: list[Keys] | None = None, caches: list[KeyValueCache] | None = None
    ) -> torch.Tensor:
        """hidden_BTC of texts that start at position 0; padding may follow a text, never precede it.

        `prompt` is what `read` returned. Empty `caches` (one a layer) are filled on the way, for `hidden_of_next`.
        """
        if self.config.variant == "as_published":
            return self._encode(ids_BT)[0]
        # The causal rule hides the padding too: it stands after every token that counts.
        return self.decoder(self._vectors(ids_BT), _positions(ids_BT), Visible(causal=True), caches, prompt)

    def hidden_of_next(
        self,
        ids_B1: torch.Tensor,
        positions_B1: torch.Tensor,
        caches: list[KeyValueCache],
        visible_BS: torch.Tensor,
        prompt: list[Keys] | None = None,
    ) -> torch.Tensor:
        """hidden_B1C of one more token of each text. `visible_BS`: which cached tokens, this one included, are text.

        Not for as_published: there every new token changes what all earlier ones are, and nothing can be kept.
        """
        return self.decoder(self._vectors(ids_B1), positions_B1, Visible(keys_BS=visible_BS), caches, prompt)

    def _vectors(self, ids_BT: torch.Tensor) -> torch.Tensor:
        # Vaswani et al. 2017, section 3.4: token vectors are multiplied by √C before the positions are added.
        return self.tokens(ids_BT) * math.sqrt(self.config.width)

    @property
    def matrix_VC(self) -> torch.Tensor:
        return self.tokens.weight if self.config.tie_embeddings else self.vocabulary.weight

    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        """logits_NV: how likely each token of the vocabulary is to come next."""
        return functional.linear(hidden_NC, self.matrix_VC)

    @property
    def position_limit(self) -> float:
        """How many positions there are: `max_length` learned ones, else without end."""
        return self.config.max_length if self.config.positions == "learned" else math.inf

    def empty_caches(self, batch: int, length: int) -> list[KeyValueCache]:
        """One cache a layer, with room for `length` tokens of `batch` texts."""
        shape_BHSD = (batch, self.config.heads, length, self.config.width // self.config.heads)
        make = self.tokens.weight.new_empty
        return [KeyValueCache(make(shape_BHSD), make(shape_BHSD)) for _ in self.decoder.blocks]

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors`, of these weights or of those given."""
        write_json(folder / "config.json", dataclasses.asdict(self.config))
        with atomic_open(folder / "model.safetensors", "wb") as file:
            file.write(safetensors.torch.save(weights or self.state_dict()))

    @classmethod
    def load(cls, folder: Path) -> Transformer:
        """The model that `save` wrote, on the CPU, in evaluation mode."""
        path = folder / "config.json"
        held = read_json(path)
        del held["schema_version"]
        fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
        problems = [f"unknown key '{name}'" for name in held if name not in fields]
        problems += [
            f"{name} is missing"
            for name, field in fields.items()
            if name not in held and field.default is dataclasses.MISSING
        ]
        raise_problems(problems, f"{path}; put back the file that training wrote")
        shapes = shapes_of(folder / "model.safetensors")
        wrong = [f"{name} is {held[name]!r}" for name in ("layers", "width", "heads", "feed_forward", "max_length",
                 "vocabulary_size") if type(held[name]) is not int or held[name] < 1]  # fmt: skip
        if not wrong and held["layers"] > len(shapes):
            wrong = [f"layers is {held['layers']:,} and model.safetensors has {len(shapes):,} tensors"]
        if not wrong and held["width"] % held["heads"]:
            wrong = [f"heads is {held['heads']} and does not divide width, {held['width']}"]
        raise_problems(wrong, f"{path}; put back the file that training wrote")
        try:
            with torch.device("meta"):  # no memory yet: sizes are held against those of the weights first
                check_shapes(cls(ModelConfig(**held)), shapes, folder / "model.safetensors")
        except UserError:
            raise
        except Exception as error:  # of sizes that do not go together torch may raise anything
            raise UserError(f"{path} describes no model: {error}; put back the file that training wrote") from error
        model = cls(ModelConfig(**held))
        load_weights(model, folder / "model.safetensors")
        return model.eval()


def _positions(ids_BT: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]


def load_weights(model: Transformer, path: Path) -> None:
    """Put the weights of a file into a model; a `UserError` where they are those of another config."""
    weights = read_weights(path)
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
    model.load_state_dict(weights)


def check_shapes(model: Transformer, held: Shapes, path: Path) -> None:
    """Refuse weights that are not, in name and shape, those of the model."""
    held = {_name_of(name): shape for name, shape in held.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differences = [
        f"{name} is {held.get(name, 'not there')}, the config asks for {expected.get(name, 'none')}"
        for name in {**expected, **held}
        if expected.get(name) != held.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - 1:,} more" if len(differences) > 1 else ""
        raise UserError(
            f"{path} holds the weights of another config: {differences[0]}{more}; put back the config that it was "
            "trained with, or train again into another --output_dir"
        )


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name. Models saved before there were three have names without their `decoder.`"""
    shapes_of(path)
    return {_name_of(name): tensor for name, tensor in safetensors.torch.load_file(path).items()}


def _name_of(name: str) -> str:
    return f"decoder.{name}" if name.startswith(("positions.", "blocks.", "norm.")) else name
