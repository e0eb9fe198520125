"""HDF files: what RETURNN wrote, what we write, and every kind of damage."""

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data import hdf_rows
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf import HDFDataset, expand_files
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "hdf.json").read_text())
SPECS = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=5, sparse=True)}


def write(path, lens=(4, 0, 7, 2), seed=1, prefix="seq", **options):
    """Our writer's file of random numbers; returns what was written."""
    rng = np.random.RandomState(seed)
    written = {}
    with HDFWriter(path, SPECS, **options) as writer:
        for i, length in enumerate(lens):
            streams = {
                "data": rng.randn(length, 3).astype("float32"),
                "classes": rng.randint(0, 5, length).astype("int32"),
            }
            written[f"{prefix}/{i}-ü"] = streams
            writer.write(f"{prefix}/{i}-ü", streams)
    return written


def write_all(path, *seqs, specs=None):
    with HDFWriter(path, specs) as writer:
        for tag, streams in seqs:
            writer.write(tag, streams)


def assert_holds(dataset, written, indices=None):
    indices = range(len(dataset)) if indices is None else indices
    examples = dataset.read(list(indices))
    tags = list(written)
    assert examples.seq_tags == [tags[i] for i in indices]
    for name in examples.streams:
        for tag, array in zip(examples.seq_tags, examples.streams[name], strict=True):
            expected = written[tag][name]
            assert array.dtype == expected.dtype
            assert np.array_equal(array, expected)


@pytest.mark.parametrize("cache", ["auto", "none", "ram"])
@pytest.mark.parametrize("name", GOLDEN["files"])
def test_what_returnn_wrote(name, cache):
    dataset = HDFDataset(FOLDER / "hdf" / f"{name}.hdf", cache=cache)
    for case in GOLDEN["files"][name]["read"]:
        facts = case["result"]
        mode = case["kwargs"].get("seq_ordering", "default")
        order = SeqOrder(mode).indices(1, dataset.order_lengths())
        examples = dataset.read(order)
        assert set(examples.streams) == set(facts["data_keys"])
        assert dataset.seq_tags(np.arange(len(dataset))) == facts["all_tags"]
        for i, seq in enumerate(facts["seqs"]):
            assert examples.seq_tags[i] == seq["tag"]
            for stream in examples.streams:
                array, expected = examples.streams[stream][i], seq[stream]
                if expected["dtype"] == "str":
                    assert np.atleast_1d(array).tolist() == expected["values"]
                    continue
                assert (str(array.dtype), list(array.shape)) == (expected["dtype"], expected["shape"])
                assert array.tolist() == expected["values"]
                if dataset.streams[stream].has_time:
                    assert dataset.seq_lengths(stream)[order[i]] == seq["len"][stream]


def test_two_files_with_the_same_tags():
    case = GOLDEN["two_files"][0]
    files = [FOLDER / "hdf" / name for name in case["files"]]
    with pytest.raises(DataError, match=r"duplicate seq_tag 'corpus/rec-1/1'.*dense2d.hdf.*dense_default_ndim.hdf"):
        HDFDataset(files).seq_tags([0])
    dataset = HDFDataset(files, allow_duplicate_tags=True)
    for cache in ("none", "ram"):
        examples = HDFDataset(files, allow_duplicate_tags=True, cache=cache).read([5, 0, 4, 1, 2, 3])
        for position, index in enumerate([5, 0, 4, 1, 2, 3]):
            seq = case["result"]["seqs"][index]
            assert examples.seq_tags[position] == seq["tag"]
            assert examples.streams["data"][position].tolist() == seq["data"]["values"]
    assert dataset.seq_lengths("data").tolist() == [seq["len"]["data"] for seq in case["result"]["seqs"]]


