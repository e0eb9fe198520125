"""RETURNN's dataset dicts against what RETURNN reads with them."""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.compat.dataset_dicts import CLASSES, UNSUPPORTED, build_dataset, build_node, plan_dataset
from returnn_hydra.compat.vocab_dicts import vocab_node
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.data.order import SeqOrder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = [case for case in json.loads((GOLDEN / "datasets.json").read_text())["cases"] if "error" not in case]


def sub_ds(files):
    return {"class": "HDFDataset", "files": files, "cache_byte_size": 0, "seq_ordering": "default"}


def var_ds(*, epoch, **_kw):
    return {"class": "HDFDataset", "files": [f"part{epoch % 2}.hdf"], "cache_byte_size": 0}


def map_seq(seq, *, epoch, seq_idx, rng, **_kw):
    seq.data["data"].raw_tensor = seq.data["data"].raw_tensor * 2 + epoch
    return seq


def map_stream(sequences, *, epoch, rng, **_kw):
    for number, seq in enumerate(sequences):
        if number % 2 == 0:
            yield seq


FUNCTIONS = {"sub_ds": sub_ds, "var_ds": var_ds, "map_seq": map_seq, "map_stream": map_stream}


def options_of(case):
    options = ast.literal_eval(case["opts_py"])
    return {
        name: FUNCTIONS[value[3:]] if isinstance(value, str) and value.startswith("PY:") else value
        for name, value in options.items()
    }


@pytest.fixture
def in_data_folder(monkeypatch):
    monkeypatch.chdir(GOLDEN / "data")


def sequences(dataset, epoch):
    now = dataset.at_epoch(epoch)
    examples = now.read(np.arange(len(now)))
    return [
        (tag, {name: arrays[i] for name, arrays in examples.streams.items()}) for i, tag in enumerate(examples.seq_tags)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["opts_py"][:60])
def test_returnn_reads_the_same(case, in_data_folder):
    dataset = build_dataset(options_of(case), "train")
    assert sorted(dataset.streams) == case["data_keys"]
    for epoch, expected in case["epochs"].items():
        found = sequences(dataset, int(epoch))
        num_seqs = case["num_seqs"][epoch]
        assert len(found) == (num_seqs if isinstance(num_seqs, int) else len(expected))
        for (tag, arrays), seq in zip(found, expected, strict=False):
            assert tag == seq["tag"]
            for name, array in arrays.items():
                facts = seq[name]
                assert list(array.shape) == facts["shape"]
                assert hashlib.sha1(array.astype(facts["dtype"]).tobytes()).hexdigest() == facts["sha1"]


def test_postprocessing_functions(in_data_folder):
    inner = {"class": "HDFDataset", "files": ["feat.hdf"], "seq_ordering": "reverse"}
    plain = build_dataset(inner, "train")
    mapped = build_dataset({"class": "PostprocessingDataset", "dataset": inner, "map_seq": map_seq}, "train")
    for (tag, arrays), (same_tag, source) in zip(sequences(mapped, 2), sequences(plain, 2), strict=True):
        assert tag == same_tag
        assert np.array_equal(arrays["data"], source["data"] * 2 + 2)
    stream = build_dataset({"class": "PostprocessingDataset", "dataset": inner, "map_seq_stream": map_stream}, "train")
    assert [example.seq_tag for example in stream.iterate(1)] == [tag for tag, _ in sequences(plain, 1)][::2]
    with pytest.raises(ConfigError, match="either map_seq or map_seq_stream"):
        plan_dataset({"class": "PostprocessingDataset", "dataset": inner}, "train")


def test_plan_of_a_plain_data_set():
    plan = plan_dataset(
        {"class": "HDFDataset", "files": ["a.hdf"], "partition_epoch": 2, "chunking": "100:50", "name": "x"},
        "train",
        default_ordering="laplace:.100",
    )
    assert plan.conf() == {
        "source": {"_target_": "returnn_hydra.data.hdf.HDFDataset", "files": ["a.hdf"]},
        "seq_ordering": "laplace:.100",
        "partition_epoch": 2,
        "chunking": "100:50",
        "num_workers": 0,
        "seed": 1,
    }
    assert plan.notes == ["train.name has no effect: only names the data set"]
    assert plan_dataset("a.hdf,b.hdf", "train").source["files"] == ["a.hdf", "b.hdf"]
    assert plan_dataset("{'class': 'HDFDataset', 'files': ['a.hdf']}", "dev").source["files"] == ["a.hdf"]
    assert plan_dataset(lambda: {"class": "HDFDataset", "files": "x.hdf"}, "dev").source["files"] == "x.hdf"


def test_orders_that_only_returnn_has(in_data_folder):
    options = {"class": "HDFDataset", "files": ["feat.hdf"], "seq_ordering": "random:2"}
    conf = plan_dataset(options, "train").conf()
    assert "seq_ordering" not in conf
    dataset = build_node(conf["source"])
    orders = [[tag for tag, _ in sequences(dataset, epoch)] for epoch in (1, 2, 3)]
    assert orders[0] == orders[1] != orders[2]
    expected = SeqOrder("random", fixed_random_seed=5, random_seed_offset=0).indices(1, 8)
    fixed = build_dataset({**options, "seq_ordering": "random", "fixed_random_seed": 5}, "train")
    assert [tag for tag, _ in sequences(fixed, 3)] == [f"corpus/rec{i // 2}/seg{i}" for i in expected]


