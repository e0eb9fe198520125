"""Joining, mixing, concatenating, filtering, cutting data sets: against RETURNN's golden values and plain Python."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.data.arrays import AnythingDataset, StaticDataset
from returnn_hydra.data.chunk import ChunkDataset
from returnn_hydra.data.combine import CombinedDataset
from returnn_hydra.data.concat import ConcatDataset, ConcatSeqsDataset, RepeatDataset
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.distribute import DistributeFilesDataset, deal_by_size
from returnn_hydra.data.filter import CurriculumDataset, FilterDataset, RandomSubset
from returnn_hydra.data.meta import MetaDataset
from returnn_hydra.data.ordered import LengthsFromFile, OrderedDataset
from returnn_hydra.data.variable import MultiEpochDataset, VariableDataset
from returnn_hydra.data.views import SubsetDataset

GOLDEN = Path(__file__).parent / "golden"
DATA = GOLDEN / "data"
CASES = json.loads((GOLDEN / "datasets.json").read_text())["cases"]


def hdf(name):
    from returnn_hydra.data.hdf import HDFDataset

    return HDFDataset([DATA / f"{name}.hdf"])


def golden_seqs(class_name, number, epoch):
    case = [case for case in CASES if repr(class_name) in case["opts_py"].split("}")[0].split(",")[0]][number]
    return case["epochs"][str(epoch)]


def check_golden(dataset, seqs, streams):
    """All sequences of `dataset`, in its order, are RETURNN's."""
    assert len(dataset) == len(seqs)
    indices = range(len(dataset))
    examples = dataset.read(indices)
    assert examples.seq_tags == dataset.seq_tags(indices) == [seq["tag"] for seq in seqs]
    for stream in streams:
        for array, seq in zip(examples.streams[stream], seqs, strict=True):
            expected = seq[stream]
            assert list(array.shape) == expected["shape"]
            assert str(array.dtype) == expected["dtype"]
            if "values" in expected:
                np.testing.assert_array_equal(array, np.array(expected["values"], array.dtype).reshape(array.shape))
            else:
                np.testing.assert_array_equal(array.reshape(-1)[:8], np.array(expected["head"], array.dtype))
                assert array.sum() == expected["sum"]


def seqs(lengths, dim=2, prefix="seq", start=0):
    """Sequences of these lengths; every number in them is another one."""
    data, value = [], start
    for length in lengths:
        data.append({"data": np.arange(value, value + length * dim, dtype="float32").reshape(length, dim)})
        value += length * dim
    return StaticDataset(data, {"data": {"dim": dim}}, [f"{prefix}-{i}" for i in range(len(data))])


META = {"data": ["f", "data"], "classes": ["a", "data"]}


@pytest.mark.parametrize("epoch", [1, 2])
def test_meta_golden(epoch):
    meta = MetaDataset({"f": hdf("feat"), "a": hdf("align")}, META, "f")
    check_golden(meta, golden_seqs("MetaDataset", 0, epoch), ["data", "classes"])
    laplace = OrderedDataset(meta, seq_ordering="laplace:.4").at_epoch(epoch)
    check_golden(laplace, golden_seqs("MetaDataset", 1, epoch), ["data", "classes"])
    filtered = FilterDataset(hdf("feat"), DATA / "tags_subset.txt")
    check_golden(
        MetaDataset({"f": filtered, "a": hdf("align")}, META, "f"),
        golden_seqs("MetaDataset", 2, epoch),
        ["data", "classes"],
    )


def test_meta_seq_list(tmp_path):
    (tmp_path / "tags.txt").write_text("b\na\n")
    (tmp_path / "tags.json").write_text(json.dumps({"x": ["b", "a"], "y": ["B", "A"]}))
    (tmp_path / "tags.pkl").write_bytes(pickle.dumps(["b", "a"]))
    x = StaticDataset([{"v": [1.0]}, {"v": [2.0]}, {"v": [3.0]}], seq_tags=["a", "b", "c"])
    y = StaticDataset([{"v": [10.0]}, {"v": [20.0]}], seq_tags=["A", "B"])
    joined = MetaDataset(
        {"x": x, "y": y}, {"data": ["x", "v"], "other": ["y", "v"]}, seq_list_file=tmp_path / "tags.json"
    )
    examples = joined.read([0, 1])
    assert examples.seq_tags == ["b", "a"]
    assert [float(a[0]) for a in examples.streams["data"]] == [2.0, 1.0]
    assert [float(a[0]) for a in examples.streams["other"]] == [20.0, 10.0]
    for name in ("tags.txt", "tags.pkl"):
        one = MetaDataset({"x": x}, {"data": ["x", "v"]}, seq_list_file=tmp_path / name)
        assert one.read([0, 1]).seq_tags == ["b", "a"]
    by_set = MetaDataset({"x": x}, {"data": ["x", "v"]}, seq_list_file={"x": tmp_path / "tags.txt"})
    assert by_set.seq_tags([0, 1]) == ["b", "a"]


