"""Lists of utterances: audio files with transcriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from returnn_hydra.data.audio_file import Segment
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import parse_literal, read_lines


@dataclass(frozen=True, slots=True)
class Utterance:
    """An entry of the list of utterances."""

    seq_tag: str
    text: str
    duration: float | None
    """Seconds; what orderings by length sort by."""
    file: str | None
    archive: int = 0
    num_samples: int | None = None
    segment: Segment | None = None
    """Which part of the file; None: all of it."""


def read_manifest(path: Path) -> Iterator[Utterance]:
    """The utterances of a .jsonl or .tsv file (maybe packed, .gz): see AudioFolderDataset.

    Raises:
        DataError: a line that can't be read; names it.
    """
    name = path.name.removesuffix(".gz")
    if not name.endswith((".tsv", ".jsonl")):
        raise DataError(f"{path}: a manifest ends with .tsv or .jsonl")
    lines = read_lines(path)
    names = lines[0].split("\t") if name.endswith(".tsv") and lines else None
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        if names is None and line.strip():
            yield parse_utterance(parse_literal(line, where), where)
        elif names is not None and number > 1:
            fields = line.split("\t")
            if len(fields) != len(names):
                raise DataError(f"{where} has {len(fields)} fields, the first line {len(names)}")
            yield parse_utterance(dict(zip(names, fields, strict=True)), where)


def parse_utterance(entry: Any, where: str, archive: int = 0) -> Utterance:
    """An entry {"file": ..., "text": ..., ...} of a list of utterances.

    Raises:
        DataError: it has neither file nor tag, or a value that can't be read; `where` begins the message.
    """
    if not isinstance(entry, Mapping):
        raise DataError(f"{where}: expected {{'file': ..., 'text': ...}}, got {entry!r}")
    file, tag = entry.get("file"), entry.get("seq_name", entry.get("file"))
    if not isinstance(tag, str) or not isinstance(file, str | None):
        raise DataError(f"{where}: needs `file` or `seq_name` as text, got {dict(entry)!r}")
    try:
        duration = None if entry.get("duration") in (None, "") else float(entry["duration"])
        num_samples = None if entry.get("num_samples") in (None, "") else int(entry["num_samples"])
        offset = None if entry.get("offset") in (None, "") else float(entry["offset"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: seq_tag {tag!r}: duration, offset or num_samples: {error}") from None
    text = entry.get("text", "")
    if not isinstance(text, str):
        raise DataError(f"{where}: seq_tag {tag!r}: text is {text!r}")
    if offset is not None and duration is None:
        raise DataError(f"{where}: seq_tag {tag!r}: offset={offset} without duration")
    segment = None if offset is None or duration is None else Segment(offset, duration)
    return Utterance(tag, text, duration, file, archive, num_samples, segment)


def exact_num_samples(utterance: Utterance, rate: int) -> int | None:
    """Samples, if the list says exactly how many."""
    if utterance.num_samples is not None:
        return utterance.num_samples
    if utterance.duration is None:
        return None
    samples = utterance.duration * rate
    if utterance.segment is not None:
        return round(samples)
    return round(samples) if abs(samples - round(samples)) < 1e-3 else None
