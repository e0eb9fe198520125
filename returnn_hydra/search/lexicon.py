"""Which label sequences are words: a prefix tree of spellings, as arrays of arcs.

Legend: S nodes of the tree, A most arcs of a node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NO_WORD = -1
NO_ARC = -1


@dataclass(frozen=True)
class Lexicon:
    """A graph whose paths, from the root (node 0) back to it, are sequences of words.

    With a separator (a space between words that are spelled in characters) a word is complete when the separator
    follows it, or at the end. Without one (phonemes) a word is complete with its last label, and may be followed by
    any other word at once.
    """

    words: list[str]
    labels: np.ndarray
    """(S, A) label of each arc, NO_ARC where there is none."""
    targets: np.ndarray
    """(S, A) node behind each arc."""
    emits: np.ndarray
    """(S, A) index of the word that the arc completes, or NO_WORD."""
    final_words: list[list[int]]
    """For every node, the words that are complete when a sequence ends here. NO_WORD: may end here, without another
    word.
    """

    @classmethod
    def build(cls, spellings: Sequence[tuple[str, Sequence[int]]], separator: int | None = None) -> Lexicon:
        """The lexicon of (word, labels) pairs; a word may have several spellings, and a spelling several words.

        Raises:
            ValueError: no words; a word without labels, or one that is spelled with the separator.
        """
        if not spellings:
            raise ValueError("a lexicon needs at least one word")
        words = list(dict.fromkeys(word for word, _ in spellings))
        index = {word: i for i, word in enumerate(words)}
        children: list[dict[int, int]] = [{}]
        ends: list[list[int]] = [[]]
        for word, labels in spellings:
            if not labels or separator in labels:
                raise ValueError(
                    f"word {word!r} is spelled {list(labels)}; "
                    f"expected one label at least, and not the separator {separator}"
                )
            node = 0
            for label in labels:
                if label not in children[node]:
                    children[node][label] = len(children)
                    children.append({})
                    ends.append([])
                node = children[node][label]
            if index[word] not in ends[node]:
                ends[node].append(index[word])
        make_arcs = _arcs_without_separator if separator is None else _arcs_with(separator)
        arcs = [make_arcs(children, ends, node) for node in range(len(children))]
        at_end = [[NO_WORD], *(ends[1:] if separator is not None else [[]] * (len(ends) - 1))]
        return cls(words, *_pad_arcs(arcs), final_words=at_end)

    @classmethod
    def unconstrained(cls, labels: Sequence[int]) -> Lexicon:
        """Any sequence of these labels."""
        row = np.array([list(labels)])
        return cls([], row, np.zeros_like(row), np.full_like(row, NO_WORD), [[NO_WORD]])

    @classmethod
    def read(cls, path: str | Path, label_ids: Mapping[str, int], separator: str | None = None) -> Lexicon:
        """Read lines of `WORD label label ...`; pronunciation variants WORD(2) belong to WORD (the CMU style).

        Raises:
            ValueError: a line without labels, or a label that is not in `label_ids`; names the line.
        """
        spellings = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            word, *labels = line.split()
            unknown = [label for label in labels if label not in label_ids]
            if unknown or not labels:
                problem = f"label {unknown[0]!r} is not in the vocabulary" if unknown else "no labels"
                raise ValueError(f"{path}, line {number}: {problem} (word {word!r})")
            if word.endswith(")") and "(" in word[1:]:
                word = word[: word.rindex("(")]
            spellings.append((word, [label_ids[label] for label in labels]))
        if separator is not None and separator not in label_ids:
            raise ValueError(f"the separator {separator!r} is not in the vocabulary")
        return cls.build(spellings, None if separator is None else label_ids[separator])


Arc = tuple[int, int, int]
"""Label, target node, word."""


def _arcs_with(separator: int) -> Callable[[list[dict[int, int]], list[list[int]], int], list[Arc]]:
    def arcs(children: list[dict[int, int]], ends: list[list[int]], node: int) -> list[Arc]:
        inner = [(label, child, NO_WORD) for label, child in children[node].items()]
        return inner + [(separator, 0, word) for word in ends[node]]

    return arcs


def _arcs_without_separator(children: list[dict[int, int]], ends: list[list[int]], node: int) -> list[Arc]:
    arcs = []
    for label, child in children[node].items():
        if children[child]:
            arcs.append((label, child, NO_WORD))
        arcs += [(label, 0, word) for word in ends[child]]
    return arcs


def _pad_arcs(arcs: list[list[Arc]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    padded = np.full((3, len(arcs), max(map(len, arcs))), NO_ARC)
    for node, row in enumerate(arcs):
        if row:
            padded[:, node, : len(row)] = np.array(row).T
    labels, targets, emits = padded
    return labels, targets, emits
