"""Byte-pair encoding: words as sequences of subword units.

Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword Units, ACL 2016.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import PathLike, read_lines
from returnn_hydra.data.vocab import Rng, Vocabulary

MERGE = "@@"
"""Ends a label that the next one continues."""
WORD_END = "</w>"
"""Ends the last unit of a word in the codes file."""
_CACHE_SIZE = 200_000


class BytePairEncoding(Vocabulary):
    """Subword units made by the merges of a codes file (subword-nmt 0.1 and 0.2); `@@` marks a unit that goes on.

    Args:
        vocab_file: the labels, see Vocabulary. Units that are not in it are split again.
        bpe_file: the merges, one pair per line, the most frequent first.
        others: as for Vocabulary.

    Raises:
        DataError: a codes file of a version that does not exist, or without pairs.
    """

    def __init__(self, vocab_file: PathLike, bpe_file: PathLike, **options: Any) -> None:
        super().__init__(vocab_file=vocab_file, **options)
        self._version, merges = _read_codes(bpe_file)
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(merges)))}
        self._parts = {"".join(pair): pair for pair in self._ranks}
        self._cache: dict[str, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}

    def split(self, text: str, rng: Rng | None = None) -> list[str]:
        return [unit for word in text.split() for unit in self._word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        return merge_units(self.to_labels(ids))

    def _word(self, word: str) -> list[str]:
        units = self._cache.get(word)
        if units is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            *inner, last = self._merge(word)
            units = [part for unit in inner for part in self._in_vocabulary(unit, final=False)]
            units += self._in_vocabulary(last, final=True)
            units = [unit + MERGE for unit in units[:-1]] + units[-1:]
            self._cache[word] = units
        return units

    def _merge(self, word: str) -> list[str]:
        """Apply the merges, the first of the codes file first; without the end mark."""
        units = [*word, WORD_END] if self._version == (0, 1) else [*word[:-1], word[-1] + WORD_END]
        while len(units) > 1:
            rank, best = min((self._ranks.get(pair, len(self._ranks) + 1), pair) for pair in itertools.pairwise(units))
            if rank > len(self._ranks):
                break
            units = list(_join_pair(units, best))
        if units[-1] == WORD_END:
            units.pop()
        else:
            units[-1] = units[-1].removesuffix(WORD_END)
        return units

    def _in_vocabulary(self, unit: str, final: bool) -> Iterator[str]:
        """The unit, or the units that it was merged from if it is not a label."""
        pair = self._parts.get(unit + WORD_END if final else unit)
        if (unit if final else unit + MERGE) in self._ids or pair is None:
            yield unit
            return
        left, right = pair
        yield from self._in_vocabulary(left, final=False)
        right = right.removesuffix(WORD_END) if final else right
        if right:
            yield from self._in_vocabulary(right, final)


def merge_units(labels: Iterable[str]) -> str:
    """Text of units that end with `@@` where the word goes on."""
    return (" ".join(labels) + " ").replace(MERGE + " ", "").removesuffix(" ")


def _join_pair(units: list[str], pair: tuple[str, str]) -> Iterator[str]:
    index = 0
    while index < len(units):
        if tuple(units[index : index + 2]) == pair:
            yield pair[0] + pair[1]
            index += 2
        else:
            yield units[index]
            index += 1


def _read_codes(path: PathLike) -> tuple[tuple[int, ...], list[tuple[str, str]]]:
    lines = read_lines(path)
    version: tuple[int, ...] = (0, 1)
    if lines and lines[0].startswith("#version:"):
        text = lines[0].split(":", 1)[1].strip()
        numbers = [int(number) for number in text.split(".") if number.isdigit()]
        version = tuple(numbers[:2])
        if version not in ((0, 1), (0, 2)):
            raise DataError(f"{path}: version {text!r} of the codes is not known; 0.1 and 0.2 are")
        lines = lines[1:]
    merges = []
    for number, line in enumerate(lines, start=1):
        match line.split():
            case [left, right]:
                merges.append((left, right))
            case [left, right, count] if count.isdigit():
                merges.append((left, right))
            case []:
                continue
            case _:
                raise DataError(f"{path}: expected a pair of units per line, got {line!r} as pair {number}")
    if not merges:
        raise DataError(f"{path}: no merges")
    return version, merges


class _Node:
    """A node of the tree of all labels, letter by letter."""

    __slots__ = ("arcs", "ends_label", "ends_part", "prefix")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.arcs: dict[str, _Node] = {}
        self.ends_label = False
        self.ends_part = False

    def add(self, letters: Iterable[str]) -> _Node:
        node = self
        for letter in letters:
            node = node.arcs.setdefault(letter, _Node(node.prefix + letter))
        return node


class SamplingBytePairEncoding(Vocabulary):
    """Subword units found by searching the labels themselves, without merges.

    The search goes on with the longest unit that fits; with probability `breadth_prob`, drawn for every letter, it
    prefers to begin a new unit instead. 0: always the same segmentation. RETURNN's class of that name.

    Args:
        vocab_file: the labels, see Vocabulary.
        breadth_prob: 0 (longest units) .. 1 (shortest units).
        label_postfix_merge_symbol: ends a label that the next one continues; default: @@, if there is no
            word_prefix_symbol.
        word_prefix_symbol: begins the first label of every word instead, e.g. SentencePiece's U+2581.
        others: as for Vocabulary. A word that can't be made of labels becomes `unknown_label`.

    Raises:
        DataError: both symbols are given, or no label begins with `word_prefix_symbol`.
    """

    def __init__(
        self,
        vocab_file: PathLike,
        breadth_prob: float = 0.0,
        label_postfix_merge_symbol: str | None = None,
        word_prefix_symbol: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(vocab_file=vocab_file, **options)
        if label_postfix_merge_symbol and word_prefix_symbol:
            raise DataError(f"{self.name}: either label_postfix_merge_symbol or word_prefix_symbol, not both")
        if not 0.0 <= breadth_prob <= 1.0:
            raise DataError(f"{self.name}: breadth_prob is a probability, got {breadth_prob}")
        self.breadth_prob = breadth_prob
        self._postfix = None if word_prefix_symbol else (label_postfix_merge_symbol or MERGE)
        self._prefix = word_prefix_symbol
        self._cache: dict[str, list[str]] = {}
        self._plant()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}, "_root": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._plant()

    @property
    def is_random(self) -> bool:
        return self.breadth_prob > 0.0

    def _plant(self) -> None:
        self._root = _Node("")
        for label in self._ids:
            if self._postfix and label.endswith(self._postfix) and label != self._postfix:
                self._root.add(label.removesuffix(self._postfix)).ends_part = True
            elif self._prefix and label.startswith(self._prefix):
                self._root.add([self._prefix, *label.removeprefix(self._prefix)]).ends_label = True
            else:
                self._root.add(label).ends_label = True
        self._start = self._root
        if self._prefix is not None:
            if self._prefix not in self._root.arcs:
                raise DataError(f"{self.name}: no label begins with word_prefix_symbol={self._prefix!r}")
            self._start = self._root.arcs[self._prefix]

    def split(self, text: str, rng: Rng | None = None) -> list[str]:
        return [unit for word in text.split() for unit in self._word(word, rng)]

    def decode(self, ids: Iterable[int]) -> str:
        labels = self.to_labels(ids)
        if self._prefix is not None:
            return "".join(labels).replace(self._prefix, " ").strip()
        assert self._postfix is not None
        return (" ".join(labels) + " ").replace(self._postfix + " ", "").removesuffix(" ")

    def _word(self, word: str, rng: Rng | None) -> list[str]:
        if self.breadth_prob > 0.0:
            if rng is None:
                raise DataError(f"{self.name}: breadth_prob={self.breadth_prob} samples, and needs a random generator")
            return self._search(word, rng)
        units = self._cache.get(word)
        if units is None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            units = self._cache[word] = self._search(word, None)
        return units

    def _search(self, word: str, rng: Rng | None) -> list[str]:
        """Depth first over (position in the word, node); a state that was left once can't lead to an end."""
        stack: list[tuple[int, _Node, tuple]] = [(0, self._start, ())]
        seen: set[tuple[int, int]] = set()
        while stack:
            position, node, units = stack.pop()
            if position == len(word):
                if node.ends_label:
                    return _unlink((units, node.prefix))
                continue
            if (position, id(node)) in seen:
                continue
            seen.add((position, id(node)))
            steps = self._steps(word[position], position + 1, node, units)
            if rng is not None and rng.random() <= self.breadth_prob:
                steps.reverse()
            stack.extend(steps)
        if self.unknown_id is not None:
            return [self.labels[self.unknown_id]]
        raise DataError(f"{self.name}: the word {word!r} can't be made of the labels, and there is no unknown_label")

    def _steps(self, letter: str, position: int, node: _Node, units: tuple) -> list[tuple[int, _Node, tuple]]:
        """Ways to go on with this letter, the preferred one last: begin a new unit, or lengthen this one."""
        steps: list[tuple[int, _Node, tuple]] = []
        fresh = self._root.arcs.get(letter)
        if fresh is not None and self._postfix is not None and node.ends_part:
            steps.append((position, fresh, (units, node.prefix + self._postfix)))
        if fresh is not None and self._prefix is not None and node.ends_label:
            steps.append((position, fresh, (units, node.prefix)))
        longer = node.arcs.get(letter)
        if longer is not None:
            steps.append((position, longer, units))
        return steps


def _unlink(units: tuple) -> list[str]:
    """The units of a chain ((((), first), second), ...)."""
    result: list[str] = []
    while units:
        units, unit = units
        result.append(unit)
    return result[::-1]
