"""`import returnn` inside and outside of the hook."""

import importlib
import sys

import pytest

from returnn_hydra.compat.import_hook import RETURNN_NAMES, returnn_imports

IMPORTS = {
    "returnn.tensor": ["Tensor", "Dim", "batch_dim", "single_step_dim", "TensorDict"],
    "returnn.tensor.tensor_dict": ["TensorDict", "Tensor"],
    "returnn.tensor.dim": ["Dim", "batch_dim"],
    "returnn.frontend": ["Tensor", "Dim", "Module", "Linear", "get_run_ctx"],
    "returnn.frontend.tensor_array": ["TensorArray"],
    "returnn.frontend.encoder.conformer": ["ConformerEncoder", "ConformerEncoderLayer", "ConformerConvSubsample"],
    "returnn.frontend.encoder.base": ["ISeqDownsamplingEncoder", "ISeqFramewiseEncoder"],
    "returnn.frontend.decoder.transformer": ["TransformerDecoder", "TransformerDecoderLayer", "FeedForwardGated"],
    "returnn.frontend.attention": ["RelPosSelfAttention", "dot_attention", "_apply_rope"],
    "returnn.frontend.loss": ["cross_entropy", "ctc_best_path", "ctc_durations_from_path"],
    "returnn.frontend.label_smoothing": ["label_smoothing", "smooth_one_hot", "label_smoothed_log_prob_gradient"],
    "returnn.frontend.state": ["State"],
    "returnn.torch.frontend.bridge": ["rf_module_to_pt_module", "PTModuleAsRFModule"],
    "returnn.torch.context": ["get_run_ctx", "RunCtx", "Loss", "init_train_step_run_ctx", "init_load_run_ctx"],
    "returnn.forward_iface": ["ForwardCallbackIface"],
    "returnn.config": ["get_global_config", "set_global_config", "global_config_ctx", "Config"],
    "returnn.log": ["log"],
    "returnn.util.basic": [
        "cf",
        "NotSpecified",
        "NumbersDict",
        "hms",
        "get_login_username",
        "BehaviorVersion",
        "Stats",
    ],
    "returnn.util.math": ["PiecewiseLinear"],
    "returnn.util": ["BehaviorVersion", "NumbersDict", "better_exchook"],
    "returnn.util.pprint": ["pformat"],
    "returnn.util.file_cache": ["CachedFile"],
    "returnn.datasets": ["init_dataset", "Dataset"],
    "returnn.datasets.hdf": ["SimpleHDFWriter", "HDFDataset"],
    "returnn.datasets.util.vocabulary": ["Vocabulary", "BytePairEncoding"],
    "tensorflow": ["shape", "nn", "math", "random"],
    "tensorflow.compat.v1": ["shape", "while_loop"],
    "returnn.tf.compat": ["v1"],
    "returnn.tf.compat.v1": ["shape"],
    "returnn.tf.util.basic": ["where_bc", "safe_log", "nd_indices", "tile_transposed"],
    "returnn.tf.util.data": ["Data", "Dim", "SpatialDim", "FeatureDim", "batch_dim", "DimensionTag"],
    "returnn.tf.network": ["TFNetwork"],
    "returnn.tf.layers.base": ["LayerBase"],
    "returnn.pretrain": ["WrapEpochValue"],
    "TFUtil": ["where_bc", "DimensionTag", "Data"],
    "returnn.torch.engine": ["Engine", "TrainCtx", "get_global_engine"],
    "returnn.torch.util.diagnose_gpu": ["diagnose_no_gpu", "print_available_devices"],
    "returnn.torch.data.tensor_utils": ["tensor_dict_numpy_to_torch_"],
    "returnn.torch.data.extern_data": ["extern_data_template_from_config_opts"],
    "returnn.tensor.utils": ["tensor_dict_fill_random_numpy_"],
    "returnn.datasets.postprocessing": ["LaplaceOrdering", "Sequential"],
    "returnn.datasets.cached2": ["CachedDataset2"],
    "returnn.__main__": ["main"],
}


@pytest.mark.parametrize("module", IMPORTS)
def test_what_configs_import_is_there(module):
    with returnn_imports():
        imported = importlib.import_module(module)
        for name in IMPORTS[module]:
            assert hasattr(imported, name), name


def test_every_entry_of_the_table_can_be_imported():
    with returnn_imports():
        for name in RETURNN_NAMES:
            importlib.import_module(name)


