"""Words or characters of transcriptions, with special symbols in brackets: RETURNN's `orth_symbols` of the
LmDataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import PathLike, read_lines, read_literal, read_text
from returnn_hydra.data.vocab import Rng, Vocabulary


class OrthVocabulary(Vocabulary):
    """Labels are words or characters; what stands in [brackets] is one label, in upper case.

    Args:
        vocab_file: as of Vocabulary, or one `symbol id` per line.
        labels: the symbols themselves, instead.
        word_based: words, else characters.
        word_end_symbol: for characters: stands for the space between words, and behind the last one.
        seq_end_symbol: put behind every sequence.
        unknown_symbol: stands for unknown symbols if `auto_replace_unknown_symbol`; None: they are left out.
        auto_replace_unknown_symbol: false: an unknown symbol is an error.
        orth_replace_map_file: JSON of {symbol: text that takes its place}.
        remove_chars: characters that are dropped.
        upper_case_special, square_brackets_for_specials: about [brackets].
        prefix, postfix: symbols put around every sequence; default postfix: word_end_symbol and seq_end_symbol,
            where there are any.

    Raises:
        DataError: as of Vocabulary.
    """

    def __init__(
        self,
        vocab_file: PathLike | None = None,
        labels: Sequence[str] | None = None,
        word_based: bool = False,
        word_end_symbol: str | None = None,
        seq_end_symbol: str | None = "[END]",
        unknown_symbol: str | None = "[UNKNOWN]",
        auto_replace_unknown_symbol: bool = False,
        orth_replace_map_file: PathLike | None = None,
        remove_chars: str = "(){}",
        upper_case_special: bool = True,
        square_brackets_for_specials: bool = True,
        prefix: Sequence[str] = (),
        postfix: Sequence[str] | None = None,
    ) -> None:
        pairs = None if vocab_file is None else _symbol_id_lines(vocab_file)
        if pairs is not None:
            super().__init__(labels=_by_id(pairs, str(vocab_file)))
            self._ids = pairs
            self.name = str(vocab_file)
        else:
            super().__init__(vocab_file=vocab_file, labels=labels)
        self.word_based = word_based
        self.replace_unknown = auto_replace_unknown_symbol
        self.unknown_symbol = unknown_symbol
        if auto_replace_unknown_symbol and unknown_symbol is not None:
            self.unknown_id = self._role("unknown_symbol", unknown_symbol)
        self.remove_chars = str.maketrans("", "", remove_chars)
        self.upper_case_special = upper_case_special
        self.brackets = square_brackets_for_specials
        word_end = None if word_based else word_end_symbol
        self.space = word_end or " "
        self.prefix = list(prefix)
        self.postfix = [s for s in (word_end, seq_end_symbol) if s is not None] if postfix is None else list(postfix)
        self.replacements = self._replacements(orth_replace_map_file) | ({" ": [word_end]} if word_end else {})

    def _replacements(self, path: PathLike | None) -> dict[str, list[str]]:
        if path is None:
            return {}
        replacements = read_literal(path)
        if not isinstance(replacements, Mapping):
            raise DataError(f"{path}: expected {{symbol: text}}, got {type(replacements).__name__}")
        return {symbol: self._symbols(text) for symbol, text in replacements.items()}

    def split(self, text: str, rng: Rng | None = None) -> list[str]:
        text = " ".join(text.translate(self.remove_chars).split())
        symbols = [*self.prefix, *self._symbols(text), *self.postfix]
        replaced = [new for symbol in symbols for new in self.replacements.get(symbol, [symbol])]
        symbols = [s for i, s in enumerate(replaced) if s != self.space or i == 0 or replaced[i - 1] != self.space]
        if not self.replace_unknown:
            return symbols
        unknown = [] if self.unknown_symbol is None else [self.unknown_symbol]
        return [known for symbol in symbols for known in ([symbol] if symbol in self._ids else unknown)]

    def _symbols(self, text: str) -> list[str]:
        """Words or characters, and [specials]."""
        symbols: list[str] = []
        depth = 0
        for character in text:
            if depth or (character == "[" and self.brackets):
                begins = depth == 0
                depth += (character == "[") - (character == "]")
                character = character.upper() if self.upper_case_special else character
                if begins and not (symbols and symbols[-1] == ""):
                    symbols.append(character)
                else:
                    symbols[-1] += character
            elif not self.word_based:
                symbols.append(character)
            elif character.isspace():
                symbols.append("")
            elif symbols:
                symbols[-1] += character
            else:
                symbols.append(character)
        return symbols

    def decode(self, ids: Iterable[int]) -> str:
        labels = self.to_labels(ids)
        if self.word_based:
            return " ".join(labels)
        return "".join(" " if label == self.space else label for label in labels)


def _symbol_id_lines(path: PathLike) -> dict[str, int] | None:
    """{symbol: id} of a file with `symbol id` in every line; None if it is of another kind."""
    if Path(path).name.removesuffix(".gz").endswith(".pkl") or read_text(path).lstrip().startswith("{"):
        return None
    fields = [line.rsplit(None, 1) for line in read_lines(path)]
    if not all(len(field) == 2 and field[1].isdigit() for field in fields):
        return None
    return {symbol: int(index) for symbol, index in fields}


def _by_id(ids: Mapping[str, int], where: str) -> list[str]:
    names = {index: symbol for symbol, index in sorted(ids.items())}
    if set(names) != set(range(len(names))):
        raise DataError(f"{where}: ids must be 0 .. {len(names) - 1} without gaps")
    return [names[index] for index in range(len(names))]
