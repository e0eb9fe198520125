"""No error of the disk is lost between h5py and the file."""

import errno
import os

import h5py
import numpy as np
import pytest

from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.hdf_target import HDFTarget
from returnn_hydra.data.hdf_writer import HDFWriter


def write(path):
    with HDFWriter(path) as writer:
        for number in range(40):
            writer.write(f"s{number}", {"data": np.full((300, 16), number, np.float32)})


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_whichever_write_fails_it_is_told_and_no_file_appears(tmp_path, monkeypatch, code):
    """libhdf5 itself loses those that happen while an object is destroyed."""
    calls, fail_at, pwrite = 0, None, os.pwrite

    def failing(handle, data, offset):
        nonlocal calls
        calls += 1
        if calls - 1 == fail_at:
            raise OSError(code, os.strerror(code))
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    write(tmp_path / "good.hdf")
    total = calls
    assert total > 15
    for number in range(total):
        fail_at, calls = number, 0
        with pytest.raises(OSError, match=r"a\.hdf") as caught:
            write(tmp_path / "a.hdf")
        assert caught.value.errno == code
        assert [path.name for path in tmp_path.iterdir()] == ["good.hdf"]
    fail_at, calls = None, 0
    write(tmp_path / "a.hdf")
    assert (tmp_path / "a.hdf").read_bytes() == (tmp_path / "good.hdf").read_bytes()
    assert len(HDFDataset(str(tmp_path / "a.hdf"))) == 40


def test_short_writes_are_completed(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:1000], offset))
    write(tmp_path / "a.hdf")
    monkeypatch.undo()
    write(tmp_path / "b.hdf")
    assert (tmp_path / "a.hdf").read_bytes() == (tmp_path / "b.hdf").read_bytes()


def test_it_is_a_file(tmp_path):
    target = HDFTarget(tmp_path / "x")
    target.write(b"0123456789")
    assert (target.seek(-3, os.SEEK_END), target.read(2), target.tell()) == (7, b"78", 9)
    assert target.seek(-9, os.SEEK_CUR) == 0
    target.truncate(4)
    assert target.read() == b"0123"
    target.commit()
    target.discard()
    assert (tmp_path / "x").read_bytes() == b"0123"
    with pytest.raises(OSError, match="x"), target.checked():
        target.write(b"late")


def test_what_h5py_reads_back_while_it_writes(tmp_path):
    target = HDFTarget(tmp_path / "x.hdf")
    with target.checked(), h5py.File(target, "w") as file:
        file["a"] = np.arange(100000)
        assert file["a"][77777] == 77777
    target.commit()
    with h5py.File(tmp_path / "x.hdf") as file:
        assert file["a"][99999] == 99999
