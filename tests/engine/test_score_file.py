"""scores.jsonl: every line proves itself."""

import json
import logging

import pytest

from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.score_file import ScoreFile, decode_line, encode_line

RECORDS = [
    {"epoch": epoch, "scores": {"dev/ce": 1 / epoch, "dev/error": float("nan") if epoch == 2 else 0.5}}
    for epoch in (1, 2, 3)
]


@pytest.fixture
def file(tmp_path):
    file = ScoreFile(tmp_path / "scores.jsonl", FileSystem())
    file.write(RECORDS)
    return file


def test_records_come_back(file):
    assert repr(file.read()) == repr(RECORDS)
    assert [json.loads(line)["epoch"] for line in file.path.read_text().splitlines()] == [1, 2, 3]
    assert ScoreFile(file.path.with_name("none"), FileSystem()).read() == []


def test_lines_from_a_damaged_one_on_are_left_out(file, caplog):
    lines = file.path.read_text().splitlines(keepends=True)
    file.path.write_text(lines[0] + lines[1].replace("0.5", "0.6") + lines[2])
    with caplog.at_level(logging.ERROR):
        assert [record["epoch"] for record in file.read()] == [1]
    assert "scores.jsonl, line 2" in caplog.text


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]\n", b"{}\n", b"\xff\n", b'{"crc32": 1}\n', b"[" * 100_000, b"__import__('os')\n"]
)
def test_other_lines_are_refused(line):
    with pytest.raises(DamagedStateError):
        decode_line(line)


def test_half_a_line_is_refused(file):
    line = encode_line(RECORDS[0]).encode()
    for length in range(len(line)):
        with pytest.raises(DamagedStateError):
            decode_line(line[:length])
