"""Checksums are those that HDF5 writes."""

import h5py
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from returnn_hydra.data.fletcher32 import MOST_BYTES, fletcher32


def by_hdf5(chunks):
    """The checksums in a file with these chunks, (n, 2)."""
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=chunks, chunks=(1, chunks.shape[1]), fletcher32=True)
        stored = [dataset.id.read_direct_chunk((i, 0))[1][-4:] for i in range(len(chunks))]
    return np.array([np.frombuffer(four, "<u2") for four in stored], np.int64)


@given(st.integers(1, 20), st.integers(1, 1500), st.integers(0, 1000), st.sampled_from([0, 255, None]))
@example(9, MOST_BYTES // 2, 1, None)
@example(1, MOST_BYTES // 2, 1, 255)
def test_as_hdf5(num_chunks, num_words, seed, value):
    shape = (num_chunks, 2 * num_words)
    chunks = np.random.RandomState(seed).randint(0, 256, shape) if value is None else np.full(shape, value)
    chunks = chunks.astype(np.uint8)
    assert np.array_equal(fletcher32(chunks), by_hdf5(chunks) % 65535)