def test_streams_of_returnn_files():
    extra = HDFDataset(FOLDER / "hdf" / "extra.hdf")
    assert extra.streams["classes"] == TensorSpec(dim=5, sparse=True)
    assert extra.labels == {"classes": ["a", "b", "c", "d", "e"]}
    assert extra.streams["emb"] == TensorSpec(dim=3)
    assert extra.streams["score"].shape == (None,)
    scores = HDFDataset(FOLDER / "hdf" / "extra.hdf", per_sequence=["score"])
    assert scores.streams["score"].shape == ()
    assert scores.seq_lengths("score") is None
    assert [array.shape for array in scores.read([0, 1]).streams["score"]] == [(), ()]
    with pytest.raises(DataError, match=r"stream 'classes': per_sequence, but 'corpus/.*' has 4 frames"):
        HDFDataset(FOLDER / "hdf" / "extra.hdf", per_sequence=["classes"])
    assert HDFDataset(FOLDER / "hdf" / "sparse.hdf").streams["data"] == TensorSpec(dim=7, sparse=True)
    assert HDFDataset(FOLDER / "hdf" / "string_extra.hdf").streams["text"].shape == ()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_writer_and_reader(tmp_path_factory, lens, data):
    folder = tmp_path_factory.mktemp("hdf")
    written = write(folder / "x.hdf", lens, compression=data.draw(st.sampled_from([None, "gzip", "lzf"])))
    indices = data.draw(st.lists(st.integers(0, len(lens) - 1), max_size=20))
    for cache in ("none", "ram"):
        dataset = HDFDataset(folder / "x.hdf", cache=cache)
        assert dataset.streams == SPECS
        assert_holds(dataset, written)
        assert_holds(dataset, written, indices)
        assert_holds(dataset, written)
        dataset.check()


@pytest.mark.parametrize(("gap", "run", "block"), [(0, 1, 1), (0, 64, 16), (10_000, 10_000, 100), (60, 100, 60)])
def test_any_size_of_block(tmp_path, monkeypatch, gap, run, block):
    """However the reads are cut and joined, the numbers are the same."""
    monkeypatch.setattr(hdf_rows, "GAP_BYTES", gap)
    monkeypatch.setattr(hdf_rows, "RUN_BYTES", run)
    monkeypatch.setattr(hdf_rows, "BLOCK_BYTES", block)
    written = write(tmp_path / "x.hdf", np.random.RandomState(2).randint(0, 12, 40))
    for cache in ("none", "ram"):
        dataset = HDFDataset(tmp_path / "x.hdf", cache=cache)
        for epoch in (1, 2):
            assert_holds(dataset, written, SeqOrder("random").indices(epoch, 40))


def test_kinds_of_storage(tmp_path):
    """Contiguous, chunked along the features too, compressed, with fixed-width tags: all the same."""
    written = write(tmp_path / "x.hdf")
    for options in (
        {},
        {"chunks": (2, 2)},
        {"chunks": (2, 1)},
        {"chunks": (5, 3)},
        {"dtype": ">f4"},
        {"chunks": (3, 1), "compression": "gzip", "shuffle": True},
    ):
        with h5py.File(tmp_path / "x.hdf") as source, h5py.File(tmp_path / "y.hdf", "w") as target:
            for name in source:
                source.copy(name, target)
            del target["inputs"]
            target.create_dataset("inputs", data=source["inputs"][...], **options)
            target.attrs.update(source.attrs)
        for cache in ("none", "ram"):
            assert_holds(HDFDataset(tmp_path / "y.hdf", cache=cache), written)


def test_several_files_as_one(tmp_path):
    first, second = write(tmp_path / "a.0.hdf", prefix="a"), write(tmp_path / "a.1.hdf", (3, 5), 2, "b")
    (tmp_path / "list.txt").write_text("a.0.hdf\na.1.hdf\n")
    paths = [tmp_path / "a.0.hdf", tmp_path / "a.1.hdf"]
    assert (
        expand_files(str(tmp_path / "a.*.hdf")) == expand_files(tmp_path / "list.txt") == expand_files(paths) == paths
    )
    for cache in ("none", "ram"):
        dataset = HDFDataset(tmp_path / "list.txt", cache=cache)
        assert len(dataset) == 6
        assert_holds(dataset, {**first, **second})
        assert_holds(dataset, {**first, **second}, [5, 0, 4, 2, 5])
    with pytest.raises(DataError, match="no file matches"):
        HDFDataset(str(tmp_path / "b*.hdf"))
    with pytest.raises(DataError, match=r"nope.hdf: no such file"):
        HDFDataset(tmp_path / "nope.hdf")


def test_files_that_do_not_fit_together(tmp_path):
    write(tmp_path / "a.hdf")
    with HDFWriter(
        tmp_path / "b.hdf", {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=5, sparse=True)}
    ) as writer:
        writer.write("x", {"data": np.zeros((1, 4)), "classes": [1]})
    with pytest.raises(DataError, match=r"b.hdf, stream 'data'.*expected .*as in .*a.hdf"):
        HDFDataset([tmp_path / "a.hdf", tmp_path / "b.hdf"])
    with HDFWriter(tmp_path / "c.hdf", {"data": TensorSpec(dim=3)}) as writer:
        writer.write("x", {"data": np.zeros((1, 3))})
    with pytest.raises(DataError, match=r"c.hdf: no stream 'classes', which .*a.hdf has"):
        HDFDataset([tmp_path / "a.hdf", tmp_path / "c.hdf"])
    assert list(HDFDataset([tmp_path / "c.hdf"]).streams) == ["data"]


