import pytest
import torch
from torch import nn

from returnn_hydra.engine.errors import DamagedStateError, StateError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.init_params import InitFrom

DISK = FileSystem()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        self.output = nn.Linear(2, 4)


@pytest.fixture
def encoder_file(tmp_path):
    source = nn.Linear(3, 2)
    torch.save({"model": source.state_dict(), "epoch": 7, "step": 70}, tmp_path / "encoder.007.pt")
    return tmp_path / "encoder.007", source


def test_weights_of_a_part_by_prefix(encoder_file):
    path, source = encoder_file
    model = Model()
    before = model.output.weight.clone()
    assert InitFrom(str(path), prefix="encoder.").apply(model, DISK) == ["encoder.weight", "encoder.bias"]
    assert torch.equal(model.encoder.weight, source.weight)
    assert torch.equal(model.output.weight, before)


def test_missing_parameters_are_an_error_unless_accepted(encoder_file):
    path, source = encoder_file
    with pytest.raises(DamagedStateError, match=r"no encoder\.weight"):
        InitFrom(str(path)).apply(Model(), DISK)
    model = Model()
    names = {"encoder.weight": "weight", "encoder.bias": "bias"}
    InitFrom(str(path), name_map=names, ignore_missing=True).apply(model, DISK)
    assert torch.equal(model.encoder.bias, source.bias)


def test_another_shape_names_both(encoder_file):
    path, _ = encoder_file
    with pytest.raises(DamagedStateError, match=r"'weight' has shape \(2, 3\).*'output.weight' has \(4, 2\)"):
        InitFrom(str(path), prefix="output.").apply(Model(), DISK)


def test_ignored_parameters_are_not_loaded(encoder_file):
    path, source = encoder_file
    model = Model()
    init = InitFrom(str(path), prefix="encoder.", ignore=["b*"], ignore_missing=True)
    assert init.apply(model, DISK) == ["encoder.weight"]
    assert not torch.equal(model.encoder.bias, source.bias)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="the extra `safetensors` is not installed")
    source = Model()
    safetensors.save_file(source.state_dict(), str(tmp_path / "m.safetensors"))
    model = Model()
    InitFrom(str(tmp_path / "m.safetensors")).apply(model, DISK)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_no_such_file_is_named(tmp_path):
    with pytest.raises(StateError, match="nothing"):
        InitFrom(str(tmp_path / "nothing")).apply(Model(), DISK)
