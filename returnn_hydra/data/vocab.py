"""Vocabularies: text to label ids and back, for labels that are words, characters or bytes.

Subword vocabularies are in bpe.py and subword_models.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import PathLike, nearest, parse_literal, read_pickle, read_text


class Rng(Protocol):
    """What a sampling vocabulary needs; numpy's Generator and RandomState both do."""

    def random(self) -> float: ...

    def integers(self, low: int, high: int) -> int: ...


class Vocabulary:
    """Words, separated by white space, as labels.

    Args:
        vocab_file: one label per line; or a dict {label: id} as Python literal, JSON or pickle; maybe packed (.gz).
            In a dict several labels may share an id, e.g. <s> and </s>; then the last of them in the alphabet names it.
        labels: the labels themselves, instead of a file; or a function that gives them.
        unknown_label: stands for every word that is not in the vocabulary; None: such a word is an error.
        bos_label, eos_label, pad_label: names (or ids) of the labels with these roles.
        control_symbols: further roles, {role: label}.
        seq_postfix: labels (or ids) to put behind every encoded sequence, e.g. the end-of-sentence label.
        single_whitespace_split: the text is labels joined by one space each, and labels may hold spaces themselves.

    Raises:
        DataError: labels or ids appear twice, ids are missing, or a label with a role does not exist.
    """

    def __init__(
        self,
        vocab_file: PathLike | None = None,
        labels: Sequence[str] | Callable[[], Sequence[str]] | None = None,
        unknown_label: str | int | None = None,
        bos_label: str | int | None = None,
        eos_label: str | int | None = None,
        pad_label: str | int | None = None,
        control_symbols: Mapping[str, str | int] | None = None,
        seq_postfix: Sequence[str | int] = (),
        single_whitespace_split: bool = False,
    ) -> None:
        if (vocab_file is None) == (labels is None):
            raise DataError("a vocabulary needs either vocab_file or labels")
        self.name = str(vocab_file) if vocab_file is not None else "vocabulary"
        if vocab_file is not None:
            self._ids = read_label_ids(vocab_file)
            by_id = {index: label for label, index in sorted(self._ids.items())}
            self.labels = [by_id[index] for index in range(len(by_id))]
        else:
            assert labels is not None
            self.labels = list(labels() if callable(labels) else labels)
            self._ids = _ids_of_list(self.labels, self.name)
        self.unknown_id = self._role("unknown_label", unknown_label)
        self.bos_id = self._role("bos_label", bos_label)
        self.eos_id = self._role("eos_label", eos_label)
        self.pad_id = self._role("pad_label", pad_label)
        self.control_ids = {name: self.label_id(label) for name, label in (control_symbols or {}).items()}
        self.seq_postfix = [self.label_id(label) for label in seq_postfix]
        self._split_pattern = _label_pattern(self.labels) if single_whitespace_split else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, num_labels={self.num_labels})"

    @property
    def is_random(self) -> bool:
        """Whether `encode` draws from its random generator."""
        return False

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    def encode(self, text: str, rng: Rng | None = None) -> list[int]:
        """Ids of the text's labels, `seq_postfix` included; vocabularies that sample draw from `rng`.

        Raises:
            DataError: a label is not in the vocabulary and there is no `unknown_label`.
        """
        return [self._known_id(label, text) for label in self.split(text, rng)] + self.seq_postfix

    def split(self, text: str, rng: Rng | None = None) -> list[str]:
        """The text as a list of labels, which are not looked up yet."""
        return text.split() if self._split_pattern is None else self._split_pattern.findall(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these labels."""
        return " ".join(self.to_labels(ids))

    def to_labels(self, ids: Iterable[int]) -> list[str]:
        """The names of these ids.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        ids = [int(index) for index in ids]
        for index in ids:
            if not 0 <= index < self.num_labels:
                raise DataError(f"{self.name}: no label has id {index}; ids are 0 .. {self.num_labels - 1}")
        return [self.labels[index] for index in ids]

    def label_string(self, ids: Iterable[int]) -> str:
        """The labels joined by spaces: what a file for scoring tools holds, and what RETURNN calls serialised."""
        return " ".join(self.to_labels(ids))

    def label_id(self, label: str | int) -> int:
        """The id of a label (an id stands for itself).

        Raises:
            DataError: there is no such label.
        """
        if isinstance(label, str):
            if label not in self._ids:
                raise DataError(f"{self.name}: no label {label!r}{nearest(label, self._ids)}")
            return self._ids[label]
        if not 0 <= label < self.num_labels:
            raise DataError(f"{self.name}: no label has id {label}; ids are 0 .. {self.num_labels - 1}")
        return label

    def _role(self, role: str, label: str | int | None) -> int | None:
        if label is None or label == -1:
            return None
        try:
            return self.label_id(label)
        except DataError as error:
            raise DataError(f"{role}={label!r}: {error}") from None

    def _known_id(self, label: str, text: str) -> int:
        index = self._ids.get(label, self.unknown_id)
        if index is None:
            raise DataError(
                f"{self.name}: no label {label!r}{nearest(label, self._ids)} and no unknown_label; "
                f"in the text {text[:200]!r}"
            )
        return index


class CharacterVocabulary(Vocabulary):
    """Characters as labels; arguments as for Vocabulary."""

    def split(self, text: str, rng: Rng | None = None) -> list[str]:
        return list(text)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.to_labels(ids))

    def label_string(self, ids: Iterable[int]) -> str:
        return self.decode(ids)