def test_the_usual_statements():
    with returnn_imports():
        import returnn
        import returnn.frontend as rf
        from returnn.frontend.encoder.conformer import ConformerEncoder
        from returnn.tensor import Dim, batch_dim

        assert "hydra" in returnn.__version__
        assert rf.encoder.conformer.ConformerEncoder is ConformerEncoder
        assert rf.Dim is Dim
        assert batch_dim.is_batch_dim()


def test_missing_names_are_answered_with_what_there_is():
    with returnn_imports():
        import returnn.frontend as rf

        with pytest.raises(AttributeError, match=r"has no 'Liner'.*did you mean Linear"):
            _ = rf.Liner
        with pytest.raises(ImportError, match="TransformerDecoderr"):
            from returnn.frontend.decoder.transformer import TransformerDecoderr  # noqa: F401
        with pytest.raises(ModuleNotFoundError, match=r"did you mean.*returnn.tensor"):
            importlib.import_module("returnn.tensors")


def test_outside_everything_is_as_before(monkeypatch, tmp_path):
    package = tmp_path / "returnn"
    package.mkdir()
    (package / "__init__.py").write_text("REAL = True\n")
    (package / "config.py").write_text("REAL = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    real, real_config = importlib.import_module("returnn"), importlib.import_module("returnn.config")
    try:
        with returnn_imports():
            import returnn.config as ours

            assert not hasattr(ours, "REAL")
            with returnn_imports():
                assert importlib.import_module("returnn.config") is ours
            assert importlib.import_module("returnn.config") is ours
        assert sys.modules["returnn"] is real
        assert importlib.import_module("returnn.config") is real_config
        assert "returnn.frontend" not in sys.modules
    finally:
        for name in ("returnn", "returnn.config"):
            sys.modules.pop(name, None)


def test_an_error_inside_restores_too():
    with pytest.raises(ModuleNotFoundError), returnn_imports():
        import returnn.nothing  # noqa: F401
    assert not [name for name in sys.modules if name.split(".")[0] == "returnn"]


def test_simple_hdf_writer(tmp_path):
    import numpy as np

    with returnn_imports():
        from returnn.datasets.hdf import SimpleHDFWriter
    writer = SimpleHDFWriter(str(tmp_path / "out.hdf"), dim=3)
    values = np.arange(24, dtype="float32").reshape(2, 4, 3)
    writer.insert_batch(values, [4, 2], ["a", "b"])
    writer.close()
    import h5py

    with h5py.File(tmp_path / "out.hdf") as file:
        np.testing.assert_array_equal(file["inputs"], np.concatenate([values[0], values[1, :2]]))
        assert file["seqLengths"][:, 0].tolist() == [4, 2]
        assert [tag.decode() for tag in file["seqTags"]] == ["a", "b"]


def test_log_lines_become_records(caplog):
    with returnn_imports():
        from returnn.log import log
    with caplog.at_level("INFO", logger="returnn"):
        print("hello", 3, file=log.v3)
    assert [record.message for record in caplog.records] == ["hello 3"]


def test_numbers_dict_and_piecewise_linear():
    with returnn_imports():
        from returnn.util.basic import NumbersDict, hms, human_bytes_size, model_epoch_from_filename
        from returnn.util.math import PiecewiseLinear
    assert (NumbersDict({"a": 2, "b": 3}) / NumbersDict({"a": 2, "b": 1})).dict == {"a": 1, "b": 3}
    assert (NumbersDict({"a": 2}) + 1)["a"] == 3
    assert PiecewiseLinear({0: 0.0, 10: 1.0, 20: 0.5})(15) == 0.75
    assert hms(3725) == "1:02:05"
    assert human_bytes_size(1536) == "1.5KB"
    assert model_epoch_from_filename("net/model.012.pt") == 12


def test_vocabularies_have_returnns_methods():
    with returnn_imports():
        from returnn.datasets.util.vocabulary import CharacterTargets, Utf8ByteTargets, Vocabulary
    vocab = Vocabulary.create_vocab(vocab_file=None, labels=["a", "b", "<s>"], unknown_label=None, bos_label=2)
    assert vocab.get_seq("a b a") == [0, 1, 0] and vocab.get_seq_labels([0, 1]) == "a b"
    assert (vocab.bos_label_id, vocab.eos_label_id, vocab.unknown_label_id, vocab.num_labels) == (2, None, None, 3)
    assert vocab.label_to_id("b") == 1 and vocab.id_to_label(7, default="x") == "x" and not vocab.is_id_valid(3)
    assert Utf8ByteTargets().get_seq("a\u00e4") == [97, 195, 164]
    characters = CharacterTargets(None, labels=["a", "b", "@", " "])
    assert characters.get_seq("ab c") == [0, 1, 3, 2] and characters.get_seq_labels([0, 1, 2]) == "ab@"
    assert isinstance(characters, Vocabulary)


def test_names_for_annotations_can_be_derived_from_but_not_made():
    with returnn_imports():
        from returnn.datasets.cached2 import CachedDataset2

    class Mine(CachedDataset2):
        pass

    with pytest.raises(TypeError, match=r"Mine: .*CachedDataset2 is there for annotations"):
        Mine()


def test_random_values_for_templates():
    import torch

    with returnn_imports():
        from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
        from returnn.tensor.utils import tensor_dict_fill_random_numpy_
        from returnn.torch.data.tensor_utils import tensor_dict_numpy_to_torch_
    time, labels = Dim(None, name="time"), Dim(5, name="labels")
    data = TensorDict({"x": Tensor("x", dims=[batch_dim, time], dtype="int32", sparse_dim=labels)})
    tensor_dict_fill_random_numpy_(data)
    tensor_dict_numpy_to_torch_(data)
    raw, lengths = data["x"].raw_tensor, time.dyn_size_ext.raw_tensor
    assert isinstance(raw, torch.Tensor) and raw.shape == (len(lengths), int(lengths.max())) and raw.min() >= 0
    assert raw.max() < 5


def test_sequences_of_a_stream_in_bins():
    import numpy as np

    with returnn_imports():
        from returnn.datasets.postprocessing import LaplaceOrdering, Sequential
        from returnn.tensor import Dim, Tensor, TensorDict

    def sequences(lengths, **_):
        for length in lengths:
            raw = np.zeros(length, dtype="float32")
            yield TensorDict({"data": Tensor("data", dims=[Dim(None, name="t")], dtype="float32", raw_tensor=raw)})

    both = Sequential(sequences, LaplaceOrdering(3))
    assert [len(t["data"].raw_tensor) for t in both([5, 2, 9, 4, 7, 1], epoch=1)] == [2, 5, 9, 7, 4, 1]


def test_tree_where_it_is_not_installed():
    import torch

    with returnn_imports():
        import returnn.frontend as rf
        import tree

        state = rf.State(b=rf.State(h=torch.ones(2), c=torch.zeros(2)), a=[1, (2, 3)])
        new = tree.map_structure(lambda x: x + 1, state)
        assert isinstance(new, rf.State) and isinstance(new.b, rf.State) and new.a == [2, (3, 4)]
        assert new.b.c.tolist() == [1.0, 1.0]
        assert [path for path, _ in tree.flatten_with_path(new)] == [
            ("a", 0), ("a", 1, 0), ("a", 1, 1), ("b", "c"), ("b", "h")
        ]  # fmt: skip
        assert tree.unflatten_as([0, {"x": 0}], [5, 6]) == [5, {"x": 6}]
        with pytest.raises(ValueError, match="the structures differ"):
            tree.map_structure(lambda x, y: x, [1, 2], [1, [2]])
    assert importlib.util.find_spec("tree") is not None or "tree" not in sys.modules


OLD = {"Util": "hms", "TFUtil": "where_bc", "Pretrain": "WrapEpochValue", "GeneratingDataset": "Vocabulary"}


def test_names_of_modules_before_2020():
    with returnn_imports():
        for old, attribute in {
            **OLD,
            "Log": "log",
            "TFNetworkLayer": "LayerBase",
            "TFEngine": "get_global_engine",
        }.items():
            assert getattr(importlib.import_module(old), attribute) is not None
        assert importlib.import_module("returnn.Config").get_global_config is not None
        assert importlib.import_module("returnn.TFEngine").get_global_engine() is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("Fsa")
    assert not {"Util", "Pretrain", "Log", "returnn.Config"} & set(sys.modules)


def test_a_users_own_module_comes_before_an_old_name(tmp_path, monkeypatch):
    (tmp_path / "Util.py").write_text("own = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    with returnn_imports():
        assert importlib.import_module("Util").own == 3
    assert sys.modules.pop("Util").own == 3