def test_wanted_sequences_are_picked_from_the_order_of_all(in_data_folder):
    options = {
        "class": "HDFDataset",
        "files": ["feat.hdf"],
        "seq_ordering": "random",
        "seq_list_filter_file": "tags_subset.txt",
    }
    wanted = Path("tags_subset.txt").read_text().split()
    everything = [tag for tag, _ in sequences(build_dataset({**options, "seq_list_filter_file": None}, "x"), 1)]
    expected = [tag for tag in everything if tag in wanted]
    assert [tag for tag, _ in sequences(build_dataset(options, "x"), 1)] == expected
    assert [tag for tag, _ in sequences(build_node(plan_dataset(options, "x").conf()["source"]), 1)] == expected
    halves = [sequences(build_dataset({**options, "partition_epoch": 2}, "x"), epoch) for epoch in (1, 2)]
    assert [len(half) for half in halves] == [2, 2]
    assert sorted(tag for half in halves for tag, _ in half) == sorted(wanted)


def test_meta_takes_its_own_order_where_the_control_has_none():
    parts = {
        "f": {"class": "HDFDataset", "files": "f.hdf"},
        "a": {"class": "HDFDataset", "files": "a.hdf", "seq_ordering": "random"},
    }
    options = {
        "class": "MetaDataset",
        "datasets": parts,
        "data_map": {"data": ("f", "data")},
        "seq_order_control_dataset": "f",
    }
    assert plan_dataset({**options, "seq_ordering": "sorted"}, "train").order == {"seq_ordering": "sorted"}
    control = {**options, "seq_order_control_dataset": "a", "seq_ordering": "sorted"}
    assert plan_dataset(control, "train").order == {"seq_ordering": "random"}
    assert plan_dataset(options, "dev", default_ordering="sorted").order == {}
    with pytest.raises(ConfigError, match=r"seq_order_control_dataset='aa'.*did you mean 'a'"):
        plan_dataset({**options, "seq_order_control_dataset": "aa"}, "train")


def test_workers_of_multi_proc():
    inner = {"class": "HDFDataset", "files": "f.hdf", "seq_ordering": "random", "partition_epoch": 3}
    plan = plan_dataset({"class": "MultiProcDataset", "dataset": inner, "num_workers": 4, "buffer_size": 10}, "train")
    assert plan.conf()["num_workers"] == 4
    assert plan.order == {"seq_ordering": "random", "partition_epoch": 3}


def test_ogg_zip_options():
    options = {
        "class": "OggZipDataset",
        "path": ["a.zip"],
        "audio": {"features": "raw", "peak_normalization": False},
        "targets": {"class": "SentencePieces", "model_file": "m.model", "add_eos": True},
        "segment_file": "segments.txt",
        "fixed_random_subset": 100,
        "epoch_wise_filter": {(1, 5): {"max_mean_len": 200}, (6, None): {"max_mean_len": 500}},
        "use_cache_manager": True,
        "seq_ordering": "laplace:.1000",
    }
    source = plan_dataset(options, "train").source
    assert source["max_mean_length"] == {"1-5": 200, "6-": 500}
    assert (source["dataset"]["size"], source["dataset"]["seed"]) == (100, 42)
    assert source["dataset"]["dataset"]["seq_list_filter_file"] == "segments.txt"
    zipped = source["dataset"]["dataset"]["dataset"]
    assert zipped["audio"] == {
        "_target_": "returnn_hydra.data.features.AudioFeatures",
        "features": "raw",
        "peak_normalization": False,
    }
    assert zipped["targets"]["_target_"] == "returnn_hydra.data.subword_models.SentencePieceVocabulary"


def test_translation(in_data_folder):
    options = {
        "class": "TranslationDataset",
        "path": ".",
        "file_postfix": "tr",
        "unknown_label": "<UNK>",
        "target_postfix": " </S>",
    }
    dataset = build_dataset(options, "train")
    ((tag, arrays),) = sequences(dataset, 1)[:1]
    assert tag == "line-0"
    assert len(arrays["classes"]) == len(arrays["data"]) + 1


def test_files_of_a_language_model_as_functions(tmp_path):
    (tmp_path / "text").write_text("a b\nb\n")
    (tmp_path / "words").write_text("{'<sb>': 0, 'a': 1, 'b': 2}")
    (tmp_path / "replaced").write_text("{}")
    options = {
        "class": "LmDataset",
        "corpus_file": lambda: [str(tmp_path / "text")],
        "orth_symbols_map_file": lambda: str(tmp_path / "words"),
        "orth_replace_map_file": lambda: str(tmp_path / "replaced"),
        "word_based": True,
        "seq_end_symbol": "<sb>",
        "unknown_symbol": None,
    }
    found = sequences(build_dataset(options, "train"), 1)
    assert [streams["data"].tolist() for _, streams in found] == [[1, 2, 0], [2, 0]]


