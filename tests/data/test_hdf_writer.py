import os

import numpy as np

from returnn_hydra.data.hdf_writer import HDFWriter


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with HDFWriter(tmp_path / "a.hdf") as writer:
            writer.write("s", {"data": np.zeros((2, 3), np.float32)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.hdf").stat().st_mode & 0o777 == 0o640
