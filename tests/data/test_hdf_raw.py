"""Reading past HDF5 gives what HDF5 gives, wherever the chunks stand."""

import mmap

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.data import hdf_chunks
from returnn_hydra.data.hdf_raw import CheckedRows, RawRows, raw_rows


def scattered(path, shape, chunks, seed, libver=None, fletcher32=False):
    """A data set whose chunks were written in a random order, with others between them; returns the numbers."""
    rng = np.random.RandomState(seed)
    numbers = rng.rand(*shape).astype("f4")
    with h5py.File(path, "w", libver=libver) as file:
        dataset = file.create_dataset("x", shape, "f4", chunks=chunks, maxshape=(None, None), fletcher32=fletcher32)
        other = file.create_dataset("y", (len(numbers), 3), "i2", chunks=(1, 3))
        starts = np.arange(0, shape[0], chunks[0])
        if rng.rand() < 0.5:
            rng.shuffle(starts)
        for i, start in enumerate(starts):
            columns = np.arange(0, shape[1], chunks[1])
            if rng.rand() < 0.3:
                rng.shuffle(columns)
            for column in columns:
                block = np.s_[start : start + chunks[0], column : column + chunks[1]]
                dataset[block] = numbers[block]
            if rng.rand() < 0.3:
                other[i] = 1
            if rng.rand() < 0.2:
                file.flush()
    return numbers