def test_pickled_and_forked(tmp_path):
    written = write(tmp_path / "x.hdf", np.arange(1, 20))
    dataset = HDFDataset(tmp_path / "x.hdf", cache="none").with_streams(["classes"])
    dataset.read([3])
    copy = pickle.loads(pickle.dumps(dataset))
    assert_holds(copy, written)
    assert list(copy.read([0]).streams) == ["classes"]
    batches = list(Loader(dataset, {"classes": SPECS["classes"]}, None, Batching(max_seqs=4), num_workers=2).epoch(1))
    assert [tag for batch in batches for tag in batch.seq_tags] == list(written)


def test_workers_share_the_cache(tmp_path, monkeypatch):
    """Unpacking is work for processes; when all is unpacked, this process goes on alone."""
    written = write(tmp_path / "x.hdf", np.arange(1, 20), compression="gzip")
    loader = Loader(HDFDataset(tmp_path / "x.hdf", cache="ram"), None, None, Batching(max_seqs=4), num_workers=2)
    assert not loader.dataset.is_block_copy
    first = list(loader.epoch(1))
    caches = loader.dataset._caches
    assert loader.dataset.is_block_copy
    assert np.array_equal(caches[0, "data"].rows, np.concatenate([seq["data"] for seq in written.values()]))
    monkeypatch.setattr("returnn_hydra.data.loader.read_in_workers", None)
    again = list(loader.epoch(1))
    assert [batch["data"].tolist() for batch in again] == [batch["data"].tolist() for batch in first]


def test_workers_share_the_tags(tmp_path, monkeypatch):
    """They are read before the processes begin, not once in each."""
    written = write(tmp_path / "x.hdf", np.arange(1, 20))
    options = {"batching": Batching(max_seqs=4), "num_workers": 2}
    loader = Loader(HDFDataset(tmp_path / "x.hdf", cache="none"), **options)
    monkeypatch.setattr(HDFDataset, "_read_tags", None)
    assert [tag for batch in loader.epoch(1) for tag in batch.seq_tags] == list(written)


def test_no_workers_for_a_block_copy(tmp_path, monkeypatch):
    written = write(tmp_path / "x.hdf", np.arange(1, 20))
    for cache, expected in (("none", 2), ("ram", 0)):
        loader = Loader(HDFDataset(tmp_path / "x.hdf", cache=cache), None, None, Batching(max_seqs=4), num_workers=2)
        batches = loader.epoch(1)
        tags = list(next(batches).seq_tags)
        assert len(multiprocessing.active_children()) == expected
        tags += [tag for batch in batches for tag in batch.seq_tags]
        assert tags == list(written)


def test_file_cut_while_in_use(tmp_path):
    """An error, where touching the lost part would end the process."""
    rows = np.random.RandomState(1).rand(50_000, 3).astype("float32")
    with h5py.File(tmp_path / "x.hdf", "w") as file:
        file.create_dataset("inputs", data=rows)
        file["seqLengths"] = [[25_000, 0]] * 2
        file["seqTags"] = np.array([b"a", b"b"])
    for cache in ("none", "ram"):
        dataset = HDFDataset(tmp_path / "x.hdf", cache=cache)
        assert np.array_equal(dataset.read([0]).streams["data"][0], rows[:25_000])
        shutil.copy(tmp_path / "x.hdf", tmp_path / "whole.hdf")
        os.truncate(tmp_path / "x.hdf", 100_000)
        with pytest.raises(DataError, match=r"'data', 1 sequences from 'b' on: .*the file was cut from"):
            dataset.read([1])
        shutil.copy(tmp_path / "whole.hdf", tmp_path / "x.hdf")