def test_generated_and_static():
    options = {"class": "Task12AXDataset", "num_seqs": 5, "fixed_random_seed": 1}
    dataset = build_dataset(options, "dev")
    assert len(sequences(dataset, 1)) == 5
    assert np.array_equal(sequences(dataset, 1)[0][1]["classes"], sequences(dataset, 7)[0][1]["classes"])
    data = [{"data": np.ones((3, 2), "float32"), "classes": np.array([1, 0, 1], "int32")}]
    static = build_dataset(
        {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2), "classes": (2, 1)}}, "x"
    )
    assert static.streams["classes"].sparse
    assert np.array_equal(sequences(static, 1)[0][1]["data"], data[0]["data"])


def test_lists_tables_and_dumps(tmp_path):
    types = {"data": {"shape": (None, 2)}, "classes": {"dim": 5, "sparse": True}}
    data = [{"data": np.ones((n, 2), "float32"), "classes": np.zeros(n, "int32")} for n in (3, 1)]
    listed = build_dataset(
        {"class": "FromListDataset", "data_list": data, "data_types": types, "seq_ordering": "sorted"}, "x"
    )
    assert [tag for tag, _ in sequences(listed, 1)] == ["seq-1", "seq-0"]

    class Rows:
        data_types = types

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return data[index]

    mapped = build_dataset({"class": "MapDatasetWrapper", "map_dataset": Rows}, "x")
    assert mapped.streams["classes"].dim == 5
    assert np.array_equal(sequences(mapped, 1)[1][1]["data"], data[1]["data"])
    np.savetxt(tmp_path / "a0.data.txt.gz", np.ones((3, 2)))
    np.savetxt(tmp_path / "a0.targets.txt.gz", np.array([1, 0, 1]))
    dump = {"class": "NumpyDumpDataset", "prefix": f"{tmp_path}/a", "num_inputs": 2, "num_outputs": 2}
    assert plan_dataset(dump, "x").source["prefix"] == f"{tmp_path}/a"
    table = {
        "class": "HuggingFaceDataset",
        "dataset_opts": {"path": "folder", "split": "train"},
        "rename_columns": {"text": "classes"},
        "data_format": {"classes": {"vocab": {"class": "Utf8ByteTargets"}}},
        "seq_tag_column": None,
    }
    assert plan_dataset(table, "x").source == {
        "_target_": "returnn_hydra.data.huggingface.HuggingFaceDataset",
        "dataset": "folder",
        "streams": {"classes": {"vocab": {"_target_": "returnn_hydra.data.vocab.Utf8Bytes"}}},
        "columns": {"classes": "text"},
        "split": "train",
        "seq_tag_column": None,
    }
    with pytest.raises(ConfigError, match=r"map_func.*save_to_disk"):
        plan_dataset({**table, "map_func": len}, "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class": "HDFDatset"}, r"train\.class='HDFDatset': no such data set; did you mean 'HDFDataset'"),
        ({"files": []}, r"train: 'class' is missing"),
        ({"class": "HDFDataset", "file": "x"}, "'files' is missing; did you mean 'file'"),
        (
            {"class": "HDFDataset", "files": "x", "seq_orderng": "random"},
            "unknown option 'seq_orderng'; did you mean 'seq_ordering'",
        ),
        ({"class": "HDFDataset", "files": "x", "window": 3}, r"train\.window=3: windows of frames"),
        ({"class": "HDFDataset", "files": "x", "context_window": {"data": 5}}, "context_window"),
        ({"class": "ExternSprintDataset"}, "dump its data to HDF"),
        ({"class": "LmDataset", "corpus_file": "x"}, "expected orth_vocab or orth_symbols_map_file"),
        (
            {"class": "OggZipDataset", "path": "x", "targets": {"class": "Vocab"}},
            r"train\.targets\.class='Vocab'.*'Vocabulary'",
        ),
        ("config:train_data", "write the dict itself"),
        (5, "expected a dict with 'class'"),
    ],
)
def test_errors_teach(options, message):
    with pytest.raises(ConfigError, match=message):
        plan_dataset(options, "train")


def test_vocabularies():
    assert vocab_node(None, "x") is None
    assert vocab_node({"bpe_file": "b", "vocab_file": "v"}, "x") == {
        "_target_": "returnn_hydra.data.bpe.BytePairEncoding",
        "unknown_label": "UNK",
        "bpe_file": "b",
        "vocab_file": "v",
    }
    assert vocab_node({"class": "CharacterTargets", "vocab_file": "v"}, "x")["unknown_label"] == "@"
    with pytest.raises(ConfigError, match=r"x: unknown option 'vocab_flie'; did you mean 'vocab_file'"):
        vocab_node({"vocab_flie": "v"}, "x")


def test_only_our_data_classes_are_built():
    with pytest.raises(ConfigError, match="is built here"):
        build_node({"_target_": "os.system", "command": "true"})
    assert not set(CLASSES) & set(UNSUPPORTED)
