"""returnn.datasets.util.vocabulary: our vocabularies with RETURNN's names on top.

What a config makes of a vocabulary dict (`extern_data`, `Tensor(vocab=...)`, `Vocabulary.create_vocab(...)`) is one of
these: `get_seq`, `get_seq_labels`, `bos_label_id` and the like, and all that our own vocabularies do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from returnn_hydra.compat.vocab_dicts import vocab_node
from returnn_hydra.data import bpe, subword_models, vocab

__all__ = [
    "BytePairEncoding",
    "CharacterTargets",
    "HuggingFaceTokenizer",
    "SamplingBytePairEncoding",
    "SentencePieces",
    "Utf8ByteTargets",
    "Vocabulary",
    "create_vocab",
]


class Vocabulary(vocab.Vocabulary):
    """Words as labels; options as in RETURNN's dict. Also the base of all others."""

    def __init__(self, vocab_file: Any = None, *more: Any, **options: Any) -> None:
        names = ("bpe_file", "breadth_prob")
        options |= dict(zip(names, more, strict=False))
        if vocab_file is not None:
            options["vocab_file"] = vocab_file
        name = type(self).__name__
        node = vocab_node({**options, "class": name}, name)
        super().__init__(**{key: value for key, value in node.items() if key != "_target_"})

    @staticmethod
    def create_vocab(**options: Any) -> Vocabulary:
        """From RETURNN's options ("class" says which).

        Raises:
            ConfigError: a class or option that does not exist.
        """
        return create_vocab(options)

    @staticmethod
    def create_vocab_from_labels(labels: Sequence[str], **options: Any) -> Vocabulary:
        """Of these labels; words that are none of them are errors."""
        return Vocabulary(labels=list(labels), **{"unknown_label": None, **options})

    @staticmethod
    def create_vocab_dict_from_labels(labels: Sequence[str]) -> dict[str, int]:
        """Label to id."""
        return {label: index for index, label in enumerate(labels)}

    @property
    def unknown_label_id(self) -> int | None:
        return self.unknown_id

    @property
    def unknown_label(self) -> str | None:
        return None if self.unknown_id is None else self.labels[self.unknown_id]

    @property
    def bos_label_id(self) -> int | None:
        return self.bos_id

    @property
    def eos_label_id(self) -> int | None:
        return self.eos_id

    @property
    def pad_label_id(self) -> int | None:
        return self.pad_id

    @property
    def control_symbol_ids(self) -> dict[str, int]:
        return dict(self.control_ids)

    def get_seq(self, sentence: str) -> list[int]:
        """Text to ids; a vocabulary that draws takes its numbers from `set_random_seed`."""
        return self.encode(sentence, getattr(self, "_rng", None))

    def get_seq_indices(self, seq: Iterable[str]) -> list[int]:
        """Labels to ids."""
        return [self.label_to_id(label, self.unknown_id) for label in seq]

    def get_seq_labels(self, seq: Iterable[int]) -> str:
        """Ids to text."""
        return self.decode(np.asarray(seq).tolist())

    def serialize_labels(self, data: Any) -> str:
        """An array of ids as text."""
        data = np.asarray(data)
        return self.labels[int(data)] if data.ndim == 0 else self.get_seq_labels(data)

    def label_to_id(self, label: str, default: Any = KeyError) -> Any:
        """The id of a label, or `default`.

        Raises:
            KeyError: no such label, and no default.
        """
        if label in self._ids:
            return self._ids[label]
        if default is KeyError:
            raise KeyError(f"{self.name}: no label {label!r}")
        return default

    def id_to_label(self, idx: int, default: Any = KeyError) -> Any:
        """The label of an id, or `default`.

        Raises:
            KeyError: no such id, and no default.
        """
        if self.is_id_valid(idx):
            return self.labels[idx]
        if default is KeyError:
            raise KeyError(f"{self.name}: no label has id {idx}")
        return default

    def is_id_valid(self, idx: int) -> bool:
        return 0 <= idx < self.num_labels

    def to_id(self, label: str | int | None, default: Any = KeyError, allow_none: bool = False) -> Any:
        """A label or an id, as id."""
        if isinstance(label, str):
            return self.label_to_id(label, default)
        if label is None and (allow_none or default is not KeyError):
            return None if default is KeyError else default
        if isinstance(label, int) and self.is_id_valid(label):
            return label
        if default is KeyError:
            raise KeyError(f"{self.name}: no label {label!r}")
        return default

    def set_random_seed(self, seed: int) -> None:
        """For vocabularies that draw a segmentation."""
        self._rng = np.random.default_rng(seed)


class CharacterTargets(Vocabulary, vocab.CharacterVocabulary):
    """Characters as labels."""


class Utf8ByteTargets(Vocabulary, vocab.Utf8Bytes):
    """Bytes as labels."""


class BytePairEncoding(Vocabulary, bpe.BytePairEncoding):
    """Subwords by merges."""


class SamplingBytePairEncoding(Vocabulary, bpe.SamplingBytePairEncoding):
    """Subwords by searching the labels."""


class SentencePieces(Vocabulary, subword_models.SentencePieceVocabulary):
    """SentencePiece's models."""


class HuggingFaceTokenizer(Vocabulary, subword_models.HuggingFaceTokenizer):
    """A tokenizer of the Hugging Face libraries."""


CLASSES: dict[str, type[Vocabulary]] = {
    kind.__name__: kind
    for kind in (
        Vocabulary,
        CharacterTargets,
        Utf8ByteTargets,
        BytePairEncoding,
        SamplingBytePairEncoding,
        SentencePieces,
        HuggingFaceTokenizer,
    )
}


def create_vocab(options: Mapping[str, Any], path: str = "vocab") -> Vocabulary:
    """A vocabulary from RETURNN's dict.

    Raises:
        ConfigError: a class or option that does not exist.
    """
    vocab_node(dict(options), path)  # its errors name the path
    kind = options.get("class") or ("BytePairEncoding" if options.get("bpe_file") else "Vocabulary")
    return CLASSES[kind](**{key: value for key, value in options.items() if key != "class"})
