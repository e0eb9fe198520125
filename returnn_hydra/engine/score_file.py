"""scores.jsonl: one line of JSON per epoch with a checksum of its own; the file is replaced when a line is added."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.files import FileSystem, exists, read_bytes, write_text
from returnn_hydra.engine.manifest import check_json

CHECKSUM = "crc32"
logger = logging.getLogger(__name__)


class ScoreFile:
    """Reads and writes a list of records."""

    def __init__(self, path: Path, disk: FileSystem) -> None:
        self.path = path
        self.disk = disk

    def read(self) -> list[dict[str, Any]]:
        """The records before the first damaged line; damage is reported in the log.

        A file that lost lines at its end is a valid older file: compare with the checkpoint's epoch.
        """
        if not exists(self.disk, self.path):
            return []
        records: list[dict[str, Any]] = []
        for number, line in enumerate(read_bytes(self.disk, self.path).splitlines(keepends=True), start=1):
            try:
                records.append(decode_line(line))
            except DamagedStateError as error:
                logger.error(
                    "DAMAGED FILE: %s, line %d: %s. Lines from there on are left out", self.path, number, error
                )
                break
        return records

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace the file; when this returns, it survives a power cut.

        Raises:
            StateWriteError: the disk refused; the file is as before.
        """
        write_text(self.disk, self.path, "".join(encode_line(record) for record in records))


def encode_line(record: Mapping[str, Any]) -> str:
    """The record as a line of JSON, its checksum as last entry."""
    check_json(dict(record), "record")
    body = json.dumps(record)
    return json.dumps({**record, CHECKSUM: f"{zlib.crc32(body.encode()):08x}"}) + "\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """
    Raises:
        DamagedStateError: the line is not byte for byte what `encode_line` wrote.
    """
    try:
        record = json.loads(line.decode())
        if isinstance(record, dict):
            record.pop(CHECKSUM, None)
            if encode_line(record).encode() == line:
                return record
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedStateError(f"no JSON: {error}") from error
    raise DamagedStateError(f"its {CHECKSUM} does not fit")