def test_cache_is_bounded(tmp_path, monkeypatch):
    write(tmp_path / "x.hdf", [1000])  # 12000 + 4000 bytes
    monkeypatch.setattr("returnn_hydra.data.hdf.available_memory", lambda: 50_000)
    assert not HDFDataset(tmp_path / "x.hdf", cache="auto").is_block_copy
    assert HDFDataset(tmp_path / "x.hdf", cache="auto", cache_fraction=0.5).is_block_copy
    assert HDFDataset(tmp_path / "x.hdf", cache="ram").is_block_copy
    monkeypatch.setattr("returnn_hydra.data.hdf.available_memory", lambda: 10_000)
    with pytest.raises(DataError, match=r"x.hdf ...: cache=ram needs 0.0 GiB"):
        HDFDataset(tmp_path / "x.hdf", cache="ram")
    with pytest.raises(ValueError, match="cache='disk'"):
        HDFDataset(tmp_path / "x.hdf", cache="disk")


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(name, array):
    def change(file):
        del file[name]
        file[name] = array

    return change


def linked(name, target):
    def change(file):
        del file[name]
        file[name] = target

    return change


DAMAGE = {
    "lengths too small": (
        replaced("seqLengths", [[4, 4], [0, 0], [6, 7], [2, 2]]),
        "'data': the lengths .* add up to 12",
    ),
    "lengths of labels": (replaced("seqLengths", [[4, 4], [0, 0], [7, 8], [2, 2]]), "'classes': the lengths .* to 14"),
    "negative length": (
        replaced("seqLengths", [[4, 4], [-2, 0], [9, 7], [2, 2]]),
        "'seq/1-ü', stream 'data': -2 frames",
    ),
    "fractions": (replaced("seqLengths", np.full((4, 2), 1.5)), "expected integers"),
    "too few columns": (replaced("seqLengths", [[4], [0], [7], [2]]), "seqLengths has 1 columns, expected 2"),
    "too few tags": (replaced("seqTags", np.array([b"a", b"b"])), "2 seqTags, but seqLengths of 4"),
    "no lengths": (lambda file: file.pop("seqLengths"), "`seqLengths` is missing"),
    "no tags": (lambda file: file.pop("seqTags"), "`seqTags` is missing"),
    "no data": (lambda file: (file.pop("inputs"), file.pop("targets")), "neither `inputs` nor `targets/data`"),
    "group for data": (lambda file: (file.pop("inputs"), file.create_group("inputs")), "`inputs` is not a data set"),
    "scalar": (replaced("inputs", 3.0), "no frames axis"),
    "complex": (replaced("inputs", np.zeros((13, 3), complex)), "expected numbers or text"),
    "external link": (linked("inputs", h5py.ExternalLink("other.hdf", "inputs")), "is a link .ExternalLink"),
    "soft link": (linked("inputs", h5py.SoftLink("/labels")), "is a link .SoftLink"),
    "linked group": (linked("targets", h5py.ExternalLink("other.hdf", "targets")), "is a link .ExternalLink"),
    "two streams of a name": (
        lambda file: file["targets/data"].move("classes", "data"),
        "two streams of the name 'data'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_at_once(tmp_path, kind):
    change, words = DAMAGE[kind]
    write(tmp_path / "other.hdf")
    write(tmp_path / "x.hdf")
    edit(tmp_path / "x.hdf", change)
    with pytest.raises(DataError, match=rf"x.hdf.*({words})"):
        HDFDataset(tmp_path / "x.hdf")


def test_storage_in_another_file_is_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\1" * 156)
    write(tmp_path / "x.hdf")

    def external(file):
        del file["inputs"]
        file.create_dataset("inputs", (13, 3), "f4", external=[(str(secret), 0, 156)])

    edit(tmp_path / "x.hdf", external)
    with pytest.raises(DataError, match="`inputs` is stored in another file"):
        HDFDataset(tmp_path / "x.hdf")

    def virtual(file):
        del file["inputs"]
        layout = h5py.VirtualLayout((13, 3), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf"), "inputs", (13, 3))
        file.create_virtual_dataset("inputs", layout)

    edit(tmp_path / "x.hdf", virtual)
    with pytest.raises(DataError, match="`inputs` is stored in another file"):
        HDFDataset(tmp_path / "x.hdf")


def test_truncated_and_foreign_files(tmp_path):
    write(tmp_path / "x.hdf")
    size = (tmp_path / "x.hdf").stat().st_size
    for keep in (0, 10, size // 2, size - 1):
        shutil.copy(tmp_path / "x.hdf", tmp_path / "y.hdf")
        os.truncate(tmp_path / "y.hdf", keep)
        with pytest.raises(DataError, match=r"y.hdf: not a readable HDF file"):
            HDFDataset(tmp_path / "y.hdf")
    (tmp_path / "y.hdf").write_text("hello")
    with pytest.raises(DataError, match=r"y.hdf: not a readable HDF file"):
        HDFDataset(tmp_path / "y.hdf")


def test_repeated_tags_in_one_file(tmp_path):
    write(tmp_path / "x.hdf")
    edit(tmp_path / "x.hdf", replaced("seqTags", np.array([b"a", b"b", b"a", b"c"])))
    with pytest.raises(DataError, match=r"duplicate seq_tag 'a': sequence 0 .*and sequence 2"):
        HDFDataset(tmp_path / "x.hdf").read([0])


def test_label_out_of_range(tmp_path):
    write(tmp_path / "x.hdf")

    def change(file):
        file["targets/data/classes"][5] = 7

    edit(tmp_path / "x.hdf", change)
    dataset = HDFDataset(tmp_path / "x.hdf")
    with pytest.raises(DataError, match=r"'seq/2-ü', stream 'classes': label 7 at \(1,\), expected 0 to 4"):
        list(Loader(dataset, None, None, Batching(max_seqs=2)).epoch(1))
    with pytest.raises(DataError, match=r"'seq/2-ü', stream 'classes'"):
        dataset.check()


def test_flipped_bit_is_found(tmp_path):
    written = write(tmp_path / "x.hdf", [400])
    content = bytearray((tmp_path / "x.hdf").read_bytes())
    needle = written["seq/0-ü"]["data"].tobytes()[400:480]
    position = bytes(content).index(needle)
    content[position + 3] ^= 16
    (tmp_path / "x.hdf").write_bytes(content)
    for cache in ("none", "ram"):
        with pytest.raises(DataError, match=r"x.hdf, stream 'data', 1 sequences from 'seq/0-ü' on: can't be read"):
            HDFDataset(tmp_path / "x.hdf", cache=cache).read([0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_an_error_or_harmless(tmp_path_factory, position, change):
    """Whatever byte is changed: the right numbers, or a DataError."""
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "good.hdf").exists():
        write(folder / "good.hdf", [3, 40, 5])
    good = HDFDataset(folder / "good.hdf").read([0, 1, 2])
    content = bytearray((folder / "good.hdf").read_bytes())
    content[position % len(content)] ^= change
    (folder / "bad.hdf").write_bytes(content)
    try:
        bad = HDFDataset(folder / "bad.hdf", cache="none")
        found = bad.read(np.arange(len(bad)))
    except DataError:
        return
    for name in set(found.streams) & set(good.streams):
        for a, b in zip(found.streams[name], good.streams[name], strict=False):
            assert a.tobytes() == b.tobytes() or a.shape != b.shape or a.dtype != b.dtype


def test_old_files(tmp_path):
    """One length for all streams; sizes without the number of axes; labels only."""
    write(tmp_path / "x.hdf", (4, 1, 7, 2))

    def change(file):
        lengths = file["seqLengths"][:, 0]
        del file["seqLengths"]
        file["seqLengths"] = lengths
        file["targets/size"].attrs["classes"] = 5
        del file["targets/labels"]

    before = HDFDataset(tmp_path / "x.hdf").read([2, 0])
    edit(tmp_path / "x.hdf", change)
    dataset = HDFDataset(tmp_path / "x.hdf")
    assert dataset.streams == SPECS
    after = dataset.read([2, 0])
    for name in SPECS:
        assert all(np.array_equal(a, b) for a, b in zip(before.streams[name], after.streams[name], strict=True))


def test_only_targets(tmp_path):
    with HDFWriter(tmp_path / "x.hdf", {"classes": SPECS["classes"], "score": TensorSpec(shape=())}) as writer:
        writer.write("a", {"classes": [1, 2], "score": 0.5})
        writer.write("b", {"classes": [], "score": 1.5})
    dataset = HDFDataset(tmp_path / "x.hdf")
    examples = dataset.read([1, 0])
    assert [array.tolist() for array in examples.streams["classes"]] == [[], [1, 2]]
    assert [float(array) for array in examples.streams["score"]] == [1.5, 0.5]
    assert dataset.streams["score"].shape == ()


def test_several_variable_axes(tmp_path):
    """RETURNN's way: all frames in a row, and a stream `sizes`."""
    with HDFWriter(tmp_path / "x.hdf", {"data": TensorSpec(shape=(None, None, 2))}) as writer:
        writer.write("a", {"data": np.arange(24).reshape(4, 3, 2)})
        writer.write("b", {"data": np.arange(4).reshape(1, 2, 2)})
    examples = HDFDataset(tmp_path / "x.hdf").read([0, 1])
    assert [array.tolist() for array in examples.streams["sizes"]] == [[4, 3], [1, 2]]
    assert np.array_equal(examples.streams["data"][0], np.arange(24).reshape(12, 2))
    golden = HDFDataset(FOLDER / "hdf" / "sizes4d.hdf")
    assert golden.streams["sizes"] == HDFDataset(tmp_path / "x.hdf").streams["sizes"]


def test_guessed_streams(tmp_path):
    with HDFWriter(tmp_path / "x.hdf") as writer:
        writer.write("a", {"data": np.ones((2, 3)), "text": "hällo", "n": 3, "counts": np.array([1, 900])})
        writer.write("b", {"data": np.zeros((0, 3)), "text": "", "n": 4, "counts": np.array([5])})
    dataset = HDFDataset(tmp_path / "x.hdf")
    examples = dataset.read([1, 0])
    assert [str(text) for text in examples.streams["text"]] == ["", "hällo"]
    assert [int(n) for n in examples.streams["n"]] == [4, 3]
    assert [array.tolist() for array in examples.streams["counts"]] == [[5], [1, 900]]
    assert examples.streams["data"][1].dtype == np.float64
    assert not dataset.streams["counts"].sparse


WRONG_SEQUENCES = {
    "stream missing": ({"data": np.zeros((2, 3))}, r"streams \['data'\], expected \['classes', 'data'\]"),
    "shape": ({"data": np.zeros((2, 4)), "classes": [1]}, r"'b', stream 'data': shape \(2, 4\), expected \(None, 3\)"),
    "type": ({"data": np.zeros((2, 3)), "classes": [0.5]}, "'classes': values of type float64, expected int32"),
    "range": ({"data": np.zeros((2, 3)), "classes": [2**40]}, "do not fit into int32"),
    "text": ({"data": np.zeros((2, 3)), "classes": "abc"}, "stream 'classes'"),
}


@pytest.mark.parametrize("kind", WRONG_SEQUENCES)
def test_writer_refuses(tmp_path, kind):
    streams, words = WRONG_SEQUENCES[kind]
    with pytest.raises(DataError, match=words):
        write_all(tmp_path / "x.hdf", ("a", {"data": np.zeros((2, 3)), "classes": [1]}), ("b", streams), specs=SPECS)
    assert os.listdir(tmp_path) == []


def test_writer_and_names(tmp_path):
    path = tmp_path / "x.hdf"
    with pytest.raises(DataError, match="'a' is written a second time"):
        write_all(path, ("a", {"data": [1.0]}), ("a", {"data": [1.0]}))
    with pytest.raises(DataError, match="no sequence was written"):
        write_all(path)
    assert os.listdir(tmp_path) == []
    write(path)
    with pytest.raises(DataError, match=r"x.hdf: the file exists; overwrite=true replaces it"):
        HDFWriter(path, SPECS)
    write(path, (1,), overwrite=True)
    assert len(HDFDataset(path)) == 1
    writer = HDFWriter(tmp_path / "empty.hdf", SPECS)
    writer.close()
    assert len(HDFDataset(tmp_path / "empty.hdf")) == 0
    with pytest.raises(DataError, match="there is no folder"):
        HDFWriter(tmp_path / "no" / "x.hdf")
    with pytest.raises(DataError, match="after the file was closed"):
        writer.write("z", {"data": [1.0]})


def test_nothing_under_the_final_name_before_it_is_complete(tmp_path):
    path = tmp_path / "x.hdf"
    writer = HDFWriter(path, SPECS)
    for i in range(50):
        writer.write(f"seq-{i}", {"data": np.zeros((10_000, 3)), "classes": np.zeros(10_000, int)})
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == 1
    writer.close()
    assert os.listdir(tmp_path) == ["x.hdf"]
    assert len(HDFDataset(path)) == 50


def test_labels(tmp_path):
    with HDFWriter(tmp_path / "x.hdf", SPECS, labels={"classes": list("abcdé")}) as writer:
        writer.write("a", {"data": np.zeros((2, 3)), "classes": [1]})
    assert HDFDataset(tmp_path / "x.hdf").labels == {"classes": list("abcdé")}