LIBVER = st.sampled_from([None, "latest"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_scattered_chunks(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("raw") / "x.hdf"
    num_rows, columns = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([1, 2, 4, 6]))
    width = data.draw(st.sampled_from([size for size in (1, 2, 3, 4, 6) if columns % size == 0]))
    with_checksum = data.draw(st.booleans()) and width == columns
    chunks = (data.draw(st.integers(1, 20)), width)
    numbers = scattered(
        path, (num_rows, columns), chunks, data.draw(st.integers(0, 99)), data.draw(LIBVER), with_checksum
    )
    start = data.draw(st.integers(0, num_rows - 1))
    stop = data.draw(st.integers(start + 1, num_rows))
    with h5py.File(path) as file:
        raw = raw_rows(str(path), file["x"])
        assert type(raw) is (CheckedRows if with_checksum else RawRows)
        out = np.full((stop - start, columns), np.nan, "f4")
        raw.copy_block(out, start, stop)
        assert np.array_equal(out, numbers[start:stop])
        assert np.array_equal(raw.get(start, stop), numbers[start:stop])


@pytest.mark.parametrize(("num_rows", "chunks"), [(3, (4, 2)), (500, (3, 2)), (6000, (1, 4))])
def test_chunk_tree(tmp_path, num_rows, chunks, monkeypatch):
    """One table, two and three levels of them; HDF5 itself is not asked for the list."""
    scattered(tmp_path / "x.hdf", (num_rows, 4), chunks, 1)
    with h5py.File(tmp_path / "x.hdf") as file, open(tmp_path / "x.hdf", "rb") as raw:
        expected = hdf_chunks._from_library(file["x"])
        memory = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        for found, known in zip(hdf_chunks._from_tree(memory, file["x"]), expected, strict=True):
            assert np.array_equal(found, known)
        monkeypatch.setattr(hdf_chunks, "_from_library", None)
        offsets = hdf_chunks.chunk_table(memory, file["x"], 4 * chunks[0] * chunks[1])
        assert offsets.shape == (-(-num_rows // chunks[0]), 4 // chunks[1])
        assert np.array_equal(np.sort(offsets, axis=None), np.sort(expected.places))


def test_other_versions_of_the_format_are_left_to_hdf5(tmp_path):
    numbers = scattered(tmp_path / "x.hdf", (50, 4), (3, 2), 1, libver="latest")
    with h5py.File(tmp_path / "x.hdf") as file, open(tmp_path / "x.hdf", "rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        with pytest.raises(ValueError, match="object header of version"):
            hdf_chunks._from_tree(memory, file["x"])
        assert np.array_equal(raw_rows(str(tmp_path / "x.hdf"), file["x"]).get(0, 50), numbers)


def test_chunks_that_were_never_written(tmp_path):
    with h5py.File(tmp_path / "x.hdf", "w") as file:
        file.create_dataset("x", (50, 4), "f4", chunks=(3, 2), fillvalue=7)[4] = 1
        file.create_dataset("none", (50, 4), "f4", chunks=(3, 2))
    with h5py.File(tmp_path / "x.hdf") as file:
        assert raw_rows(str(tmp_path / "x.hdf"), file["x"]) is None
        assert raw_rows(str(tmp_path / "x.hdf"), file["none"]) is None


def test_a_damaged_tree_is_left_to_hdf5(tmp_path):
    scattered(tmp_path / "x.hdf", (500, 4), (3, 2), 1)
    content = bytearray((tmp_path / "x.hdf").read_bytes())
    with h5py.File(tmp_path / "x.hdf") as file:
        right = hdf_chunks.chunk_table(content, file["x"], 24)
        root = hdf_chunks._tree_address(content, file["x"])
        for byte in (0, 4, 5, 6, 24 + 8):  # signature, kind, level, number of entries, first row of a chunk
            damaged = bytearray(content)
            damaged[root + byte] ^= 0xFF
            assert np.array_equal(hdf_chunks.chunk_table(damaged, file["x"], 24), right)


def with_checksums(path, num_rows=50, chunks=(8, 4)):
    numbers = np.random.RandomState(1).rand(num_rows, chunks[1]).astype("f4")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=numbers, chunks=chunks, fletcher32=True)
    return numbers


@pytest.mark.parametrize("by", ["copy_block", "get"])
@pytest.mark.parametrize("place", [0, 77, 127, 128, 131])
def test_a_wrong_number_or_checksum_is_noticed(tmp_path, by, place):
    """Only by who reads its chunk; HDF5 notices the same."""
    with_checksums(tmp_path / "x.hdf")
    with h5py.File(tmp_path / "x.hdf") as file:
        start = file["x"].id.get_chunk_info(2).byte_offset
    content = bytearray((tmp_path / "x.hdf").read_bytes())
    content[start + place] ^= 4
    (tmp_path / "x.hdf").write_bytes(content)
    with h5py.File(tmp_path / "x.hdf") as file:
        raw = raw_rows(str(tmp_path / "x.hdf"), file["x"])
        read = {"get": raw.get, "copy_block": lambda a, b: raw.copy_block(np.empty((b - a, 4), "f4"), a, b)}[by]
        read(0, 16)
        read(24, 50)
        for part in ((0, 50), (16, 24), (20, 22)):
            with pytest.raises(OSError, match=r"checksum \(fletcher32\) of the 8 rows from 16 on"):
                read(*part)
        with pytest.raises(OSError, match=r"fletcher32|filter"):
            file["x"][20]


def test_chunks_that_a_filter_left_out(tmp_path):
    """Such a chunk has no checksum behind it: HDF5 reads it."""
    numbers = with_checksums(tmp_path / "x.hdf")
    with h5py.File(tmp_path / "x.hdf", "a") as file:
        file["x"].id.write_direct_chunk((8, 0), numbers[8:16].tobytes(), filter_mask=1)
    with h5py.File(tmp_path / "x.hdf") as file:
        assert raw_rows(str(tmp_path / "x.hdf"), file["x"]) is None
        assert np.array_equal(file["x"], numbers)


@pytest.mark.parametrize(("dtype", "chunks"), [("u1", (3, 5)), ("f4", (1100, 40))])
def test_sizes_that_are_left_to_hdf5(tmp_path, dtype, chunks):
    with h5py.File(tmp_path / "x.hdf", "w") as file:
        file.create_dataset("x", data=np.ones((1200, chunks[1]), dtype), chunks=chunks, fletcher32=True)
    with h5py.File(tmp_path / "x.hdf") as file:
        assert raw_rows(str(tmp_path / "x.hdf"), file["x"]) is None
