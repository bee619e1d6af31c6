"""Text to numbers and back by SentencePiece (Kudo and Richardson 2018), trained on the training split alone.

Byte-pair encoding (Sennrich et al. 2016) joins the most frequent neighbours until the vocabulary is full; the unigram
model (Kudo 2018) starts with many pieces and drops those it misses least. Every text survives encode and decode
unchanged: nothing is normalised, white space is kept, and a character without a piece of its own becomes its bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from finllm.errors import UserError
from finllm.files import atomic_open
from finllm.text.prompts import WITH_INPUT, WITHOUT_INPUT

PAD, UNKNOWN, BOS, EOS = 0, 1, 2, 3
SPACE = "\u2581"  # what SentencePiece writes for a space inside a piece


class Tokenizer:
    """A trained SentencePiece model: `encode` and `decode`, without BOS and EOS, which the caller adds."""

    def __init__(self, model: bytes):
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._bytes_of_space = [self._pieces.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int, kind: str = "bpe") -> Tokenizer:
        """Train on `texts`; `kind` is bpe or unigram. The same texts give the same model.

        The words of the prompt template, the same in every example, are one piece each: a prompt is shorter by half.
        Raises a `UserError` with the limit when the texts do not hold `vocabulary_size` pieces, or more are needed.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type=kind,
                vocab_size=vocabulary_size,
                pad_id=PAD,
                unk_id=UNKNOWN,
                bos_id=BOS,
                eos_id=EOS,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                user_defined_symbols=[part.replace(" ", SPACE) for part in template_parts()],
                max_sentence_length=1 << 30,  # bytes; longer texts would be left out
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(_explain(error, vocabulary_size)) from None
        return cls(model.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        path = folder / "tokenizer.model"
        try:
            return cls(path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path} is no SentencePiece model ({error}); put back the file that training wrote"
            ) from None

    def save(self, folder: Path) -> None:
        with atomic_open(folder / "tokenizer.model", "wb") as file:
            file.write(self.model)

    @property
    def vocabulary_size(self) -> int:
        return self._pieces.vocab_size()

    @property
    def hash(self) -> str:
        """SHA-256 of the file that it is saved as."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The pieces' ids. A "▁" of the text goes as its bytes: as a piece it would come back as a space."""
        first, *others = self._pieces.encode(text.split(SPACE))
        return first + [id for part in others for id in (*self._bytes_of_space, *part)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text; BOS, EOS and padding vanish, bytes that are no UTF-8 become U+FFFD."""
        return self._pieces.decode(list(ids))

    def report(self, sequences: Sequence[Sequence[int]], max_length: int) -> dict[str, Any]:
        """How well the vocabulary fits encoded texts: shares from 0 to 1, lengths in tokens."""
        counts = Counter(id for ids in sequences for id in ids)
        total = counts.total()
        lengths = sorted(len(ids) for ids in sequences)
        in_bytes = sum(count for id, count in counts.items() if self._pieces.is_byte(id))
        return {
            "vocabulary_size": self.vocabulary_size,
            "unknown_pieces": counts[UNKNOWN] / total,
            "byte_pieces": in_bytes / total,
            "vocabulary_seen_never": 1 - len(counts) / self.vocabulary_size,
            "vocabulary_seen_once": sum(count == 1 for count in counts.values()) / self.vocabulary_size,
            "length_percentiles": {p: lengths[math.ceil(p / 100 * len(lengths)) - 1] for p in (50, 90, 99, 100)},
            "truncated": sum(length > max_length for length in lengths) / len(lengths),
        }


def template_parts() -> list[str]:
    """The words of the prompt template around what is filled in: five or so strings, each once."""
    parts = [part for template in (WITH_INPUT, WITHOUT_INPUT) for part in re.split(r"\{\w+\}", template)]
    return list(dict.fromkeys(part for part in parts if part))


def _explain(error: RuntimeError, vocabulary_size: int) -> str:
    """SentencePiece's two refusals of a vocabulary size, each with its limit; anything else as it came."""
    message = str(error)
    if most := re.search(r"Vocabulary size too high .* <= (\d+)", message):
        limit, verb = int(most[1]), "holds at most"
    elif least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        limit, verb = int(least[1]), "needs at least"
    else:
        return f"SentencePiece cannot train a vocabulary of {vocabulary_size:,}: {message}"
    return (
        f"vocabulary_size is {vocabulary_size:,} and the training split {verb} {limit:,} pieces; "
        f"set vocabulary_size to {limit} or {'less' if most else 'more'}"
    )