def test_anything_goes_with_every_sequence():
    sets = {"real": seqs([2, 3, 4]), "zeros": AnythingDataset({"data": {"dim": 7}}, num_seqs=1)}
    joined = MetaDataset(sets, {"data": ["real", "data"], "other": ["zeros", "data"]})
    assert joined.read([2]).streams["other"][0].tolist() == [[0] * 7]
    assert joined.seq_lengths("other").tolist() == [1, 1, 1]


def test_meta_errors(tmp_path):
    sets = {"first": seqs([2, 3, 4]), "second": seqs([2, 3])}
    with pytest.raises(
        DataError, match=r"'second' lacks 1 of the 3 sequences of data set 'first', e.g. seq_tag 'seq-2', did"
    ):
        len(MetaDataset(sets, {"data": ["first", "data"], "x": ["second", "data"]}))
    with pytest.raises(DataError, match=r"no data set 'frist', did you mean 'first'"):
        MetaDataset(sets, {"data": ["frist", "data"]})
    with pytest.raises(DataError, match=r"'first' has no stream 'date', did you mean 'data'"):
        MetaDataset(sets, {"data": ["first", "date"]})
    with pytest.raises(DataError, match=r"seq_order_control_dataset='third'"):
        MetaDataset(sets, {"data": ["first", "data"]}, "third")
    (tmp_path / "tags.json").write_text('{"first": ["seq-0"], "second": ["seq-0", "seq-1"]}')
    with pytest.raises(DataError, match="must be of one length"):
        len(
            MetaDataset(
                sets, {"data": ["first", "data"], "x": ["second", "data"]}, seq_list_file=tmp_path / "tags.json"
            )
        )


def combined(**options):
    return CombinedDataset(
        {"x": hdf("feat2"), "y": hdf("part1")}, {"x": {"data": "data"}, "y": {"data": "other"}}, **options
    )


@pytest.mark.parametrize("epoch", [1, 2])
def test_combined_golden(epoch):
    by_length = OrderedDataset(combined(), seq_ordering="sorted").at_epoch(epoch)
    check_golden(by_length, golden_seqs("CombinedDataset", 0, epoch), ["data", "other"])
    check_golden(
        combined(mixing="interleave").at_epoch(epoch), golden_seqs("CombinedDataset", 1, epoch), ["data", "other"]
    )


@pytest.mark.parametrize(
    "options", [{"mixing": "random_dataset"}, {"mixing": "interleave", "interleave_gumbel_scale": 1.0}]
)
def test_drawn_mixing_keeps_the_order_inside(options):
    sets = {"x": seqs(range(1, 21), prefix="x"), "y": seqs(range(1, 11), prefix="y")}
    dataset = CombinedDataset(sets, {"x": {"data": "data"}, "y": {"data": "data"}}, **options)
    orders = []
    for epoch in (1, 2, 1):
        tags = dataset.at_epoch(epoch).seq_tags(range(30))
        assert [tag for tag in tags if tag[0] == "x"] == [f"x-{i}" for i in range(20)]
        assert [tag for tag in tags if tag[0] == "y"] == [f"y-{i}" for i in range(10)]
        orders.append(tags)
    assert orders[0] == orders[2] != orders[1]


def test_sampling_sizes_go_round():
    sets = {"x": seqs([1] * 5, prefix="x"), "y": seqs([1] * 2, prefix="y")}
    dataset = CombinedDataset(sets, {"x": {"data": "data"}, "y": {"data": "data"}}, sampling_sizes={"x": 3, "y": 3})
    tags = [dataset.at_epoch(epoch).seq_tags(range(6)) for epoch in (1, 2)]
    assert tags[0] == ["x-0", "x-1", "x-2", "y-0", "y-1", "y-0#2"]
    assert tags[1] == ["x-3", "x-4", "x-0", "y-1", "y-0", "y-1#2"]
    with pytest.raises(DataError, match="sampling_sizes"):
        CombinedDataset(sets, {"x": {"data": "data"}}, sampling_sizes={"y": 3})


