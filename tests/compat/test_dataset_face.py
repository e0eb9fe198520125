"""Data sets with RETURNN's methods; the numbers are what RETURNN answers."""

import numpy as np
import pytest

from returnn_hydra.compat.shim.datasets import Dataset, DatasetSeq, convert_data_dims, init_dataset


def test_reading_by_returnns_methods():
    dataset = init_dataset({"class": "Task12AXDataset", "num_seqs": 4})
    assert isinstance(dataset, Dataset)
    assert (dataset.num_inputs, dataset.num_outputs) == (9, {"classes": (2, 1), "data": (9, 2)})
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 2)
    assert (dataset.num_seqs, dataset.get_tag(0), dataset.get_total_num_seqs()) == (4, "seq-0", 4)
    assert dataset.is_less_than_num_seqs(3) and not dataset.is_less_than_num_seqs(4)
    data, classes = dataset.get_data(0, "data"), dataset.get_data(0, "classes")
    assert data.shape == (84, 9) and classes.shape == (84,) and classes.dtype == np.int32
    assert dataset.get_seq_length(0)["data"] == 84
    assert (dataset.get_data_dim("data"), dataset.get_data_shape("data")) == (9, [9])
    assert dataset.is_data_sparse("classes") and dataset.get_data_dtype("classes") == "int32"
    assert dataset.get_target_list() == ["classes"] and dataset.get_complete_frac(1) == 0.5
    assert dataset.get_all_tags() == [f"seq-{number}" for number in range(4)]


def test_order_of_a_list():
    dataset = init_dataset({"class": "Task12AXDataset", "num_seqs": 4})
    dataset.init_seq_order(epoch=1, seq_list=["seq-2", "seq-0"])
    assert [dataset.get_tag(number) for number in range(dataset.num_seqs)] == ["seq-2", "seq-0"]
    assert dataset.get_data(1, "data").shape == (84, 9)
    with pytest.raises(ValueError, match="no sequence 'seq-9'"):
        dataset.init_seq_order(epoch=1, seq_list=["seq-9"])


def test_a_sequence_of_its_own():
    seq = DatasetSeq(3, np.ones((4, 2)), {"classes": np.zeros(4)})
    assert seq.seq_tag == "seq-3" and seq.get_data_keys() == ["data", "classes"] and seq.num_frames["classes"] == 4


def test_data_dims():
    assert convert_data_dims({"data": [9, 2], "classes": (2, 1)}) == {"data": (9, 2), "classes": (2, 1)}
    assert convert_data_dims(5) == {"classes": (5, 1)}