class Utf8Bytes(Vocabulary):
    """The 256 bytes of UTF-8 as labels.

    Args:
        seq_postfix: ids to put behind every encoded sequence.
    """

    def __init__(self, seq_postfix: Sequence[int] = ()) -> None:
        super().__init__(labels=[chr(index) for index in range(256)], seq_postfix=seq_postfix)
        self.name = "bytes"

    def encode(self, text: str, rng: Rng | None = None) -> list[int]:
        return list(text.encode("utf-8")) + self.seq_postfix

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these bytes; broken UTF-8 becomes U+FFFD."""
        array = np.asarray(list(ids), dtype=np.int64)
        if ((array < 0) | (array > 255)).any():
            raise DataError(f"bytes: ids are 0 .. 255, got {array[(array < 0) | (array > 255)][0]}")
        return array.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def label_string(self, ids: Iterable[int]) -> str:
        return self.decode(ids)


def read_label_ids(path: PathLike) -> dict[str, int]:
    """{label: id} of a vocabulary file (see Vocabulary)."""
    name = Path(path).name.removesuffix(".gz")
    if name.endswith(".pkl"):
        return _checked(read_pickle(path), str(path))
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return _checked(parse_literal(text, where=str(path)), str(path))
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return _ids_of_list([line.removesuffix("\r") for line in lines], str(path))


def _checked(ids: object, where: str) -> dict[str, int]:
    if not isinstance(ids, dict):
        raise DataError(f"{where}: expected a dict label -> id, got {type(ids).__name__}")
    for label, index in ids.items():
        if not isinstance(label, str) or not isinstance(index, int) or isinstance(index, bool):
            raise DataError(f"{where}: expected label -> id, got {label!r}: {index!r}")
    used = set(ids.values())
    if used != set(range(len(used))):
        missing = sorted(set(range(max(used) + 1)) - used)[:5]
        raise DataError(f"{where}: ids must be 0 .. n-1 without gaps; smallest {min(used)}, missing {missing}")
    if not ids:
        raise DataError(f"{where}: no labels")
    return ids


def _ids_of_list(labels: list[str], where: str) -> dict[str, int]:
    if not labels:
        raise DataError(f"{where}: no labels")
    ids: dict[str, int] = {}
    for index, label in enumerate(labels):
        if label in ids:
            raise DataError(f"{where}: label {label!r} is there twice, as id {ids[label]} and {index}")
        ids[label] = index
    return ids


def _label_pattern(labels: Iterable[str]) -> re.Pattern[str]:
    by_length = sorted(labels, key=len, reverse=True)
    return re.compile("(" + "|".join(re.escape(label) for label in by_length) + r"|\S+)(?: |$)")