def test_combined_errors():
    sets = {"x": seqs([1]), "y": seqs([1], dim=3)}
    with pytest.raises(DataError, match=r"'data' is given by unlike streams: dim 2 / 3"):
        CombinedDataset(sets, {"x": {"data": "data"}, "y": {"data": "data"}})
    with pytest.raises(DataError, match=r"mixing='interleaved', did you mean 'interleave'"):
        CombinedDataset(sets, {"x": {"data": "data"}}, mixing="interleaved")
    dataset = CombinedDataset(sets, {"x": {"data": "data"}, "y": {"data": "other"}})
    with pytest.raises(DataError, match=r"'seq-0' is in both 'x' and 'y'; set prefix_tags"):
        dataset.seq_tags([0])
    named = CombinedDataset(sets, {"x": {"data": "data"}, "y": {"data": "other"}}, prefix_tags=True)
    assert named.seq_tags([1, 0]) == named.read([1, 0]).seq_tags == ["y:seq-0", "x:seq-0"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_concat_golden(epoch):
    check_golden(ConcatDataset([hdf("part0"), hdf("part1")]), golden_seqs("ConcatDataset", 0, epoch), ["data"])
    joined = ConcatSeqsDataset(hdf("feat"), DATA / "concat_list.txt", DATA / "seq_lens.txt")
    check_golden(joined, golden_seqs("ConcatSeqsDataset", 0, epoch), ["data"])
    assert joined.order_lengths().tolist() == joined.seq_lengths("data").tolist() == [9, 7, 21]


def test_concat_errors():
    with pytest.raises(DataError, match=r"stream 'data' differs between the data sets '0' and '1': dim 2 / 3"):
        ConcatDataset([seqs([1]), seqs([1], dim=3)])
    with pytest.raises(DataError, match="in both '0' and '1'"):
        ConcatDataset([seqs([1]), seqs([1])]).seq_tags([0])


LABELS = [[1, 2, 0], [3, 0], [4, 5, 6, 0]]


def labelled(frames=(5, 4, 8)):
    data = [{"data": np.arange(t * 1.0)[:, None], "classes": np.array(c)} for t, c in zip(frames, LABELS, strict=True)]
    return StaticDataset(
        data, {"data": {"dim": 1, "dtype": "float64"}, "classes": {"dim": 9, "sparse": True}}, ["a", "b", "c"]
    )


def test_concat_seqs_between_the_parts(tmp_path):
    (tmp_path / "list.txt").write_text("a;b\nc\nb;a;c\n")
    dataset = ConcatSeqsDataset(
        labelled(),
        tmp_path / "list.txt",
        remove_in_between_postfix={"classes": 0},
        repeat_in_between_last_frame_up_to_multiple_of={"data": 3},
    )
    examples = dataset.read([0, 2])
    assert examples.streams["classes"][0].tolist() == [1, 2, 3, 0]
    assert examples.streams["classes"][1].tolist() == [3, 1, 2, 4, 5, 6, 0]
    assert examples.streams["data"][0][:, 0].tolist() == [0, 1, 2, 3, 4, 4, 0, 1, 2, 3]
    assert dataset.seq_lengths("data").tolist() == [10, 8, 6 + 6 + 8]
    assert dataset.seq_lengths("classes").tolist() == [4, 4, 7]
    fitted = ConcatSeqsDataset(
        labelled(), tmp_path / "list.txt", pad_narrow_data_to_multiple_of_target_len={"data": ["classes", 2]}
    )
    assert fitted.read([0]).streams["data"][0][:, 0].tolist() == [0, 1, 2, 3, 4, 4, 0, 1, 2, 3]
    assert fitted.read([2]).streams["data"][0][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, *range(8)]
    assert fitted.seq_lengths("data").tolist() == [10, 8, 18]
    with pytest.raises(DataError, match=r"seq_tag 'a', stream 'classes': ends with \[0\], expected the label 7"):
        ConcatSeqsDataset(labelled(), tmp_path / "list.txt", remove_in_between_postfix={"classes": 7}).read([0])
    (tmp_path / "bad.txt").write_text("a;x\n")
    with pytest.raises(DataError, match=r"bad.txt: 1 tags are not in the data set, e.g. 'x'"):
        len(ConcatSeqsDataset(labelled(), tmp_path / "bad.txt")._parts[0])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_chunks_against_slicing(lengths, size, step, min_size):
    dataset = seqs(lengths)
    chunks = ChunkDataset(dataset, size, step, min_size)
    expected = []
    whole = dataset.read(range(len(lengths)))
    for tag, array in zip(whole.seq_tags, whole.streams["data"], strict=True):
        for start in range(0, len(array), step):
            piece = array[start : start + size]
            if len(piece) >= min_size:
                expected.append((f"{tag}:{start}-{start + len(piece)}", piece))
    assert len(chunks) == len(expected)
    examples = chunks.read(range(len(chunks)))
    assert examples.seq_tags == chunks.seq_tags(range(len(chunks))) == [tag for tag, _ in expected]
    assert chunks.seq_lengths("data").tolist() == [len(piece) for _, piece in expected]
    for found, (_, piece) in zip(examples.streams["data"], expected, strict=True):
        np.testing.assert_array_equal(found, piece)


def test_chunks_of_several_streams():
    chunks = ChunkDataset(labelled((6, 4, 8)), {"data": 4, "classes": 2})
    assert [a.tolist() for a in chunks.read(range(5)).streams["classes"]] == [[1, 2], [0], [3, 0], [4, 5], [6, 0]]
    assert chunks.seq_tags(range(5)) == ["a:0-4", "a:4-6", "b:0-4", "c:0-4", "c:4-8"]
    with pytest.raises(DataError, match=r"seq_tag 'c': stream 'data' gives 3 chunks, 'classes' 2 \(of 4 frames\)"):
        len(ChunkDataset(labelled((6, 4, 9)), {"data": 4, "classes": 2}))
    whole = ChunkDataset(labelled(), {"data": 4})
    assert whole.read([1]).streams["classes"][0].tolist() == LABELS[0]


def test_filters(tmp_path):
    dataset = seqs([5, 3, 9, 1, 7])
    (tmp_path / "tags.txt").write_text("seq-4\nseq-1\n")
    assert FilterDataset(dataset, tmp_path / "tags.txt").seq_tags([0, 1]) == ["seq-1", "seq-4"]
    assert FilterDataset(dataset, min_seq_length=3, max_seq_length={"data": 7}).seq_lengths("data").tolist() == [
        5,
        3,
        7,
    ]
    assert len(FilterDataset(dataset, exclude_seq_tags=["seq-0"])) == 4
    with pytest.raises(
        DataError, match=r"seq_tags: 1 of the 2 wanted sequences are not in the data set, e.g. 'seq_1', did"
    ):
        len(FilterDataset(dataset, seq_tags=["seq-0", "seq_1"]))
    assert len(FilterDataset(dataset, seq_tags=["seq-0", "x"], require_all=False)) == 1
    with pytest.raises(DataError, match="none of the 5 sequences is left"):
        len(FilterDataset(dataset, min_seq_length=100))
    with pytest.raises(DataError, match="no stream 'dat'"):
        FilterDataset(dataset, min_seq_length={"dat": 3})


def test_random_subset_is_returnns():
    order = list(range(10))
    np.random.RandomState(42).shuffle(order)
    dataset = seqs([1] * 10)
    assert RandomSubset(dataset, 3).seq_tags(range(3)) == [f"seq-{i}" for i in order[:3]]
    assert len(RandomSubset(dataset, 0.55)) == 5


def test_curriculum():
    dataset = CurriculumDataset(seqs([5, 3, 9, 1, 7]), {"1-2": 3, "3": 4, "10-": 5})
    assert [len(dataset.at_epoch(e)) for e in (1, 2, 3, 4, 10, 99)] == [3, 3, 4, 5, 5, 5]
    assert dataset.at_epoch(1).seq_lengths("data").tolist() == [5, 3, 1]
    with pytest.raises(DataError, match=r"expected e\.g\. '1-5'"):
        CurriculumDataset(seqs([1]), {"one": 3})


def test_repeat():
    dataset = RepeatDataset(seqs([5, 3]), 3)
    assert dataset.seq_tags(range(6)) == ["seq-0", "seq-1", "seq-0#2", "seq-1#2", "seq-0#3", "seq-1#3"]
    assert dataset.seq_lengths("data").tolist() == [5, 3] * 3


def test_lengths_from_file(tmp_path):
    (tmp_path / "lens.json").write_text('{"seq-0": 3, "seq-1": {"data": 1}}')
    dataset = LengthsFromFile(seqs([1, 2]), tmp_path / "lens.json")
    assert OrderedDataset(dataset, seq_ordering="sorted").at_epoch(1).seq_tags([0, 1]) == ["seq-1", "seq-0"]
    with pytest.raises(DataError, match=r"lens.json: no length of 1 of 3 sequences, e.g. 'seq-2'"):
        LengthsFromFile(seqs([1, 2, 3]), tmp_path / "lens.json").order_lengths()


def test_ordered_partition_covers_all():
    dataset = OrderedDataset(seqs([5, 3, 9, 1, 7]), seq_ordering="random", partition_epoch=2)
    tags = [dataset.at_epoch(epoch).seq_tags(range(len(dataset.at_epoch(epoch)))) for epoch in (1, 2)]
    assert [len(t) for t in tags] == [3, 2]
    assert sorted(tags[0] + tags[1]) == [f"seq-{i}" for i in range(5)]
    both = MultiEpochDataset(dataset, 2).at_epoch(1)
    assert both.seq_tags(range(5)) == tags[0] + tags[1]
    with pytest.raises(DataError, match=r"did you mean sorted"):
        OrderedDataset(seqs([1]), seq_ordering="sort")


def golden_part(epoch):
    return hdf(f"part{epoch % 2}")


def other_dim(epoch):
    return seqs([1], dim=epoch)


@pytest.mark.parametrize("epoch", [1, 2])
def test_variable_golden(epoch):
    dataset = pickle.loads(pickle.dumps(VariableDataset(golden_part)))
    check_golden(dataset.at_epoch(epoch), golden_seqs("VariableDataset", 0, epoch), ["data"])
    with pytest.raises(DataError, match=r"get_dataset, epoch 2: stream 'data' is unlike before: dim 2 / 1"):
        VariableDataset(other_dim).at_epoch(2)


def files_dataset(files):
    from returnn_hydra.data.hdf import HDFDataset

    return HDFDataset(files)


PARTS = [DATA / f"part{i}.hdf" for i in range(4)]


@pytest.mark.parametrize("epoch", [1, 2])
def test_distribute_golden(epoch):
    dataset = DistributeFilesDataset(PARTS, files_dataset, partition_epoch=2, seq_ordering="default")
    check_golden(dataset.at_epoch(epoch), golden_seqs("DistributeFilesDataset", 0, epoch), ["data"])


def test_distribute_covers_every_file_once(tmp_path):
    (tmp_path / "files.txt").write_text("# comment\n" + "\n".join(map(str, PARTS)))
    dataset = DistributeFilesDataset(tmp_path / "files.txt", files_dataset, partition_epoch=2)
    passes = [sorted(dataset.files_of(e) + dataset.files_of(e + 1)) for e in (1, 3, 5)]
    assert passes == [sorted(map(str, PARTS))] * 3
    assert len({tuple(dataset.files_of(e)) for e in (1, 3, 5, 7, 9)}) > 1
    shards = [
        DistributeFilesDataset(PARTS, files_dataset, partition_epoch=2, num_shards=2, shard_index=i) for i in (0, 1)
    ]
    assert sorted(f for s in shards for e in (1, 2) for f in s.files_of(e)) == PARTS
    assert shards[0].is_rank_part
    assert not dataset.is_rank_part
    with pytest.raises(DataError, match=r"4 files can't be dealt to partition_epoch=5"):
        DistributeFilesDataset(PARTS, files_dataset, partition_epoch=5)
    with pytest.raises(DataError, match="no file"):
        DistributeFilesDataset([tmp_path / "none.hdf"], files_dataset, partition_epoch=1)


@pytest.mark.parametrize(
    ("sizes", "num_parts", "expected"),
    [
        ([1, 1, 78, 120], 4, [[0], [1], [2], [3]]),
        ([5, 5, 10, 10, 10, 10, 10, 10, 10], 5, None),
        ([5] * 7, 5, None),
        ([100, 1, 1, 1], 2, [[0], [1, 2, 3]]),
    ],
)
def test_deal_by_size(sizes, num_parts, expected):
    parts = deal_by_size(sizes, num_parts)
    assert all(parts)
    assert [item for part in parts for item in part] == list(range(len(sizes)))
    assert expected is None or parts == expected


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.data())
def test_deal_by_size_gives_every_part_some(sizes, data):
    parts = deal_by_size(sizes, data.draw(st.integers(1, len(sizes))))
    assert all(parts)
    assert [item for part in parts for item in part] == list(range(len(sizes)))


def test_subset_of_a_subset():
    dataset = SubsetDataset(SubsetDataset(seqs([5, 3, 9]), [2, 0, 2]), [2, 1])
    assert dataset.seq_tags([0, 1]) == dataset.read([0, 1]).seq_tags == ["seq-2#2", "seq-0"]
    assert dataset.seq_lengths("data").tolist() == [9, 5]
