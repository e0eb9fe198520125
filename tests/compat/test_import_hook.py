"""`import returnn` inside and outside of the hook."""

import importlib
import sys

import pytest

from returnn_hydra.compat.import_hook import RETURNN_NAMES, returnn_imports
from returnn_hydra.compat.returnn_session import returnn_session
from returnn_hydra.compat.shim.config import Config
from returnn_hydra.config.errors import ConfigError

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


def test_session_gives_config_and_behavior_version():
    with returnn_session(Config({"behavior_version": 21, "batch_size": 7})):
        from returnn.config import get_global_config
        from returnn.util.basic import BehaviorVersion

        assert BehaviorVersion.get() == 21
        assert get_global_config().typed_value("batch_size") == 7
    with returnn_session(Config()):
        from returnn.util.basic import BehaviorVersion

        assert BehaviorVersion.get() == 16, "what RETURNN's frontend uses without a version"
    with pytest.raises(ConfigError, match="behavior_version=99"), returnn_session(Config({"behavior_version": 99})):
        pass


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
