import os

import numpy as np
import pytest

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.hdf_writer import HDFWriter


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with HDFWriter(tmp_path / "a.hdf") as writer:
            writer.write("s", {"data": np.zeros((2, 3), np.float32)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.hdf").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    (tmp_path / "a.hdf.tmp").write_bytes(b"half a file" * 1000)
    with HDFWriter(tmp_path / "a.hdf") as writer:
        writer.write("s", {"data": np.zeros((2, 3), np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf"]
    assert HDFDataset(str(tmp_path / "a.hdf")).seq_tags([0]) == ["s"]


def test_two_writers_of_one_file(tmp_path):
    with HDFWriter(tmp_path / "a.hdf") as writer:
        with pytest.raises(DataError, match=r"a\.hdf\.tmp: another process is writing this file"):
            HDFWriter(tmp_path / "a.hdf")
        writer.write("s", {"data": np.zeros((2, 3), np.float32)})
    with HDFWriter(tmp_path / "a.hdf", overwrite=True) as second:
        writer.abort()  # comes too late, and does no harm
        second.write("t", {"data": np.zeros((2, 3), np.float32)})
    assert HDFDataset(str(tmp_path / "a.hdf")).seq_tags([0]) == ["t"]


def test_no_link_is_followed(tmp_path):
    (tmp_path / "a.hdf.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        HDFWriter(tmp_path / "a.hdf")
    assert not (tmp_path / "elsewhere").exists()
