"""Forward callback: the results of a search as files, and error rates where there are references."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from returnn_hydra.engine.callback import ForwardCallback, output_path
from returnn_hydra.engine.output_file import OutputFile
from returnn_hydra.search.error_rate import ErrorRate
from returnn_hydra.search.output_format import LabelNames, ctm_lines, jsonl_line, returnn_value
from returnn_hydra.search.result import Hypothesis, unpack
from returnn_hydra.usage import UsageError

logger = logging.getLogger(__name__)
FORMATS = ("py", "txt", "jsonl", "ctm")


class SearchOutput(ForwardCallback):
    """Writes what a search found, sequence by sequence, in corpus order.

    Formats: "py" and "txt" as RETURNN's task=search writes them; "jsonl": everything, one line per sequence; "ctm":
    words with times. A file appears when it is complete. If the sequences have references, error rates are logged and
    written to <data set>.errors.json, and the sequences with the most errors to <data set>.errors.<unit>.txt.

    Args:
        vocab: names of the labels (from the program); None: label ids are written, and label errors counted.
        formats: files to write, <data set>.<format> in the run's forward folder.
        file: a path instead, with one format; `.gz` packs.
        num_best: py and txt hold (score, text) of all hypotheses instead of the text of the best one.
        error_units: word, char, label.
        num_worst: sequences to list.
        word_unit: how labels make the words of a CTM file: label, char, bpe, sentencepiece.
        frame_shift: seconds per frame of the search's times (after subsampling), for CTM.

    Raises:
        ValueError: an unknown format, `file` with several formats, or a CTM file without vocabulary.
    """

    def __init__(
        self,
        folder: Path,
        data_name: str,
        vocab: LabelNames | None = None,
        formats: Sequence[str] = ("py", "jsonl"),
        file: str | None = None,
        num_best: bool = False,
        error_units: Sequence[str] | None = None,
        num_worst: int = 20,
        word_unit: str = "char",
        frame_shift: float = 0.01,
    ) -> None:
        unknown = [name for name in formats if name not in FORMATS]
        if unknown:
            raise ValueError(f"formats: {unknown[0]!r} is not one of {', '.join(FORMATS)}")
        if file is not None and len(formats) != 1:
            raise ValueError(f"file={file} needs exactly one format, got {list(formats)}")
        if "ctm" in formats and vocab is None:
            raise ValueError("CTM files hold words: the stream of the labels needs a vocab")
        if error_units is None:
            error_units = ("label",) if vocab is None else ("word", "char")
        self.folder, self.data_name, self.vocab = folder, data_name, vocab
        self.num_best, self.num_worst = num_best, num_worst
        self.word_unit, self.frame_shift = word_unit, frame_shift
        self.error_rates = [ErrorRate(unit) for unit in error_units]
        self.files = {name: OutputFile(output_path(folder, file, f"{data_name}.{name}")) for name in formats}

    def init(self, model: nn.Module) -> None:
        for name, file in self.files.items():
            file.open().write("{\n" if name == "py" else "")

    def process_seq(self, seq_tag: str, outputs: Mapping[str, np.ndarray]) -> None:
        hyps = unpack(outputs)
        reference = outputs["reference"].tolist() if "reference" in outputs else None
        for name, file in self.files.items():
            file.write(self._text(name, seq_tag, hyps, reference))
        if reference is not None:
            for error_rate in self.error_rates:
                error_rate.add(
                    seq_tag, *(self._units(labels, error_rate.unit) for labels in (hyps[0].labels, reference))
                )

    def finish(self) -> None:
        for name, file in self.files.items():
            file.write("}\n" if name == "py" else "")
            file.commit()
            logger.info("Results: %s", file.path)
        if any(error_rate.sequences for error_rate in self.error_rates):
            self._write_errors()

    @property
    def scores(self) -> dict[str, float]:
        """Error rates (a fraction) by name, e.g. `wer`; empty without references."""
        return {rate.name.lower(): rate.total.rate for rate in self.error_rates if rate.sequences}

    def _text(self, name: str, seq_tag: str, hyps: list[Hypothesis], reference: list[int] | None) -> str:
        if name == "jsonl":
            return jsonl_line(seq_tag, hyps, self.vocab, reference) + "\n"
        if name == "ctm":
            assert self.vocab is not None
            lines = ctm_lines(seq_tag, hyps[0], self.vocab, self.word_unit, self.frame_shift)
            return "".join(line + "\n" for line in lines)
        value = returnn_value(hyps, self.vocab, self.num_best)
        return f"{seq_tag!r}: {value!r},\n" if name == "py" else f"{value}\n"

    def _units(self, labels: list[int], unit: str) -> Any:
        if unit == "label":
            return labels
        if self.vocab is None:
            raise UsageError(f"search_output.error_units: {unit} errors need the labels' text, and they have no vocab")
        return self.vocab.decode(labels)

    def _write_errors(self) -> None:
        summary = {rate.name.lower(): rate.summary() for rate in self.error_rates}
        texts = {f"{self.data_name}.errors.json": json.dumps(summary, indent=2) + "\n"}
        for rate in self.error_rates:
            logger.info("%s of '%s': %s", rate.name, self.data_name, rate.total)
            texts[f"{self.data_name}.errors.{rate.unit}.txt"] = rate.report(self.num_worst)
        for name, text in texts.items():
            file = OutputFile(self.folder / name)
            file.open().write(text)
            file.commit()
