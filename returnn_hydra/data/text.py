"""Text: lines for language models, pairs of lines for translation, and texts by sequence tag.

Legend: N sequences, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import did_you_mean, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import PathLike, read_lines, read_literal, read_tag_list
from returnn_hydra.data.lines import LineCorpus
from returnn_hydra.data.text_cleaners import CleanerLike, text_cleaner
from returnn_hydra.data.views import Indices, as_array, copy_numbers, numbered, renewed, select, tag_index
from returnn_hydra.data.vocab import Vocabulary


class LabelLines:
    """The label ids of all lines of a corpus; encoded at the first use, and kept in as few bytes as the ids need.

    Args:
        lines: the text.
        vocab: how it is encoded.
        process: str -> str, applied to the text before it is encoded.
        prefix, postfix: put around the text of every line.
    """

    def __init__(
        self,
        lines: LineCorpus,
        vocab: Vocabulary,
        process: Callable[[str], str] | None = None,
        prefix: str = "",
        postfix: str = "",
    ) -> None:
        self.lines = lines
        self.vocab = vocab
        self.process = process
        self.prefix = prefix
        self.postfix = postfix

    def encode(self, index: int, rng: np.random.Generator | None = None) -> list[int]:
        """Ids of one line.

        Raises:
            DataError: the vocabulary lacks a label; names the line.
        """
        text = self.lines[index]
        text = self.process(text) if self.process is not None else text
        try:
            return self.vocab.encode(self.prefix + text + self.postfix, rng)
        except DataError as error:
            raise DataError(f"{self.lines.where(index)}: {error}") from error

    @cached_property
    def _encoded(self) -> tuple[np.ndarray, np.ndarray]:
        """All ids, one line after the other, and where each line begins: (sum of T,), (N + 1,)."""
        lengths = np.zeros(len(self.lines), dtype=np.int64)
        dtype = np.min_scalar_type(max(self.vocab.num_labels - 1, 0))
        blocks: list[np.ndarray] = [np.zeros(0, dtype=dtype)]
        for start in range(0, len(self.lines), 10_000):
            block: list[int] = []
            for index in range(start, min(start + 10_000, len(self.lines))):
                ids = self.encode(index)
                lengths[index] = len(ids)
                block += ids
            blocks.append(np.array(block, dtype=dtype))
        return np.concatenate(blocks), np.concatenate([[0], np.cumsum(lengths)])

    @property
    def lengths(self) -> np.ndarray | None:
        """Labels of every line, (N,); None if they are drawn anew in every epoch."""
        return None if self.vocab.is_random else np.diff(self._encoded[1])

    def ids(self, index: int, dtype: str, rng: np.random.Generator | None = None) -> np.ndarray:
        """Ids of one line as an array, (T,)."""
        if self.vocab.is_random:
            return np.array(self.encode(index, rng), dtype=dtype)
        if "_encoded" not in self.__dict__:
            return np.array(self.encode(index), dtype=dtype)
        flat, starts = self._encoded
        return flat[starts[index] : starts[index + 1]].astype(dtype)


def label_dtype(dtype: str, num_labels: int) -> str:
    """`dtype` itself; "smallest": int8, uint8 or int32 by the number of labels (RETURNN's LmDataset)."""
    if dtype != "smallest":
        return dtype
    return "int8" if num_labels <= 2**7 else "uint8" if num_labels <= 2**8 else "int32"


class LmDataset(Dataset):
    """Lines of text as label sequences, for language models.

    Streams: `data`, the labels of the line; `delayed` (if wanted), a start label and all labels of the line but the
        last.
    Tags: `line-0`, `line-1`, ... counted over the lines that are not skipped. Orderings by length sort by bytes.

    Args:
        corpus_file: text files, plain or packed (.gz), or Bliss XML; several are read one after the other.
        vocab: how a line becomes labels.
        skip_empty_lines: lines with nothing but white space don't count.
        orth_post_process: str -> str, or the name of a cleaner (see text_cleaners.py), or several; applied to a line
            before it is encoded.
        add_delayed_seq_data: have the stream `delayed`.
        delayed_seq_data_start_symbol: its first label.
        seq_list_file: tags to use instead, one per line.
        tag_prefix: of the tags, instead of `line-`.
        skip_invalid_seqs: drop lines that the vocabulary can't encode, which is an error otherwise.
        dtype: of the labels; "smallest": int8, uint8 or int32 by their number.
        seed: of vocabularies that draw; draws depend on (seed, epoch, sequence) alone.

    Raises:
        DataError: a file that can't be read, or a line with an unknown label.
    """

    def __init__(
        self,
        corpus_file: PathLike | Sequence[PathLike],
        vocab: Vocabulary,
        skip_empty_lines: bool = True,
        orth_post_process: CleanerLike | None = None,
        add_delayed_seq_data: bool = False,
        delayed_seq_data_start_symbol: str = "[START]",
        seq_list_file: PathLike | None = None,
        tag_prefix: str = "line-",
        skip_invalid_seqs: bool = False,
        dtype: str = "int32",
        seed: int = 1,
    ) -> None:
        files = [Path(p) for p in ([corpus_file] if isinstance(corpus_file, str | Path) else corpus_file)]  # type: ignore[union-attr]
        if not files:
            raise DataError("LmDataset: no corpus_file")
        clean = None if orth_post_process is None else text_cleaner(orth_post_process)
        self._labels = LabelLines(LineCorpus(files, skip_empty_lines), vocab, clean)
        self._start = vocab.label_id(delayed_seq_data_start_symbol) if add_delayed_seq_data else None
        spec = TensorSpec(vocab=vocab, dtype=label_dtype(dtype, vocab.num_labels))
        self.streams = {"data": spec} | ({"delayed": spec} if add_delayed_seq_data else {})
        self.seq_list_file = seq_list_file
        self.tag_prefix = tag_prefix
        self.skip_invalid_seqs = skip_invalid_seqs
        self.seed = seed
        self.epoch = 1

    @cached_property
    def _valid(self) -> np.ndarray | None:
        """Lines that can be encoded; None: all."""
        if not self.skip_invalid_seqs:
            return None
        rng = np.random.default_rng(0) if self._labels.vocab.is_random else None
        return np.array([i for i in range(len(self._labels.lines)) if self._can_encode(i, rng)], dtype=np.int64)

    def _can_encode(self, index: int, rng: np.random.Generator | None) -> bool:
        try:
            self._labels.encode(index, rng)
        except DataError:
            return False
        return True

    @cached_property
    def _given_tags(self) -> list[str] | None:
        if self.seq_list_file is None:
            return None
        tags = read_tag_list(self.seq_list_file)
        tag_index(tags, str(self.seq_list_file))
        if len(tags) != len(self._labels.lines):
            raise DataError(f"{self.seq_list_file}: {len(tags)} tags for {len(self._labels.lines)} lines")
        return tags

    def _line(self, indices: Indices) -> np.ndarray:
        return as_array(indices) if self._valid is None else self._valid[as_array(indices)]

    def __len__(self) -> int:
        return len(self._labels.lines) if self._valid is None else len(self._valid)

    def seq_tags(self, indices: Indices) -> list[str]:
        tags = self._given_tags
        lines = self._line(indices).tolist()
        return [f"{self.tag_prefix}{i}" for i in lines] if tags is None else [tags[i] for i in lines]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        stream_spec(self, stream)
        if self._valid is None or self._labels.vocab.is_random:
            return self._labels.lengths
        return np.array([len(self._labels.encode(i)) for i in self._valid.tolist()], dtype=np.int64)

    def order_lengths(self) -> np.ndarray:
        """Bytes of the lines."""
        return self._labels.lines.num_bytes[self._line(range(len(self)))]

    def read(self, indices: Indices) -> Examples:
        dtype = self.streams["data"].dtype
        assert dtype is not None
        data = [self._labels.ids(i, dtype, rng) for i, rng in self._rngs(self._line(indices))]
        streams = {"data": data}
        if self._start is not None:
            start = np.array([self._start], dtype=dtype)
            streams["delayed"] = [np.concatenate([start, ids[:-1]]) if len(ids) else ids for ids in data]
        return Examples(self.seq_tags(indices), streams)

    def _rngs(self, lines: np.ndarray) -> Iterator[tuple[int, np.random.Generator | None]]:
        for line in lines.tolist():
            yield line, np.random.default_rng([self.seed, self.epoch, line]) if self._labels.vocab.is_random else None

    def at_epoch(self, epoch: int) -> Dataset:
        if epoch == self.epoch or not self._labels.vocab.is_random:
            return self
        kept = {name: self.__dict__[name] for name in ("_valid", "_given_tags") if name in self.__dict__}
        return renewed(self, epoch=epoch, **kept)


class TranslationDataset(Dataset):
    """Lines of a source file and the lines of a target file that go with them.

    Streams: `data`, labels of the source; `classes`, labels of the target. Tags: `line-0`, `line-1`, ...

    Args:
        source_file, target_file: text, plain or packed (.gz), with as many lines each; no target_file: only `data`.
        source_vocab, target_vocab: how a line becomes labels.
        source_postfix, target_postfix: text put behind every line, e.g. " </s>".
        seq_list_file: numbers of the lines to use, one per line, in this order.

    Raises:
        DataError: the files have unlike numbers of lines, or a label is unknown.
    """

    def __init__(
        self,
        source_file: PathLike,
        source_vocab: Vocabulary,
        target_file: PathLike | None = None,
        target_vocab: Vocabulary | None = None,
        source_postfix: str = "",
        target_postfix: str = "",
        seq_list_file: PathLike | None = None,
    ) -> None:
        if (target_file is None) != (target_vocab is None):
            raise DataError("TranslationDataset: target_file and target_vocab belong together")
        lines = LineCorpus([Path(source_file)], skip_empty_lines=False)
        self._labels = {"data": LabelLines(lines, source_vocab, postfix=source_postfix)}
        self.streams = {"data": TensorSpec(vocab=source_vocab)}
        if target_file is not None and target_vocab is not None:
            lines = LineCorpus([Path(target_file)], skip_empty_lines=False)
            self._labels["classes"] = LabelLines(lines, target_vocab, postfix=target_postfix)
            self.streams["classes"] = TensorSpec(vocab=target_vocab)
        if any(labels.vocab.is_random for labels in self._labels.values()):
            raise DataError("TranslationDataset: vocabularies that draw are not possible here")
        self.seq_list_file = seq_list_file

    @cached_property
    def _order(self) -> np.ndarray:
        """The line of every sequence, (N,)."""
        sizes = {str(labels.lines.files[0]): len(labels.lines) for labels in self._labels.values()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"TranslationDataset: the files must have as many lines each, got {sizes}")
        num = next(iter(sizes.values()))
        if self.seq_list_file is None:
            return np.arange(num)
        numbers = read_lines(self.seq_list_file)
        if bad := [text for text in numbers if not text.isdigit() or int(text) >= num]:
            raise DataError(f"{self.seq_list_file}: {bad[0]!r}: expected numbers from 0 to {num - 1}")
        return np.array(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._order)

    def seq_tags(self, indices: Indices) -> list[str]:
        indices = as_array(indices)
        return numbered([f"line-{line}" for line in self._order[indices].tolist()], select(self._copies, indices))

    @cached_property
    def _copies(self) -> np.ndarray | None:
        return copy_numbers(self._order)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        stream_spec(self, stream)
        lengths = self._labels[stream].lengths
        assert lengths is not None
        return lengths[self._order]

    def read(self, indices: Indices) -> Examples:
        lines = self._order[as_array(indices)].tolist()
        streams = {name: [labels.ids(i, "int32") for i in lines] for name, labels in self._labels.items()}
        return Examples(self.seq_tags(indices), streams)


class TextDictDataset(Dataset):
    """Texts by sequence tag, e.g. the output of a search: {tag: text}, or {tag: [(score, text), ...]}.

    Streams: `data`, the labels of the text with the best score. With scores also `data_flat`, the labels of all
        texts one after the
    other; `data_seq_lens`, the number of labels of each text; `scores`.

    Args:
        filename: a Python literal or JSON, maybe packed (.gz).
        vocab: how a text becomes labels.
        item_format: "single" or "list_with_scores".

    Raises:
        DataError: the file holds anything else, or a label is unknown.
    """

    def __init__(self, filename: PathLike, vocab: Vocabulary, item_format: str = "list_with_scores") -> None:
        if item_format not in ("single", "list_with_scores"):
            raise DataError(f"item_format={item_format!r}{did_you_mean(item_format, ['single', 'list_with_scores'])}")
        if vocab.is_random:
            raise DataError("TextDictDataset: vocabularies that draw are not possible here")
        self.filename = filename
        self.vocab = vocab
        self.item_format = item_format
        self.streams = {"data": TensorSpec(vocab=vocab)}
        if item_format == "list_with_scores":
            self.streams |= {
                "data_flat": TensorSpec(vocab=vocab),
                "data_seq_lens": TensorSpec(shape=(None,), dtype="int32"),
                "scores": TensorSpec(shape=(None,), dtype="float32"),
            }

    @cached_property
    def _items(self) -> dict[str, list[tuple[float, str]]]:
        items = read_literal(self.filename)
        if not isinstance(items, Mapping) or not items:
            raise DataError(f"{self.filename}: expected {{seq_tag: ...}}, got {type(items).__name__}")
        return {tag: self._texts(tag, item) for tag, item in items.items()}

    def _texts(self, tag: str, item: object) -> list[tuple[float, str]]:
        if self.item_format == "single" and isinstance(item, str):
            return [(0.0, item)]
        if self.item_format == "list_with_scores" and isinstance(item, list | tuple) and item:
            pairs = [
                pair for pair in item if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], str)
            ]
            if len(pairs) == len(item):
                return [(float(score), text) for score, text in pairs]
        expected = "a text" if self.item_format == "single" else "[(score, text), ...]"
        raise DataError(f"{self.filename}: seq_tag {tag!r}: got {item!r}, expected {expected} (item_format)")

    @cached_property
    def _tags(self) -> list[str]:
        return list(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def seq_tags(self, indices: Indices) -> list[str]:
        return [self._tags[i] for i in indices]

    @cached_property
    def _encoded(self) -> list[dict[str, np.ndarray]]:
        return [self._encode(tag, texts) for tag, texts in self._items.items()]

    def _encode(self, tag: str, texts: list[tuple[float, str]]) -> dict[str, np.ndarray]:
        try:
            ids = [np.array(self.vocab.encode(text), dtype=np.int32) for _, text in texts]
        except DataError as error:
            raise DataError(f"{self.filename}: seq_tag {tag!r}: {error}") from error
        scores = [score for score, _ in texts]
        arrays = {
            "data": ids[scores.index(max(scores))],
            "data_flat": np.concatenate(ids),
            "data_seq_lens": np.array([len(i) for i in ids], dtype=np.int32),
            "scores": np.array(scores, dtype=np.float32),
        }
        return {name: arrays[name] for name in self.streams}

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        stream_spec(self, stream)
        return np.array([len(arrays[stream]) for arrays in self._encoded], dtype=np.int64)

    def order_lengths(self) -> np.ndarray:
        """Characters of all texts of a sequence."""
        return np.array([sum(len(text) for _, text in texts) for texts in self._items.values()])

    def read(self, indices: Indices) -> Examples:
        return Examples(
            self.seq_tags(indices), {name: [self._encoded[i][name] for i in indices] for name in self.streams}
        )
